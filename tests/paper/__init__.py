"""The published tables, and runs beside them."""
