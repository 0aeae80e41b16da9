"""Surface quasi-geostrophic turbulence seen by sensors: truths and climate on disk, what is seen, what is near."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slams.core.console import Console
from slams.core.covariance import Isotropic
from slams.core.files import atomic
from slams.core.geometry.localization import Localization, gaspari_cohn
from slams.core.geometry.torus import resample
from slams.core.random import Rng, fork, generator, normal
from slams.core.settings import unknown
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Compose, Flatten, Operator, by_name
from slams.systems.flows.surface_qg import SurfaceQG

DEFORMATION = 1000.0  # N H / f [km], the horizontal distance that the distance of the lids counts as
OPERATORS = ("identity", "arctan")


@dataclass(frozen=True)
class Archive:
    """Which states of the model are simulated: truths, each of its own start, and a climate of free runs.

    Attributes:
        size: Points along a side.
        length: States of a truth, 12 h apart.
        spin_up: Steps before the first; 600 are 300 days.
        adjusted: The last of these on the grid itself, the others on one of half the points where that has at least 32
            along a side.
        climate: Free runs.
        states: States kept of each.
        apart: Steps between them.
    """

    size: int = 32
    length: int = 150
    spin_up: int = 600
    adjusted: int = 120
    climate: int = 16
    states: int = 40
    apart: int = 10

    def __post_init__(self) -> None:
        for name in ("length", "climate", "states", "apart"):
            if getattr(self, name) < 1:
                raise ValueError(f"archive.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.adjusted <= self.spin_up:
            raise ValueError(
                f"adjusted must lie between 0 and spin_up, got {self.adjusted} of {self.spin_up}."
            )


@dataclass(frozen=True)
class Shocks:
    """Disturbances of what is observed, at single times, that no method knows of; the truth itself goes on unmoved.

    Attributes:
        chance: Of a time to be disturbed.
        stds: Standard deviations of the noise at every point [K].
        shares: Chance of each of them, if there is one.
    """

    chance: float = 0.0
    stds: Sequence[float] = ()
    shares: Sequence[float] = ()

    def __post_init__(self) -> None:
        if (
            not 0 <= self.chance <= 1
            or (self.chance > 0 and not self.stds)
            or len(self.stds) != len(self.shares)
        ):
            raise ValueError(
                f"shocks need a chance in [0, 1] and a share for each standard deviation, got {self.chance}, "
                f"{list(self.stds)} and {list(self.shares)}."
            )
        smallest = min((*self.stds, *self.shares), default=0.0)
        if smallest < 0 or (self.shares and abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(
                f"shares must add up to 1 and nothing be negative, got {list(self.stds)}, {list(self.shares)}."
            )

    def draw(self, steps: int, rng: Rng) -> Tensor:
        """Standard deviation at each of the steps, 0 where there is no shock, (steps)."""
        rng = generator(rng, "shocks")
        struck = torch.rand(steps, generator=rng, device=rng.device) < self.chance
        if not self.stds:
            return torch.zeros(steps)
        which = torch.multinomial(torch.tensor(list(self.shares)), steps, True, generator=rng)
        return torch.where(struck, torch.tensor(list(self.stds))[which], 0.0)


@dataclass(frozen=True)
class Sensors:
    """What is seen, every 12 h.

    Attributes:
        operator: "identity", temperature [K], or "arctan", the arc tangent of it [rad].
        std: Of the errors, in the unit of the values.
        seen: Share of the points that is seen, drawn anew at every time, the same on both lids.
        shocks: Disturbances.
    """

    operator: str = "identity"
    std: float = 1.0
    seen: float = 1.0
    shocks: Shocks = field(default_factory=Shocks)

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(unknown("operator", self.operator, OPERATORS))
        if not self.std > 0 or not 0 < self.seen <= 1:
            raise ValueError(
                f"errors need a positive standard deviation, and a share in (0, 1] of the points must be seen, got "
                f"{self.std} and {self.seen}; a method that sees nothing is the row of the free run."
            )

    @cached_property
    def function(self) -> Operator:
        """h, (*B, 2, N, N) to (*B, 2 N^2)."""
        flat = Flatten(3)
        return flat if self.operator == "identity" else Compose([flat, by_name(self.operator)])

    def inverse(self, values: Tensor) -> Tensor:
        """Temperature of exact values [K]; beyond the range of the arc tangent, at 100 K."""
        return values if self.operator == "identity" else values.clamp(-1.5607966, 1.5607966).tan()

    def observe(self, truth: Tensor, seed: int) -> Tensor:
        """Values of one truth, (L, 2, N, N) to (L, 2 N^2), NaN where nothing is seen."""
        shock = self.shocks.draw(len(truth), fork(seed, "shocks")).to(truth)
        noise = normal(truth.shape, like=truth, rng=fork(seed, "shocked"))
        values = self.function(truth + shock[:, None, None, None] * noise)
        values = values + self.std * normal(values.shape, like=values, rng=fork(seed, "errors"))
        if self.seen < 1:
            points, rng = truth.shape[-1] * truth.shape[-2], fork(seed, "seen")
            count = max(1, round(self.seen * points))
            order = torch.rand(len(truth), points, generator=rng).argsort(-1).argsort(-1)
            values = values.masked_fill((order >= count).repeat(1, 2), torch.nan)
        return values

    def observations(self, truths: Tensor, seeds: Sequence[int]) -> Observations:
        """Observations of truths (B, L, 2, N, N), each by its own seed alone."""
        values = torch.stack([self.observe(x, seed) for x, seed in zip(truths, seeds, strict=True)])
        return Observations({"lids": Observation(values, self.function, Isotropic(self.std**2))})


def model(size: int) -> SurfaceQG:
    """The model, in single precision: its error in a step of 12 h is a hundred thousandth of the temperature's."""
    return SurfaceQG(size, dtype=torch.float32)


