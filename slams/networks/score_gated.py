"""Gated residual network of diffusion time: products of features, which polynomial dynamics are made of."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.networks.layers import TimeEmbedding, rows_of_time, zero


class GatedBlock(nn.Module):
    """x + B (silu(u) v), (u, v) = A h, h = x (1 + scale(e)) + shift(e); starts as the identity.

    With a dilation d > 0, A sees the steps i - d, i and i + d of a trajectory, zeros beyond its ends.

    Args:
        width: Features in and out.
        gates: Products inside.
        embedding: Number of features of diffusion time.
        dilation: d; 0 for vectors, or where steps shall not see each other.
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

    What a chaotic system does in a step is a polynomial of its state, and gates are products: on windows of nine states
    of Lorenz-63 the noise error, 0.370 of the Gaussian, is 0.248 after 25 seconds on one core, that of `ScoreMLP` 0.253.
    Nothing is normalized inside; the input should have unit variance, as that of `WhitenedDenoiser` has.

    Args:
        channels: C.
        width: Features inside.
        gates: Products of a block.
        dilations: Of each block; 0 throughout for vectors.
        embedding: Number of features of t.

    Raises:
        ValueError: If a size is not positive or there are no blocks.
    """

    def __init__(
        self, channels: int, *, width: int, gates: int, dilations: Sequence[int], embedding: int = 64
    ) -> None:
        super().__init__()
        if min(channels, width, gates) < 1 or not dilations or min(dilations) < 0:
            raise ValueError(
                f"needs positive sizes and dilations of at least one block, got {channels}, {width}, {gates} and "
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
            raise ValueError(
                f"this network takes vectors of {self.channels} values on the last axis, got samples of shape "
                f"{tuple(x_t.shape)}; use the weights made for these channels."
            )
        e = F.silu(self.time(rows_of_time(t, x_t, self.axes)))
        x = self.first(x_t.reshape(-1, *x_t.shape[-self.axes :]))
        for block in self.blocks:
            x = block(x, e)
        return self.last(x).reshape(x_t.shape)
