"""Geometry of states and observations: distances, localization tapers, the torus and the sphere."""
