"""Layers shared by the networks."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slams.core.errors import InvalidValueError

Padding = Literal["zero", "circular"]


class TimeEmbedding(nn.Module):
    """Diffusion time as features: [cos(pi j t), sin(pi j t)], j = 1..16, through a small MLP.

    Args:
        size: Number of features E.
        hidden: Width of the MLP; 256 in the published networks.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, released code.
    """

    def __init__(self, size: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, hidden), nn.SiLU(), nn.Linear(hidden, size))

    def forward(self, t: Tensor) -> Tensor:
        """Any shape with b elements -> (b, E)."""
        angle = torch.pi * t.reshape(-1, 1) * torch.arange(1, 17, dtype=t.dtype, device=t.device)
        return self.layers(torch.cat([angle.cos(), angle.sin()], -1))


class SphereConv(nn.Conv2d):
    """Convolution on a latitude-longitude grid: circular in longitude, edge values repeated beyond the poles.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        kernel: Odd kernel width.
        periodic: Whether longitude is periodic; a regional grid repeats its edges on all sides.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, periodic: bool = True) -> None:
        super().__init__(inputs, outputs, kernel)
        self.pad = kernel // 2
        self.periodic = periodic

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return super().forward(self.padded(x))

    def padded(self, x: Tensor) -> Tensor:
        """x with the values that the kernel reads beyond its edges."""
        if self.pad:
            x = F.pad(x, (self.pad, self.pad, 0, 0), mode="circular" if self.periodic else "replicate")
            x = F.pad(x, (0, 0, self.pad, self.pad), mode="replicate")
        return x


def zero(layer: nn.Module) -> nn.Module:
    """The layer with weights and bias set to zero, so that a residual connection starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class LayerNorm2d(nn.Module):
    """Normalization over channels at each grid point: no statistics over the batch or the grid."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        mean = x.mean(-3, keepdim=True)
        return (x - mean) * torch.rsqrt((x - mean).square().mean(-3, keepdim=True) + 1e-5)


class FreeNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) along one axis, without weights and with the unbiased variance.

    Args:
        axis: Features of vectors (-1) or channels of fields (1); at least two of them.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, released code.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with at least two entries along the axis, to the same."""
        centred = x - x.mean(self.axis, keepdim=True)
        variance = centred.square().sum(self.axis, keepdim=True) / (x.shape[self.axis] - 1)
        return centred * torch.rsqrt(variance + 1e-5)


class AxisConv(nn.Module):
    """Convolution over one to three axes, each with circular or zero padding.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        kernel: Odd kernel width along each axis.
        padding: "zero" or "circular" for each axis.
        stride: Step along each axis.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        padding: Sequence[Padding],
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(padding) - 1]
        circular = [mode == "circular" for mode in padding]
        sides = [width // 2 for width in kernel]
        ends = tuple(0 if closed else side for closed, side in zip(circular, sides, strict=True))
        steps = tuple(stride) if stride is not None else (1,) * len(padding)
        self.conv = kind(inputs, outputs, tuple(kernel), stride=steps, padding=ends)  # type: ignore[arg-type]
        # torch counts pads from the last axis
        self.wrap = [side - end for side, end in zip(sides, ends, strict=True) for _ in range(2)][::-1]

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, *grid) -> (b, outputs, *grid / stride)."""
        return self.conv(F.pad(x, self.wrap, mode="circular") if any(self.wrap) else x)


def rows_of_time(t: Tensor, x: Tensor, event: int) -> Tensor:
    """Diffusion times of the flattened leading axes of x.

    Args:
        t: Diffusion time, () for all or (*b, 1, ..., 1) with an axis for each of x.
        x: States, (*B, *event).
        event: Number of event axes of x.

    Returns:
        Times, (1) if all rows share one, else (prod(B)), in the dtype of x.

    Raises:
        ValueError: If times vary within an event or do not broadcast to *B.
    """
    t = t.to(x)
    if t.numel() == 1:
        return t.reshape(1)
    lead = x.shape[: x.ndim - event]
    ones = t.shape[len(lead) :]
    fits = t.ndim == x.ndim and all(n == 1 for n in ones)
    if not fits or any(a not in (1, b) for a, b in zip(t.shape, lead, strict=False)):
        raise InvalidValueError(
            f"times of shape {tuple(t.shape)} do not belong to samples of shape {tuple(x.shape)} with {event} "
            f"event axes; give one time, (), or one a sample, {(*lead, *([1] * event))}."
        )
    return t.reshape(t.shape[: len(lead)]).expand(lead).reshape(-1)


def fitting_context(context: Tensor | None, x: Tensor, shape: Sequence[int], count: int, axis: int) -> Tensor:
    """Context of a network, broadcast to full shape.

    Args:
        context: Context, broadcastable to `shape`; no channels if None.
        x: State, for dtype and device.
        shape: Expected shape without the channels.
        count: Number of context channels of the network.
        axis: Negative axis of the channels.

    Returns:
        Context of shape `shape` with `count` channels inserted at `axis`.

    Raises:
        ValueError: If the number of channels differs or the shape does not broadcast.
    """
    place = len(shape) + 1 + axis
    wanted = (*shape[:place], count, *shape[place:])
    if context is None:
        context = x.new_zeros(*([1] * place), 0, *([1] * (len(shape) - place)))
    got = tuple(context.shape)
    pairs = zip(reversed(got), reversed(wanted), strict=False)
    if (
        len(got) < -axis
        or got[axis] != count
        or len(got) > len(wanted)
        or any(a not in (1, b) for a, b in pairs)
    ):
        raise InvalidValueError(
            f"this network takes {count} channels of context, to be broadcast to {wanted}; got "
            f"{f'shape {got}' if got[axis:][:1] != (0,) else 'none'}."
        )
    return context.to(x).expand(wanted)


def evaluate(block: Callable[..., Tensor], *inputs: Tensor, recompute: bool) -> Tensor:
    """block(*inputs); with `recompute` intermediate values are recomputed in the backward pass.

    Saves memory at about a third more time. Gradients are the same, but torch.func.vjp and grad do not
    support it.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)
