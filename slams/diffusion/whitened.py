"""A network that sees a window in the directions of its covariance, each scaled by what is known of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.schedule import Schedule

_LEAST = 1e-7  # of the largest eigenvalue: what rounding leaves of a direction that never varies


class WhitenedDenoiser(Denoiser):
    """A network that corrects the Gaussian denoiser of windows, in the eigenvectors of their covariance.

    With C = Q diag(lambda) Q^T, w^2 = alpha_t^2 lambda + sigma_t^2 for each direction and u = Q^T (x_t - alpha_t mu) / w,

        m = mu + Q (alpha_t lambda / w u + sigma_t sqrt(lambda) / w f(u, s)),

    so that input and target of the network have unit variance in every direction at every noise level, not only
    on average: differences between steps have a much smaller variance than the states, and without whitening a network
    learns them last. f = 0 is the Gaussian denoiser. The network's time is s in [0, 1], linear in
    log(sigma_t / alpha_t).

    Args:
        network: Function f: (*B, n), a time as of `Denoiser` with one event axis -> (*B, n), n the values of a window.
        mean: Mean mu, (L, *Z).
        covariance: Covariance C, (n, n).
        schedule: Noise schedule.
        ends: Values of sigma / alpha at s = 0 and 1.
        trained: Range of sigma / alpha in training; the network's time is clamped to it.
        bound: Bound of the network's input and output [standard deviations]: far from its data it is unreliable,
            and the Gaussian dominates.

    Raises:
        ValueError: If the covariance does not fit the mean or the ends do not grow.

    Source:
        The preconditioning of Karras et al. (2022), arXiv:2206.00364, table 1, direction by direction.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        covariance: Tensor,
        schedule: Schedule,
        *,
        ends: tuple[float, float] = (1e-3, 1e3),
        trained: tuple[float, float] = (0.0, math.inf),
        bound: float = 10.0,
    ) -> None:
        super().__init__()
        if covariance.shape != (mean.numel(), mean.numel()):
            raise InvalidValueError(
                f"windows of {mean.numel()} values have a covariance of as many rows and columns, got "
                f"{tuple(covariance.shape)}."
            )
        if not 0 < ends[0] < ends[1] or not bound > 0:
            raise InvalidValueError(
                f"the ends are positive and grow, the bound is positive; got {ends} and {bound}."
            )
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("values", values.clamp(min=_LEAST * float(values[-1])).to(mean))
        self.register_buffer("vectors", vectors.to(mean))
        self.network = network
        self.schedule = schedule
        self.length = len(mean)
        self.ends = ends
        self.trained = trained
        self.bound = bound

    @property
    def event(self) -> Sequence[int]:
        """*Z."""
        return tuple(self.mean.shape[1:])

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, *Z), () or (b, 1, ..., 1) -> (*B, L, *Z).

        Raises:
            ValueError: If the windows have another shape.
        """
        axes = self.mean.ndim
        if x_t.shape[-axes:] != self.mean.shape:
            raise InvalidValueError(
                f"this denoiser is one of windows {tuple(self.mean.shape)}, (steps, channels), got samples of shape "
                f"{tuple(x_t.shape)}; compose longer trajectories with MarkovBlanket, or use weights made for them."
            )
        alpha, sigma = self.schedule(t)
        if t.ndim:  # one axis of the event remains
            alpha, sigma = (v.reshape(v.shape[: v.ndim - axes + 1]) for v in (alpha, sigma))
        place = (sigma / alpha).clamp(*self.trained).log().sub(math.log(self.ends[0])) / math.log(
            self.ends[1] / self.ends[0]
        )
        width = (alpha**2 * self.values + sigma**2).sqrt()
        flat = x_t.flatten(-axes) - alpha * self.mean.flatten()
        u = (flat @ self.vectors) / width
        answer = self.network(u.clamp(-self.bound, self.bound), place.clamp(0, 1).to(u))
        correction = sigma * self.values.sqrt() * answer.clamp(-self.bound, self.bound)
        shrunk = (alpha * self.values * u + correction) / width
        return self.mean + (shrunk @ self.vectors.mT).reshape(x_t.shape)
