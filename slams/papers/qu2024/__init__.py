"""Latent-space assimilation of temperature with rain and radiation, as published by Qu et al. (2024)."""
