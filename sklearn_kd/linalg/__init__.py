"""Linear algebra on kernel matrices."""
