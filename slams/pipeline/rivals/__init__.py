"""Rivals that know the equations of the synthetic planet."""
