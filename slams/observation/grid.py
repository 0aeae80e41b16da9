"""Operators that combine neighbours on a regular grid: block means, vorticity."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError


class AvgPool(nn.Module):
    """Means over blocks of `size` cells along each of the last axes.

    Args:
        size: Side of a block; must divide the axes.
        weights: Area weights of the cells, broadcasting to (H, W) or (n); equal if None.
        axes: Number of last axes that are pooled, 1 or 2.

    Raises:
        ValueError: If size or axes are invalid.
    """

    weights: Tensor | None

    def __init__(self, size: int, weights: Tensor | None = None, axes: int = 2) -> None:
        super().__init__()
        if size < 1 or axes not in (1, 2):
            raise InvalidValueError(
                f"need a size of at least 1 and 1 or 2 axes, got size {size} and axes {axes}."
            )
        self.size, self.axes = size, axes
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, H / size, W / size), or (*B, n) -> (*B, n / size).

        Raises:
            ValueError: If `size` does not divide the grid.
        """
        grid = x.shape[-self.axes :]
        if any(side % self.size for side in grid):
            raise InvalidValueError(
                f"blocks of {self.size} do not divide a grid of {' x '.join(map(str, grid))}; "
                "choose a divisor."
            )
        if self.weights is None:
            return self._blocks(x) / self.size**self.axes
        weight = self.weights.to(x).expand(grid)
        return self._blocks(x * weight) / self._blocks(weight)

    def squared_weights(self, grid: Sequence[int]) -> Tensor:
        """Sum of the squared weights of each block of a grid: its variance, of independent cells of variance 1."""
        weight = torch.ones(()) if self.weights is None else self.weights
        weight = weight.expand(*grid)
        return self._blocks(weight.square()) / self._blocks(weight).square()

    def _blocks(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, self.size)).sum(-1)
        return x if self.axes == 1 else x.unflatten(-2, (-1, self.size)).sum(-2)


class Vorticity(nn.Module):
    """Vorticity of a velocity on the doubly periodic plane, w = dv/dx - du/dy.

    Channel 0 is u, the velocity along x; channel 1 is v, along y. Positive is anticlockwise where x points right
    and y up.

    Args:
        spacing: Distance of two grid points, or (along y, along x).
        scheme: Derivative, "centred" (second-order differences) or "spectral".
        x_axis: Axis along x: -1 (rows are y) or -2 (rows are x).

    Raises:
        ValueError: If a setting is invalid.
    """

    def __init__(
        self, spacing: float | tuple[float, float] = 1.0, *, scheme: str = "centred", x_axis: int = -1
    ) -> None:
        super().__init__()
        dy, dx = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        if dx <= 0 or dy <= 0 or scheme not in ("centred", "spectral") or x_axis not in (-1, -2):
            raise InvalidValueError(
                'need positive spacings, scheme "centred" or "spectral" and x_axis -1 or -2, '
                f"got {spacing}, {scheme!r} and {x_axis}."
            )
        self.dx, self.dy, self.x_axis = float(dx), float(dy), x_axis
        self.derivative = _centred if scheme == "centred" else _spectral

    def forward(self, velocity: Tensor) -> Tensor:
        """(*B, 2, H, W) -> (*B, H, W).

        Raises:
            ValueError: If there are not two channels.
        """
        if velocity.ndim < 3 or velocity.shape[-3] != 2:
            raise InvalidValueError(
                f"vorticity needs a velocity of shape (*B, 2, H, W), got {tuple(velocity.shape)}."
            )
        u, v = velocity.unbind(-3)
        y_axis = -3 - self.x_axis
        return self.derivative(v, self.x_axis, self.dx) - self.derivative(u, y_axis, self.dy)


def _centred(x: Tensor, axis: int, spacing: float) -> Tensor:
    """dx/ds along a periodic axis, second order."""
    return (x.roll(-1, axis) - x.roll(1, axis)) / (2 * spacing)


def _spectral(x: Tensor, axis: int, spacing: float) -> Tensor:
    """dx/ds along a periodic axis, exact for resolved waves; the Nyquist wave, whose phase is unknown, gives 0."""
    size = x.shape[axis]
    k = 2 * math.pi * torch.fft.rfftfreq(size, spacing, dtype=x.dtype, device=x.device)
    if size % 2 == 0:
        k[-1] = 0
    shape = [1] * x.ndim
    shape[axis] = len(k)
    return torch.fft.irfft(1j * k.reshape(shape) * torch.fft.rfft(x, dim=axis), size, axis)


class Box(nn.Module):
    """A rectangle of the last two axes; values outside are not returned.

    Args:
        rows: First and one past the last row.
        columns: First and one past the last column; as `rows` if None.

    Raises:
        ValueError: If a range is empty or begins below 0.

    >>> Box((1, 3))(torch.arange(16).reshape(4, 4))
    tensor([[ 5,  6],
            [ 9, 10]])
    """

    def __init__(self, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.rows, self.columns = rows, rows if columns is None else columns
        for first, last in (self.rows, self.columns):
            if not 0 <= first < last:
                raise InvalidValueError(
                    f"a box needs 0 <= first < last, got rows {self.rows} and columns {self.columns}."
                )

    def forward(self, x: Tensor) -> Tensor:
        """(*B, H, W) -> (*B, rows, columns).

        Raises:
            ValueError: If the box reaches beyond the grid.
        """
        if self.rows[1] > x.shape[-2] or self.columns[1] > x.shape[-1]:
            raise InvalidValueError(
                f"a box of rows {self.rows} and columns {self.columns} reaches beyond a grid of "
                f"{x.shape[-2]} x {x.shape[-1]}."
            )
        return x[..., slice(*self.rows), slice(*self.columns)]


class FirstMinusLast(nn.Module):
    """Difference of the first and last state of a trajectory, x_1 - x_L, returned at every step.

    It takes whole trajectories. Its observations hold values at one step and NaN at the others, so that the
    difference counts once.

    Args:
        event: Number of axes of a state.
    """

    def __init__(self, event: int = 3) -> None:
        super().__init__()
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        """(*B, L, *S) -> (*B, L, *S).

        Raises:
            ValueError: If there is no axis of steps.
        """
        axis = -1 - self.event
        if x.ndim < 1 + self.event or x.shape[axis] < 2:
            raise InvalidValueError(
                f"a loop is one of a trajectory (*B, L, *S) with L > 1, got shape {tuple(x.shape)} "
                f"with {self.event} axes of a state."
            )
        return (x.narrow(axis, 0, 1) - x.narrow(axis, -1, 1)).expand_as(x)
