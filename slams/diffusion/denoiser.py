"""Denoisers: E[x | x_t], the common currency of all score methods.

With x_t = alpha_t x + sigma_t eps, the noise estimate is (x_t - alpha_t m) / sigma_t and the score of p(x_t)
is (alpha_t m - x_t) / sigma_t^2, where m = E[x | x_t] is what a denoiser returns.
"""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.core.days import Values, daywise, every, over
from slams.core.eof import eof
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, uniform
from slams.diffusion.schedule import Schedule

SHRINKS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # to choose from


class Denoiser(nn.Module, abc.ABC):
    """E[x | x_t] of windows: (*B, L, *Z) and a diffusion time, to the same shape."""

    schedule: Schedule

    @abc.abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, *Z), () or (b, 1, ..., 1) -> (*B, L, *Z)."""


class WindowGaussian(Denoiser):
    """Exact denoiser of a Gaussian over windows whose covariance lives in few patterns.

    Each step's state is x = V a + e with orthonormal patterns V, a remainder e that is white outside them and
    has variance `remainder`, and coefficients jointly Gaussian over the window, (a_1, ..., a_L) ~ N(0, C).
    With C = Q diag(lambda) Q^T,

        E[x | x_t] = V Q diag(alpha lambda / (alpha^2 lambda + sigma^2)) Q^T V^T x_t
                     + alpha delta / (alpha^2 delta + sigma^2) (x_t - V V^T x_t).

    Args:
        basis: V, shape (D, K) with D = prod(Z).
        covariance: C over (L, K), shape (L K, L K).
        remainder: delta, variance a component outside the patterns, positive.
        event: *Z.
        schedule: Noise schedule.
    """

    basis: Tensor
    values: Tensor
    vectors: Tensor
    remainder: Tensor

    def __init__(
        self, basis: Tensor, covariance: Tensor, remainder: float, event: Sequence[int], schedule: Schedule
    ) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("basis", basis)
        self.register_buffer("values", values.clamp(min=1e-8 * float(values[-1])).to(basis.dtype))
        self.register_buffer("vectors", vectors.to(basis.dtype))
        outside = torch.as_tensor(remainder, dtype=basis.dtype, device=basis.device)
        self.register_buffer("remainder", outside.clamp(min=1e-6))
        self.event = tuple(event)
        self.schedule = schedule
        self.length = covariance.shape[0] // basis.shape[1]

    @classmethod
    def fit(
        cls, z: Tensor, starts: Tensor, length: int, schedule: Schedule, **settings: float
    ) -> "WindowGaussian":
        """Patterns and window covariance of training states.

        Args:
            z: States of consecutive steps (n, *Z), mean zero.
            starts: First step of each training window, shape (w).
            length: L.
            schedule: Noise schedule.
            **settings: fraction, most and shrink of `window_moments`.

        Returns:
            The fitted denoiser.
        """
        return cls(*window_moments(z, starts, length, **settings), z.shape[1:], schedule)  # type: ignore[arg-type]

    def coefficients(self, x: Tensor) -> Tensor:
        """(*B, L, *Z) -> (*B, L K)."""
        return (x.flatten(-len(self.event)) @ self.basis).flatten(-2)

    def expand(self, a: Tensor) -> Tensor:
        """(*B, L K) -> (*B, L, *Z)."""
        flat = a.unflatten(-1, (self.length, -1)) @ self.basis.mT
        return flat.unflatten(-1, self.event)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, *Z), () or (b, 1, ..., 1) -> (*B, L, *Z).

        Raises:
            ValueError: If the windows have another length or other channels.
        """
        shape = (self.length, *self.event)
        if tuple(x_t.shape[-len(shape) :]) != shape:
            raise InvalidValueError(
                f"this denoiser is one of windows {shape}, (steps, channels), got samples of shape {tuple(x_t.shape)}; "
                "compose longer trajectories with MarkovBlanket, or fit it to these channels."
            )
        a = self.coefficients(x_t)
        alpha, sigma = self.schedule(t if t.ndim == 0 else t.reshape(-1, *([1] * (a.ndim - 1))))
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        outside = alpha * self.remainder / (alpha**2 * self.remainder + sigma**2)
        shrunk = ((a @ self.vectors) * gain) @ self.vectors.mT
        residual = outside.reshape(t.shape) * x_t
        return residual + self.expand(shrunk - outside * a)

    def posterior_precision(self, information: Tensor) -> Tensor:
        """C^-1 + blockdiag(M_1, ..., M_L): precision of a window's coefficients given observations.

        Args:
            information: Gauss-Newton matrix of each step, (L, K, K).

        Returns:
            Symmetric positive definite matrix (L K, L K), float64.
        """
        vectors = (
            self.vectors.double()
        )  # C^-1 spans six decades or more, of which float32 keeps the wrong ones
        matrix = (vectors / self.values.double()) @ vectors.mT + torch.block_diag(*information.double())
        return (matrix + matrix.mT) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the coefficients of whole windows, without the remainder: (*B, L, *Z) -> (*B)."""
        a = self.coefficients(x) @ self.vectors
        return -0.5 * (a**2 / self.values + self.values.log() + 1.8378770664093453).sum(-1)


def window_moments(
    z: Values, starts: Tensor, length: int, *, fraction: float = 0.99, most: int = 256, shrink: float = 0.1
) -> tuple[Tensor, Tensor, float]:
    """Patterns of training states, the covariance of their coefficients over a window, and the variance left.

    Args:
        z: States of consecutive steps (n, *Z), mean zero.
        starts: First step of each training window, shape (w).
        length: L.
        fraction: Share of variance in the patterns.
        most: Most patterns.
        shrink: Weight, in [0, 1], of the covariance in which different patterns do not vary together; it tames the
            sampling error of L K (L K + 1) / 2 numbers estimated from few independent windows.

    Returns:
        V (D, K), C (L K, L K) and the variance a component outside the patterns.
    """
    basis, lags, outside = window_lags(z, starts, length, fraction=fraction, most=most)
    return basis, shrunk(lags, shrink).to(z.dtype), outside


def window_lags(
    z: Values, starts: Tensor, length: int, *, fraction: float = 0.99, most: int = 256
) -> tuple[Tensor, Tensor, float]:
    """`window_moments` with the covariance as `lag_covariances` has it, to be `shrunk`."""
    flat = daywise(z, lambda part: part.flatten(1))
    thin = max(1, len(flat) // 2000)  # neighbouring days add little to patterns, and cost grows with n^3
    patterns = eof(every(flat, thin), fraction=fraction, most=most)
    coefficients = over(flat, lambda part: part @ patterns.basis)
    windows = torch.stack([coefficients[starts + k] for k in range(length)], 1)
    outside = over(flat, lambda part: part.square().sum(1)).mean() - coefficients.square().sum(1).mean()
    per_component = float(outside) / max(flat.shape[1] - coefficients.shape[1], 1)
    return patterns.basis, lag_covariances(windows), per_component


def window_covariance(windows: Tensor, shrink: float) -> Tensor:
    """Covariance of coefficients over a window, made stationary and shrunk.

    The lag covariances are averaged over the window (the process is stationary), and
    pairs of different patterns are multiplied by 1 - shrink.

    Args:
        windows: Coefficients (w, L, K), mean zero.
        shrink: Weight of the uncorrelated target, in [0, 1].

    Returns:
        Symmetric positive semi-definite matrix (L K, L K).
    """
    return shrunk(lag_covariances(windows), shrink).to(windows.dtype)


def lag_covariances(windows: Tensor) -> Tensor:
    """Covariance of coefficients (w, L, K) over a window, each lag averaged over the window, (L, K, L, K) float64."""
    count, length, patterns = windows.shape
    flat = windows.double().flatten(1)
    sample = (flat.mT @ flat / count).reshape(length, patterns, length, patterns)
    stationary = torch.empty_like(sample)
    for lag in range(length):
        mean = torch.stack([sample[i + lag, :, i, :] for i in range(length - lag)]).mean(0)
        for i in range(length - lag):
            stationary[i + lag, :, i, :] = mean
            stationary[i, :, i + lag, :] = mean.mT
    return stationary


def shrunk(lags: Tensor, shrink: float) -> Tensor:
    """`lag_covariances` with pairs of different patterns times 1 - shrink, positive semi-definite, (L K, L K)."""
    matrix = _mixed(lags, shrink)
    values, vectors = torch.linalg.eigh(matrix)
    # averaging the lags can leave tiny negative eigenvalues
    return (vectors * values.clamp(min=1e-6 * float(values[-1]))) @ vectors.mT


def _mixed(lags: Tensor, shrink: float) -> Tensor:
    patterns = lags.shape[1]
    same = torch.eye(patterns, dtype=lags.dtype, device=lags.device)[:, None, :]
    mixed = (lags * (same + (1 - shrink) * (1 - same))).flatten(2).flatten(0, 1)
    return (mixed + mixed.mT) / 2


def shrink_for(
    lags: Tensor, fresh: Tensor, schedule: Schedule, values: Sequence[float] = SHRINKS, *, rng: Rng = None
) -> float:
    """The shrinkage whose closed form denoises new windows best.

    The loss is the mean over diffusion times of log E|m(x_t) - x|^2, m = alpha C (alpha^2 C + sigma^2)^-1 x_t, so that
    each amount of noise counts by its relative gain.

    Args:
        lags: `lag_covariances` of training windows, (L, K, L, K).
        fresh: Coefficients of new windows, (m, L K).
        schedule: Noise schedule.
        values: Weights to choose from.
        rng: Generator or seed of the noise.
    """
    x = fresh.double()
    noise = normal(x.shape, like=x, rng=generator(rng, "shrinkage"))
    losses = {}
    for shrink in values:
        value, vector = torch.linalg.eigh(_mixed(lags, shrink))
        value = value.clamp(
            min=1e-6 * float(value[-1])
        )  # lags averaged over a window may leave some below zero
        losses[shrink] = 0.0
        for t in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85):
            alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
            gain = alpha * value / (alpha**2 * value + sigma**2)
            mean = (((alpha * x + sigma * noise) @ vector) * gain) @ vector.mT
            losses[shrink] += float((mean - x).square().mean().log())
    return min(losses, key=lambda shrink: losses[shrink])


class NoCorrection(nn.Module):
    """The network f = 0 of `NetworkDenoiser`, which is then its closed form."""

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Zeros of the shape of x_t."""
        return torch.zeros_like(x_t)


