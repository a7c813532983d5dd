"""A silo's own side."""
