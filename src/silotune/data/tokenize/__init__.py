"""Rows to tokens, as a base's own chat template writes them, and tokens on disk."""
