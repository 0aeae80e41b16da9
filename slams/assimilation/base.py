"""The one verb, assimilate, and what it returns."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slams.core.random import Rng
from slams.observation.observation import Observations


@dataclass(frozen=True)
class Explanation:
    """What one analysis did, at the points that were observed.

    Attributes:
        innovation: Observation minus forecast mean, in units of the observation error, (*B, O); 0 where
            nothing was seen.
        increment: Analysis mean minus forecast mean, (*B, *S) [unit of the state].
        effective_size: Number of members that carry the weight, (*B).
        influence: Analysis variance over error variance of every observation, (*B, O): the share of the
            analysis at that point which the observation itself decides.

    Source:
        Influence: Cardinali, Pezzulli & Andersson (2004), doi:10.1256/qj.03.205, eq. 3.4; from an ensemble:
        Liu, Kalnay et al. (2009), doi:10.1002/qj.511, eq. 8.
    """

    innovation: Tensor
    increment: Tensor
    effective_size: Tensor
    influence: Tensor


@dataclass(frozen=True)
class Posterior:
    """What is believed after the observations: an ensemble of equally likely trajectories, or its moments.

    Attributes:
        samples: (*B, N, L, *S), or None where only less was kept.
        diagnostics: Numbers along the trajectory, (*B, L), NaN at steps that have none.
        mean: (*B, L, *S), or None.
        variance: Unbiased variance of the members, (*B, L, *S), or None.
        explanations: What the analyses asked for did, by step.
        seed: Seed of the random draws: passed as `rng` it gives the same members again; of a generator its own.
    """

    samples: Tensor | None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    mean: Tensor | None = None
    variance: Tensor | None = None
    explanations: Mapping[int, Explanation] = field(default_factory=dict)
    seed: int | None = None

    def explain(self, cycle: int) -> Explanation:
        """What the analysis of one step did.

        Args:
            cycle: Its step.

        Returns:
            Innovation, increment, effective sample size and influence of the observations.

        Raises:
            ValueError: If that step was not recorded.
        """
        if cycle not in self.explanations:
            raise ValueError(
                f"step {cycle} was not explained (recorded: {sorted(self.explanations)}); pass "
                f"explain=[{cycle}] to `assimilate`, and make sure something is observed there."
            )
        return self.explanations[cycle]


class Assimilator(abc.ABC):
    """A prior and a rule; the data come with the call."""

    @abc.abstractmethod
    def assimilate(self, observations: Observations, members: int, *, rng: Rng = None) -> Posterior:
        """Draw a posterior ensemble.

        Args:
            observations: What was seen along the trajectory, values (*B, L, *O).
            members: Number of members N.
            rng: Generator or seed; a fresh seed if None, kept in the posterior.

        Returns:
            The ensemble, (*B, N, L, *S).

        Raises:
            ValueError: If `members` is below 1.
        """
