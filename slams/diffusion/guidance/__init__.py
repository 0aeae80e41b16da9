"""Posterior means E[x | x_t, y] of a denoiser given observations."""
