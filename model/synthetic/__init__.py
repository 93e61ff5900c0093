"""Synthetic card transactions: training data where there are none, and what the publisher sends."""
