"""Localization of ensemble covariances: taper, distances and neighbour lists of observations."""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import DataWarning, InvalidValueError
from slams.core.geometry.distance import (
    EARTH_RADIUS,
    Space,
    check_degrees,
    great_circle,
    line_distance,
    torus_distance,
)
from slams.core.geometry.places import Geometry

__all__ = [
    "Localization",
    "gaspari_cohn",
    "great_circle",
    "half_width",
    "line_distance",
    "torus_distance",
]


def gaspari_cohn(distance: Tensor, radius: float) -> Tensor:
    """Correlation function of fifth order that vanishes beyond twice its half-width.

    With r = distance / radius,

        1 - 5/3 r^2 + 5/8 r^3 + 1/2 r^4 - 1/4 r^5              for r <= 1,
        4 - 5 r + 5/3 r^2 + 5/8 r^3 - 1/2 r^4 + 1/12 r^5 - 2/(3r)   for 1 < r < 2,

    and 0 from r = 2 on. Twice continuously differentiable, positive definite in up to three dimensions.

    Args:
        distance: Not negative, any shape.
        radius: Half-width, positive, in the unit of `distance`; infinite for no localization.

    Returns:
        Weights in [0, 1], shape of `distance`.

    Raises:
        ValueError: If `radius` is not positive.

    Source:
        Gaspari & Cohn (1999), doi:10.1002/qj.49712555417, eq. 4.10.

    >>> gaspari_cohn(torch.tensor([0.0, 3.0, 6.0]), radius=3.0)
    tensor([1.0000, 0.2083, 0.0000])
    """
    _check_radius(radius)
    r = distance / radius
    inner = 1 + r**2 * (r * (0.625 + r * (0.5 - 0.25 * r)) - 5 / 3)
    # a product, because the sum of the powers is lost to rounding, and may be negative, near r = 2
    outer = 4 / 3 * (1 - r / 2).clamp(min=0) ** 4 * (r + 2 - 0.5 / r.clamp(min=1))
    return torch.where(r <= 1, inner, outer)


def half_width(localization_radius: float) -> float:
    """Half-width c = 1.82 r of Gaspari and Cohn's function for a published localization radius r.

    The taper at r is 0.634, close to exp(-1/2).

    >>> round(float(gaspari_cohn(torch.tensor(4.0), half_width(4.0))), 3)
    0.634
    """
    return 1.82 * localization_radius


