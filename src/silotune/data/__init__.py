"""Rows of text, the silos that hold them, and how they become tokens and batches."""
