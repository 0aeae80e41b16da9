"""Observations of the Kolmogorov flow: sensors by name, the problems of a paper's rows, and their scores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slams.core.covariance import Isotropic
from slams.core.errors import InvalidValueError
from slams.core.geometry.torus import clockwise_vorticity, energy_spectrum
from slams.core.random import fork
from slams.core.settings import unknown
from slams.diffusion.lattice import LatticeSystem
from slams.diffusion.solenoidal import FlowCovariance
from slams.evaluation.metrics import covered, fair_crps, predictive_variance
from slams.observation.observation import Observation, Observations
from slams.observation.operators import (
    AvgPool,
    Box,
    Compose,
    FirstMinusLast,
    Mask,
    Operator,
    Pointwise,
    Stride,
)
from slams.observation.survey import Survey

Sensor = Sequence[Mapping[str, Any]]

SIZE = 64  # points along a side
EVENT = (2, SIZE, SIZE)


def _ring(value: Any, size: int) -> Operator:
    inner, outer = value
    return Mask.ring((size, size), inner, outer)


def _stride(value: Any) -> tuple[int, int]:
    """Distance and first point."""
    return (value, 0) if isinstance(value, int) else (value[0], value[1])


_PARTS: Mapping[str, Callable[[Any, int], Operator]] = {
    "coarsen": lambda value, size: AvgPool(value),
    "stride": lambda value, size: Stride(_stride(value)[0], _stride(value)[1], axes=2),
    "vorticity": lambda value, size: clockwise_vorticity,
    "saturate": lambda value, size: Pointwise("saturate"),
    "box": lambda value, size: Box(tuple(value)),
    "ring": _ring,
    "loop": lambda value, size: FirstMinusLast(3),
}


@dataclass(frozen=True)
class FlowProcess:
    """Observing network of a flow: y = h(x_k) + N(0, std^2) at some of its steps.

    Attributes:
        sensor: Parts of h in order, each a name and a setting: {coarsen: 8}, {stride: [16, 7]}, {vorticity: true}
            (clockwise, in grid units), {saturate: true}, {box: [4, 12]}, {ring: [0.4, 0.6]}, {loop: true}.
        length: Number of states L of the trajectory.
        std: Standard deviation of the observation error.
        every: Steps from one observation to the next.
        times: Observed steps, in place of `every`; -1 is the last.
        value: Value of every observation of a hypothetical event; observed from truths if None.
        title: Title in figures.

    Raises:
        ValueError: If a part is unknown, or `std` or `length` not positive.
    """

    sensor: Sensor
    length: int = 8
    std: float = 0.1
    every: int = 1
    times: Sequence[int] | None = None
    value: float | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if not (0 < self.std < math.inf) or self.length < 2:
            raise InvalidValueError(
                f"the error's standard deviation must be positive and a trajectory have two states or more, got "
                f"{self.std} and {self.length}."
            )
        for part in self.sensor:
            for name in part:
                if name not in _PARTS:
                    raise InvalidValueError(unknown("sensor", name, _PARTS))

    @property
    def operator(self) -> Operator:
        """Operator h: (*B, 2, N, N) -> (*B, *O); with "loop" (*B, L, 2, N, N) -> (*B, L, *O)."""
        size, parts = SIZE, []
        for part in self.sensor:
            for name, value in part.items():
                parts.append(_PARTS[name](value, size))
                size = size // value if name == "coarsen" else size
        return Compose(parts)

    @property
    def lattice(self) -> bool:
        """Whether velocities are observed through one linear filter at the points of a lattice, or of a box of it."""
        return not any(self.has(name) for name in ("vorticity", "saturate", "ring", "loop"))

    def system(self, covariance: FlowCovariance) -> LatticeSystem:
        """Innovation system of lattice values, with the covariance of trajectories of this length."""
        filtered = FlowProcess([part for part in self.sensor if "box" not in part]).operator
        box = tuple(self.setting("box")) if self.has("box") else None
        return LatticeSystem(covariance, filtered, self.steps, (self.length, *EVENT), self.std, box=box)

    def has(self, name: str) -> bool:
        """Whether a part is in the sensor."""
        return any(name in part for part in self.sensor)

    def setting(self, name: str) -> Any:
        """Setting of a part of the sensor."""
        return next(part[name] for part in self.sensor if name in part)

    @property
    def steps(self) -> list[int]:
        """Observed steps."""
        if self.times is not None:
            return sorted(k % self.length for k in self.times)
        return list(range(0, self.length, self.every))


@dataclass(frozen=True)
class FlowProblem:
    """Truths and their observations.

    Attributes:
        process: Observing network.
        truth: Truths, (R, L, 2, N, N); unrelated to the values of hypothetical events.
        observations: Values (R, L, *O) of "flow".
    """

    process: FlowProcess
    truth: Tensor
    observations: Observations

    @classmethod
    def draw(cls, process: FlowProcess, test: Tensor, seed: int, label: str) -> "FlowProblem":
        """Observations of the beginnings of trajectories (R, T, 2, N, N), with independent noise.

        Raises:
            ValueError: If trajectories are shorter than the process.
        """
        if process.value is not None:
            return cls(process, test[:, : process.length], _event(process, len(test), test))
        if test.shape[1] < process.length:
            raise InvalidValueError(
                f"{label} takes {process.length} states, but trajectories have {test.shape[1]}; shorten the process "
                "or make longer trajectories."
            )
        truth = test[:, : process.length]
        survey = Survey({"flow": process.operator}, process.std**2, times=process.steps)
        parts = [survey.observe(x, event=3, rng=fork(seed, label, i))["flow"] for i, x in enumerate(truth)]
        value = torch.stack([part.value for part in parts])
        return cls(process, truth, Observations({"flow": _observation(value, process)}))

    @property
    def seen(self) -> Observation:
        """The single modality."""
        return self.observations["flow"]

    def residual(self, samples: Tensor) -> Tensor:
        """Residual y - h(x) of the observed values: (R, N, L, 2, N, N) -> (R, N, n)."""
        keep = torch.isfinite(self.seen.value[0]).flatten()
        difference = self.seen.value.unsqueeze(1) - self.seen.operator(samples)
        return difference.flatten(2)[..., keep]

    def with_error(self, factor: float) -> "FlowProblem":
        """Observations for the guidance: the same values, with errors of `factor` times their standard deviation."""
        process = replace(self.process, std=factor * self.process.std)
        return FlowProblem(
            process, self.truth, Observations({"flow": _observation(self.seen.value, process)})
        )

    def part(self, rows: slice) -> "FlowProblem":
        """The problem of some of the truths."""
        return FlowProblem(
            self.process,
            self.truth[rows],
            Observations({"flow": _observation(self.seen.value[rows], self.process)}),
        )


def _observation(value: Tensor, process: FlowProcess) -> Observation:
    return Observation(value, process.operator, Isotropic(process.std**2), event=value.ndim - 2)


def _event(process: FlowProcess, count: int, like: Tensor) -> Observations:
    """Observations of a hypothetical event, with one value throughout."""
    shape = process.operator(like.new_zeros(1, process.length, *EVENT)).shape[1:]
    value = like.new_full((count, *shape), torch.nan)
    value[:, process.steps] = float(process.value)  # type: ignore[arg-type]
    return Observations({"flow": _observation(value, process)})


def scores(problem: FlowProblem, samples: Tensor, mean: Tensor | None = None) -> dict[str, Tensor]:
    """Scores of draws, one number for each truth, (R).

    Args:
        problem: Problem with its observations.
        samples: Draws (R, N, L, 2, N, N).
        mean: Posterior mean of a method that has one besides its draws, (R, L, 2, N, N).

    Returns:
        Means over states, channels and points: "squared_error" of the mean, "crps" (fair), "variance" (N + 1) / N s^2,
        "coverage90" (NaN for a single draw), of the observations "misfit", the mean square of y - h(x) over the draws,
        and "spectral", the mean of |log10 E_draw / E_truth| over wavenumbers 1 to N / 3.
    """
    found: dict[str, list[Tensor]] = {}
    for i, draws in enumerate(samples):
        truth = problem.truth[i]
        centre = draws.mean(0) if mean is None else mean[i]
        one = {
            "squared_error": (centre - truth).square().mean(),
            "crps": fair_crps(draws, truth).mean(),
            "variance": predictive_variance(draws, truth).mean(),
            "coverage90": covered(draws, truth).mean(),
            "misfit": problem.part(slice(i, i + 1)).residual(draws[None]).square().mean(),
            "spectral": (spectrum(draws) / spectrum(truth[None])).log10().abs()[1 : SIZE // 3 + 1].mean(),
        }
        for name, value in one.items():
            found.setdefault(name, []).append(value.double())
    return {name: torch.stack(values) for name, values in found.items()}


def spectrum(x: Tensor) -> Tensor:
    """Mean kinetic energy by wavenumber over all leading axes: (*B, 2, N, N) -> (N / 2 + 1)."""
    energy = energy_spectrum(x)
    return energy.reshape(-1, energy.shape[-1]).mean(0)[: SIZE // 2 + 1].double()
