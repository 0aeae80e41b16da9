"""Surface quasi-geostrophic turbulence observed by sensors: values, first ensembles, and the climate's moments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from slams.core.covariance import Isotropic
from slams.core.errors import InvalidValueError
from slams.core.geometry.localization import Localization, gaspari_cohn
from slams.core.random import Rng, fork, generator, normal
from slams.core.settings import unknown
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Compose, Flatten, Operator, by_name
from slams.systems.flows.surface_qg import SurfaceQG

DEFORMATION = 1000.0  # N H / f [km], the horizontal distance that the distance of the lids counts as
OPERATORS = ("identity", "arctan")


@dataclass(frozen=True)
class Shocks:
    """Noise added to the observed state at random times, unknown to the methods; the truth is not changed.

    Attributes:
        chance: Probability of a shock at a time.
        stds: Standard deviations of the noise at every point [K].
        shares: Probability of each standard deviation, given a shock.
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
            raise InvalidValueError(
                f"shocks need a chance in [0, 1] and a share for each standard deviation, got {self.chance}, "
                f"{list(self.stds)} and {list(self.shares)}."
            )
        smallest = min((*self.stds, *self.shares), default=0.0)
        if smallest < 0 or (self.shares and abs(sum(self.shares) - 1) > 1e-6):
            raise InvalidValueError(
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
    """Observing network, every 12 h.

    Attributes:
        operator: Operator, "identity" (temperature [K]) or "arctan" (its arc tangent [rad]).
        std: Standard deviation of the observation errors [unit of the values].
        seen: Fraction of observed points, drawn anew at every time, the same on both lids.
        shocks: Random shocks.
    """

    operator: str = "identity"
    std: float = 1.0
    seen: float = 1.0
    shocks: Shocks = field(default_factory=Shocks)

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise InvalidValueError(unknown("operator", self.operator, OPERATORS))
        if not self.std > 0 or not 0 < self.seen <= 1:
            raise InvalidValueError(
                f"errors need a positive standard deviation, and a share in (0, 1] of the points must be observed, got "
                f"{self.std} and {self.seen}; without observations a method is the free run."
            )

    @cached_property
    def function(self) -> Operator:
        """Operator h, (*B, 2, N, N) to (*B, 2 N^2)."""
        flat = Flatten(3)
        return flat if self.operator == "identity" else Compose([flat, by_name(self.operator)])

    def inverse(self, values: Tensor) -> Tensor:
        """Temperature of exact values [K]; 100 K beyond the range of the arc tangent."""
        return values if self.operator == "identity" else values.clamp(-1.5607966, 1.5607966).tan()

    def observe(self, truth: Tensor, seed: int) -> Tensor:
        """Values of one truth, (L, 2, N, N) to (L, 2 N^2), NaN where unobserved."""
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


@dataclass(frozen=True)
class SQGProblem:
    """Truths, their observations and the first ensembles.

    Attributes:
        system: Model of the truths and of the methods.
        sensors: Observing network.
        truth: Truths, (B, L, 2, N, N).
        first: First ensembles, (B, J, 2, N, N).
        states: States of the climate, (n, 2, N, N).
        seeds: Seeds of the truths.
        burn_in: Number of analyses before the scored ones.
    """

    system: SurfaceQG
    sensors: Sensors
    truth: Tensor
    first: Tensor
    states: Tensor
    seeds: Sequence[int]
    burn_in: int

    @cached_property
    def observations(self) -> Observations:
        """Observations of every truth."""
        return self.sensors.observations(self.truth, self.seeds)

    @cached_property
    def climate(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the climate."""
        return moments(self.states)

    @property
    def deviation(self) -> float:
        """Standard deviation of the climate [K]."""
        return float((self.states - self.states.mean((0, 2), keepdim=True)).square().mean().sqrt())

    def given(self, error: float = 1.0, retrieved: float = 0.0) -> Observations:
        """The values and errors that a method is given.

        Args:
            error: Inflation factor on the standard deviation of the errors.
            retrieved: If not 0, values are inverted to temperatures first, at most three
                standard deviations of the climate from its mean, with errors of this standard deviation [K].
        """
        if not error > 0 or not retrieved >= 0:
            raise InvalidValueError(
                f"error must be positive and retrieved not negative, got {error} and {retrieved}."
            )
        (name, part), *_ = self.observations.items()
        if retrieved:
            made = Observation(self.retrieve(part.value), Flatten(3), Isotropic((error * retrieved) ** 2))
        else:
            made = Observation(part.value, part.operator, Isotropic((error * self.sensors.std) ** 2))
        return Observations({name: made})

    def retrieve(self, values: Tensor) -> Tensor:
        """Temperatures that have these values [K]; of an arc tangent, within three standard deviations of the climate."""
        if self.sensors.operator == "identity":
            return values
        mean, most = self.climate[0].flatten(), 3 * self.deviation
        return self.sensors.inverse(values).clamp(mean - most, mean + most)


def nearby(size: int, radius: float, *, vertical: bool = True) -> Localization:
    """Localization of the variables of both lids, by Gaspari and Cohn's taper that vanishes at `radius`.

    Args:
        size: Points along a side of the doubly periodic square.
        radius: Distance at which the taper vanishes [km].
        vertical: Whether values of the other lid count less, by the taper at the deformation radius; else as if it were
            the same lid.

    Returns:
        Localization of 2 N^2 variables with values at the same places.

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


def first_ensembles(states: Tensor, seeds: Sequence[int], members: int) -> Tensor:
    """States of the climate without replacement, the same for all methods, (B, J, 2, N, N).

    Raises:
        ValueError: If the climate has fewer states.
    """
    if members > len(states):
        raise InvalidValueError(
            f"{members} members need as many states of the climate, got {len(states)}; archive more."
        )
    chosen = [torch.randperm(len(states), generator=fork(seed, "members"))[:members] for seed in seeds]
    return torch.stack([states[index] for index in chosen])


def ensembles_near(truth: Tensor, seeds: Sequence[int], members: int, std: float) -> Tensor:
    """The first state of each truth with white noise, the same for all methods, (B, J, 2, N, N).

    Args:
        truth: Truths, (B, L, 2, N, N).
        seeds: Seeds of the truths.
        members: Ensemble size J.
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
