"""Stochastic decoders of amounts such as rain: draws with a point mass at zero, given latents and observations.

y = max(lower, m + s ζ): the network of `slams.networks.censored` gives m and s at each point from the latents of a day
and its neighbours and from fields observed on the grid; ζ is a standard normal field, correlated in space and time.
Members that differ in their latents differ in m and s, so that rain and temperature of a member belong together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from slams.core.geometry.waves import space_time_normal
from slams.core.random import Rng, fork, generator
from slams.core.tensorfile import fill, flat, grouped, read_tensors, write_tensors
from slams.networks.censored import CensoredNormal, GridTrunk, VectorTrunk
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.recipe import Recipe

FILE_NAME = "amounts.safetensors"
DAYS = 3  # that a decoder reads: a day and its neighbours


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
        noise: Correlations and spread.
    """

    def __init__(
        self, network: CensoredNormal, layout: Layout, observed: Sequence[str], noise: Noise | None = None
    ) -> None:
        self.network, self.layout = network.eval(), layout
        self.observed, self.noise = tuple(observed), noise or Noise()

    @torch.no_grad()
    def parameters(
        self, z: Tensor, phase: Tensor, seen: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Location and calibrated scale.

        Args:
            z: Latents of consecutive days (N, T, *Z); the first and the last day are their own neighbours.
            phase: Phase of the year, (T).
            seen: Observed anomalies (T, *S) by modality, NaN where unobserved.

        Returns:
            (N, T, *S) each, after the transform of the variable.
        """
        fields = observed_fields(self.observed, seen, self.layout, len(phase))
        found = [self.network(member[neighbours(len(phase))], season(phase), fields) for member in z]
        location, scale = (torch.stack(part) for part in zip(*found, strict=True))
        return location, self.noise.factor * scale

    def draws(
        self, z: Tensor, phase: Tensor, seen: Mapping[str, Tensor] | None = None, *, rng: Rng = None
    ) -> Tensor:
        """One draw for each latent draw: arguments of `parameters`, to (N, T, *S) after the transform."""
        location, scale = self.parameters(z, phase, seen)
        noise = self.noise
        field = space_time_normal(
            self.layout.points(), len(phase), len(z),
            length=noise.length, time=noise.time, nugget=noise.nugget, rng=generator(rng, "amounts"),
        )  # fmt: skip
        field = field.reshape(*field.shape[:2], 1, *self.layout.shape[1:]).to(location)
        return (location + scale * field).clamp(min=self.network.lower)


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
) -> CensoredNormal:
    """The untrained network of an amount.

    Args:
        recipe: Recipe with the width of the network.
        layouts: Layouts by modality.
        name: Name of the amount.
        event: Event shape of the latent.
        climate: Frequency and mean excess at each point, (*S) each.
    """
    layout, hidden = layouts[name], recipe.amounts.hidden
    lower = recipe.modalities[name].transformed.lower
    assert lower is not None
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
    write_tensors(path, flat(states), {"noise": {n: asdict(d.noise) for n, d in decoders.items()}})


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
        network = build(recipe, codec.layouts, name, codec.autoencoder.event, climate=blank)
        fill(network, state, path)
        noise = Noise(**facts["noise"][name])
        found[name] = AmountDecoder(
            network, codec.layouts[name], readable(recipe, codec.layouts, name), noise
        )
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
