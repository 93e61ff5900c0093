"""Beam transforms over Arrow record batches, and the pure functions beside them."""
