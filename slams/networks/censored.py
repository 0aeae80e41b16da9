"""Networks for amounts such as rain: location and scale of a censored normal, from latents and observations."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.networks.layers import SphereConv, zero

SEASONS = 4  # channels of the season: two yearly harmonics
_WETTEST = 0.99  # frequency beyond which the location of a point without change would have no bound


class GridTrunk(nn.Module):
    """Convolutions over a gridded latent, with the season, learned maps of position and observed fields as channels.

    Args:
        length: Number of days around the one that is decoded, L.
        event: Event shape of the latent (Z, h, w).
        shape: Shape of the variable (C, H, W), H and W the same multiple of h and w.
        observed: Number of channels of observed fields on the variable's grid.
        hidden: Channels of the layers.
        places: Number of learned maps.
        periodic: Whether longitude is periodic.
    """

    def __init__(
        self,
        length: int,
        event: Sequence[int],
        shape: Sequence[int],
        *,
        observed: int = 0,
        hidden: int = 32,
        places: int = 4,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        self.patch, self.channels = shape[1] // event[1], shape[0]
        self.place = nn.Parameter(torch.empty(places, *event[1:]))
        nn.init.normal_(self.place, std=0.3)
        inputs = length * event[0] + SEASONS + places + observed * self.patch**2
        self.first = SphereConv(inputs, hidden, periodic=periodic)
        self.second = SphereConv(hidden, hidden, periodic=periodic)
        self.last = zero(nn.Conv2d(hidden, 2 * self.channels * self.patch**2, 1))

    def forward(self, z: Tensor, season: Tensor, seen: Tensor | None = None) -> Tensor:
        """(b, L, Z, h, w), (b, 4) and (b, observed, H, W) -> (b, 2, C, H, W)."""
        grid, first, places = z.shape[-2:], self.first, len(self.place)
        parts = [z.flatten(1, 2), season[..., None, None].expand(-1, -1, *grid)]
        if seen is not None:
            parts.append(F.pixel_unshuffle(seen, self.patch))
        at = z.shape[1] * z.shape[2] + SEASONS  # of the maps among the input channels
        before, own, behind = first.weight.tensor_split((at, at + places), 1)
        # the maps on their own, once for the batch: training then needs no gradient of the other inputs
        x = F.conv2d(first.padded(torch.cat(parts, 1)), torch.cat([before, behind], 1), first.bias)
        x = F.silu(x + F.conv2d(first.padded(self.place[None]), own))
        x = x + F.silu(self.second(x))
        return F.pixel_shuffle(self.last(x), self.patch).unflatten(1, (2, self.channels))


class VectorTrunk(nn.Module):
    """Two layers over a vector latent and the season.

    Args:
        length: Number of days around the one that is decoded, L.
        event: Event shape of the latent (D,).
        shape: Shape of the variable, *S.
        hidden: Width of the layers.
    """

    def __init__(self, length: int, event: Sequence[int], shape: Sequence[int], *, hidden: int = 32) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.first = nn.Linear(length * event[0] + SEASONS, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = zero(nn.Linear(hidden, 2 * math.prod(shape)))

    def forward(self, z: Tensor, season: Tensor, seen: Tensor | None = None) -> Tensor:
        """(b, L, D) and (b, 4) -> (b, 2, *S); observed fields are not used."""
        x = F.silu(self.first(torch.cat([z.flatten(1), season], 1)))
        x = x + F.silu(self.second(x))
        return self.last(x).unflatten(1, (2, *self.shape))


class CensoredNormal(nn.Module):
    """Location m and scale s of y = max(lower, m + s ζ), ζ ~ N(0, 1), given latents.

    With the climate of each point as an untrained network has it, location lower + w q and scale w,

        m = lower + w (q + f),  s = w softplus(g + log(e - 1)),

    where f and g are the outputs of the trunk. q = Φ^-1(p) and w = E[y - lower] / (q Φ(q) + φ(q)) give each point its
    frequency p = P(y > lower) and its mean.

    Args:
        trunk: Network (z, season, observed fields) -> (b, 2, *S), whose last layer starts at zero.
        frequency: p, (*S).
        mean: E[y - lower], (*S) [unit of y].
        lower: Smallest value of y.
    """

    quantile: Tensor
    width: Tensor

    def __init__(self, trunk: nn.Module, frequency: Tensor, mean: Tensor, lower: float = 0.0) -> None:
        super().__init__()
        self.trunk, self.lower = trunk, lower
        q = torch.special.ndtri(frequency.clamp(1 - _WETTEST, _WETTEST))
        density = torch.exp(-0.5 * q**2) / (2 * torch.pi) ** 0.5
        width = mean / (q * torch.special.ndtr(q) + density)
        self.register_buffer("quantile", q)
        self.register_buffer("width", width.clamp(min=1e-2 * float(width.mean()) + 1e-6))

    def forward(self, z: Tensor, season: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and scale, (b, *S) each, from the arguments of the trunk."""
        shift, growth = self.trunk(z, season, seen).unbind(1)
        scale = self.width * F.softplus(growth + math.log(math.e - 1))
        return self.lower + self.width * (self.quantile + shift), scale + 1e-3 * self.width


def exceedance(location: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
    """P(max(lower, m + s ζ) > c) for thresholds c (K, 1, ..., 1) of at least `lower`, (K, *B)."""
    return torch.special.ndtr((location - threshold) / scale)


def pair_score(
    first: Tensor, second: Tensor, truth: Tensor, threshold: Tensor, measure: Tensor, weight: Tensor
) -> Tensor:
    """Threshold-weighted CRPS of the mixture over latent draws, estimated without bias from two independent ones.

    The score of a mixture of distributions with exceedances p_i(c) is the integral of (E p_i(c) - [y > c])² over the
    measure of c, and two independent draws have E (p_1 - o) (p_2 - o) = (E p - o)². Training on pairs thus calibrates
    the ensemble, whose members differ in their latents, instead of the distribution given one draw, which the ensemble
    would widen again.

    Args:
        first: p_1, (K, *B).
        second: p_2, (K, *B).
        truth: y, (*B), NaN where unknown.
        threshold: c, (K).
        measure: Measure of each threshold, (K): with the weights of a quadrature it is the CRPS.
        weight: Weight of each value, broadcastable to (*B).

    Returns:
        A scalar.

    Source:
        Gneiting & Ranjan (2011), doi:10.1198/jbes.2010.08110, eq. 4.
    """
    c = threshold.reshape(-1, *[1] * truth.ndim)
    event = (truth > c).to(first.dtype)
    each = torch.tensordot(measure, (first - event) * (second - event), 1)
    weight = torch.where(torch.isfinite(truth), weight, 0.0)
    return (weight * each).sum() / weight.sum().clamp(min=1e-9)
