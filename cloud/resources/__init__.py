"""Everything the product needs in a Google Cloud project: declared once, created, compared, deleted."""
