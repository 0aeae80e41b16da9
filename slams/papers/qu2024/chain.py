"""Trajectories as a Gaussian Markov chain of patterns' coefficients, and their posterior with a network's correction."""

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from slams.core.random import Rng, normal
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser

Precision = np.ndarray  # the lower bands of a symmetric matrix, as scipy.linalg takes them, float64


class GaussianChain:
    """Joint Gaussian of T days, of which any L consecutive ones have the covariance of a window.

    The process is Markov of order L - 1, so that with the windows' covariance C_L and that of L - 1 days, C_{L-1},

        J = sum over windows C_L^-1 - sum over the days that neighbouring windows share C_{L-1}^-1.

    Args:
        covariance: C_L of the coefficients of K patterns, (L K, L K).
        patterns: K.
    """

    def __init__(self, covariance: Tensor, patterns: int) -> None:
        self.patterns = patterns
        self.length = len(covariance) // patterns
        c = covariance.double().numpy()
        shared = len(c) - patterns
        self._window = np.linalg.inv((c + c.T) / 2)
        self._shared = np.linalg.inv((c[:shared, :shared] + c[:shared, :shared].T) / 2) if shared else None

    def precision(self, steps: int, information: Tensor | None = None) -> Precision:
        """J, with the information of observations added.

        Args:
            steps: T, at least L.
            information: G^T R^-1 G of each day, (T, K, K); none if None.

        Returns:
            Bands, (L K, T K).
        """
        k, width = self.patterns, self.length * self.patterns
        bands = np.zeros((width, steps * k))
        for first in range(steps - self.length + 1):
            _add(bands, self._window, first * k)
            if first and self._shared is not None:
                _add(bands, -self._shared, first * k)
        if information is not None:
            for day, matrix in enumerate(information.double().numpy()):
                _add(bands, matrix, day * k)
        return bands

    def draws(
        self, precision: Precision, pulled: Tensor, members: int, *, rng: Rng = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and members of N(P^-1 b, P^-1).

        Args:
            precision: P of T days.
            pulled: b = G^T R^-1 y, (R, T, K).
            members: N.
            rng: Generator.

        Returns:
            Mean (R, T, K) and members (R, N, T, K).
        """
        factor = scipy.linalg.cholesky_banded(precision, lower=True)
        mean = _solved(factor, pulled)
        noise = normal((len(pulled), members, *pulled.shape[1:]), like=pulled, rng=rng)
        # x = L^-T n: the upper bands of L^T are the lower ones of L, each moved to the right
        upper = np.zeros_like(factor)
        for band in range(len(factor)):
            upper[len(factor) - 1 - band, band:] = factor[band, : factor.shape[1] - band]
        white = noise.double().numpy().reshape(-1, factor.shape[1]).T
        moved = scipy.linalg.solve_banded((0, len(factor) - 1), upper, white)
        around = torch.from_numpy(np.ascontiguousarray(moved.T)).to(pulled).reshape(noise.shape)
        return mean, mean.unsqueeze(1) + around


class ChainPosterior(Denoiser):
    """E[z | z_t, y] of trajectories: the chain's posterior in closed form, and what a network adds to it.

    With coefficients a_t = V^T z_t, the chain's precision J, observations M = G^T R^-1 G and b = G^T R^-1 y, and the
    network's correction c = V^T s_t f of `NetworkDenoiser`,

        m = V (J + M + (alpha / sigma)^2)^-1 (alpha / sigma^2 a_t + b + (J + (alpha / sigma)^2) c).

    Without the network it is exact for Gaussian trajectories and linear operators. The network sees windows that tile
    the trajectory; those of the next call begin a day later.

    Args:
        prior: Network around the Gaussian of windows.
        chain: The chain.
        information: M of each day, (T, K, K).
        pulled: b of each trajectory, (R, T, K).
        network: Whether the network is asked.
    """

    def __init__(
        self,
        prior: NetworkDenoiser,
        chain: GaussianChain,
        information: Tensor,
        pulled: Tensor,
        *,
        network: bool = True,
    ) -> None:
        super().__init__()
        self.prior, self.chain = prior, chain
        self.schedule, self.event = prior.schedule, prior.event
        self.pulled, self.network = pulled, network
        steps = pulled.shape[1]
        self.free = chain.precision(steps)
        self.seen = chain.precision(steps, information)
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(R N, T, *Z), () -> the same; rows of one trajectory are neighbours."""
        basis = self.prior.gaussian.basis
        alpha, sigma = self.schedule(t)
        ratio = float((alpha / sigma) ** 2)
        b = self.pulled.repeat_interleave(len(x_t) // len(self.pulled), 0)
        right = float(alpha / sigma**2) * (x_t.flatten(2) @ basis) + b
        if self.network:
            c = self._correction(x_t, t)
            right = right + _product(self.free, c) + ratio * c
        bands = self.seen.copy()
        bands[0] += ratio
        a = _solved(scipy.linalg.cholesky_banded(bands, lower=True), right)
        return (a @ basis.mT).unflatten(-1, self.event)

    def _correction(self, x_t: Tensor, t: Tensor) -> Tensor:
        """c of every day, (n, T, K), each day from the first window that holds it."""
        length, steps = self.prior.length, x_t.shape[1]
        first = self.calls % length
        self.calls += 1
        starts = sorted({0, *range(first, steps - length + 1, length), steps - length})
        gaussian = self.prior.gaussian
        alpha, sigma = self.schedule(t)
        scale = sigma / (alpha**2 + sigma**2).sqrt()
        out = x_t.new_zeros(*x_t.shape[:2], gaussian.basis.shape[1])
        done = 0
        for start in starts:
            window = x_t[:, start : start + length]
            found = scale * self.prior.network(window, window, t)
            fresh = slice(done - start, length)
            out[:, done : start + length] = found[:, fresh].flatten(2) @ gaussian.basis
            done = start + length
        return out


def _add(bands: Precision, matrix: np.ndarray, at: int) -> None:
    """Add a symmetric matrix to the diagonal block that begins at `at`, in place."""
    for band in range(len(matrix)):
        bands[band, at : at + len(matrix) - band] += np.diagonal(matrix, -band)


def _solved(factor: np.ndarray, right: Tensor) -> Tensor:
    """Solution for right sides (n, T, K) by a banded Cholesky factor."""
    sides = right.double().numpy().reshape(len(right), -1).T
    found: Any = scipy.linalg.cho_solve_banded((factor, True), sides)
    return torch.from_numpy(np.ascontiguousarray(found.T)).to(right).reshape(right.shape)


def _product(bands: Precision, x: Tensor) -> Tensor:
    """A symmetric banded matrix times vectors (n, T, K)."""
    v = x.double().numpy().reshape(len(x), -1)
    out = bands[0] * v
    for band in range(1, len(bands)):
        row = bands[band, : v.shape[1] - band]
        out[:, band:] += row * v[:, :-band]
        out[:, :-band] += row * v[:, band:]
    return torch.from_numpy(out).to(x).reshape(x.shape)
