"""Everything together: from a recipe to a trained run, and methods side by side on a simulated truth."""

from slams.experiments.twin import Result, TwinExperiment

__all__ = ["Result", "TwinExperiment"]
