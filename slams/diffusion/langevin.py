"""Langevin Monte Carlo: draws of a distribution from its score."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.random import Rng, generator, normal, uniform

Score = Callable[[Tensor], Tensor]


class Chain(NamedTuple):
    """Last states of the chains and their acceptance rates.

    Attributes:
        x: Last states (*B, *S).
        accepted: Acceptance rate of each chain, (*B); ones without adjustment.
    """

    x: Tensor
    accepted: Tensor


@torch.no_grad()
def langevin(
    score: Score,
    x: Tensor,
    *,
    step: float | Tensor,
    count: int,
    batch: int = 1,
    log_prob: Callable[[Tensor], Tensor] | None = None,
    rng: Rng = None,
) -> Chain:
    """x <- x + h score(x) + sqrt(2 h) w, w ~ N(0, 1), each chain on its own.

    Without adjustment a Gaussian direction of variance v comes out with v / (1 - h / (2 v)), and chains diverge
    where h > 2 v. With `log_prob` each step is accepted or not (Metropolis), which removes that bias.

    Args:
        score: grad log p: (*B, *S) -> (*B, *S).
        x: Initial states of the chains, (*B, *S).
        step: h, positive, broadcasting to x.
        count: Number of steps.
        batch: Number of axes of *B; each of its entries is a chain.
        log_prob: log p: (*B, *S) -> (*B), up to a constant; adjusts the chains.
        rng: Generator.

    Returns:
        The chains after `count` steps.

    Raises:
        ValueError: If a step is not positive.
        FloatingPointError: If a state is not finite; names the step and the largest score before it.

    Source:
        Roberts & Tweedie (1996), doi:10.2307/3318418, section 1.
    """
    rng = generator(rng, "Langevin chain")
    h = torch.as_tensor(step, dtype=x.dtype, device=x.device)
    if not bool((h > 0).all()):
        raise InvalidValueError(f"Langevin steps must be positive, got {float(h.min()):g}.")
    accepted = x.new_zeros(x.shape[:batch])
    gradient = score(x)
    density = None if log_prob is None else log_prob(x)
    for i in range(count):
        noise = normal(x.shape, like=x, rng=rng)
        proposal = x + h * gradient + (2 * h).sqrt() * noise
        if not bool(torch.isfinite(proposal).all()):
            raise NonFiniteError(
                f"a chain is not finite at step {i + 1} of {count} (largest score "
                f"{float(gradient.abs().max()):g}, largest step {float(h.max()):g}); use smaller steps."
            )
        ahead = score(proposal)
        if log_prob is None or density is None:
            x, gradient = proposal, ahead
            accepted += 1
            continue
        # the way back needs the noise (x - proposal - h ahead) / sqrt(2 h) = -noise - sqrt(h / 2) (gradient + ahead)
        back = noise + (h / 2).sqrt() * (gradient + ahead)
        log_ratio = 0.5 * (noise**2 - back**2).flatten(batch).sum(-1)
        reached = log_prob(proposal)
        chance = uniform(reached.shape, like=x, dtype=x.dtype, rng=rng)
        move = chance.log() < reached - density + log_ratio
        wide = move.reshape(*move.shape, *([1] * (x.ndim - batch)))
        x, gradient = torch.where(wide, proposal, x), torch.where(wide, ahead, gradient)
        density = torch.where(move, reached, density)
        accepted += move
    return Chain(x, accepted / max(count, 1))
