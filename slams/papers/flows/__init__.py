"""Archive and score prior of the Kolmogorov flow."""