def nearby(size: int, radius: float, *, vertical: bool = True) -> Localization:
    """What is near each variable of both lids, by Gaspari and Cohn's taper that vanishes at `radius`.

    Args:
        size: Points along a side of the doubly periodic square.
        radius: Where the taper vanishes [km].
        vertical: Whether values of the other lid count less, by the taper at the deformation radius; else as if it were
            the same lid.

    Returns:
        Of 2 N^2 variables with values at the same places.

    Source:
        Bao et al. (2024), arXiv:2404.00844, released code.
    """
    length = SurfaceQG.LENGTH / 1000
    ticks = torch.arange(size, dtype=torch.float64) * (length / size)
    plane = Localization.torus(
        (size, size), torch.cartesian_prod(ticks, ticks), radius / 2, periods=(length, length)
    )
    across = (
        float(gaspari_cohn(torch.tensor(DEFORMATION, dtype=torch.float64), radius / 2)) if vertical else 1.0
    )
    return plane.layered(torch.tensor([[1.0, across], [across, 1.0]], dtype=torch.float64))


@torch.no_grad()
def simulate(settings: Archive, rng: torch.Generator, steps: Sequence[int]) -> Tensor:
    """States of a free run at some steps after the spin-up, (len(steps), 2, N, N).

    Raises:
        FloatingPointError: If a state is not finite.
    """
    half = settings.size // 2 if settings.size >= 64 else settings.size
    coarse, fine = model(half), model(settings.size)
    x = coarse.initial(rng=rng)
    for _ in range(settings.spin_up - settings.adjusted):
        x = coarse(x)
    x = resample(x, settings.size)
    for _ in range(settings.adjusted):
        x = fine(x)
    kept, wanted = [], set(steps)
    for k in range(max(steps) + 1):
        if k in wanted:
            kept.append(x)
        x = fine(x)
    states = torch.stack(kept)
    if not bool(torch.isfinite(states).all()):
        raise FloatingPointError("a free run is not finite; take another seed, or a weaker jet.")
    return states


def truths(folder: Path, settings: Archive, seeds: Sequence[int], console: Console) -> Tensor:
    """Truths of seeds, (B, L, 2, N, N), simulated where they are not on disk; each has a file of its own."""
    steps = range(settings.length)
    parts = {f"truth_{seed}": (fork(seed, "truth"), steps) for seed in seeds}
    return torch.stack(_runs(folder, settings, parts, "truths", console))


def climate(folder: Path, settings: Archive, console: Console) -> Tensor:
    """States of the climate, (runs * states, 2, N, N), the states of a run one after the other."""
    steps = range(0, settings.states * settings.apart, settings.apart)
    parts = {f"climate_{i}": (fork(i, "climate"), steps) for i in range(settings.climate)}
    return torch.cat(_runs(folder, settings, parts, "climate", console))


def first_ensembles(states: Tensor, seeds: Sequence[int], members: int) -> Tensor:
    """States of the climate without replacement, the same for all methods, (B, J, 2, N, N).

    Raises:
        ValueError: If the climate has fewer states.
    """
    if members > len(states):
        raise ValueError(
            f"{members} members need as many states of the climate, got {len(states)}; archive more."
        )
    chosen = [torch.randperm(len(states), generator=fork(seed, "members"))[:members] for seed in seeds]
    return torch.stack([states[index] for index in chosen])


def ensembles_near(truth: Tensor, seeds: Sequence[int], members: int, std: float) -> Tensor:
    """The first state of each truth with white noise, the same for all methods, (B, J, 2, N, N).

    Args:
        truth: (B, L, 2, N, N).
        seeds: Of the truths.
        members: J.
        std: Standard deviation of the noise [K].
    """
    shape = (members, *truth.shape[2:])
    noise = [normal(shape, like=truth, rng=fork(seed, "near")) for seed in seeds]
    return truth[:, :1] + std * torch.stack(noise)


def moments(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (2, N, N) and covariance (2 N^2, 2 N^2) of the climate, which is the same at every x.

    States shifted along x by every distance are states, too.
    """
    size = states.shape[-1]
    mean = states.mean((0, 2), keepdim=True)
    covariance = states.new_zeros(2 * size * size, 2 * size * size)
    for shift in range(size):
        centred = (states - mean).roll(shift, -2).flatten(1)
        covariance += centred.mT @ centred / (len(states) * size)
    return mean[0].expand(2, size, size), covariance


def _runs(
    folder: Path, settings: Archive, parts: Mapping[str, tuple[torch.Generator, Sequence[int]]], title: str,
    console: Console,
) -> list[Tensor]:  # fmt: skip
    """Free runs by name, one alone after the other, so that none depends on what else is asked for."""
    paths = {name: folder / f"{name}.safetensors" for name in parts}
    missing = [name for name in parts if _read(paths[name], settings) is None]
    if missing:
        with console.bar(f"simulate {title}", len(missing)) as advance:
            for name in missing:
                states = simulate(settings, *parts[name])
                with atomic(paths[name]) as temporary:
                    save_file({"x": states}, temporary, {"archive": repr(settings)})
                advance(1, "")
    found = [_read(path, settings) for path in paths.values()]
    return [x for x in found if x is not None]


def _read(path: Path, settings: Archive) -> Tensor | None:
    """A run of this archive, if it is on disk."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("archive") == repr(settings)
            return file.get_tensor("x") if same else None
    except SafetensorError:
        return None
