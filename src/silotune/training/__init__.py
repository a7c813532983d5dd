"""The one local training loop, its loss, and evaluation."""
