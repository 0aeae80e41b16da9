"""Denoisers conditioned on observations: a conditional network, and classifier-free guidance."""

from collections.abc import Callable
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.precondition import Preconditioned
from slams.diffusion.schedule import Schedule


@runtime_checkable
class Conditional(Protocol):
    """A family of denoisers: `given(context)` is E[x | x_t, context]."""

    schedule: Schedule

    def given(self, context: Tensor) -> Denoiser:
        """The denoiser of those observations."""


def context_of(values: Tensor, seen: Tensor, memory: int) -> Tensor:
    """Observations as the channels that a conditional network takes.

    Args:
        values: Observations in the units of the network, newest first, (*B, m', d); ignored where not observed.
        seen: Mask of observed values, bool (*B, m', d).
        memory: Number m >= m' of times; older ones are padded as missing.

    Returns:
        (*B, 2 m, d): the values with zeros where missing, then the masks as 0 and 1.

    Raises:
        ValueError: If there are more times than the memory or the shapes differ.
    """
    if values.shape != seen.shape or values.ndim < 2 or values.shape[-2] > memory:
        raise InvalidValueError(
            f"observations are (*B, m', d) with masks of the same shape and m' at most {memory}, newest first; got "
            f"{tuple(values.shape)} and {tuple(seen.shape)}."
        )
    known = torch.where(seen, values, 0.0)  # a product would keep the NaN of missing values
    blank = known.new_zeros(*known.shape[:-2], memory - known.shape[-2], known.shape[-1])
    return torch.cat([known, blank, seen.to(known), blank], -2)


class Encoded(Preconditioned):
    """`Preconditioned` with a network that takes features of the context, computed once per context.

    Args:
        network: Function (x_t, t, features) -> shape of x_t, with a method `encode`: context -> features.
        schedule: Noise schedule.
        std: Standard deviation of the data.
        trained: Range of sigma / alpha in training; the network's time is clamped to it.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        schedule: Schedule,
        *,
        std: float = 1.0,
        trained: tuple[float, float] = (0.01, 30.0),
    ) -> None:
        super().__init__(network, schedule, std=std)
        low, high = (float(schedule.time(torch.tensor(1 / ratio))) for ratio in trained)
        self.trained = (low, high)

    def given(self, context: Tensor | None) -> Self:
        """A copy of the network conditioned on the features of `context`."""
        encode: Callable[[Tensor], Tensor] = self.network.encode  # type: ignore[assignment]
        return super().given(None if context is None else encode(context))

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """See `Contextual.output`."""
        return super().output(x, t.clamp(*self.trained))


class Guided(Denoiser):
    """Classifier-free guidance: m = m_u + w (m_c - m_u).

    The score is that of p(x_t) p(y | x_t)^w at every noise level: w = 0 is the prior, 1 the posterior, and more trusts
    the observation beyond its error. Draws are not those of p(x) p(y | x)^w, as powers and noising do not commute: of a
    Gaussian of variance s^2 whose posterior is N(mu, v), the probability flow makes one of variance s^(2 - 2 w) v^w and
    of mean

        mu w (h(0) / h(u)) u / (v + u^2) integrated over u > 0,  h(u)^2 = (s^2 + u^2)^(1 - w) (v + u^2)^w.

    With w other than 0 and 1 both denoisers are asked.

    Args:
        given: m_c.
        free: m_u.
        weight: w.

    Source:
        Ho & Salimans (2022), arXiv:2207.12598, eq. 6, whose w is one less.
    """

    def __init__(self, given: Denoiser, free: Denoiser, weight: float = 1.0) -> None:
        super().__init__()
        self.given = given
        self.free = free
        self.weight = weight
        self.schedule = given.schedule

    @property
    def evaluations(self) -> int:
        """Networks asked at one x_t."""
        return 1 if self.weight in (0, 1) else 2

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S)."""
        if self.weight == 1:
            return self.given(x_t, t)
        free = self.free(x_t, t)
        return free if self.weight == 0 else free + self.weight * (self.given(x_t, t) - free)
