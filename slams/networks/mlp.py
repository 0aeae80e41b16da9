"""Residual MLP over windows of vector latents."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.networks.layers import TimeEmbedding, zero


class WindowMLP(nn.Module):
    """Correction of a closed-form denoiser on windows (*B, L, D) of latents without a grid.

    Args:
        length: Number of steps L.
        event: Event shape (D,).
        hidden: Width of the layers.
        blocks: Number of residual blocks.
        embedding: Size of the time embedding.
        context: Number of features of observations a step; 0 for a network that takes none.
    """

    def __init__(
        self,
        length: int,
        event: Sequence[int],
        *,
        hidden: int = 256,
        blocks: int = 3,
        embedding: int = 32,
        context: int = 0,
    ) -> None:
        super().__init__()
        size = length * event[0]
        self.time = TimeEmbedding(embedding)
        self.first = nn.Linear(2 * size + embedding, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                zero(nn.Linear(hidden, hidden)),
            )
            for _ in range(blocks)
        )
        self.last = zero(nn.Linear(hidden, size))
        self.context = nn.Linear(length * context, hidden, bias=False) if context else None

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(*B, L, D), the same, () or (b, 1, 1), context (*B, L, C) -> (*B, L, D).

        A context without the first axes of *B is that of all members there.
        """
        lead = x_t.shape[:-2]
        stacked = torch.cat([x_t.flatten(-2), linear.flatten(-2)], -1).reshape(
            -1, 2 * x_t.shape[-2] * x_t.shape[-1]
        )
        x = self.first(torch.cat([stacked, self.time(t).expand(len(stacked), -1)], -1))
        if self.context is not None and context is not None:
            extra = self.context(context.flatten(-2).flatten(0, -2))
            x = (x.unflatten(0, (-1, len(extra))) + extra).flatten(0, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x).reshape(*lead, *x_t.shape[-2:])
