"""LETKF with a corrected model: the mean of past analysis increments is a sample of the model's error."""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.local import LETKF, LocalizationKeywords
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_SETTLED = 10  # analyses before an estimate of the model's error is used


class BiasAwareLETKF(LETKF):
    """LETKF that adds the estimated error v of its model to every forecast.

    With n steps since the last analysis,

        x_i <- M(x_i) + v,    v averages (analysis mean - forecast mean) / n + v over `closure` analyses.

    Where the model is right the increments have mean 0, and v is their sampling error. An analysis takes off only a
    part of the error; what is left of it enters the next increments, so that v settles at the whole error over a few
    times `closure` analyses. It is first applied after ten analyses. Site by site v is shrunk towards its mean over the
    sites by the factor of Efron and Morris (see `shrunk`). "model_error" is its mean over the sites.

    Args:
        dynamics: The model.
        closure: Analyses over which v is averaged; 0 for the LETKF.
        uniform: Whether the error is the same at all sites.
        common: Keywords of `LocalizationKeywords`.

    Raises:
        ValueError: If `closure` is negative.

    Source:
        Dee & da Silva (1998), doi:10.1002/qj.49712454512, with the mean over time in place of a gain.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        closure: int = 10,
        uniform: bool = False,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if closure < 0:
            raise InvalidValueError(f"closure must not be negative, got {closure}; 0 corrects nothing.")
        self.closure, self.uniform = closure, uniform

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`; nothing is known of the error."""
        begin_increments(x.flatten(self._axis + 1), memory)
        return x

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; corrected."""
        if "age" not in memory.carry:
            self.start(x, memory)
        memory.carry["age"] = memory.carry["age"] + 1
        error = self._error(memory).reshape(*x.shape[: self._axis], 1, *self.dynamics.state_shape)
        return super().forecast(x, memory, rng=rng) + error

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        if "age" not in memory.carry:
            self.start(forecast, memory)
        analysis = super().analyse(forecast, observation, rng=rng, memory=memory)
        flat = self._axis + 1
        note_increment(
            forecast.flatten(flat), analysis.flatten(flat), observation, memory, self.closure, self.bound
        )
        memory.diagnostics["model_error"] = self._error(memory).mean(-1)
        return analysis

    def _error(self, memory: Memory) -> Tensor:
        """v, (*B, d)."""
        return evened(Mean.get("increments", memory).estimate(self.closure), self.uniform)


@dataclass(frozen=True)
class Mean:
    """A running mean of samples at d sites.

    Attributes:
        mean: Mean, (*B, d).
        square: Mean of squares, (*B, d).
        count: Number of samples, (*B).
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def blank(cls, like: Tensor) -> "Mean":
        """A mean without samples, of shape (*B, d)."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like[..., 0]))

    @classmethod
    def get(cls, name: str, memory: Memory) -> "Mean":
        """Read from the variables of a filter."""
        return cls(*(memory.carry[f"{name}_{part}"] for part in ("mean", "square", "count")))

    def put(self, name: str, memory: Memory) -> None:
        """Write to the variables of a filter."""
        memory.carry |= {f"{name}_{part}": value for part, value in vars(self).items()}

    def updated(self, sample: Tensor, known: Tensor, horizon: int) -> "Mean":
        """Update by a sample (*B, d) where `known` (*B), approximately the mean of the last `horizon`."""
        count = self.count + known
        rate = (known / count.clamp(1, horizon)).unsqueeze(-1)
        sample = torch.where(known.unsqueeze(-1), sample, 0.0)
        return Mean(
            self.mean + rate * (sample - self.mean),
            self.square + rate * (sample.square() - self.square),
            count,
        )

    def estimate(self, horizon: int) -> Tensor:
        """The mean, shrunk over the sites, (*B, d); 0 as long as the samples are few."""
        enough = (self.count >= _SETTLED).to(self.mean).unsqueeze(-1)
        return enough * shrunk(self.mean, self.square, self.count.clamp(1, max(horizon, 1)))


def begin_increments(x: Tensor, memory: Memory) -> None:
    """Variables of `note_increment` before the first analysis of members (*B, N, d)."""
    memory.carry["age"] = torch.zeros_like(x[..., 0, 0])  # steps since the last analysis
    Mean.blank(x[..., 0, :]).put("increments", memory)


def note_increment(
    forecast: Tensor, analysis: Tensor, observation: Observation, memory: Memory, closure: int, bound: float
) -> None:
    """Take the mean increment of an analysis into the running mean, and begin to count steps anew.

    Args:
        forecast: Members, (*B, N, d).
        analysis: Members, (*B, N, d).
        observation: Observation; a replicate without values has no increment.
        memory: Variables of the filter.
        closure: Analyses of the running mean; 0 leaves it as it is.
        bound: Largest credible value: one that is not finite would stay in the mean for good.
    """
    age, seen = memory.carry["age"], observation.seen.any(-1).expand(forecast.shape[:-2])
    if closure:
        mean = Mean.get("increments", memory)
        increment = (analysis - forecast).mean(-2) / age.clamp(min=1).unsqueeze(-1)
        known = seen & (analysis.abs() < bound).all(-1).all(-1) & (age > 0)
        applied = mean.mean * (mean.count >= _SETTLED).to(mean.mean).unsqueeze(-1)
        mean.updated(applied + increment, known, closure).put("increments", memory)
    memory.carry["age"] = age * ~seen


def evened(error: Tensor, uniform: bool) -> Tensor:
    """An error (*B, d), or its mean at every site."""
    return error.mean(-1, keepdim=True).expand_as(error) if uniform else error


def shrunk(mean: Tensor, square: Tensor, count: Tensor) -> Tensor:
    """Means of noisy samples at d sites, drawn towards their common mean as far as chance explains their differences.

    m + B (mean_i - m),   B = max(0, 1 - v / s^2),  v = mean over sites of (square - mean^2) / count,

    m and s^2 mean and variance of the means over the sites.

    Args:
        mean: Running means, (*B, d).
        square: Running means of squares, (*B, d).
        count: Effective number of samples, (*B).

    Returns:
        (*B, d).

    Source:
        Efron & Morris (1975), doi:10.1080/01621459.1975.10479864, with d - 1 in place of d - 3.

    >>> shrunk(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 9.0]), torch.tensor(5.0))
    tensor([1., 3.])
    """
    common = mean.mean(-1, keepdim=True)
    chance = (square - mean.square()).mean(-1).clamp(min=0) / count
    between = mean.var(-1) if mean.shape[-1] > 1 else torch.zeros_like(chance)
    kept = (1 - chance / between.clamp(min=torch.finfo(mean.dtype).tiny)).clamp(0, 1)
    return common + kept.unsqueeze(-1) * (mean - common)
