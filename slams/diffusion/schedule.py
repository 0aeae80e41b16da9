"""Noise schedules: how much signal and noise x_t = alpha_t x + sigma_t eps holds at diffusion time t."""

import abc
import math

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError


class Schedule(abc.ABC):
    """t in [0, 1] -> (alpha_t, sigma_t), from clean data at 0 to noise at 1.

    alpha_t / sigma_t falls in t, so that time, this ratio and the log-SNR name each other.
    """

    @abc.abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each of the shape of `t`."""

    @abc.abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The t at which alpha_t / sigma_t is `ratio`, clipped to [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), of the shape of `t`."""
        alpha, sigma = self(t)
        return 2 * (alpha / sigma).log()

    def from_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t of a log-SNR, clipped to [0, 1]: the inverse of `log_snr`."""
        return self.time((log_snr / 2).exp())


class VariancePreserving(Schedule):
    """Schedules with sigma_t^2 = 1 - alpha_t^2 + eta^2; a subclass says how the signal falls from 1 to eta.

    Args:
        eta: Signal left at t = 1 and noise left at t = 0.

    Raises:
        ValueError: If eta is not in (0, 1).

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 4; eta in sigma as in the released code.
    """

    def __init__(self, eta: float = 1e-3) -> None:
        if not 0 < eta < 1:
            raise InvalidValueError(f"eta must be in (0, 1), got {eta}.")
        self.eta = eta

    @abc.abstractmethod
    def signal(self, t: Tensor) -> Tensor:
        """alpha_t."""

    @abc.abstractmethod
    def signal_time(self, alpha: Tensor) -> Tensor:
        """The t at which alpha_t is `alpha`, for alpha in (0, 1]."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        alpha = self.signal(t)
        return alpha, (1 - alpha**2 + self.eta**2).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        alpha = (ratio**2 * (1 + self.eta**2) / (1 + ratio**2)).sqrt()
        return self.signal_time(alpha.clamp(max=1)).clamp(0, 1)


class VPCosine(VariancePreserving):
    """Variance-preserving schedule of SDA: alpha_t = cos(arccos(sqrt(eta)) t)^2.

    Args:
        eta: Signal left at t = 1 and noise left at t = 0.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 4 and the released code's default.
    """

    def signal(self, t: Tensor) -> Tensor:
        """See `VariancePreserving.signal`."""
        return torch.cos(math.acos(math.sqrt(self.eta)) * t) ** 2

    def signal_time(self, alpha: Tensor) -> Tensor:
        """See `VariancePreserving.signal_time`."""
        return torch.acos(alpha.sqrt()) / math.acos(math.sqrt(self.eta))


class VPLinear(VariancePreserving):
    """alpha_t = 1 - (1 - eta) t, variance-preserving; `lin` of the released code of SDA."""

    def signal(self, t: Tensor) -> Tensor:
        """See `VariancePreserving.signal`."""
        return 1 - (1 - self.eta) * t

    def signal_time(self, alpha: Tensor) -> Tensor:
        """See `VariancePreserving.signal_time`."""
        return (1 - alpha) / (1 - self.eta)


class VPExponential(VariancePreserving):
    """alpha_t = exp(t^2 log eta), variance-preserving; `exp` of the released code of SDA."""

    def signal(self, t: Tensor) -> Tensor:
        """See `VariancePreserving.signal`."""
        return torch.exp(math.log(self.eta) * t**2)

    def signal_time(self, alpha: Tensor) -> Tensor:
        """See `VariancePreserving.signal_time`."""
        return (alpha.log() / math.log(self.eta)).clamp(min=0).sqrt()


class SubVP(Schedule):
    """The signal of a variance-preserving schedule with less noise: sigma_t = 1 - alpha_t^2 + eta.

    Args:
        signal: Schedule of the signal, alpha_t and eta.

    Source:
        Song et al. (2021), arXiv:2011.13456, section 3.4; eta as in the released code of SDA.
    """

    def __init__(self, signal: VariancePreserving | None = None) -> None:
        self.signal = signal or VPCosine()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        alpha = self.signal.signal(t)
        return alpha, 1 - alpha**2 + self.signal.eta

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        most = 1 + self.signal.eta
        # the positive root of ratio alpha^2 + alpha - ratio (1 + eta), written without cancellation
        alpha = 2 * ratio * most / (1 + (1 + 4 * ratio**2 * most).sqrt())
        return self.signal.signal_time(alpha.clamp(max=1)).clamp(0, 1)


