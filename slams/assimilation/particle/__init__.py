"""Particle filters and backward simulation."""
