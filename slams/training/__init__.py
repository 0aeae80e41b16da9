"""Data to belief: the training loop."""