class SubSubVP(Schedule):
    """The signal of a variance-preserving schedule with still less noise: sigma_t = 1 - alpha_t + eta.

    Args:
        signal: Schedule of the signal, alpha_t and eta.

    Source:
        The released code of Rozet & Louppe (2023), arXiv:2306.10574.
    """

    def __init__(self, signal: VariancePreserving | None = None) -> None:
        self.signal = signal or VPCosine()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        alpha = self.signal.signal(t)
        return alpha, 1 - alpha + self.signal.eta

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        alpha = ratio * (1 + self.signal.eta) / (1 + ratio)
        return self.signal.signal_time(alpha.clamp(max=1)).clamp(0, 1)


class VarianceExploding(Schedule):
    """alpha_t = 1, sigma_t = low (high / low)^t.

    Args:
        low: Noise at t = 0, in units of the data.
        high: Noise at t = 1, well above the standard deviation of the data.

    Raises:
        ValueError: If not 0 < low < high.

    Source:
        Song et al. (2021), arXiv:2011.13456, section 3.4.
    """

    def __init__(self, low: float = 1e-3, high: float = 100.0) -> None:
        if not 0 < low < high:
            raise InvalidValueError(
                f"noise grows from a positive low to a larger high, got {low} and {high}."
            )
        self.low = low
        self.high = high

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.ones_like(t), self.low * torch.exp(math.log(self.high / self.low) * t)

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return (-(ratio * self.low).log() / math.log(self.high / self.low)).clamp(0, 1)


class Rectified(Schedule):
    """Straight paths from data to noise: alpha_t = 1 - u, sigma_t = u, u = eta + (1 - 2 eta) t.

    Args:
        eta: Noise left at t = 0 and signal left at t = 1; at exactly zero the ratio would not be finite.

    Raises:
        ValueError: If eta is not in (0, 1/2).

    Source:
        Liu et al. (2023), arXiv:2209.03003, section 2.
    """

    def __init__(self, eta: float = 1e-3) -> None:
        if not 0 < eta < 0.5:
            raise InvalidValueError(f"eta must be in (0, 1/2), got {eta}.")
        self.eta = eta

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        u = self.eta + (1 - 2 * self.eta) * t
        return 1 - u, u

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        return ((1 / (1 + ratio) - self.eta) / (1 - 2 * self.eta)).clamp(0, 1)


class EnsembleLinear(Schedule):
    """Schedule of the ensemble score filter: alpha_t = 1 - (1 - a) t, sigma_t^2 = b + (1 - b) t.

    Args:
        signal: a, signal left at t = 1.
        noise: b, noise variance left at t = 0; at 0 the last of a sampler's steps returns the mean itself.

    Raises:
        ValueError: If a is not in (0, 1) or b not in [0, 1).

    Source:
        Bao, Zhang & Zhang (2024), doi:10.1016/j.cma.2024.117447, section 3, with floors a and b as in its released code.
    """

    def __init__(self, signal: float = 0.05, noise: float = 0.0) -> None:
        if not 0 < signal < 1 or not 0 <= noise < 1:
            raise InvalidValueError(
                f"signal left must be in (0, 1) and noise left in [0, 1), got {signal} and {noise}."
            )
        self.signal = signal
        self.noise = noise

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return 1 - (1 - self.signal) * t, (self.noise + (1 - self.noise) * t).sqrt()

    def time(self, ratio: Tensor) -> Tensor:
        """See `Schedule.time`."""
        fall = 1 - self.signal
        # the smaller root of (1 - fall t)^2 = ratio^2 (noise + (1 - noise) t), written without cancellation
        linear = 2 * fall + ratio**2 * (1 - self.noise)
        constant = 1 - ratio**2 * self.noise
        return (2 * constant / (linear + (linear**2 - 4 * fall**2 * constant).sqrt())).clamp(0, 1)
