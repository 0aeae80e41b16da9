"""Stochastic decoders of amounts such as rain: draws with a point mass at zero, given latents and observations.

u = max(0, m + s ζ), where u is a root of the amount (`AmountScale`): the network of `slams.networks.censored` gives m
and s at each point from the latents of a day and its neighbours and from fields observed on the grid; ζ is a standard
normal field, correlated in space and time. Members that differ in their latents differ in m and s, so that rain and
temperature of a member belong together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slams.core.codec import Transform
from slams.core.geometry.waves import space_time_normal
from slams.core.random import Rng, fork, generator
from slams.core.tensorfile import fill, flat, grouped, read_tensors, write_tensors
from slams.networks.censored import CensoredNormal, GridTrunk, VectorTrunk
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.recipe import Recipe

FILE_NAME = "amounts.safetensors"
DAYS = 3  # that a decoder reads: a day and its neighbours
ROOT = 0.5  # power of an amount on whose scale its draws are normal


@dataclass(frozen=True)
class AmountScale:
    """Scale u of an amount, on which its draws are censored normals.

    u = (x - x_0)^p of the amount x in its unit, x_0 its bound. On the scale of a logarithm m and s in error by a few
    tenths are a multiple of the amount, and the mean over members that of a few absurd ones; a root is mild.

    Attributes:
        transform: Transform y = f(x) of the variable.
        power: p; None for u = y, as runs of the first version with decoders have it.
    """

    transform: Transform
    power: float | None = ROOT

    @property
    def lower(self) -> float:
        """The bound of u."""
        return 0.0 if self.power is not None else self.bound

    def of(self, y: Tensor) -> Tensor:
        """u of transformed values y."""
        if self.power is None:
            return y
        return self.excess(y).pow(self.power)

    def excess(self, y: Tensor) -> Tensor:
        """x - x_0, the amount above its bound in its own unit, of transformed values y."""
        bound = float(self.transform.inverse(np.array(self.bound)))
        return (torch.as_tensor(self.transform.inverse(y.numpy())) - bound).clamp(min=0)

    def values(self, u: Tensor) -> Tensor:
        """Transformed values y >= lower of any u; those below the bound are at it."""
        if self.power is None:
            return u.clamp(min=self.bound)
        bound = float(self.transform.inverse(np.array(self.bound)))
        return torch.as_tensor(self.transform.forward(bound + u.clamp(min=0).pow(1 / self.power).numpy()))

    @property
    def bound(self) -> float:
        """The bound of y."""
        lower = self.transform.lower
        assert lower is not None  # a recipe refuses others
        return lower


@dataclass(frozen=True)
class Noise:
    """Correlations and spread of ζ.

    Attributes:
        length: Decorrelation length [km].
        time: Decorrelation time [days].
        nugget: Share of the variance that is independent at each point and day.
        factor: Factor on the scale s.
    """

    length: float = 500.0
    time: float = 1.0
    nugget: float = 0.2
    factor: float = 1.0


class AmountDecoder:
    """Draws of one amount given latents.

    Args:
        network: Location and scale.
        layout: Layout of the variable.
        observed: Names of the modalities whose observed fields the network reads.
        scale: Scale of location and scale.
        noise: Correlations and spread.
    """

    def __init__(
        self,
        network: CensoredNormal,
        layout: Layout,
        observed: Sequence[str],
        scale: AmountScale,
        noise: Noise | None = None,
    ) -> None:
        self.network, self.layout = network.eval(), layout
        self.observed, self.scale, self.noise = tuple(observed), scale, noise or Noise()

    @torch.no_grad()
    def parameters(
        self,
        z: Tensor,
        phase: Tensor,
        seen: Mapping[str, Tensor] | None = None,
        days: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Location and calibrated scale of u.

        Args:
            z: Latents of consecutive days (N, T, *Z); the first and the last are their own neighbours, as in training.
            phase: Phase of the year of the decoded days, (D).
            seen: Observed anomalies of the decoded days (D, *S) by modality, NaN where unobserved.
            days: The decoded days among the T, all if not given; those around them are neighbours only.

        Returns:
            (N, D, *S) each.
        """
        fields = observed_fields(self.observed, seen, self.layout, len(phase))
        around = neighbours(z.shape[1])[days]
        found = [self.network(member[around], season(phase), fields) for member in z]
        location, scale = (torch.stack(part) for part in zip(*found, strict=True))
        return location, self.noise.factor * scale

    def draws(
        self,
        z: Tensor,
        phase: Tensor,
        seen: Mapping[str, Tensor] | None = None,
        days: slice = slice(None),
        *,
        rng: Rng = None,
    ) -> Tensor:
        """One draw for each latent draw: arguments of `parameters`, to (N, D, *S) after the transform."""
        location, scale = self.parameters(z, phase, seen, days)
        noise = self.noise
        field = space_time_normal(
            self.layout.points(), len(phase), len(z),
            length=noise.length, time=noise.time, nugget=noise.nugget, rng=generator(rng, "amounts"),
        )  # fmt: skip
        field = field.reshape(*field.shape[:2], 1, *self.layout.shape[1:]).to(location)
        return self.scale.values(location + scale * field)


