"""Fluid flows on the torus and in channels."""
