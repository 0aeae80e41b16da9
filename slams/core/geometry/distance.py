"""Distances on line, circle, torus and sphere, and a search for near pairs that never makes their matrix."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from slams.core.errors import InvalidValueError

EARTH_RADIUS = 6371.0  # km
CHUNK = 8192  # points whose neighbours are looked up at once


def line_distance(a: Tensor, b: Tensor, period: float | None = None) -> Tensor:
    """Distances on a line, or the shorter way round a circle.

    Args:
        a: Coordinates (P).
        b: Coordinates (Q).
        period: Length of the circle; a line if None.

    Returns:
        (P, Q).

    >>> line_distance(torch.tensor([0.0, 9.0]), torch.tensor([1.0]), period=10.0)
    tensor([[1.],
            [2.]])
    """
    apart = (a[:, None] - b[None]).abs()
    if period is None:
        return apart
    apart = apart % period
    return torch.minimum(apart, period - apart)


def torus_distance(a: Tensor, b: Tensor, periods: Sequence[float]) -> Tensor:
    """Euclidean distances on a flat torus.

    Args:
        a: Points (P, D).
        b: Points (Q, D).
        periods: Length of the torus along each of the D axes.

    Returns:
        (P, Q).
    """
    sides = [line_distance(a[:, i], b[:, i], period) for i, period in enumerate(periods)]
    return torch.stack(sides).square().sum(0).sqrt()


def great_circle(a: Tensor, b: Tensor) -> Tensor:
    """Distances on the Earth's surface.

    Args:
        a: (latitude, longitude), (P, 2) [degrees].
        b: (latitude, longitude), (Q, 2) [degrees].

    Returns:
        (P, Q) [km].

    >>> round(float(great_circle(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 90.0]]))))
    10008
    """
    chord = (unit_vector(a)[:, None] - unit_vector(b)[None]).norm(dim=-1)
    return (2 * EARTH_RADIUS * torch.asin((chord / 2).clamp(max=1))).to(a.dtype)


def check_degrees(points: Tensor, what: str) -> None:
    """Check that points are (latitude, longitude) in degrees.

    Args:
        points: (P, 2).
        what: Name of the points in the message.

    Raises:
        ValueError: If a latitude is beyond the poles, or a longitude beyond a turn either way.
    """
    if points.ndim != 2 or points.shape[-1] != 2:
        raise InvalidValueError(
            f"{what} must be (latitude, longitude), shape (P, 2), got {tuple(points.shape)}."
        )
    reach = points.double().abs().amax(0) if len(points) else points.new_zeros(2)
    if not (bool(points.isfinite().all()) and float(reach[0]) <= 90.001 and float(reach[1]) <= 360.001):
        raise InvalidValueError(
            f"{what} reach latitude {float(reach[0]):g} and longitude {float(reach[1]):g}; expected (latitude, "
            "longitude) in degrees, in this order: are they swapped, missing, or in metres?"
        )


def unit_vector(points: Tensor) -> Tensor:
    """(latitude, longitude) (P, 2) [degrees] as points of the unit sphere (P, 3), float64."""
    lat, lon = torch.deg2rad(points.double()).unbind(-1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


@dataclass(frozen=True)
class Space:
    """Euclidean space, a torus of these periods, or a sphere of this radius, for a tree of points."""

    periods: tuple[float, ...] | None = None
    sphere: float | None = None

    @property
    def axes(self) -> int | None:
        """Number of coordinates of a point; None if any."""
        if self.sphere:
            return 2
        return None if self.periods is None else len(self.periods)

    def pairs(self, a: Tensor, b: Tensor, limit: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pairs (i, j, distance) closer than `limit`, i ascending, one chunk of a at a time."""
        one, other = self._embedded(a), self._embedded(b)
        if self.sphere:
            limit = 2 * self.sphere * math.sin(min(limit / (2 * self.sphere), math.pi / 2))
        everything = np.concatenate([one, other])
        widest = float(np.linalg.norm(np.ptp(everything, axis=0)))
        limit = min(limit, widest) * (1 + 1e-9) + 1e-300  # trees take no infinity
        tree = cKDTree(other, boxsize=self.periods)
        for start in range(0, len(one), CHUNK):
            part = cKDTree(one[start : start + CHUNK], boxsize=self.periods)
            found = part.sparse_distance_matrix(tree, limit, output_type="ndarray")
            found = found[np.argsort(found["i"], kind="stable")]
            distance = torch.from_numpy(found["v"].copy())
            if self.sphere:
                distance = 2 * self.sphere * torch.asin((distance / (2 * self.sphere)).clamp(max=1))
            yield torch.from_numpy(found["i"] + start), torch.from_numpy(found["j"].copy()), distance

    def _embedded(self, points: Tensor) -> np.ndarray:
        if self.sphere:
            return (self.sphere * unit_vector(points)).cpu().numpy()
        flat = points.double().cpu().numpy()
        if self.periods is None:
            return flat
        flat = flat % np.array(self.periods)
        return np.where(flat >= np.array(self.periods), 0.0, flat)  # -1e-20 % 1 is 1
