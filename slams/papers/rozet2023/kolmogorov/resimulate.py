"""Whether draws move as the flow does: their states beside those that the solver makes of the first."""

from typing import NamedTuple

import torch
from torch import Tensor

from slams.core.geometry.torus import coarsen, upsample
from slams.papers.study import finite
from slams.systems.flows.kolmogorov import KolmogorovFlow


class Resimulation(NamedTuple):
    """Draws simulated again.

    Attributes:
        states: Of the solver, from each draw's first, (N, L, 2, n, n).
        error: Root mean square of the difference to the draws at each step, (L).
        persistence: The same for the first state held, (L).
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
        draws: (N, L, 2, n, n).
        fine: Cells along a side, a multiple of n.
        dt: Model time between two states.

    Returns:
        What comes of it.

    Raises:
        FloatingPointError: If the solver blows up, as it does from states faster than it is laid out for.
    """
    factor = fine // draws.shape[-1]
    flow = KolmogorovFlow(fine, dt=dt)
    x = upsample(draws[:, 0], factor)
    states = [draws[:, 0]]
    for k in range(1, draws.shape[1]):
        x = finite(
            flow(x),
            f"the flow from a draw's first state is not finite after {k} of {draws.shape[1] - 1} steps (largest "
            f"speed at the start {float(draws[:, 0].abs().max()):g}); the draw is no state of this flow.",
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
