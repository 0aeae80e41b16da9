"""Twin experiments: methods tried where the truth is known."""

from slams.twin.experiment import Result, TwinExperiment
from slams.twin.twin import Twin

__all__ = ["Result", "Twin", "TwinExperiment"]
