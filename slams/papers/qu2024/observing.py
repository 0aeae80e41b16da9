"""Observing systems of the experiment as matrices, and optimal interpolation of what patterns leave."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from slams.core.geometry.distance import EARTH_RADIUS
from slams.papers.qu2024.plan import OFFSET, Setting

_CHUNK = 2048  # cells whose correlations with all others are in memory at once


def operator(setting: Setting, weights: Tensor) -> Tensor:
    """H of one level, from cells to area means of blocks or to single cells, (P, H W).

    Args:
        setting: The observing system.
        weights: Area weights of the cells, (H, W).
    """
    height, width = weights.shape
    cells = torch.arange(height * width).reshape(height, width)
    if setting.kind == "sparse":
        seen = cells[OFFSET :: setting.side, OFFSET :: setting.side].flatten()
        return torch.nn.functional.one_hot(seen, height * width).float()
    block = (cells // width // setting.side) * (width // setting.side) + cells % width // setting.side
    matrix = torch.zeros(int(block.max()) + 1, height * width)
    matrix[block.flatten(), cells.flatten()] = weights.flatten()
    return matrix / matrix.sum(1, keepdim=True)


def latent_operator(setting: Setting, z: Tensor) -> Tensor:
    """The published operators on a latent (*B, C, H, W): plain block means, or cells, (*B, C, h, w)."""
    side = setting.side
    if setting.kind == "sparse":
        return z[..., OFFSET::side, OFFSET::side]
    return z.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).mean((-1, -3))


def on_grid(setting: Setting, x: Tensor) -> Tensor:
    """Values of the published operators on the grid of x (*B, H, W): blocks filled, unseen cells NaN; for figures."""
    if setting.kind == "sparse":
        seen = (..., slice(OFFSET, None, setting.side), slice(OFFSET, None, setting.side))
        out = torch.full_like(x, torch.nan)
        out[seen] = x[seen]
        return out
    means = latent_operator(setting, x[..., None, :, :]).squeeze(-3)
    return means.repeat_interleave(setting.side, -1).repeat_interleave(setting.side, -2)


@dataclass(frozen=True)
class LocalGaussian:
    """Fields e, independent from level to level and day to day, with correlation exp(-(d / length)^2 / 2).

    d is the chord between two cells, of which the correlation is positive definite on the sphere.

    Attributes:
        lat, lon: Coordinates of the grid [degrees].
        length: Correlation length [km].
        variance: Variance of each level and latitude, (C, H).
    """

    lat: tuple[float, ...]
    lon: tuple[float, ...]
    length: float
    variance: Tensor
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation of each cell, (C, H W)."""
        return self.variance.sqrt().repeat_interleave(len(self.lon), 1)

    def covariances(self, name: str, h: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance of e with H e and of H e with itself, (C, H W, P) and (C, P, P).

        The spread is taken as constant in a block.

        Args:
            name: Key under which correlations are kept.
            h: H, (P, H W).
        """
        if name not in self.kept:
            cells = _on_sphere(self.lat, self.lon)
            across = torch.cat(
                [
                    torch.exp(-0.5 * (torch.cdist(part, cells) / self.length) ** 2) @ h.mT
                    for part in cells.split(_CHUNK)
                ]
            )
            self.kept[name] = across, h @ across
        across, among = self.kept[name]
        there = self.std @ h.mT
        return self.std[..., None] * across * there[:, None, :], there[..., None] * among * there[:, None, :]

    def posterior(self, name: str, h: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and posterior variance of e given H e + errors of a variance at each level (C).

        Returns:
            K (C, H W, P) and variance (C, H W).
        """
        across, among = self.covariances(name, h)
        noise = variance[:, None, None] * torch.eye(len(h))
        gain = torch.linalg.solve((among + noise).double(), across.double().mT).mT.float()
        left = self.std.square() - (gain * across).sum(-1)
        return gain, left.clamp(min=1e-6)

    @classmethod
    def fit(
        cls, x: Tensor, h: Tensor, lat: tuple[float, ...], lon: tuple[float, ...], *,
        lengths: tuple[float, ...] = (200, 400, 700, 1000, 1400, 2000),
    ) -> "LocalGaussian":  # fmt: skip
        """Variances of fields (n, C, H, W), and the length whose interpolation from H x has the smallest error."""
        variance = x.square().mean((0, 3)) + 1e-4

        def error(one: "LocalGaussian") -> float:
            gain, _ = one.posterior("fit", h, torch.full((x.shape[1],), 0.01))
            cells = x.flatten(2)
            return float((cells - torch.einsum("cxp,ncp->ncx", gain, cells @ h.mT)).square().mean())

        tried = [cls(lat, lon, float(length), variance) for length in lengths]
        return min(tried, key=error)


def _on_sphere(lat: tuple[float, ...], lon: tuple[float, ...]) -> Tensor:
    """Points of a grid in space, (H W, 3) [km]."""
    y, x = torch.meshgrid(torch.deg2rad(torch.tensor(lat)), torch.deg2rad(torch.tensor(lon)), indexing="ij")
    points = torch.stack([y.cos() * x.cos(), y.cos() * x.sin(), y.sin()], -1)
    return EARTH_RADIUS * points.flatten(0, 1).float()
