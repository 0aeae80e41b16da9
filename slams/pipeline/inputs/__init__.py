"""Fields, observations and operators of a run."""
