"""Positions of the variables of a state and of the values of an operator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.distance import EARTH_RADIUS, Space, check_degrees, unit_vector

_AT_ONCE = 256  # values whose derivatives are taken together


@dataclass(frozen=True, eq=False)
class Geometry:
    """Position of every variable of a state, and the metric between positions.

    Attributes:
        points: Coordinates of each variable of the flattened state, (d, D).
        space: Metric space: line or plane, circle or torus, or sphere.
        dims: Names of the axes of a state, such as ("site",) or ("channel", "y", "x").
        unit: Unit of distances.
    """

    points: Tensor
    space: Space
    dims: tuple[str, ...]
    unit: str = "grid points"

    @classmethod
    def line(cls, size: int) -> "Geometry":
        """Variables at 0, ..., size - 1 on a line."""
        return cls(torch.arange(size, dtype=torch.float64)[:, None], Space(), ("site",))

    @classmethod
    def circle(cls, size: int) -> "Geometry":
        """Variables one apart on a circle, such as those of Lorenz-96."""
        return cls(torch.arange(size, dtype=torch.float64)[:, None], Space((float(size),)), ("site",))

    @classmethod
    def torus(cls, shape: Sequence[int], dims: Sequence[str] = ("channel", "y", "x")) -> "Geometry":
        """Fields (C, H, W), or (H, W), on the doubly periodic plane, cells one apart; channels share positions.

        Args:
            shape: Shape of a state; its last two axes are periodic.
            dims: Names of its axes.
        """
        *channels, height, width = shape
        axes = [torch.arange(n, dtype=torch.float64) for n in (height, width)]
        points = torch.cartesian_prod(*axes).repeat(torch.Size(channels).numel(), 1)
        return cls(points, Space((float(height), float(width))), tuple(dims)[-len(shape) :], "cells")

    @classmethod
    def sphere(
        cls, lat: Tensor, lon: Tensor, channels: int = 1, dims: Sequence[str] = ("channel", "lat", "lon")
    ) -> "Geometry":
        """Fields (C, H, W), or (H, W), on the Earth; distances in km.

        Args:
            lat: Latitudes (H) [degrees].
            lon: Longitudes (W) [degrees].
            channels: C, one for fields without an axis of channels.
            dims: Names of the axes of a state.

        Raises:
            ValueError: If a latitude is beyond the poles, or a longitude beyond a turn.
        """
        points = torch.cartesian_prod(lat.double(), lon.double()).repeat(channels, 1)
        check_degrees(points, "the grid's points")
        return cls(points, Space(sphere=EARTH_RADIUS), tuple(dims), "km")

    def centre(self, weights: Tensor) -> Tensor:
        """Weighted mean positions, the short way round; exactly the position of a single variable.

        Args:
            weights: Non-negative weights, (O, d).

        Returns:
            (O, D).
        """
        weights = weights.double() / weights.double().sum(-1, keepdim=True)
        nearest = self.points[weights.argmax(-1)]
        alone = (weights > 0).sum(-1) == 1
        if self.space.sphere:
            mean = weights @ unit_vector(self.points)
            lat = torch.rad2deg(torch.asin((mean[:, 2] / mean.norm(dim=-1)).clamp(-1, 1)))
            middle = torch.stack([lat, torch.rad2deg(torch.atan2(mean[:, 1], mean[:, 0]))], -1)
            return torch.where(alone[:, None], nearest, middle)
        middle = nearest.clone()
        for axis in range(self.points.shape[1]):
            apart = self.points[None, :, axis] - nearest[:, None, axis]
            if self.space.periods is not None:
                period = self.space.periods[axis]
                apart = (apart + period / 2) % period - period / 2
            middle[:, axis] += (weights * apart).sum(-1)
        return torch.where(alone[:, None], nearest, middle)


def places_of(operator: Callable[[Tensor], Tensor], x: Tensor, geometry: Geometry) -> Tensor:
    """Positions of an operator's values: the mean position of the variables that each depends on.

    The weights are |dh_i/dx_j| at a state; an operator may state its places itself, as an attribute `places`, (O, D).

    Args:
        operator: h: (*B, *S) -> (*B, *O), differentiable.
        x: The state, (*S).
        geometry: Geometry of the state.

    Returns:
        Coordinates of each value, (O, D).

    Raises:
        ValueError: If a value depends on no variable.
    """
    stated = getattr(operator, "places", None)
    if isinstance(stated, Tensor):
        return stated.double()
    count = operator(x).numel()
    rows = []
    for part in torch.arange(count).split(_AT_ONCE):
        with torch.enable_grad():
            leaf = x.detach().expand(len(part), *x.shape).clone().requires_grad_()
            values = operator(leaf).reshape(len(part), count)
            chosen = values.gather(1, part[:, None].to(values.device)).sum()
            (slope,) = torch.autograd.grad(chosen, leaf, allow_unused=True)
        rows.append(torch.zeros_like(leaf) if slope is None else slope)
    weights = torch.cat(rows).flatten(1).abs().cpu()
    blind = (weights.sum(-1) == 0).nonzero().flatten().tolist()
    if blind:
        raise InvalidValueError(
            f"value {blind[0]} of the operator {operator} depends on no variable here, so that its position is unknown; "
            "give the operator an attribute `places`, (O, D), or pass localization=."
        )
    return geometry.centre(weights)
