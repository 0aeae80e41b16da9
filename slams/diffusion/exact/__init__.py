"""Denoisers in closed form: Gaussians and mixtures."""
