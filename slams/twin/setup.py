"""Set-ups of twin experiments as plain values: from settings and overrides to systems and surveys."""

import copy
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slams.core.covariance import Isotropic
from slams.core.errors import InvalidValueError
from slams.core.settings import (
    arguments,
    build,
    convert,
    known_settings,
    override,
    parameters,
    plain,
    unknown,
)
from slams.observation import operators
from slams.observation.survey import Survey
from slams.systems.base import Dynamics
from slams.systems.doublewell import DoubleWell
from slams.systems.flow import Gaussian
from slams.systems.linear import LinearGaussian
from slams.systems.lorenz import Lorenz63, Lorenz96
from slams.systems.shocks import Shocked, SpunUp
from slams.twin.experiment import TwinExperiment

TUNING_SEEDS = range(1000)  # truths on which settings are chosen; those that are tested begin after them
TEST_SEED = 1000
ON_VECTORS = ("identity", "stride", "select", "block_mean", *operators.POINTWISE)


def rotating(
    size: int = 20, damping: float = 0.95, noise: float | None = None, dtype: torch.dtype | None = None
) -> LinearGaussian:
    """A damped wave that travels by one site per step, forced by noise; its variance is 1 at all times.

    x_{k+1, i} = damping x_{k, i-1} + e, e ~ N(0, noise).

    Args:
        size: Number of sites on the circle.
        damping: Damping factor per step, in (-1, 1).
        noise: Variance of the noise; 1 - damping^2 if None, which keeps the variance at 1.
        dtype: Floating-point type of the matrices.
    """
    eye = torch.eye(size, dtype=dtype)
    variance = 1 - damping**2 if noise is None else noise
    return LinearGaussian(damping * eye.roll(1, 0), variance * eye, eye.new_zeros(size), eye)


