"""EnSF on surface quasi-geostrophic turbulence (Bao et al. 2024)."""