class NetworkDenoiser(Denoiser):
    """A network that corrects a closed-form denoiser.

    m(x_t, t) = g(x_t, t) + s_t f(x_t, g, t),  s_t = sigma_t / sqrt(alpha_t^2 + sigma_t^2),

    so that an untrained network (whose last layer starts at zero) already is the Gaussian, and training can
    only spend itself on what is not Gaussian. s_t is the posterior standard deviation of unit-variance data.

    Args:
        gaussian: g, the closed-form denoiser.
        network: f: (x_t (*B, L, *Z), g (*B, L, *Z), t () or (b, 1, ..., 1)) -> (*B, L, *Z).
    """

    def __init__(self, gaussian: WindowGaussian, network: nn.Module) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.length, self.event = gaussian.length, gaussian.event
        self.network = network
        self.schedule = gaussian.schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, *Z), () or (b, 1, ..., 1) -> (*B, L, *Z)."""
        linear = self.gaussian(x_t, t)
        return linear + self.correction(x_t, linear, t)

    def correction(self, x_t: Tensor, linear: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """s_t f(x_t, g, t), or s_t f(x_t, g, t, c) of a network that takes features c of observations as well."""
        alpha, sigma = self.schedule(t)
        given = () if context is None else (context,)
        return sigma / (alpha**2 + sigma**2).sqrt() * self.network(x_t, linear, t, *given)

    def loss(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Mean squared error of the denoised windows in units of s_t^2, t uniform.

        Args:
            x: Clean windows (b, L, *Z).
            rng: Generator of the times and the noise.

        Returns:
            A scalar.
        """
        return self.errors(x, rng=rng).mean()

    def errors(self, x: Tensor, *, rng: Rng = None, corrected: bool = True) -> Tensor:
        """Squared errors of `loss`, of the shape of x; those of the closed form alone if not `corrected`."""
        rng = generator(rng, "training")
        t = uniform((len(x), *[1] * (x.ndim - 1)), like=x, rng=rng).to(x)
        alpha, sigma = self.schedule(t)
        x_t = alpha * x + sigma * normal(x.shape, like=x, rng=rng)
        scale = sigma / (alpha**2 + sigma**2).sqrt()
        estimate = self(x_t, t) if corrected else self.gaussian(x_t, t)
        return ((estimate - x) / scale).square()
