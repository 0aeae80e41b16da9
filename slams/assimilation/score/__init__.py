"""Score-based filters and smoothers, in state space and in a latent space."""
