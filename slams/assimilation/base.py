"""The one verb, assimilate, and what it returns."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation, Observations
from slams.systems.base import Dynamics

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Explanation:
    """Diagnostics of one analysis at the observed points.

    Attributes:
        innovation: Observation minus forecast mean, in units of the observation error, (*B, O); 0 where
            missing.
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

    @classmethod
    def of(
        cls, before: Tensor, after: Tensor, members: Tensor, observation: Observation, effective_size: Tensor
    ) -> "Explanation":
        """From the means before and after the analysis, (*B, *S), and its members, (*B, N, *S)."""
        predicted = observation.predict(members)
        spread = observation.whiten(predicted - predicted.mean(-2, keepdim=True), members=True)
        return cls(
            observation.whiten(observation.innovation(before, members=False), members=False),
            after - before,
            effective_size,
            spread.square().sum(-2) / (predicted.shape[-2] - 1),
        )


_UNITS = {"lat": "degrees_north", "lon": "degrees_east"}


@dataclass(frozen=True)
class Labels:
    """Labels of the arrays of a posterior.

    Attributes:
        method: Class of the method.
        settings: Its plain settings.
        dims: Names of the axes of a state.
        coords: Coordinates of these axes by name, with their unit.
        dt: Model time between two steps.
        follows: Whether the method means to follow the truth, see `Filter.follows`.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[str, ...] = ()
    coords: Mapping[str, tuple[Tensor, str]] = field(default_factory=dict)
    dt: float = 1.0
    follows: bool = True

    @classmethod
    def of(cls, method: object, dynamics: Dynamics) -> "Labels":
        """Labels of what a method makes of a model.

        Args:
            method: Its settings are the attributes that are numbers or texts, those of its parts by dotted name.
            dynamics: The model; its geometry names the axes of a state.
        """
        settings: dict[str, Any] = {}
        for name, value in vars(method).items():
            parts = (
                vars(value)
                if hasattr(value, "__dict__") and not isinstance(value, nn.Module)
                else {"": value}
            )
            for key, item in parts.items():
                if isinstance(item, (bool, int, float, str)) and not name.startswith("_"):
                    settings[f"{name}.{key}".rstrip(".")] = item
        follows = getattr(method, "follows", True)
        return cls(type(method).__name__, settings, *_axes(dynamics), dynamics.dt, follows)


def _axes(dynamics: Dynamics) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, str]]]:
    """Names and coordinates of the axes of a state."""
    shape, geometry = tuple(dynamics.state_shape), dynamics.geometry
    if geometry is None or len(geometry.dims) != len(shape):
        names = ("component",) if len(shape) == 1 else tuple(f"component_{i}" for i in range(len(shape)))
        return names, {}
    places = geometry.points.reshape(*shape, -1)
    spatial = len(shape) - places.shape[-1]
    coords = {}
    for k, name in enumerate(geometry.dims[spatial:]):
        along = places.movedim(spatial + k, -2)[(0,) * (len(shape) - 1)]
        coords[name] = (along[:, k], _UNITS.get(name, geometry.unit))
    return geometry.dims, coords


@dataclass(frozen=True, repr=False)
class Posterior:
    """An ensemble of equally likely trajectories given the observations, or its moments.

    Attributes:
        samples: (*B, N, L, *S), or None where only less was kept.
        diagnostics: Numbers along the trajectory, (*B, L), NaN at steps that have none.
        mean: (*B, L, *S), or None.
        variance: Unbiased variance of the members, (*B, L, *S), or None.
        explanations: Diagnostics of the requested analyses, by step.
        seed: Seed of the random draws, of a generator its own; passed as `rng` it reproduces the members.
        labels: Method and axes, for `to_dataset`; None where the method has no model.
    """

    samples: Tensor | None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    mean: Tensor | None = None
    variance: Tensor | None = None
    explanations: Mapping[int, Explanation] = field(default_factory=dict)
    seed: int | None = None
    labels: Labels | None = None

    def __repr__(self) -> str:
        kept = [name for name in ("samples", "mean", "variance") if getattr(self, name) is not None]
        parts = [f"{name} {tuple(getattr(self, name).shape)}" for name in kept] or ["scores alone"]
        method = f"{self.labels.method}: " if self.labels else ""
        return f"Posterior({method}{', '.join(parts)}; seed {self.seed})"

    def to_dataset(self) -> "xr.Dataset":
        """Labelled arrays of what was kept.

        Returns:
            `state` (time, member, *state) of the members, `mean` and `variance` (time, *state) of the moments, and the
            diagnostics (time), with (replicate) in front where there are several. The axes of a state have the names
            and coordinates of the model's geometry, else `component`. Attributes: method, settings, seed, version.

        Raises:
            ValueError: If neither members nor moments were kept.
        """
        from slams.assimilation.labelled import dataset

        return dataset(
            self.samples, self.mean, self.variance, self.diagnostics, self.labels or Labels(""), self.seed
        )

    def explain(self, cycle: int) -> Explanation:
        """Diagnostics of the analysis of one step.

        Args:
            cycle: Number of the step.

        Returns:
            Innovation, increment, effective sample size and influence of the observations.

        Raises:
            ValueError: If that step was not recorded.
        """
        if cycle not in self.explanations:
            raise InvalidValueError(
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
            observations: Observations along the trajectory, values (*B, L, *O).
            members: Number of members N.
            rng: Generator or seed; a fresh seed if None, kept in the posterior.

        Returns:
            The ensemble, (*B, N, L, *S).

        Raises:
            ValueError: If `members` is below 1.
        """
