"""Dynamical consistency of draws: their states beside those of the solver from the same first state."""

from typing import NamedTuple

import torch
from torch import Tensor

from slams.core.geometry.torus import coarsen, upsample
from slams.papers.study import finite
from slams.systems.flows.kolmogorov import KolmogorovFlow


class Resimulation(NamedTuple):
    """Resimulation of draws.

    Attributes:
        states: States of the solver from each draw's first state, (N, L, 2, n, n).
        error: Root mean square difference from the draws at each step, (L).
        persistence: The same for persistence of the first state, (L).
        apart: The same for states of different draws, or of different steps where there is one draw.
    """

    states: Tensor
    error: Tensor
    persistence: Tensor
    apart: float


@torch.no_grad()
def resimulate(draws: Tensor, fine: int, *, dt: float = 0.2) -> Resimulation:
    """Solve on from the first state of each draw, on a finer grid.

    Args:
        draws: Draws, (N, L, 2, n, n).
        fine: Cells along a side, a multiple of n.
        dt: Model time between two states.

    Returns:
        The resimulated states and their differences from the draws.

    Raises:
        FloatingPointError: If the solver diverges, as from states with larger velocities than its time step allows.
    """
    factor = fine // draws.shape[-1]
    flow = KolmogorovFlow(fine, dt=dt)
    x = upsample(draws[:, 0], factor)
    states = [draws[:, 0]]
    for k in range(1, draws.shape[1]):
        x = finite(
            flow(x),
            f"the flow from a draw's first state is not finite after {k} of {draws.shape[1] - 1} steps (largest "
            f"speed at the start {float(draws[:, 0].abs().max()):g}); the draw is no valid state of this flow.",
        )
        states.append(coarsen(x, factor))
    again = torch.stack(states, 1)
    other = draws.roll(1, 0) if len(draws) > 1 else draws.roll(draws.shape[1] // 2, 1)
    return Resimulation(
        again,
        (again - draws).square().mean((0, 2, 3, 4)).sqrt(),
        (draws[:, :1] - draws).square().mean((0, 2, 3, 4)).sqrt(),
        float((draws - other).square().mean().sqrt()),
    )
