"""Belief and observations to a posterior."""
