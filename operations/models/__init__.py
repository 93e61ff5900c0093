"""`anomaly model`: rolls models out, takes them back, and lists them."""
