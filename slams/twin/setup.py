"""Set-ups of twin experiments as plain values: from settings and overrides to systems and surveys."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slams.core.covariance import Isotropic
from slams.core.settings import known_settings, override, unknown
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


def rotating(
    size: int = 20, damping: float = 0.95, noise: float | None = None, dtype: torch.dtype | None = None
) -> LinearGaussian:
    """A damped wave that travels by one site a step, kept alive by noise; its variance is 1 from the start on.

    x_{k+1, i} = damping x_{k, i-1} + e, e ~ N(0, noise).

    Args:
        size: Sites on the circle.
        damping: Factor of a step, in (-1, 1).
        noise: Variance of the noise; 1 - damping^2 if None, which keeps the variance at 1.
        dtype: Of the matrices.
    """
    eye = torch.eye(size, dtype=dtype)
    variance = 1 - damping**2 if noise is None else noise
    return LinearGaussian(damping * eye.roll(1, 0), variance * eye, eye.new_zeros(size), eye)


def lorenz96(  # noqa: PLR0913
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
    """`Lorenz96`, if wanted from its climate on (`SpunUp`) and with shocks (`Shocked`).

    Args:
        size: See `Lorenz96`, as `forcing`, `dt`, `substeps`, `method`, `noise`, `start` and `dtype`.
        forcing: See there.
        dt: See there.
        substeps: See there.
        method: See there.
        noise: See there.
        start: See there.
        spin_up: Steps before the start.
        shock_chance: Of a shock at a step.
        shock_std: Standard deviation of what it adds to every variable.
        dtype: See there.
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
    "lorenz96": {"model": {"shock_chance": 0.0}, "burn_in": 400},  # methods foresee no shocks unless told
    "linear": {"observe": {"operator": "stride", "step": 2, "noise": 0.25}, "burn_in": 100},
    "doublewell": {
        "truth": {"flip_every": 20},
        "model": {"flip_every": 0},
        "observe": {"noise": 0.01},
        "burn_in": 20,
    },
}


@dataclass(frozen=True)
class Seen:
    """What is seen of the state.

    Attributes:
        operator: "identity", "stride" (every `step`-th variable), "select" (`index`) or a pointwise function.
        step: Of the stride.
        index: Of the selection.
        noise: Variance of every value.
        every: Steps from one observation to the next.
        start: First step observed; `every` if None.
        missing: Chance of a value to be missing.
        scale: Of the argument of a pointwise function, f(scale x + shift).
        shift: Added to it.
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

    @property
    def first(self) -> int:
        """First step observed."""
        return self.every if self.start is None else self.start

    def survey(self) -> Survey:
        """The survey.

        Raises:
            ValueError: If the operator is unknown, or scale and shift are given to one that knows none.
        """
        named: dict[str, Callable[[], operators.Operator]] = {
            "identity": operators.Identity,
            "stride": lambda: operators.Stride(self.step),
            "select": lambda: operators.Select(torch.tensor(self.index, dtype=torch.long), event=1),
        }
        if self.operator not in (*named, *operators.POINTWISE):
            raise ValueError(unknown("operator", self.operator, [*named, *operators.POINTWISE]))
        pointwise = self.operator not in named
        if not pointwise and (self.scale, self.shift) != (1.0, 0.0):
            raise ValueError(
                f"scale and shift are of the argument of a pointwise function, not of {self.operator}; leave them out."
            )
        made = (
            operators.Pointwise(self.operator, scale=self.scale, shift=self.shift)
            if pointwise
            else named[self.operator]()
        )
        return Survey(made, Isotropic(self.noise), every=self.every, start=self.first, missing=self.missing)


@dataclass(frozen=True)
class Setup:
    """A twin experiment.

    Attributes:
        system: Name of the system.
        truth: Its settings.
        model: Settings in which the methods' model departs from the truth.
        observe: What is seen.
        cycles: Analyses that are scored.
        burn_in: Analyses before them.
        replicates: Independent truths.
        seed: Of the first of them; the others follow.
    """

    system: str
    truth: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    observe: Seen = Seen()
    cycles: int = 2000
    burn_in: int = 0
    replicates: int = 16
    seed: int = TEST_SEED

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise ValueError(unknown("system", self.system, SYSTEMS))
        for name, least in (("cycles", 1), ("burn_in", 0), ("replicates", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def seeds(self) -> list[int]:
        """Seed of each truth."""
        return list(range(self.seed, self.seed + self.replicates))

    def experiment(self) -> TwinExperiment:
        """Systems and survey, in float64.

        Raises:
            ValueError: If a setting is unknown or cannot be.
        """
        length = self.observe.first + (self.burn_in + self.cycles - 1) * self.observe.every + 1
        return TwinExperiment(
            _system(self.system, self.truth, "truth"),
            self.observe.survey(),
            length,
            model=_system(self.system, {**self.truth, **self.model}, "model"),
            replicates=self.replicates,
            burn_in=self.burn_in,
        )

    def plain(self) -> dict[str, Any]:
        """Nested plain values that `setup` reads back."""
        tree = dataclasses.asdict(self)
        tree["observe"]["index"] = list(self.observe.index)
        return tree


def setup(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Setup:
    """A set-up from nested settings, over the defaults of its system.

    Args:
        tree: With at least "system".
        overrides: Such as "truth.forcing=11".

    Returns:
        The set-up.

    Raises:
        ValueError: If a key is unknown (the nearest is named), or a value cannot be.

    >>> setup({"system": "lorenz96"}, ["model.forcing=7.5"]).model["forcing"]
    7.5
    """
    if tree.get("system") not in SYSTEMS:
        raise ValueError(unknown("system", str(tree.get("system")), SYSTEMS))
    merged = copy.deepcopy(DEFAULTS[tree["system"]])
    for key, value in tree.items():
        inner = merged.get(key)
        merged[key] = {**inner, **value} if isinstance(inner, dict) else copy.deepcopy(value)
    merged = override(merged, overrides)
    known_settings(merged, [f.name for f in dataclasses.fields(Setup)])
    for name in ("truth", "model", "observe"):
        if not isinstance(merged.get(name, {}), Mapping):
            raise ValueError(f"{name} holds settings of its own, got {merged[name]!r}.")
    observe = merged.pop("observe", {})
    known_settings(observe, [f.name for f in dataclasses.fields(Seen)], "observe.")
    if "index" in observe:
        observe["index"] = tuple(observe["index"])
    try:
        made = Setup(observe=Seen(**observe), **merged)
        made.experiment()
    except TypeError as error:
        raise ValueError(f"a setting of {tree['system']} has a value of the wrong kind: {error}.") from error
    return made


def _system(name: str, settings: Mapping[str, Any], where: str) -> Dynamics:
    """A system in float64; `start: {mean, std}` becomes a Gaussian."""
    make = SYSTEMS[name]
    known_settings(settings, [k for k in inspect.signature(make).parameters if k != "dtype"], f"{where}.")
    given = dict(settings)
    if "start" in given:
        given["start"] = Gaussian(**given["start"], dtype=torch.float64)
    return make(**given, dtype=torch.float64)
