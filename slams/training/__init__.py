"""Training of priors: the training loop."""
