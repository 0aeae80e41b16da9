"""Reference methods: climatology, persistence, interpolation, the closed-form Gaussian."""
