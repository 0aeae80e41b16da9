"""Methods by name: class, initial settings and search space."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slams import assimilation
from slams.assimilation.base import Assimilator
from slams.core.errors import InvalidValueError
from slams.core.geometry.localization import Localization, half_width
from slams.core.random import fork
from slams.core.settings import convert, known_settings, parameters, unknown
from slams.diffusion.pseudo_ensemble import PseudoEnsemble
from slams.evaluation.tuning import Range, Space
from slams.observation.operators import (
    AvgPool,
    Compose,
    Identity,
    InterpolateLine,
    Operator,
    Pointwise,
    Select,
    Stride,
)
from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics
from slams.systems.lorenz import Lorenz96
from slams.twin.experiment import TwinExperiment
from slams.twin.generator import GeneratorSettings, load_generator

Factory = Callable[..., Assimilator]  # a class, or a function, that takes the model first
Settings = dict[str, Any]


@dataclass(frozen=True)
class MethodEntry:
    """A method of `slams.assimilation`.

    Attributes:
        members: Ensemble size, unless the settings give another.
        settings: Initial settings, where none are published for a system.
        space: Ranges of the settings searched by `slams tune`.
        kind: Kind: "trivial" methods are in every table; "particle" ones are judged by medians.
    """

    members: int = 40
    settings: Settings = field(default_factory=dict)
    space: Space = field(default_factory=dict)
    kind: Literal["trivial", "filter", "particle"] = "filter"


_INFLATION = {"inflation": Range(1.0, 1.3)}
_DENOISED = 6  # steps of a draw: more make no difference with 8 members
_LOCAL = {**_INFLATION, "radius": Range(1.0, 12.0, "log")}

METHODS: dict[str, MethodEntry] = {
    "Climatology": MethodEntry(kind="trivial"),
    "Persistence": MethodEntry(kind="trivial"),
    "FreeRun": MethodEntry(kind="trivial"),
    "OptInterp": MethodEntry(),
    "Nudging": MethodEntry(settings={"gain": 0.5}, space={"gain": Range(0.05, 1.0)}),
    "ThreeDVar": MethodEntry(settings={"scale": 0.1}, space={"scale": Range(0.003, 1.0, "log")}),
    "FourDVar": MethodEntry(
        settings={"scale": 0.1, "window": 5},
        space={"scale": Range(0.003, 1.0, "log"), "window": Range(1, 10, "integer")},
    ),
    "EKF": MethodEntry(settings={"inflation": 2.0}, space={"inflation": Range(1.0, 300.0, "log")}),
    "EnKF": MethodEntry(settings={"inflation": 1.05}, space=_INFLATION),
    "ETKF": MethodEntry(settings={"inflation": 1.02, "rotate": True}, space=_INFLATION),
    "DEnKF": MethodEntry(settings={"inflation": 1.02}, space=_INFLATION),
    "EnKFN": MethodEntry(settings={"rotate": True}, space={"prior_factor": Range(0.5, 4.0, "log")}),
    "LETKF": MethodEntry(settings={"inflation": 1.02, "radius": 4.0, "rotate": True}, space=_LOCAL),
    "BiasAwareLETKF": MethodEntry(
        settings={"inflation": 1.05, "radius": 4.0, "closure": 10},
        space={**_LOCAL, "closure": Range(4, 60, "integer")},
    ),
    "EAKF": MethodEntry(settings={"inflation": 1.02, "radius": 6.0, "rotate": True}, space=_LOCAL),
    "EnSF": MethodEntry(settings={"inflation": 1.02, "steps": 8}, space=_INFLATION),
    "DampedEnSF": MethodEntry(members=100, settings={"rtps": 0.5}, space={"rtps": Range(0.0, 1.0)}),
    "SingleMemberEnSF": MethodEntry(settings={"rtps": 0.5}, space={"rtps": Range(0.0, 1.0)}),
    "SSLS": MethodEntry(members=100, settings={"inflation": 1.02}, space=_INFLATION),
    "GenerativeEnKF": MethodEntry(
        members=32,
        settings={"inflation": 1.05, "radius": 4.0, "rotate": True, "trust": 0.3, "window": 3, "gain": 1.5},
        space={**_LOCAL, "trust": Range(0.03, 3.0, "log"), "gain": Range(0.5, 8.0, "log")},
    ),
    "PseudoEnKF": MethodEntry(
        members=1,
        settings={"radius": 4.0, "blend": 0.5},
        space={"radius": Range(1.0, 12.0, "log"), "blend": Range(0.05, 1.0)},
    ),
    "EnKS": MethodEntry(
        settings={"inflation": 1.05, "lag": 5},
        space={**_INFLATION, "lag": Range(0, 12, "integer")},
    ),
    "IEnKS": MethodEntry(settings={"inflation": 1.02, "lag": 1, "rotate": True}, space=_INFLATION),
    "BootstrapPF": MethodEntry(
        members=800,
        settings={"jitter": 1.0, "threshold": 0.3},
        space={"jitter": Range(0.1, 3.0, "log"), "threshold": Range(0.02, 1.0)},
        kind="particle",
    ),
    "AuxiliaryPF": MethodEntry(
        members=800,
        settings={"jitter": 1.0},
        space={"jitter": Range(0.1, 3.0, "log")},
        kind="particle",
    ),
}

PUBLISHED: dict[str, dict[str, Settings]] = {
    "lorenz63": {
        "ThreeDVar": {"scale": 0.1},
        "EKF": {"inflation": 180.0},
        "EnKF": {"members": 100, "inflation": 1.01},
        "ETKF": {"members": 40, "inflation": 1.02, "rotate": True},
        "EnKFN": {"members": 10, "rotate": True},
        "IEnKS": {"members": 10, "inflation": 1.02, "rotate": True, "lag": 1},
        "BootstrapPF": {"members": 800, "jitter": 0.9, "threshold": 0.2},
    },
    "lorenz96": {
        "ThreeDVar": {"scale": 0.02},
        "EKF": {"inflation": 10.0, "frozen": True},
        "EnKF": {"members": 40, "inflation": 1.06},
        "ETKF": {"members": 40, "inflation": 1.01, "rotate": True},
        "DEnKF": {"members": 40, "inflation": 1.01},
        "EnKFN": {"members": 24, "rotate": True, "prior_factor": 2.0},
        "LETKF": {"members": 7, "inflation": 1.04, "rotate": True, "radius": 4.0},
        "EAKF": {"members": 7, "inflation": 1.07, "rotate": True, "radius": 6.0},
        "IEnKS": {"members": 40, "inflation": 1.01, "rotate": True, "lag": 1},
    },
}


def entry(name: str) -> MethodEntry:
    """A method of the table.

    Raises:
        ValueError: If the name is unknown, with the nearest.
    """
    if name not in METHODS:
        raise InvalidValueError(unknown("method", name, METHODS))
    return METHODS[name]


# defaults of one system in place of those of `METHODS`
_OF_SYSTEM: dict[str, dict[str, Settings]] = {
    # observed every 0.25: over a longer window the cost has several minima, and 4D-Var takes a wrong one
    "lorenz63": {"FourDVar": {"window": 2}, "EnSF": {"inflation": 1.1}},
    "lorenz96": {"EnSF": {"radius": 4.0, "reach": 9.0}},
}


def starting(name: str, system: str) -> tuple[str, Settings]:
    """Origin of the initial settings ("published" or "default"), and the settings, `members` among them."""
    method = entry(name)
    known = PUBLISHED.get(system, {}).get(name)
    if known is not None:
        return "published", {"members": method.members, **known}
    return "default", {
        "members": method.members,
        **method.settings,
        **_OF_SYSTEM.get(system, {}).get(name, {}),
    }


def build(
    name: str,
    experiment: TwinExperiment,
    settings: Mapping[str, Any],
    climate: "ClimateStatistics",
    cls: Factory | None = None,
) -> Assimilator:
    """Build a method for an experiment.

    Args:
        name: Key of `METHODS`, or the name of a method of the user's.
        experiment: Experiment with the model and the positions of observations.
        settings: Keywords of the class; `radius` is a published localization radius in grid points of a circle, `reach`
            the distance within which variables are in one `patch`; `members` is left out. Of methods with a generator
            `sampler` holds settings of its draws, `weights` a file other than that which is shipped. `estimate` names
            coefficients of the model that become a part of the state (`AugmentedParameters`), with the standard deviation
            of their first values about the model's own, and `walk` that of their random walk.
        climate: Mean and covariance of the truth's long run for methods that need them, an oracle.
        cls: Class or factory of a method of the user's, which takes the model first.

    Raises:
        ValueError: If the method or a setting is unknown (the nearest is named).
    """
    if cls is None:
        entry(name)
        cls = getattr(assimilation, name)
    known = inspect.signature(cls).parameters
    kinds = parameters(cls)
    given = {key: value for key, value in settings.items() if key != "members"}
    model = _augmented(experiment.model, given.pop("estimate", None), given.pop("walk", 0.0))
    extra: Settings = {"failure": "replace", "bound": climate.bound}
    if "radius" in given and "localization" in kinds:
        near = _localization(experiment, float(given.pop("radius")))
        # a parameter is at no place: it is near every observation
        extra["localization"] = near.extended(math.prod(model.state_shape) - len(near.index))
    if "reach" in given and "patch" in kinds:
        size = experiment.model.state_shape[0]
        reach = float(given.pop("reach"))
        extra["patch"] = Localization.periodic(size, torch.arange(size, dtype=torch.float64), reach / 2)
    if "generator" in kinds:
        extra["generator"] = _generator(
            name, experiment, given.pop("weights", None), given.pop("sampler", {})
        )
    names = [key for key in kinds if key not in ("localization", "patch", "generator")][1:]
    more = ["members", "estimate", "walk"] + (["radius"] if "localization" in kinds else [])
    known_settings(given, [*names, *more], kind=f"setting of {name}")
    mean = climate.mean.reshape(experiment.model.state_shape)
    for key, value in (("mean", mean), ("covariance", climate.covariance)):
        # a covariance with a default, as that of the extended filter's start, is not the climate's
        if key in known and known[key].default is inspect.Parameter.empty:
            extra[key] = value
    converted = {key: convert(kinds[key], value, key) for key, value in given.items()}
    return cls(model, **{k: v for k, v in extra.items() if k in kinds and k not in given}, **converted)


@dataclass(frozen=True)
class ClimateStatistics:
    """Statistics of a system's long run.

    Attributes:
        mean: Mean, (d).
        covariance: Covariance, (d, d).
        bound: Ten times the largest absolute value of a state.
    """

    mean: Tensor
    covariance: Tensor
    bound: float

    @classmethod
    def of(
        cls, system: Dynamics, *, runs: int = 64, steps: int = 1000, spin_up: int = 200
    ) -> "ClimateStatistics":
        """Statistics from free runs with a fixed seed."""
        rng = fork(0, "climate")
        path = system.trajectory(system.initial(runs, rng=rng), spin_up + steps - 1, rng=rng)
        x = path[:, spin_up:].flatten(0, 1).flatten(1)
        mean, centred = x.mean(0), x - x.mean(0)
        covariance = centred.mT @ centred / (len(x) - 1)
        return cls(mean, covariance, float(10 * x.abs().max()))


def _augmented(model: Dynamics, estimate: Mapping[str, float] | None, walk: float) -> Dynamics:
    """The model, or the model with parameters in its state that start about its own values."""
    if estimate is None:
        return model
    start = {name: (float(getattr(model, name, math.nan)), float(std)) for name, std in estimate.items()}
    return AugmentedParameters(model, start, walk=float(walk))  # type: ignore[arg-type]  # checked there


def _localization(experiment: TwinExperiment, radius: float) -> Localization:
    """Localization on a circle of the state's variables, one apart, with observations at their variables."""
    (size,) = experiment.model.state_shape
    (instrument,) = experiment.survey.instruments.values()
    positions = _positions(instrument.operator, torch.arange(size, dtype=torch.float64))
    return Localization.periodic(size, positions, half_width(radius))


