"""Methods by name: class, settings to start from, and where to look for better ones."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slams import assimilation
from slams.assimilation.base import Assimilator
from slams.core.geometry.localization import Localization, half_width
from slams.core.random import fork
from slams.core.settings import unknown
from slams.diffusion.pseudo_ensemble import PseudoEnsemble
from slams.observation.operators import Compose, Operator, Pointwise
from slams.systems.base import Dynamics
from slams.systems.lorenz import Lorenz96
from slams.twin.experiment import TwinExperiment
from slams.twin.generator import GeneratorSettings, load_generator

Settings = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Where a setting may lie; "log" for factors, "integer" for counts."""

    low: float
    high: float
    scale: Literal["linear", "log", "integer"] = "linear"

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the range."""
        if self.scale == "log":
            return math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        value = self.low + share * (self.high - self.low)
        return round(value) if self.scale == "integer" else value

    def share(self, value: float) -> float:
        """Inverse of `at`, kept in [0, 1]."""
        if self.scale == "log":
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Entry:
    """A method of `slams.assimilation`.

    Attributes:
        size: Members, unless the settings say otherwise.
        settings: To start from, where nothing is published for a system.
        space: What `slams tune` varies.
        kind: "trivial" methods are in every table; "particle" ones are judged by medians.
    """

    size: int = 40
    settings: Settings = field(default_factory=dict)
    space: Mapping[str, Range] = field(default_factory=dict)
    kind: Literal["trivial", "filter", "particle"] = "filter"


_INFLATION = {"inflation": Range(1.0, 1.3)}
_DENOISED = 6  # steps of a draw: with 8 members more would not be seen
_LOCAL = {**_INFLATION, "radius": Range(1.0, 12.0, "log")}

METHODS: dict[str, Entry] = {
    "Climatology": Entry(kind="trivial"),
    "Persistence": Entry(kind="trivial"),
    "FreeRun": Entry(kind="trivial"),
    "OptInterp": Entry(),
    "Nudging": Entry(settings={"gain": 0.5}, space={"gain": Range(0.05, 1.0)}),
    "ThreeDVar": Entry(settings={"scale": 0.1}, space={"scale": Range(0.003, 1.0, "log")}),
    "FourDVar": Entry(
        settings={"scale": 0.1, "window": 5},
        space={"scale": Range(0.003, 1.0, "log"), "window": Range(1, 10, "integer")},
    ),
    "EKF": Entry(settings={"inflation": 2.0}, space={"inflation": Range(1.0, 300.0, "log")}),
    "EnKF": Entry(settings={"inflation": 1.05}, space=_INFLATION),
    "ETKF": Entry(settings={"inflation": 1.02, "rotate": True}, space=_INFLATION),
    "DEnKF": Entry(settings={"inflation": 1.02}, space=_INFLATION),
    "EnKFN": Entry(settings={"rotate": True}, space={"prior_factor": Range(0.5, 4.0, "log")}),
    "LETKF": Entry(settings={"inflation": 1.02, "radius": 4.0, "rotate": True}, space=_LOCAL),
    "EAKF": Entry(settings={"inflation": 1.02, "radius": 6.0, "rotate": True}, space=_LOCAL),
    "EnSF": Entry(settings={"inflation": 1.02, "steps": 8}, space=_INFLATION),
    "DampedEnSF": Entry(size=100, settings={"rtps": 0.5}, space={"rtps": Range(0.0, 1.0)}),
    "SingleMemberEnSF": Entry(settings={"rtps": 0.5}, space={"rtps": Range(0.0, 1.0)}),
    "SSLS": Entry(size=100, settings={"inflation": 1.02}, space=_INFLATION),
    "GenerativeEnKF": Entry(
        size=32,
        settings={"inflation": 1.05, "radius": 4.0, "rotate": True, "trust": 0.3, "window": 3, "gain": 1.5},
        space={**_LOCAL, "trust": Range(0.03, 3.0, "log"), "gain": Range(0.5, 8.0, "log")},
    ),
    "PseudoEnKF": Entry(
        size=1,
        settings={"radius": 4.0, "blend": 0.5},
        space={"radius": Range(1.0, 12.0, "log"), "blend": Range(0.05, 1.0)},
    ),
    "EnKS": Entry(
        settings={"inflation": 1.05, "lag": 5},
        space={**_INFLATION, "lag": Range(0, 12, "integer")},
    ),
    "IEnKS": Entry(settings={"inflation": 1.02, "lag": 1, "rotate": True}, space=_INFLATION),
    "BootstrapPF": Entry(
        size=800,
        settings={"jitter": 1.0, "threshold": 0.3},
        space={"jitter": Range(0.1, 3.0, "log"), "threshold": Range(0.02, 1.0)},
        kind="particle",
    ),
    "AuxiliaryPF": Entry(
        size=800,
        settings={"jitter": 1.0},
        space={"jitter": Range(0.1, 3.0, "log")},
        kind="particle",
    ),
}

PUBLISHED: dict[str, dict[str, Settings]] = {
    "lorenz63": {
        "ThreeDVar": {"scale": 0.1},
        "EKF": {"inflation": 180.0},
        "EnKF": {"size": 100, "inflation": 1.01},
        "ETKF": {"size": 40, "inflation": 1.02, "rotate": True},
        "EnKFN": {"size": 10, "rotate": True},
        "IEnKS": {"size": 10, "inflation": 1.02, "rotate": True, "lag": 1},
        "BootstrapPF": {"size": 800, "jitter": 0.9, "threshold": 0.2},
    },
    "lorenz96": {
        "ThreeDVar": {"scale": 0.02},
        "EKF": {"inflation": 10.0, "frozen": True},
        "EnKF": {"size": 40, "inflation": 1.06},
        "ETKF": {"size": 40, "inflation": 1.01, "rotate": True},
        "DEnKF": {"size": 40, "inflation": 1.01},
        "EnKFN": {"size": 24, "rotate": True, "prior_factor": 2.0},
        "LETKF": {"size": 7, "inflation": 1.04, "rotate": True, "radius": 4.0},
        "EAKF": {"size": 7, "inflation": 1.07, "rotate": True, "radius": 6.0},
        "IEnKS": {"size": 40, "inflation": 1.01, "rotate": True, "lag": 1},
    },
}


def entry(name: str) -> Entry:
    """A method of the table.

    Raises:
        ValueError: If there is none of that name, with the nearest.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return METHODS[name]


