"""Generative EnKF on Lorenz-96 with model error (Asahi et al. 2023)."""
