"""Surveys: synthetic observations of a truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.covariance import Covariance, Isotropic
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, uniform
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Operator


@dataclass(frozen=True)
class Instrument:
    """One modality of a survey: y = h(x) + e, e ~ N(0, R), at some steps and some of the locations.

    Attributes:
        operator: Observation operator h: (*B, *S) -> (*B, *O).
        noise: Error covariance R over the flattened (*O).
        every: Interval between observations [steps].
        start: First step observed.
        missing: Probability of each value to be missing, drawn anew at each step.
        times: Observed steps, in place of `every` and `start`.

    Raises:
        ValueError: If a setting is invalid.
    """

    operator: Operator
    noise: Covariance
    every: int = 1
    start: int = 0
    missing: float = 0.0
    times: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or self.start < 0 or not 0 <= self.missing < 1:
            raise InvalidValueError(
                "need every >= 1, start >= 0 and 0 <= missing < 1, got "
                f"every {self.every}, start {self.start} and missing {self.missing}."
            )

    def steps(self, length: int) -> list[int]:
        """Observed steps of a truth of `length` steps.

        Raises:
            ValueError: If no step is observed, or a step of `times` lies outside.
        """
        if self.times is None:
            steps = list(range(self.start, length, self.every))
        else:
            steps = sorted({int(k) for k in self.times})
        if not steps or steps[0] < 0 or steps[-1] >= length:
            raise InvalidValueError(
                f"a truth of {length} steps would be observed at steps {steps[:3]}...{steps[-1:]}; "
                "there must be at least one in [0, length)."
            )
        return steps

    def observe(self, truth: Tensor, *, event: int = 1, rng: Rng = None) -> Observation:
        """See `Survey.observe`."""
        rng = generator(rng, "observation errors")
        length, axis = truth.shape[-1 - event], truth.ndim - 1 - event
        steps = torch.tensor(self.steps(length), device=truth.device)
        exact = self.operator(truth.index_select(axis, steps))
        if not bool(torch.isfinite(exact).all()):
            raise InvalidValueError(
                f"{self.operator} of the truth is not finite everywhere; scale its argument."
            )
        values = exact.ndim - axis - 1  # axes of *O
        size = exact.shape[exact.ndim - values :].numel()
        noise = self.noise.sized(size, exact).to(exact)
        seen = exact.reshape(*exact.shape[: axis + 1], size) + noise.sample(*exact.shape[: axis + 1], rng=rng)
        if self.missing:
            seen = seen.masked_fill(uniform(seen.shape, like=seen, rng=rng) < self.missing, torch.nan)
        shape = (*exact.shape[:axis], length, *exact.shape[axis + 1 :])
        value = exact.new_full(shape, torch.nan).index_copy(axis, steps, seen.reshape(exact.shape))
        return Observation(value, self.operator, noise, values)


class Survey:
    """Observing system of a twin experiment: operators, errors and times of observation.

    Args:
        operator: Observation operator h, or one per modality by name.
        noise: Error covariance R, a float (the variance of every value), or one per modality by name.
        every: Interval between observations [steps].
        start: First step observed.
        missing: Probability of each value to be missing, drawn anew at each step: irregular in space.
        times: Observed steps, in place of `every` and `start`: irregular in time.

    Raises:
        ValueError: If a setting is invalid or names do not match.

    >>> survey = Survey(lambda x: x[..., :2], 0.01, every=2)
    >>> survey.observe(torch.zeros(5, 3)).step(1) is None
    True
    """

    def __init__(
        self,
        operator: Operator | Mapping[str, Operator],
        noise: Covariance | float | Mapping[str, Covariance | float],
        *,
        every: int = 1,
        start: int = 0,
        missing: float = 0.0,
        times: Sequence[int] | None = None,
    ) -> None:
        operators = operator if isinstance(operator, Mapping) else {"observation": operator}
        noises = noise if isinstance(noise, Mapping) else dict.fromkeys(operators, noise)
        if not operators or set(operators) != set(noises):
            raise InvalidValueError(
                f"operators are named {sorted(operators)} and noises {sorted(noises)}; name the same ones."
            )
        self.instruments = {
            name: Instrument(h, _covariance(noises[name]), every, start, missing, times)
            for name, h in operators.items()
        }

    @classmethod
    def join(cls, surveys: Mapping[str, "Survey"]) -> "Survey":
        """Join surveys with separate times into one.

        Args:
            surveys: Surveys by name. A single modality takes the survey's name, one of several "name.modality".

        Returns:
            One survey of all modalities.

        Raises:
            ValueError: If there is no survey.
        """
        if not surveys:
            raise InvalidValueError("there is no survey to join; give at least one.")
        joined = cls.__new__(cls)
        joined.instruments = {
            name if len(survey.instruments) == 1 else f"{name}.{inner}": instrument
            for name, survey in surveys.items()
            for inner, instrument in survey.instruments.items()
        }
        return joined

    def observe(self, truth: Tensor, *, event: int = 1, rng: Rng = None) -> Observations:
        """y = h(x) + e with e ~ N(0, R), NaN where nothing is observed.

        Args:
            truth: True trajectory, (*B, L, *S), finite.
            event: Number of axes of *S.
            rng: Generator or seed, used by the modalities in turn.

        Returns:
            Values (*B, L, *O) of each modality.

        Raises:
            ValueError: If the truth has too few axes or is not finite, or no step of it is observed.
        """
        rng = generator(rng, "observation errors")
        if truth.ndim < event + 1:
            raise InvalidValueError(
                f"a truth has axes (*B, L, *S), here with {event} of the state; got shape {tuple(truth.shape)}."
            )
        finite = torch.isfinite(truth)
        if not bool(finite.all()):
            axes = [axis for axis in range(truth.ndim) if axis != truth.ndim - 1 - event]
            first = int((~finite).sum(axes).gt(0).nonzero()[0])
            raise InvalidValueError(
                f"the truth is not finite from step {first} on; shorten its time step or the run."
            )
        return Observations(
            {name: part.observe(truth, event=event, rng=rng) for name, part in self.instruments.items()}
        )


def _covariance(noise: Covariance | float) -> Covariance:
    return noise if isinstance(noise, Covariance) else Isotropic(noise)