_ELSEWISE: dict[str, dict[str, Settings]] = {
    # observed every 0.25: over a longer window the cost has several minima, and 4D-Var takes a wrong one
    "lorenz63": {"FourDVar": {"window": 2}, "EnSF": {"inflation": 1.1}},
    "lorenz96": {"EnSF": {"radius": 4.0, "reach": 9.0}},
}


def starting(name: str, system: str) -> tuple[str, Settings]:
    """Where the settings come from ("published" or "default"), and the settings, `size` among them."""
    method = entry(name)
    known = PUBLISHED.get(system, {}).get(name)
    if known is not None:
        return "published", {"size": method.size, **known}
    return "default", {"size": method.size, **method.settings, **_ELSEWISE.get(system, {}).get(name, {})}


def build(
    name: str, experiment: TwinExperiment, settings: Mapping[str, Any], climate: "Climate"
) -> Assimilator:
    """A method for an experiment.

    Args:
        name: As in `METHODS`.
        experiment: Gives the model, and the positions of observations.
        settings: Keywords of its class; `radius` is a published localization radius in grid points of a circle, `reach`
            the distance within which variables are in one `patch`; `size` is passed over. Of methods with a generator
            `sampler` holds settings of its draws, `weights` a file other than that which is shipped.
        climate: Mean and covariance for methods that need them: an oracle, since it is the truth's own.

    Raises:
        ValueError: If the method or a setting is unknown (the nearest is named).
    """
    entry(name)
    cls = getattr(assimilation, name)
    known = inspect.signature(cls).parameters
    given = {key: value for key, value in settings.items() if key != "size"}
    extra: Settings = {"failure": "replace", "bound": climate.bound}
    if "radius" in given:
        extra["localization"] = _localization(experiment, float(given.pop("radius")))
    if "reach" in given and "patch" in known:
        size = experiment.model.state_shape[0]
        reach = float(given.pop("reach"))
        extra["patch"] = Localization.periodic(size, torch.arange(size, dtype=torch.float64), reach / 2)
    if "generator" in known:
        extra["generator"] = _generator(
            name, experiment, given.pop("weights", None), given.pop("sampler", {})
        )
    for key in given:
        if key not in known:
            names = [k for k in known if k not in ("dynamics", "localization", "patch", "generator")]
            raise ValueError(unknown(f"setting of {name}", key, [*names, "size", "radius"]))
    for key, value in (("mean", climate.mean), ("covariance", climate.covariance)):
        # a covariance with a default, as that of the extended filter's start, is not the climate's
        if key in known and known[key].default is inspect.Parameter.empty:
            extra[key] = value
    return cls(experiment.model, **{k: v for k, v in extra.items() if k in known}, **given)


