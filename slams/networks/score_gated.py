"""Gated residual network of diffusion time, with products of features as in polynomial dynamics."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.networks.layers import TimeEmbedding, rows_of_time, zero


class GatedBlock(nn.Module):
    """x + B (silu(u) v), (u, v) = A h, h = x (1 + scale(e)) + shift(e); starts as the identity.

    With a dilation d > 0, A sees the steps i - d, i and i + d of a trajectory, zeros beyond its ends.

    Args:
        width: Number of input and output features.
        gates: Number of products.
        embedding: Number of features of diffusion time.
        dilation: Dilation d; 0 for vectors or independent steps.
    """

    def __init__(self, width: int, gates: int, embedding: int, dilation: int = 0) -> None:
        super().__init__()
        self.dilation = dilation
        self.modulate = nn.Linear(embedding, 2 * width)
        self.mix = nn.Linear(width * (3 if dilation else 1), 2 * gates)
        self.last = nn.Linear(gates, width)
        zero(self.modulate)
        zero(self.last)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """(b, [L,] width), features of time (b or 1, embedding) -> shape of x."""
        e = e if x.ndim == 2 else e.unsqueeze(1)
        scale, shift = self.modulate(e).chunk(2, -1)
        h = x * (1 + scale) + shift
        if self.dilation:
            d, steps = self.dilation, x.shape[1]
            padded = F.pad(h, (0, 0, d, d))
            h = torch.cat([padded[:, :steps], h, padded[:, 2 * d :]], -1)
        u, v = self.mix(h).chunk(2, -1)
        return x + self.last(F.silu(u) * v)


class ScoreGated(nn.Module):
    """f(x_t, t) of vectors (*B, C), or of trajectories of vectors (*B, L, C) of any length, in and out.

    Gates are products of features, so that a block represents a step of polynomial dynamics. There is no normalization
    inside; the input should have unit variance, as in `WhitenedDenoiser`.

    Args:
        channels: Number of channels C.
        width: Number of hidden features.
        gates: Number of products of a block.
        dilations: Dilation of each block; all 0 for vectors.
        embedding: Number of features of t.

    Raises:
        ValueError: If a size is not positive or there are no blocks.
    """

    def __init__(
        self, channels: int, *, width: int, gates: int, dilations: Sequence[int], embedding: int = 64
    ) -> None:
        super().__init__()
        if min(channels, width, gates) < 1 or not dilations or min(dilations) < 0:
            raise InvalidValueError(
                f"need positive sizes and dilations >= 0 of at least one block, got {channels}, {width}, {gates} and "
                f"{tuple(dilations)}."
            )
        self.channels = channels
        self.axes = 2 if any(dilations) else 1
        self.time = TimeEmbedding(embedding)
        self.first = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(GatedBlock(width, gates, embedding, d) for d in dilations)
        self.last = nn.Linear(width, channels)
        zero(self.last)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, [L,] C), () or (*b, 1, [1]) -> shape of `x_t`.

        Raises:
            ValueError: If the channels or times do not fit.
        """
        if x_t.shape[-1:] != (self.channels,) or x_t.ndim < self.axes:
            raise InvalidValueError(
                f"this network takes vectors of {self.channels} values on the last axis, got samples of shape "
                f"{tuple(x_t.shape)}; use the weights made for these channels."
            )
        e = F.silu(self.time(rows_of_time(t, x_t, self.axes)))
        x = self.first(x_t.reshape(-1, *x_t.shape[-self.axes :]))
        for block in self.blocks:
            x = block(x, e)
        return self.last(x).reshape(x_t.shape)
