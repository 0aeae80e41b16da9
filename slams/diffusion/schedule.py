"""Noise schedules: how much signal and noise x_t = alpha_t x + sigma_t eps holds at diffusion time t."""

import abc
import math

import torch
from torch import Tensor


class Schedule(abc.ABC):
    """t in [0, 1] -> (alpha_t, sigma_t), from clean data at 0 to noise at 1."""

    @abc.abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each of the shape of `t`."""

    @abc.abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The t at which alpha_t / sigma_t is `ratio`, clipped to [0, 1]."""


class VPCosine(Schedule):
    """Variance-preserving schedule of SDA.

    alpha_t = cos(arccos(sqrt(eta)) t)^2,  sigma_t^2 = 1 - alpha_t^2 + eta^2.

    Args:
        eta: Signal left at t = 1 and noise left at t = 0.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 4 and the released code's default.
    """

    def __init__(self, eta: float = 1e-3) -> None:
        if not 0 < eta < 1:
            raise ValueError(f"eta must be in (0, 1), got {eta}.")
        self.eta = eta

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        alpha = torch.cos(math.acos(math.sqrt(self.eta)) * t) ** 2
        return alpha, (1 - alpha**2 + self.eta**2).sqrt()

    def time(self, ratio: Tensor) -> Tensor:  # noqa: D102
        alpha = (ratio**2 * (1 + self.eta**2) / (1 + ratio**2)).sqrt()
        return (torch.acos(alpha.clamp(max=1).sqrt()) / math.acos(math.sqrt(self.eta))).clamp(0, 1)
