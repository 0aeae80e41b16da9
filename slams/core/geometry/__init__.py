"""Where values lie: distances, localization tapers, the torus and the sphere."""
