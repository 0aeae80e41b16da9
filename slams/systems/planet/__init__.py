"""The climate and the surface of the synthetic planet."""
