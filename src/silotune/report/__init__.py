"""What a run cost and gave: the live table, the model card, samples, and the page."""
