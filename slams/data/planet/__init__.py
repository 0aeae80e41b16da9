"""The synthetic archive."""
