"""Networks as denoisers: preconditioned, or trained to predict the noise."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.schedule import Schedule


class Contextual(Denoiser):
    """A network with optional context beside x_t and t, such as a forcing, a position or a parameter.

    Args:
        network: Function (x_t, t) -> shape of x_t, or (x_t, t, context) with a context.
        schedule: Noise schedule.
    """

    context: Tensor | None

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.context = None

    def given(self, context: Tensor | None) -> Self:
        """A copy of the network conditioned on `context`."""
        other = copy.copy(self)
        other.context = context
        return other

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """Raw output of the network."""
        return self.network(x, t) if self.context is None else self.network(x, t, self.context)


class Preconditioned(Contextual):
    """A network whose input and target have unit variance at every noise level.

    m = c_skip x_t + c_out f(c_in x_t, t), and with w^2 = alpha^2 s^2 + sigma^2

        c_in = 1 / w,  c_skip = alpha s^2 / w^2,  c_out = sigma s / w,

    so that f = 0 is the denoiser of white data of variance s^2, and c_out its posterior deviation. The time goes
    to the network as it is, because log(sigma / alpha) is one function of it.

    Args:
        network: f, see `Contextual`.
        schedule: Noise schedule.
        std: s, standard deviation of the data, positive.

    Raises:
        ValueError: If the standard deviation is not positive.

    Source:
        Karras et al. (2022), arXiv:2206.00364, table 1 and appendix B.6, for any alpha.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, *, std: float = 1.0) -> None:
        super().__init__(network, schedule)
        if std <= 0:
            raise InvalidValueError(f"the standard deviation of the data must be positive, got {std}.")
        self.std = std

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S)."""
        alpha, sigma = self.schedule(t)
        width = (alpha**2 * self.std**2 + sigma**2).sqrt()
        correction = sigma * self.std / width * self.output(x_t / width, t)
        return alpha * self.std**2 / width**2 * x_t + correction


class NoisePrediction(Contextual):
    """A network that returns the noise: m = (x_t - sigma_t f(x_t, t)) / alpha_t.

    Args:
        network: f, see `Contextual`.
        schedule: Noise schedule.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 4, as in the released code.
    """

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S)."""
        alpha, sigma = self.schedule(t)
        return (x_t - sigma * self.output(x_t, t)) / alpha


class Detached(Denoiser):
    """m as a denoiser of which only the trivial part is differentiated: dm/dx_t = 1 / alpha_t.

    The noise estimate (x_t - alpha_t m) / sigma_t is held fixed, so that guidance through it costs no backward
    pass through a network.

    Args:
        denoiser: The prior.

    Source:
        The released code of Rozet & Louppe (2023), arXiv:2306.10574, option `detach`.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S)."""
        alpha, _ = self.schedule(t)
        with torch.no_grad():
            mean = self.denoiser(x_t, t)
        return mean + (x_t - x_t.detach()) / alpha
