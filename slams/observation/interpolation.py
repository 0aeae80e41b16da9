"""Interpolation of a grid to points: on a line, a torus, a box of latitudes and longitudes, and the sphere."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError


class _WeightedSum(nn.Module):
    """y_p = sum_k w_kp x_(i_kp): a few cells of the flattened event for each point.

    Args:
        corners: Positions i in the flattened event, shape (K, P).
        weights: Weights w, shape (K, P).
        shape: Shape of the event.
    """

    corners: Tensor
    weights: Tensor

    def __init__(self, corners: Tensor, weights: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("corners", corners)
        self.register_buffer("weights", weights)
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, P).

        Raises:
            ValueError: If the state is not on the operator's grid.
        """
        return self._gather(self._flat(x))

    def squared_weights(self, grid: Sequence[int]) -> Tensor:
        """Sum of the squared weights of each point (P): its variance, of independent cells of variance 1."""
        return self.weights.square().sum(0)

    def _flat(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-len(self.shape) :]) != self.shape:
            raise InvalidValueError(
                f"{type(self).__name__} was made for a grid of shape {self.shape}, got a state of shape "
                f"{tuple(x.shape)}; make the operator with the state's grid."
            )
        return x.flatten(-len(self.shape))

    def _gather(self, flat: Tensor) -> Tensor:
        cells = flat.index_select(-1, self.corners.flatten()).unflatten(-1, self.corners.shape)
        return (cells * self.weights.to(flat.dtype)).sum(-2)

    def extra_repr(self) -> str:
        """Grid and number of points."""
        return f"grid={self.shape}, points={self.corners.shape[-1]}"


class InterpolateLine(_WeightedSum):
    """Linear interpolation on a line or a circle.

    Args:
        grid: Distinct coordinates of the state's components, shape (n).
        points: Coordinates of the points, shape (P).
        period: Length of the circle; a line with two ends if None.

    Raises:
        ValueError: If a point lies outside the grid, or the grid does not fit the period.

    >>> InterpolateLine(torch.arange(4.0), torch.tensor([0.5, 3.5]), period=4.0)(torch.tensor([0.0, 1.0, 2.0, 4.0]))
    tensor([0.5000, 2.0000])
    """

    def __init__(self, grid: Tensor, points: Tensor, *, period: float | None = None) -> None:
        corners, weights = _bracket(grid, points, period, "coordinate")
        super().__init__(corners.mT.contiguous(), weights.mT.contiguous(), (len(grid),))


class InterpolateTorus(_WeightedSum):
    """Bilinear interpolation on a grid that is periodic in both axes.

    Args:
        y: Distinct coordinates of the rows, shape (H).
        x: Distinct coordinates of the columns, shape (W).
        points: (y, x) of the points, shape (P, 2), modulo the periods.
        periods: Lengths of the torus along y and x.

    Raises:
        ValueError: If the grid does not fit the periods.
    """

    def __init__(self, y: Tensor, x: Tensor, points: Tensor, periods: tuple[float, float]) -> None:
        rows, row_weights = _bracket(y, points[:, 0], periods[0], "y coordinate")
        columns, column_weights = _bracket(x, points[:, 1], periods[1], "x coordinate")
        corners, weights = _product(rows * len(x), columns, row_weights, column_weights)
        super().__init__(corners, weights, (len(y), len(x)))