def season(phase: Tensor) -> Tensor:
    """Two yearly harmonics of a phase (b), (b, 4)."""
    angle = 2 * torch.pi * phase[:, None]
    return torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], 1)


def neighbours(days: int) -> Tensor:
    """Each of T days between its neighbours, (T, 3); those beyond the ends are the day itself."""
    return (torch.arange(days)[:, None] + torch.arange(-1, 2)).clamp(0, days - 1)


def observed_fields(
    names: Sequence[str], seen: Mapping[str, Tensor] | None, layout: Layout, days: int
) -> Tensor | None:
    """Observed anomalies, 0 where unobserved, and their masks as channels (T, 2 n, H, W); None without names."""
    if not names:
        return None
    parts = []
    for name in names:
        x = (
            seen[name]
            if seen is not None and name in seen
            else torch.full((days, 1, *layout.shape[1:]), torch.nan)
        )
        parts += [torch.nan_to_num(x), torch.isfinite(x).to(x.dtype)]
    return torch.cat(parts, 1)


def readable(recipe: Recipe, layouts: Mapping[str, Layout], name: str) -> tuple[str, ...]:
    """Modalities whose observed fields a decoder reads: those of one channel on the variable's grid, as cells."""
    own = layouts[name]
    if recipe.latent.kind == "vector" or not own.is_grid:
        return ()
    return tuple(
        other
        for other, layout in layouts.items()
        if layout.shape == (1, *own.shape[1:])
        and recipe.modalities[other].role == "observation"
        and other not in recipe.assimilation.operators
    )


def build(
    recipe: Recipe,
    layouts: Mapping[str, Layout],
    name: str,
    event: Sequence[int],
    *,
    climate: Sequence[Tensor],
    lower: float,
) -> CensoredNormal:
    """The untrained network of an amount.

    Args:
        recipe: Recipe with the width of the network.
        layouts: Layouts by modality.
        name: Name of the amount.
        event: Event shape of the latent.
        climate: Frequency and mean excess of u at each point, (*S) each.
        lower: Bound of u.
    """
    layout, hidden = layouts[name], recipe.amounts.hidden
    trunk: nn.Module
    if len(event) == 1:
        trunk = VectorTrunk(DAYS, event, layout.shape, hidden=hidden)
    else:
        observed = 2 * len(readable(recipe, layouts, name))
        trunk = GridTrunk(
            DAYS, event, layout.shape, observed=observed, hidden=hidden, periodic=layout.is_global
        )
    frequency, mean = climate
    return CensoredNormal(trunk, frequency, mean, lower)


def save_amounts(decoders: Mapping[str, AmountDecoder], path: Path) -> None:
    """Write the decoders of a run to one file."""
    states = {name: decoder.network.state_dict() for name, decoder in decoders.items()}
    facts = {
        "noise": {n: asdict(d.noise) for n, d in decoders.items()},
        "power": {n: d.scale.power for n, d in decoders.items()},
    }
    write_tensors(path, flat(states), facts)


def load_amounts(recipe: Recipe, codec: MultimodalCodec, path: Path) -> dict[str, AmountDecoder]:
    """Read a file of `save_amounts`; no decoder if there is none.

    Args:
        recipe: Recipe of the run.
        codec: Its codec.
        path: Path of the file.
    """
    if not path.exists():
        return {}
    tensors, facts = read_tensors(path)
    found = {}
    for name, state in grouped(tensors).items():
        shape = codec.layouts[name].shape
        blank = torch.full(shape, 0.5), torch.ones(shape)
        scale = AmountScale(recipe.modalities[name].transformed, facts.get("power", {}).get(name))
        event = codec.autoencoder.event
        network = build(recipe, codec.layouts, name, event, climate=blank, lower=scale.lower)
        fill(network, state, path)
        noise = Noise(**facts["noise"][name])
        observed = readable(recipe, codec.layouts, name)
        found[name] = AmountDecoder(network, codec.layouts[name], observed, scale, noise)
    return found


def climate_of(x: Tensor, lower: float) -> tuple[Tensor, Tensor]:
    """Frequency and mean excess of an amount at each point on training days (n, *S), NaN where missing.

    Points without a value have the mean of the others.
    """
    above = torch.where(torch.isfinite(x), (x > lower).to(x.dtype), torch.nan).nanmean(0)
    mean = (x - lower).nanmean(0)
    return above.nan_to_num(float(above.nanmean())), mean.nan_to_num(float(mean.nanmean())).clamp(min=1e-6)


def seeded(recipe: Recipe, *label: str | int) -> torch.Generator:
    """Generator of a purpose of the decoders."""
    return fork(recipe.seed, "amounts", *label)
