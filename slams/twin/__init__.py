"""Twin experiments: methods tried where the truth is known."""

from slams.twin.experiment import Result, TwinExperiment

__all__ = ["Result", "TwinExperiment"]
