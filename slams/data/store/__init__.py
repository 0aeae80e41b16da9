"""Stores of daily fields and of their statistics."""