class Localization:
    """Neighbour lists of the observations near each state variable, with the taper of their covariance.

    Only pairs with a taper of at least `cutoff` are kept: memory is d times the largest number K of neighbours. The
    dense matrices are made when they are asked for. Weights are float64; see `to`.

    Args:
        distance: Between state variables and observations, (d, O). For large d and O use `line`, `periodic`,
            `torus` or `sphere`, which never make this matrix.
        radius: Half-width of the taper (see `half_width`), in the unit of the distances; may be infinite.
        among: Distances among the observations, (O, O); needed by serial filters only.
        cutoff: Pairs with a smaller taper are dropped.

    Attributes:
        index: Indices of the observations near each variable, (d, K), padded with 0 of weight 0.
        weight: Taper of each neighbour, (d, K).
        observations: Number of observations O.

    Raises:
        ValueError: If the radius or cutoff is invalid, or the distances have other shapes.
    """

    index: Tensor
    weight: Tensor
    observations: int
    _among: "Callable[[], Localization] | None"

    def __init__(
        self, distance: Tensor, radius: float, *, among: Tensor | None = None, cutoff: float = 1e-3
    ) -> None:
        count = distance.shape[-1]
        if distance.ndim != 2 or (among is not None and tuple(among.shape) != (count, count)):
            shapes = tuple(distance.shape), None if among is None else tuple(among.shape)
            raise InvalidValueError(
                f"need distances (d, O) and, if any, (O, O) among observations, got {shapes}."
            )
        _check_cutoff(cutoff)
        taper = gaspari_cohn(distance.double(), radius)
        near = (taper >= cutoff) & (taper > 0)
        rows, columns = near.nonzero(as_tuple=True)
        self._set(rows, columns, taper[near], distance.shape)
        if among is not None:
            self._among = lambda: Localization(among, radius, among=among, cutoff=cutoff)

    @classmethod
    def line(
        cls, state: int | Tensor, positions: Tensor, radius: float, *, cutoff: float = 1e-3
    ) -> "Localization":
        """Variables on a line.

        Args:
            state: Coordinates of the variables (d), or d: then they are 0, ..., d - 1.
            positions: Coordinates of the observations (O).
            radius: Half-width of the taper.
            cutoff: Pairs with a smaller taper are dropped.
        """
        points = torch.arange(state) if isinstance(state, int) else state
        return cls._near(Space(), points[:, None], positions[:, None], radius, cutoff)

    @classmethod
    def periodic(
        cls,
        size: int,
        positions: Tensor,
        radius: float,
        *,
        period: float | None = None,
        block: int = 1,
        cutoff: float = 1e-3,
    ) -> "Localization":
        """Variables at equal distances on a circle, such as those of Lorenz-96.

        Args:
            size: d, the number of variables.
            positions: Coordinates of the observations (O).
            radius: Half-width of the taper.
            period: Length of the circle; d by default, so that neighbours are 1 apart.
            block: Length of blocks of successive variables that share the neighbours of their centre.
            cutoff: Pairs with a smaller taper are dropped.

        Raises:
            ValueError: If `size` is not a multiple of `block`.
        """
        if block < 1 or size % block:
            raise InvalidValueError(
                f"size must be a multiple of block, got {size} variables and blocks of {block}."
            )
        length = float(size if period is None else period)
        sites = torch.arange(size) // block * block
        points = (sites + (block - 1) / 2).double() * (length / size)
        return cls._near(Space((length,)), points[:, None], positions[:, None], radius, cutoff)

    @classmethod
    def torus(
        cls,
        shape: Sequence[int],
        positions: Tensor,
        radius: float,
        *,
        periods: Sequence[float] | None = None,
        cutoff: float = 1e-3,
    ) -> "Localization":
        """Variables on a regular grid, periodic in all axes; for several channels see `repeated`.

        Args:
            shape: Shape of the grid, such as (H, W).
            positions: Coordinates of the observations (O, 2), in the order of the axes.
            radius: Half-width of the taper.
            periods: Lengths along the axes; `shape` by default, so that neighbours are 1 apart.
            cutoff: Pairs with a smaller taper are dropped.
        """
        lengths = tuple(float(length) for length in (shape if periods is None else periods))
        axes = [
            torch.arange(n, dtype=torch.float64) * (length / n)
            for n, length in zip(shape, lengths, strict=True)
        ]
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        return cls._near(Space(lengths), points, positions, radius, cutoff)

    @classmethod
    def sphere(
        cls, state: Tensor, positions: Tensor, radius: float, *, cutoff: float = 1e-3
    ) -> "Localization":
        """Variables on the Earth.

        Args:
            state: (latitude, longitude) of the variables, (d, 2) [degrees].
            positions: (latitude, longitude) of the observations, (O, 2) [degrees].
            radius: Half-width of the taper [km].
            cutoff: Pairs with a smaller taper are dropped.

        Raises:
            ValueError: If a latitude is beyond the poles, as of swapped pairs, or a longitude beyond a turn. Where no
                observation is near any variable, a DataWarning asks whether pairs are swapped.
        """
        made = cls._near(Space(sphere=EARTH_RADIUS), state, positions, radius, cutoff)
        if len(positions) and not bool((made.weight > 0).any()):
            warnings.warn(
                f"no observation lies within {2 * radius:g} km of a variable; are (latitude, longitude) swapped?",
                DataWarning,
                stacklevel=2,
            )
        return made

    @classmethod
    def between(
        cls, geometry: Geometry, positions: Tensor, radius: float, *, cutoff: float = 1e-3
    ) -> "Localization":
        """Variables at the points of a geometry.

        Args:
            geometry: Geometry of the state.
            positions: Coordinates of the observations (O, D).
            radius: Half-width of the taper, in the geometry's unit.
            cutoff: Pairs with a smaller taper are dropped.
        """
        return cls._near(geometry.space, geometry.points, positions, radius, cutoff)

    @cached_property
    def rho_xy(self) -> Tensor:
        """The taper between variables and observations as a matrix, (d, O)."""
        dense = self.weight.new_zeros(len(self.index), self.observations)
        return dense.scatter_add_(1, self.index, self.weight)

    @property
    def rho_yy(self) -> Tensor:
        """The taper among the observations as a matrix, (O, O)."""
        return self.among.rho_xy

    @cached_property
    def among(self) -> "Localization":
        """Localization among the observations, which take the place of the variables.

        Raises:
            ValueError: If the distances among the observations were not given.
        """
        if self._among is None:
            raise InvalidValueError(
                "distances among the observations are unknown; pass `among` to Localization."
            )
        return self._among()

    def to(self, like: Tensor) -> "Localization":
        """A copy with weights in the dtype of `like`, on its device."""
        if self.weight.dtype == like.dtype and self.weight.device == like.device:
            return self
        inner = None if self._among is None else (lambda: self.among.to(like))
        return self._made(self.index.to(like.device), self.weight.to(like), self.observations, inner)

    def select(self, columns: Tensor) -> "Localization":
        """Restriction to some of the observations, renumbered: those of one step (`Observation.columns`).

        Args:
            columns: Distinct indices of observations, shape (O').
        """
        place = torch.full((self.observations,), -1, device=self.index.device)
        place[columns] = torch.arange(len(columns), device=place.device)
        rows, slots = ((place[self.index] >= 0) & (self.weight > 0)).nonzero(as_tuple=True)
        chosen = object.__new__(Localization)
        shape = (len(self.index), len(columns))
        chosen._set(rows, place[self.index[rows, slots]], self.weight[rows, slots], shape)
        if self._among is not None:
            chosen._among = lambda: self.among._rows(columns).select(columns)
        return chosen

    def transposed(self) -> "Localization":
        """The transpose: neighbour lists of the variables near each observation."""
        rows, slots = (self.weight > 0).nonzero(as_tuple=True)
        columns, order = self.index[rows, slots].sort(stable=True)
        turned = object.__new__(Localization)
        turned._set(
            columns, rows[order], self.weight[rows, slots][order], (self.observations, len(self.index))
        )
        return turned

    def repeated(self, count: int) -> "Localization":
        """Localization for `count` variables at each point, one whole field after the other as in (C, H, W)."""
        index, weight = self.index.repeat(count, 1), self.weight.repeat(count, 1)
        return self._made(index, weight, self.observations, self._among)

    def extended(self, count: int) -> "Localization":
        """Localization for `count` further variables that are near every observation, such as parameters of a model."""
        rows, slots = (self.weight > 0).nonzero(as_tuple=True)
        more = torch.cartesian_prod(torch.arange(count) + len(self.index), torch.arange(self.observations))
        more = more.to(self.index.device).reshape(-1, 2)
        made = object.__new__(Localization)
        weights = torch.cat([self.weight[rows, slots], self.weight.new_ones(len(more))])
        columns = torch.cat([self.index[rows, slots], more[:, 1]])
        made._set(
            torch.cat([rows, more[:, 0]]), columns, weights, (len(self.index) + count, self.observations)
        )
        made._among = self._among
        return made

    def layered(self, factors: Tensor) -> "Localization":
        """Localization for stacked fields, each with these variables and these observations.

        Variables and observations stand one whole field after the other, as in (C, H, W).

        Args:
            factors: Factors on the taper between variables of field a and observations of field b, (C, C).

        Raises:
            ValueError: If the factors are not a square matrix of numbers in [0, 1].
        """
        square = factors.ndim == 2 and len(factors) == factors.shape[1]
        if not square or not bool(((factors >= 0) & (factors <= 1)).all()):
            raise InvalidValueError(
                f"factors between fields must be a square matrix of numbers in [0, 1], got {factors.tolist()}."
            )
        offsets = self.observations * torch.arange(len(factors), device=self.index.device)
        index = (self.index.unsqueeze(1) + offsets[:, None]).flatten(1).repeat(len(factors), 1)
        weight = factors.to(self.weight)[:, None, :, None] * self.weight.unsqueeze(1)
        return self._made(index, weight.flatten(2).flatten(0, 1), self.observations * len(factors), None)

    def domains(self) -> tuple[Tensor, Tensor]:
        """Groups of variables with the same neighbours and weights, which share one local analysis.

        Returns:
            Index of one variable of each of the G groups, (G), and the group of each variable, (d).
        """
        rows = np.concatenate([self.index.cpu().double().numpy(), self.weight.cpu().double().numpy()], axis=1)
        keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        device = self.index.device
        return torch.from_numpy(first).to(device), torch.from_numpy(group.reshape(-1)).to(device)

    @classmethod
    def _near(
        cls, space: "Space", state: Tensor, positions: Tensor, radius: float, cutoff: float
    ) -> "Localization":
        """From points, by a tree."""
        _check_radius(radius)
        _check_cutoff(cutoff)
        axes = space.axes or state.shape[-1]
        if positions.ndim != 2 or state.ndim != 2 or not positions.shape[1] == state.shape[1] == axes:
            raise InvalidValueError(
                f"positions need {axes} coordinates each, got shapes {tuple(state.shape)} of the state and "
                f"{tuple(positions.shape)} of the observations."
            )
        if space.sphere:
            check_degrees(torch.cat([state, positions.to(state)]), "places")
        rows, columns, weights = [], [], []
        for i, j, distance in space.pairs(state, positions, 2 * radius):
            taper = gaspari_cohn(distance, radius)
            near = (taper >= cutoff) & (taper > 0)
            rows.append(i[near])
            columns.append(j[near])
            weights.append(taper[near])
        made = object.__new__(cls)
        made._set(torch.cat(rows), torch.cat(columns), torch.cat(weights), (len(state), len(positions)))
        made._among = lambda: cls._near(space, positions, positions, radius, cutoff)
        return made

    @classmethod
    def _made(
        cls, index: Tensor, weight: Tensor, observations: int, among: "Callable[[], Localization] | None"
    ) -> "Localization":
        made = object.__new__(cls)
        made.index, made.weight, made.observations, made._among = index, weight, observations, among
        return made

    def _set(self, rows: Tensor, columns: Tensor, weights: Tensor, shape: Sequence[int]) -> None:
        """Set padded neighbour lists from pairs in ascending order of rows."""
        counts = torch.bincount(rows, minlength=shape[0])
        slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        width = max(1, int(counts.max()))
        self.index = rows.new_zeros(shape[0], width).index_put_((rows, slots), columns)
        self.weight = weights.new_zeros(shape[0], width).index_put_((rows, slots), weights)
        self.observations = int(shape[1])
        self._among = None

    def _rows(self, rows: Tensor) -> "Localization":
        return self._made(self.index[rows], self.weight[rows], self.observations, None)


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise InvalidValueError(f"a localization radius must be positive, got {radius}; infinite means none.")


def _check_cutoff(cutoff: float) -> None:
    if not 0 <= cutoff < 1:
        raise InvalidValueError(f"the cutoff is a taper in [0, 1), got {cutoff}.")