def lorenz96(
    size: int = 40,
    forcing: float = 8.0,
    dt: float = 0.05,
    *,
    substeps: int = 1,
    method: str = "rk4",
    noise: float = 0.0,
    start: Gaussian | None = None,
    spin_up: int = 0,
    shock_chance: float = 0.0,
    shock_std: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Dynamics:
    """`Lorenz96`, on request started from its climate (`SpunUp`) and with shocks (`Shocked`).

    Args:
        size: Number of variables, as in `Lorenz96`.
        forcing: Forcing F.
        dt: Model time of a step.
        substeps: Integrator steps per step.
        method: Integrator.
        noise: Variance of the noise of a step.
        start: Distribution of the first states.
        spin_up: Steps before the first state.
        shock_chance: Probability of a shock at a step.
        shock_std: Standard deviation of a shock in every variable.
        dtype: Floating-point type of the states.
    """
    made: Dynamics = Lorenz96(
        size, forcing, dt, substeps=substeps, method=method, noise=noise, start=start, dtype=dtype
    )
    made = Shocked(made, shock_chance, shock_std) if shock_chance else made
    return SpunUp(made, spin_up) if spin_up else made


SYSTEMS: dict[str, Callable[..., Dynamics]] = {
    "lorenz63": Lorenz63,
    "lorenz96": lorenz96,
    "linear": rotating,
    "doublewell": DoubleWell,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "lorenz63": {"truth": {"dt": 0.25, "substeps": 25}, "observe": {"noise": 2.0}, "burn_in": 64},
    "lorenz96": {
        "model": {"shock_chance": 0.0},
        "burn_in": 400,
    },  # the methods' model has no shocks by default
    "linear": {"observe": {"operator": "stride", "step": 2, "noise": 0.25}, "burn_in": 100},
    "doublewell": {
        "truth": {"flip_every": 20},
        "model": {"flip_every": 0},
        "observe": {"noise": 0.01},
        "burn_in": 20,
    },
}


@dataclass(frozen=True)
class ObservingNetwork:
    """Operator, errors and times of the observations.

    Attributes:
        operator: Name of the operator, one of `ON_VECTORS`.
        step: Distance of two observed variables, of the stride.
        index: Observed variables, of the selection.
        noise: Variance of the error of every value.
        every: Steps from one observation to the next.
        start: First step observed; `every` if None.
        missing: Probability of a missing value.
        scale: Scale of the argument of a pointwise function, f(scale x + shift).
        shift: Shift of the argument of a pointwise function.
        size: Side of a block, of the block mean.
    """

    operator: str = "identity"
    step: int = 2
    index: tuple[int, ...] = ()
    noise: float = 1.0
    every: int = 1
    start: int | None = None
    missing: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    size: int = 1

    @property
    def first(self) -> int:
        """First step observed."""
        return self.every if self.start is None else self.start

    def survey(self) -> Survey:
        """The survey.

        Raises:
            ValueError: If the operator is unknown, or scale and shift are given to one without an argument.
        """
        if self.operator not in ON_VECTORS:
            raise InvalidValueError(unknown("operator", self.operator, ON_VECTORS))
        known = parameters(operators.BY_NAME[self.operator])
        if "shift" not in known and (self.scale, self.shift) != (1.0, 0.0):
            raise InvalidValueError(
                f"scale and shift are of the argument of a pointwise function, not of {self.operator}; leave them out."
            )
        given = {key: value for key, value in vars(self).items() if key in known}
        made = operators.by_name(self.operator, given, event=1, axes=1)
        return Survey(made, Isotropic(self.noise), every=self.every, start=self.first, missing=self.missing)


@dataclass(frozen=True)
class Setup:
    """A twin experiment.

    Attributes:
        system: Name of the system, or its import path "package.module:name".
        truth: Settings of the system of the truth.
        model: Settings of the methods' model that differ from the truth's.
        observe: The observing network.
        cycles: Number of scored analyses.
        burn_in: Number of analyses before them.
        replicates: Number of independent truths.
        seed: Seed of the first truth; the others follow.
    """

    system: str
    truth: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    observe: ObservingNetwork = ObservingNetwork()
    cycles: int = 2000
    burn_in: int = 0
    replicates: int = 16
    seed: int = TEST_SEED

    def __post_init__(self) -> None:
        for name, least in (("cycles", 1), ("burn_in", 0), ("replicates", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def seeds(self) -> list[int]:
        """Seed of each truth."""
        return list(range(self.seed, self.seed + self.replicates))

    def parts(self) -> tuple[Dynamics, Dynamics, Survey]:
        """Truth's system, methods' model and survey.

        Raises:
            ValueError: If a setting is unknown or invalid.
        """
        truth = _system(self.system, self.truth, "truth")
        model = _system(self.system, {**self.truth, **self.model}, "model")
        return truth, model, self.observe.survey()

    def experiment(self) -> TwinExperiment:
        """The experiment, in float64 unless the systems are the user's.

        Raises:
            ValueError: If a setting is unknown or invalid.
        """
        truth, model, survey = self.parts()
        length = self.observe.first + (self.burn_in + self.cycles - 1) * self.observe.every + 1
        return TwinExperiment(
            truth, survey, length, model=model, replicates=self.replicates, burn_in=self.burn_in
        )

    def plain(self) -> dict[str, Any]:
        """Nested plain values that `setup` reads back."""
        tree: dict[str, Any] = plain({name: getattr(self, name) for name in Setup.__dataclass_fields__})
        if self.observe.size == ObservingNetwork.size:  # later than the others: old folders lack it
            del tree["observe"]["size"]
        return tree

    def shares_task(self, other: Mapping[str, Any]) -> bool:
        """Whether plain values of another set-up have this truth, model and observing network."""
        mine = self.plain()
        return all(other.get(key) == mine[key] for key in ("truth", "model", "observe"))


def setup(tree: Mapping[str, Any], overrides: Sequence[str] = (), *, imports: bool = False) -> Setup:
    """A set-up from nested settings, over the defaults of its system.

    Args:
        tree: Nested settings with "system". Under "observe", "noise_std" may replace the variance "noise".
        overrides: Overrides such as "truth.forcing=11".
        imports: Whether to allow an import path as system, which runs its code; False for trees from files.

    Returns:
        The set-up.

    Raises:
        ValueError: If a key is unknown (the nearest is named), or a value is invalid.

    >>> setup({"system": "lorenz96"}, ["model.forcing=7.5"]).model["forcing"]
    7.5
    """
    name = str(tree.get("system"))
    if name not in SYSTEMS and not (imports and ":" in name):
        raise InvalidValueError(unknown("system", name, SYSTEMS))
    given = override(copy.deepcopy(dict(tree)), overrides)
    known_settings(given, Setup.__dataclass_fields__)
    for key in ("truth", "model", "observe"):
        if not isinstance(given.get(key, {}), Mapping):
            raise InvalidValueError(f"{key} holds settings of its own, got {given[key]!r}.")
    given["observe"] = with_variance(given.get("observe", {}))
    usual = copy.deepcopy(DEFAULTS.get(name, {}))
    parts = {key: {**usual.get(key, {}), **given.get(key, {})} for key in ("truth", "model", "observe")}
    made: Setup = build(Setup, {**usual, **given, **parts}, kind="setting")
    try:
        made.experiment()
    except TypeError as error:
        raise InvalidValueError(f"a setting of {name} has a value of the wrong kind: {error}.") from error
    return made


def with_variance(observe: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an observing network with the variance `noise` in place of the standard deviation `noise_std`.

    Raises:
        ValueError: If both are given, or the standard deviation is no number.
    """
    tree = dict(observe)
    if "noise_std" in tree:
        if "noise" in tree:
            raise InvalidValueError(
                "observe.noise (the variance) and observe.noise_std are both given; leave out one of them."
            )
        tree["noise"] = convert(float, tree.pop("noise_std"), "observe.noise_std") ** 2
    return tree


def _system(name: str, settings: Mapping[str, Any], where: str) -> Dynamics:
    """A system, in float64 if it takes a dtype; `start: {mean, std}` becomes a Gaussian."""
    make = SYSTEMS.get(name) or imported_system(name)
    if isinstance(make, Dynamics):
        if settings:
            raise InvalidValueError(
                f"{name} is made already and takes no settings; leave out {where}.{next(iter(settings))}."
            )
        return make
    given = dict(settings)
    if isinstance(given.get("start"), Mapping):
        given["start"] = Gaussian(**given["start"], dtype=torch.float64)
    made = make(
        **arguments(make, given, f"{where}.", leave=("dtype",)),
        **({"dtype": torch.float64} if "dtype" in parameters(make) else {}),
    )
    if not isinstance(made, Dynamics):
        raise InvalidValueError(
            f"{name} makes a {type(made).__name__}, but a system is a slams.systems.Dynamics; derive it from that class."
        )
    return made


@functools.cache
def imported_system(path: str) -> Callable[..., Dynamics] | Dynamics:
    """A system of the user's: a class, a function that makes one, or an instance.

    Args:
        path: "package.module:name"; the working folder is searched only if PYTHONPATH names it.

    Raises:
        ValueError: If the object is missing, or no system.
    """
    module, _, name = path.partition(":")
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    cwd_first = sys.path[0] in ("", os.getcwd()) and os.getcwd() not in (
        os.path.abspath(p) for p in listed if p
    )
    before, sys.path = (
        sys.path,
        sys.path[1:] if cwd_first else sys.path,
    )  # `python -m` puts the working folder first
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidValueError(
            f"{path} cannot be imported ({error}); give package.module:name, and put the package's folder on PYTHONPATH."
        ) from error
    finally:
        sys.path = before
    if not isinstance(found, Dynamics) and (
        not callable(found) or (isinstance(found, type) and not issubclass(found, Dynamics))
    ):
        raise InvalidValueError(
            f"{path} is {found!r}, but a system is a slams.systems.Dynamics, its class or a function that makes one."
        )
    return found