class Interpolate(_WeightedSum):
    """Bilinear interpolation in latitude and longitude.

    Args:
        lat: Latitudes of the grid, falling or rising, shape (H) [degrees].
        lon: Longitudes of the grid, rising, shape (W) [degrees].
        points: (latitude, longitude) of the points, shape (P, 2) [degrees].
        periodic: Whether the longitudes close the circle.
        poles: Whether the grid's first and last circle of latitude surround the poles: a pole without a row then
            has the mean of the circle around it. Needs `periodic`.

    Raises:
        ValueError: If a point lies outside the grid, or `poles` is set without `periodic`.
    """

    def __init__(
        self, lat: Tensor, lon: Tensor, points: Tensor, *, periodic: bool = False, poles: bool = False
    ) -> None:
        if poles and not periodic:
            raise InvalidValueError("poles need closed circles of latitude around them; pass periodic=True.")
        height, width = len(lat), len(lon)
        order = torch.arange(height) * width
        line = lat.double()
        circles: list[int] = []
        for sign in (1.0, -1.0) if poles else ():
            end = int((sign * line[:height]).argmax())
            if abs(float(line[end])) < 90 - 1e-6:  # a row of its own is already the pole
                order = torch.cat([order, torch.tensor([height * width + len(circles)])])
                line = torch.cat([line, line.new_tensor([sign * 90.0])])
                circles.append(end)
        rows, row_weights = _bracket(line, points[:, 0], None, "latitude")
        east = points[:, 1] if periodic else nearest_turn(points[:, 1], lon)
        columns, column_weights = _bracket(lon, east, 360.0 if periodic else None, "longitude")
        corners, weights = _product(order.to(rows.device)[rows], columns, row_weights, column_weights)
        # a pole is one cell after those of the grid, the same at all longitudes
        pole = (order[rows] >= height * width).mT
        for i in (0, 1):
            for j in (0, 1):
                corners[2 * i + j] -= torch.where(pole[i], columns[:, j], 0)
        super().__init__(corners, weights, (height, width))
        self.circles = tuple(circles)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, P).

        Raises:
            ValueError: If the state is not on the operator's grid.
        """
        flat = self._flat(x)
        if self.circles:
            flat = torch.cat([flat, *(x[..., row, :].mean(-1, keepdim=True) for row in self.circles)], -1)
        return self._gather(flat)


def nearest_turn(lon: Tensor, grid: Tensor) -> Tensor:
    """Longitudes in the convention of a regional grid: within half a turn of its middle.

    Args:
        lon: Longitudes of points [degrees].
        grid: Longitudes of the grid [degrees].

    >>> nearest_turn(torch.tensor([359.5, 5.0]), torch.arange(-10.0, 11.0))
    tensor([-0.5000,  5.0000])
    """
    middle = (float(grid[0]) + float(grid[-1])) / 2
    return lon - 360.0 * torch.round((lon - middle) / 360.0)


def _product(
    rows: Tensor, columns: Tensor, row_weights: Tensor, column_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Corners (4, P) and weights (4, P) of cells from the two lines around each point along either axis."""
    corners = torch.stack([rows[:, i] + columns[:, j] for i in (0, 1) for j in (0, 1)])
    weights = torch.stack([row_weights[:, i] * column_weights[:, j] for i in (0, 1) for j in (0, 1)])
    return corners, weights


def _bracket(axis: Tensor, value: Tensor, period: float | None, name: str) -> tuple[Tensor, Tensor]:
    """Indices (P, 2) of the two grid lines around each value and their weights (P, 2)."""
    axis, value = axis.double(), value.double()
    order = torch.argsort(axis)
    line = axis[order]
    slack = 1e-9 * max(1.0, float(line.abs().max()))
    if period is not None:
        if float(line[-1] - line[0]) > period + slack:
            raise InvalidValueError(
                f"the grid's {name}s {float(line[0]):g}..{float(line[-1]):g} exceed one period of {period:g}; "
                "drop what is repeated."
            )
        value = line[0] + (value - line[0]) % period
        line, order = torch.cat([line, line[:1] + period]), torch.cat([order, order[:1]])
    outside = ~((value >= line[0] - slack) & (value <= line[-1] + slack))  # a NaN is outside
    if bool(outside.any()):
        raise InvalidValueError(
            f"{int(outside.sum())} of {len(value)} points lie outside the grid's {name}s "
            f"{float(line[0]):g}..{float(line[-1]):g}, "
            f"such as {float(value[outside][0]):g}; drop or move them."
        )
    upper = torch.searchsorted(line, value.contiguous()).clamp(1, len(line) - 1)
    weight = ((value - line[upper - 1]) / (line[upper] - line[upper - 1])).clamp(0, 1)
    return torch.stack([order[upper - 1], order[upper]], 1), torch.stack([1 - weight, weight], 1)
