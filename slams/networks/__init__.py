"""Plain networks: no diffusion, no data."""
