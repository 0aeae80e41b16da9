"""Observation operators: what an instrument sees of a field. All take any leading batch axes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Operator = Callable[[Tensor], Tensor]


class Flatten(nn.Module):
    """The whole event as one vector: (*B, *S) -> (*B, prod(S)).

    Args:
        event: Number of axes of the event.
    """

    def __init__(self, event: int = 3) -> None:
        super().__init__()
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, prod(S))."""
        return x.flatten(-self.event)


class Select(nn.Module):
    """Components of the flattened event by index: stations, columns, a mask.

    Args:
        index: Positions in the flattened event, shape (P).
        event: Number of axes of the event.

    Raises:
        ValueError: If there is no index or one is negative.
    """

    index: Tensor

    def __init__(self, index: Tensor, event: int = 3) -> None:
        super().__init__()
        if index.numel() == 0 or int(index.min()) < 0:
            raise ValueError(f"a selection needs at least one non-negative index, got {index.tolist()[:5]}.")
        self.register_buffer("index", index)
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, P)."""
        return x.flatten(-self.event).index_select(-1, self.index)


class Stride(nn.Module):
    """Every `step`-th point of the last two axes, from `offset` on."""

    def __init__(self, step: int, offset: int = 0) -> None:
        super().__init__()
        if step < 1 or not 0 <= offset < step:
            raise ValueError(f"need step >= 1 and 0 <= offset < step, got step {step} and offset {offset}.")
        self.step, self.offset = step, offset

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, H', W')."""
        return x[..., self.offset :: self.step, self.offset :: self.step]


class AvgPool(nn.Module):
    """Area means over blocks of `size` x `size` cells.

    Args:
        size: Side of a block; must divide both grid axes.
        weights: Area weights of the cells (H, 1) or (H, W); equal if None.
    """

    weights: Tensor | None

    def __init__(self, size: int, weights: Tensor | None = None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, H / size, W / size).

        Raises:
            ValueError: If `size` does not divide the grid.
        """
        height, width = x.shape[-2:]
        if height % self.size or width % self.size:
            raise ValueError(
                f"blocks of {self.size} do not divide a grid of {height} x {width}; choose a divisor."
            )
        weight = torch.ones(height, width, dtype=x.dtype, device=x.device)
        if self.weights is not None:
            weight = weight * self.weights
        return self._blocks(x * weight) / self._blocks(weight)

    def _blocks(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).unflatten(-3, (-1, self.size)).sum((-1, -3))


class Interpolate(nn.Module):
    """Bilinear interpolation of a grid to points.

    Args:
        lat: Latitudes of the grid, falling or rising, shape (H) [degrees].
        lon: Longitudes of the grid, rising, shape (W) [degrees].
        points: (latitude, longitude) of the points, shape (P, 2) [degrees].
        periodic: Whether the longitudes close the circle.

    Raises:
        ValueError: If a point lies outside the grid.
    """

    corners: Tensor
    weights: Tensor

    def __init__(self, lat: Tensor, lon: Tensor, points: Tensor, *, periodic: bool = False) -> None:
        super().__init__()
        rows, row_weights = _bracket(lat, points[:, 0], None, "latitude")
        columns, column_weights = _bracket(lon, points[:, 1], 360.0 if periodic else None, "longitude")
        width = len(lon)
        corners = torch.stack([rows[:, i] * width + columns[:, j] for i in (0, 1) for j in (0, 1)])
        weights = torch.stack([row_weights[:, i] * column_weights[:, j] for i in (0, 1) for j in (0, 1)])
        self.register_buffer("corners", corners)
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, P)."""
        flat = x.flatten(-2)
        return sum(
            (
                flat.index_select(-1, corner) * weight.to(x.dtype)
                for corner, weight in zip(self.corners, self.weights, strict=True)
            ),
            start=torch.zeros((), dtype=x.dtype, device=x.device),
        )


class Compose(nn.Module):
    """h_n after ... after h_1.

    Args:
        operators: h_1, ..., h_n in the order of application.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        super().__init__()
        self.operators = tuple(operators)
        for number, operator in enumerate(operators):  # so that their buffers follow `to`
            if isinstance(operator, nn.Module):
                self.add_module(str(number), operator)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, *O)."""
        for operator in self.operators:
            x = operator(x)
        return x


def _bracket(axis: Tensor, value: Tensor, period: float | None, name: str) -> tuple[Tensor, Tensor]:
    """Indices (P, 2) of the two grid lines around each value and their weights (P, 2)."""
    axis, value = axis.double(), value.double()
    order = torch.argsort(axis)
    line = axis[order]
    if period is not None:
        value = line[0] + (value - line[0]) % period
        line, order = torch.cat([line, line[:1] + period]), torch.cat([order, order[:1]])
    slack = 1e-9 * max(1.0, float(line.abs().max()))
    outside = (value < line[0] - slack) | (value > line[-1] + slack)
    if bool(outside.any()):
        raise ValueError(
            f"{int(outside.sum())} of {len(value)} points lie outside the grid's {name}s "
            f"{float(line[0]):g}..{float(line[-1]):g}, "
            f"such as {float(value[outside][0]):g}; drop or move them."
        )
    upper = torch.searchsorted(line, value.contiguous()).clamp(1, len(line) - 1)
    weight = ((value - line[upper - 1]) / (line[upper] - line[upper - 1])).clamp(0, 1)
    return torch.stack([order[upper - 1], order[upper]], 1), torch.stack([1 - weight, weight], 1)
