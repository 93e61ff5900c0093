"""Synthetic card transactions and their publication under a chosen load."""
