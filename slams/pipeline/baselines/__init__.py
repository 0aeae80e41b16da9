"""Reference analyses of a run."""
