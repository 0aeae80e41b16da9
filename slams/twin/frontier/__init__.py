"""Accuracy against cost over set-ups, and advice that follows from it."""
