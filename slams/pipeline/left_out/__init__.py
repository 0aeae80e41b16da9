"""Fits without one season of the training days each: errors of years to come, and a test on every season."""
