"""The one verb: assimilate."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slams.core.random import Rng
from slams.observation.observation import Observations


@dataclass(frozen=True)
class Posterior:
    """An ensemble of equally likely trajectories.

    Attributes:
        samples: (N, T, *S).
        diagnostics: Numbers along the trajectory.
    """

    samples: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)


class Assimilator(abc.ABC):
    """A prior and a rule; the data come with the call."""

    @abc.abstractmethod
    def assimilate(self, observations: Observations, size: int, *, rng: Rng = None) -> Posterior:
        """Draw a posterior ensemble.

        Args:
            observations: What was seen along one trajectory, values (T, *O).
            size: Number of members N.
            rng: Generator.

        Returns:
            The ensemble, (N, T, *S).

        Raises:
            ValueError: If `size` is below 1.
        """