@dataclass(frozen=True)
class Climate:
    """What a system does in the long run.

    Attributes:
        mean: (d).
        covariance: (d, d).
        bound: An absolute value that no state comes near.
    """

    mean: Tensor
    covariance: Tensor
    bound: float

    @classmethod
    def of(cls, system: Dynamics, *, runs: int = 64, steps: int = 1000, spin_up: int = 200) -> "Climate":
        """From free runs, always with the same random numbers."""
        rng = fork(0, "climate")
        path = system.trajectory(system.initial(runs, rng=rng), spin_up + steps - 1, rng=rng)
        x = path[:, spin_up:].flatten(0, 1).flatten(1)
        mean, centred = x.mean(0), x - x.mean(0)
        covariance = centred.mT @ centred / (len(x) - 1)
        return cls(mean, covariance, float(10 * x.abs().max()))


def _localization(experiment: TwinExperiment, radius: float) -> Localization:
    """On a circle of the state's variables, one apart; observations stand where their variable stands."""
    (size,) = experiment.model.state_shape
    (instrument,) = experiment.survey.instruments.values()
    positions = _places(instrument.operator, torch.arange(size, dtype=torch.float64))
    return Localization.periodic(size, positions, half_width(radius))


def _generator(
    name: str, experiment: TwinExperiment, weights: str | None, sampler: Mapping[str, Any]
) -> PseudoEnsemble:
    """The model that draws Lorenz-96 states of the size that it was trained with."""
    system, shape = experiment.model, tuple(experiment.model.state_shape)
    if not isinstance(system, Lorenz96) or shape != (GeneratorSettings.size,):
        raise ValueError(
            f"{name} draws states by a network trained on Lorenz-96 with {GeneratorSettings.size} variables, but the "
            f"model is {type(system).__name__} with states {shape}; take another method, or build it with a generator of "
            "its own."
        )
    known = inspect.signature(PseudoEnsemble).parameters
    for key in sampler:
        if key not in known:
            raise ValueError(unknown(f"setting of {name}'s sampler", key, known))
    return load_generator(Path(weights) if weights else None, **{"steps": _DENOISED, **sampler})


def _places(operator: Operator, sites: Tensor) -> Tensor:
    """Where the values stand that an operator makes of variables at these sites: a function of each moves none."""
    if isinstance(operator, Compose):
        for part in operator.operators:
            sites = _places(part, sites)
        return sites
    return sites if isinstance(operator, Pointwise) else operator(sites)