def _generator(
    name: str, experiment: TwinExperiment, weights: str | None, sampler: Mapping[str, Any]
) -> PseudoEnsemble:
    """The generative model of Lorenz-96 states of its training size."""
    system, shape = experiment.model, tuple(experiment.model.state_shape)
    if not isinstance(system, Lorenz96) or shape != (GeneratorSettings.size,):
        raise InvalidValueError(
            f"{name} draws states by a network trained on Lorenz-96 with {GeneratorSettings.size} variables, but the "
            f"model is {type(system).__name__} with states {shape}; take another method, or build it with a generator of "
            "its own."
        )
    known = inspect.signature(PseudoEnsemble).parameters
    known_settings(sampler, known, kind=f"setting of {name}'s sampler")
    return load_generator(Path(weights) if weights else None, **{"steps": _DENOISED, **sampler})


def _positions(operator: Operator, sites: Tensor) -> Tensor:
    """Positions of an operator's values, for variables at these sites: a pointwise function moves none."""
    if isinstance(operator, Compose):
        for part in operator.operators:
            sites = _positions(part, sites)
        return sites
    if isinstance(operator, Pointwise):
        return sites
    if not isinstance(operator, (Identity, Select, Stride, AvgPool, InterpolateLine)):
        raise InvalidValueError(
            f"the positions of the values of {operator!r} are unknown, so `radius` does not apply; leave it out, or give "
            "the method its `localization`."
        )
    return operator(sites)
