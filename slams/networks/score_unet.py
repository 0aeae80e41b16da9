"""U-Net modulated by diffusion time, over time, space or both: the global and the local score network."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.networks.layers import (
    AxisConv,
    FreeNorm,
    Padding,
    TimeEmbedding,
    evaluate,
    fitting_context,
    rows_of_time,
)


def forcing_map(size: int, wavenumber: int = 4) -> Tensor:
    """Forcing of a Kolmogorov flow: sin(wavenumber y) at the cell centres, along the last axis.

    Args:
        size: Number of cells along a side of the periodic square.
        wavenumber: Number of waves along a side.

    Returns:
        Forcing, (1, size, size), for `maps` of a network.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, released code.
    """
    y = 2 * math.pi / size * (torch.arange(size, dtype=torch.float64) + 0.5)
    return (wavenumber * y).sin().expand(1, size, size).to(torch.get_default_dtype())


class ModulatedBlock(nn.Module):
    """x + conv(act(conv(norm(x + P e)))), e the features of diffusion time.

    Args:
        channels: Number of input and output channels.
        embedding: Number of features of time.
        conv: Constructor of a convolution from its input and output channels.
        activation: Constructor of the non-linearity.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        conv: Callable[[int, int], nn.Module],
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, channels)
        self.layers = nn.Sequential(
            FreeNorm(1), conv(channels, channels), activation(), conv(channels, channels)
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(b, channels, *grid), (b or 1, embedding) -> (b, channels, *grid)."""
        shift = self.project(e)
        return x + self.layers(x + shift.reshape(*shift.shape, *([1] * (x.ndim - 2))))


class ScoreUNet(nn.Module):
    """f(x_t, t) of trajectories or windows of fields, shape (*B, L, C, *grid) in and out.

    With `length`, the L steps are stacked into the channels and the network runs over the grid: a window's
    local network. Without, time is the first of the axes it runs over and L is free: (3,) gives the
    one-dimensional network of Lorenz-63 trajectories, (C, H, W) a three-dimensional one. Levels go down by
    strided convolutions and up by nearest neighbours; skip connections add.

    Args:
        event: Event shape (C, *grid). Without maps the network accepts other grids.
        length: Number L of steps of a window, or None for trajectories of any length.
        hidden: Channels of each level, at least two.
        blocks: Residual blocks of each level on the way down, and again on the way up.
        kernel: Odd width of all convolutions, or one for each axis.
        padding: "zero", "circular", or one for each axis, time first.
        stride: Coarsening from a level to the next, or one for each axis.
        embedding: Number of features of t.
        time: Width of the MLP of the time embedding.
        maps: Fixed input fields on the grid, (M, *grid).
        context: Number of context channels.
        activation: Constructor of the non-linearity.
        recompute: Whether to recompute blocks in the backward pass to save memory.

    Raises:
        ValueError: If there are no or more than three axes, a setting has the wrong number of entries, a
            width is even, or the grid is not divisible once per level.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, appendix D and released code.
    """

    maps: Tensor

    def __init__(
        self,
        event: Sequence[int],
        *,
        length: int | None = None,
        hidden: Sequence[int] = (64,),
        blocks: int | Sequence[int] = 3,
        kernel: int | Sequence[int] = 3,
        padding: Padding | Sequence[Padding] = "zero",
        stride: int | Sequence[int] = 2,
        embedding: int = 32,
        time: int = 256,
        maps: Tensor | None = None,
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.event = tuple(event)
        self.length = length
        self.context = context
        self.recompute = recompute
        axes = len(event) - 1 + (not length)
        if axes not in (1, 2, 3) or (length is not None and length < 1):
            raise InvalidValueError(
                f"states of shape {self.event} and length {length} leave {axes} axes to convolve, wanted one to "
                "three; for states without a grid leave out the length, or use ScoreMLP."
            )
        kernels, modes = _each(kernel, axes, "kernel"), _each(padding, axes, "padding")
        counts = _each(blocks, len(hidden), "blocks")
        self.stride = _each(stride, axes, "stride")
        self.levels = len(hidden)
        _check_layers(hidden, kernels, modes)
        self._check_grid(self.event[1:])
        maps = torch.zeros(0, *event[1:]) if maps is None else maps
        if maps.shape[1:] != self.event[1:]:
            raise InvalidValueError(
                f"maps of the grid {self.event[1:]} are (M, *grid), got {tuple(maps.shape)}."
            )
        self.register_buffer("maps", maps, persistent=len(maps) > 0)

        def conv(inputs: int, outputs: int, steps: Sequence[int] | None = None) -> AxisConv:
            return AxisConv(inputs, outputs, kernels, modes, steps)

        def stack(channels: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(ModulatedBlock(channels, embedding, conv, activation) for _ in range(count))

        size = event[0] * (length or 1)
        self.time = TimeEmbedding(embedding, hidden=time)
        self.first = conv(size + len(maps) + context, hidden[0])
        self.last = conv(hidden[0], size)
        self.down = nn.ModuleList(stack(h, n) for h, n in zip(hidden, counts, strict=True))
        self.up = nn.ModuleList(stack(h, n) for h, n in zip(hidden, counts, strict=True))
        self.shrink = nn.ModuleList(conv(a, b, self.stride) for a, b in pairwise(hidden))
        self.norm = FreeNorm(1)
        self.grow = nn.ModuleList(conv(b, a) for a, b in pairwise(hidden))

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(*B, L, C, *grid), () or (*b, 1, ..., 1), context -> (*B, L, C, *grid).

        The context is (*b, context, *grid) with a fixed length, (*b, L, context, *grid) without, and may have
        ones for the grid.

        Raises:
            ValueError: If the steps, channels, grid, times or context do not fit the network.
        """
        self._check(x_t)
        axes = len(self.event) + 1
        lead, (steps, _, *grid) = x_t.shape[:-axes], x_t.shape[-axes:]
        e = self.time(rows_of_time(t, x_t, axes))
        around = (*lead, *([] if self.length else [steps]), *grid)
        known = fitting_context(context, x_t, around, self.context, -len(self.event))
        if self.length:
            rows = x_t.reshape(lead.numel(), -1, *grid)
            known = known.reshape(len(rows), self.context, *grid)
        else:
            rows = x_t.reshape(lead.numel(), *x_t.shape[-axes:]).movedim(2, 1)
            known = known.reshape(len(rows), steps, self.context, *grid).movedim(2, 1)
        if len(self.maps):  # without maps any grid is accepted
            fixed = self.maps if self.length else self.maps.unsqueeze(1).expand(-1, steps, *grid)
            known = torch.cat([fixed.to(rows).expand(len(rows), *fixed.shape), known], 1)
        out = self._run(torch.cat([rows, known], 1), e)
        return (out if self.length else out.movedim(1, 2)).reshape(x_t.shape)

    def _run(self, x: Tensor, e: Tensor) -> Tensor:
        x = self.first(x)
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level:
                kept.append(x)
                x = self.shrink[level - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = evaluate(block, x, e, recompute=self.recompute)
        scale = [float(step) for step in self.stride]
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                x = evaluate(block, x, e, recompute=self.recompute)
            if level:
                x = F.interpolate(self.norm(x), scale_factor=scale)
                x = kept.pop() + self.grow[level - 1](x)
        return self.last(x)

    def _check(self, x_t: Tensor) -> None:
        """Steps, channels and grid of a sample against those of the network."""
        shape = tuple(x_t.shape[-len(self.event) - 1 :])
        if len(shape) <= len(self.event) or shape[1] != self.event[0]:
            raise InvalidValueError(
                f"this network takes states of {self.event[0]} channels on {len(self.event) - 1} axes of grid, "
                f"(*B, L, C, *grid), got samples of shape {tuple(x_t.shape)}; use the weights made for them."
            )
        if self.length and shape[0] != self.length:
            raise InvalidValueError(
                f"this network takes windows of {self.length} steps, got {shape[0]}; compose a longer "
                "trajectory with MarkovBlanket."
            )
        if len(self.maps) and shape[2:] != self.event[1:]:
            raise InvalidValueError(
                f"this network has maps of the grid {self.event[1:]}, got the grid {shape[2:]}."
            )
        self._check_grid(shape[2:] if self.length else (shape[0], *shape[2:]))

    def _check_grid(self, grid: Sequence[int]) -> None:
        """Check that the strides divide the grid, so that skip connections have equal sizes."""
        factors = [step ** (self.levels - 1) for step in self.stride][len(self.stride) - len(grid) :]
        if any(size % factor for size, factor in zip(grid, factors, strict=True)):
            raise InvalidValueError(
                f"axes of {tuple(grid)} cannot be coarsened {self.levels - 1} times by {self.stride}; make them "
                f"multiples of {tuple(factors)}, or use fewer levels."
            )


def _check_layers(hidden: Sequence[int], kernels: Sequence[int], modes: Sequence[str]) -> None:
    if not hidden or min(hidden) < 2:
        raise InvalidValueError(
            f"hidden needs at least one level of at least two channels, to be normalized, "
            f"got {tuple(hidden)}."
        )
    if any(width < 1 or width % 2 == 0 for width in kernels):
        raise InvalidValueError(f"kernels must be odd, got {tuple(kernels)}.")
    if any(mode not in ("zero", "circular") for mode in modes):
        raise InvalidValueError(f"padding is 'zero' or 'circular', got {tuple(modes)}.")


def _each(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """Repeat a single value `count` times, or check the length."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise InvalidValueError(f"{name} needs one entry or {count}, got {tuple(value)}.")
    return tuple(value)
