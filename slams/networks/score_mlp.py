"""Residual MLP of diffusion time over windows of vector states: the local score network."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.networks.layers import FreeNorm, TimeEmbedding, evaluate, fitting_context, rows_of_time


class ResidualBlock(nn.Module):
    """x + linear(act(linear(norm(x)))) at constant width.

    Args:
        width: Number of features.
        activation: Constructor of the non-linearity.
    """

    def __init__(self, width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FreeNorm(-1), nn.Linear(width, width), activation(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, width) -> (b, width)."""
        return x + self.layers(x)


class ScoreMLP(nn.Module):
    """f(x_t, t) of windows of vectors, shape (*B, L, *Z) in and out.

    The flat window, the features of t and the context pass through the widths
    (input, *hidden, L prod(Z)); at each a linear map where the width changes, then a residual block.

    Args:
        length: Number of steps L.
        event: Event shape *Z.
        hidden: Widths of the hidden layers; in the published networks five of 128 (order 1, 2) or 256.
        embedding: Number of features of t.
        time: Width of the MLP of the time embedding.
        context: Number of context features.
        activation: Constructor of the non-linearity.
        recompute: Whether to recompute blocks in the backward pass to save memory.

    Raises:
        ValueError: If the window has fewer than two numbers, too few to normalize, or there is no
            hidden layer.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, appendix D and released code.
    """

    def __init__(
        self,
        length: int,
        event: Sequence[int],
        *,
        hidden: Sequence[int] = (256,) * 5,
        embedding: int = 32,
        time: int = 256,
        context: int = 0,
        activation: Callable[[], nn.Module] = nn.SiLU,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.shape = (length, *event)
        size = prod(self.shape)
        if min(size, *hidden, 2) < 2 or not hidden:
            raise InvalidValueError(
                f"windows of shape {self.shape} through layers {tuple(hidden)}: each needs at least two "
                "numbers to be normalized by their standard deviation; lengthen the window or widen the layers."
            )
        self.context = context
        self.recompute = recompute
        self.time = TimeEmbedding(embedding, hidden=time)
        layers: list[nn.Module] = []
        for before, after in pairwise((size + embedding + context, *hidden, size)):
            if before != after:
                layers.append(nn.Linear(before, after))
            layers.append(ResidualBlock(after, activation))
        self.layers = nn.ModuleList(layers)

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(*B, L, *Z), () or (*b, 1, ..., 1), (*b, context) -> (*B, L, *Z).

        Raises:
            ValueError: If the window, its channels, the times or the context are of another shape.
        """
        axes = len(self.shape)
        if tuple(x_t.shape[-axes:]) != self.shape:
            raise InvalidValueError(
                f"this network takes windows of shape {self.shape}, (steps, channels), got samples of shape "
                f"{tuple(x_t.shape)}; compose a longer trajectory with MarkovBlanket, or use the weights made "
                "for these channels."
            )
        lead = x_t.shape[: x_t.ndim - axes]
        flat = x_t.reshape(lead.numel(), -1)
        e = self.time(rows_of_time(t, x_t, axes)).expand(len(flat), -1)
        known = fitting_context(context, x_t, lead, self.context, -1).reshape(len(flat), self.context)
        x = torch.cat([flat, e, known], -1)
        for layer in self.layers:
            x = evaluate(layer, x, recompute=self.recompute)
        return x.reshape(x_t.shape)
