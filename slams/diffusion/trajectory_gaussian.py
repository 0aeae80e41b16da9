"""A Gaussian of windows, and a network that corrects it, as denoisers of longer trajectories: exact for Markov states.

A composition of window denoisers (`slams.diffusion.trajectory.MarkovBlanket`) takes the neighbours of a step to screen it
off from the rest. They do so at the end of a draw, where they are known, but not on the way: noisy neighbours do not, nor
do windows see the observations of other windows. Of a Gaussian that approximation is not needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser, NoCorrection, WindowGaussian

WINDOWS = 256  # corrected at once by a network, which bounds memory


class BandedFactor:
    """Cholesky factor of a symmetric positive definite matrix of (T, T) blocks (K, K) with b blocks below the diagonal.

    Args:
        columns: For each block column k, the blocks (k, k), (k + 1, k), ... of the lower triangle of the matrix.
    """

    def __init__(self, columns: Sequence[Sequence[Tensor]]) -> None:
        self.columns: list[list[Tensor]] = []
        for k, blocks in enumerate(columns):
            remaining = list(blocks)
            for m in range(max(0, k - len(columns[0]) + 1), k):
                below = self.columns[m]
                for j in range(min(len(remaining), len(below) - (k - m))):
                    remaining[j] = remaining[j] - below[k + j - m] @ below[k - m].mT
            diagonal = torch.linalg.cholesky(remaining[0])
            lower = [
                torch.linalg.solve_triangular(diagonal, each.mT, upper=False).mT for each in remaining[1:]
            ]
            self.columns.append([diagonal, *lower])

    def solve(self, right: Tensor) -> Tensor:
        """Solution x of A x = right, both (T, K, n)."""
        found: list[Tensor] = []
        for k, (diagonal, *_) in enumerate(self.columns):
            value = right[k]
            for m in range(max(0, k - len(self.columns[0]) + 1), k):
                value = value - self.columns[m][k - m] @ found[m]
            found.append(torch.linalg.solve_triangular(diagonal, value, upper=False))
        return self.coloured(torch.stack(found))

    def coloured(self, noise: Tensor) -> Tensor:
        """F^-T n of the factor F, (T, K, n): of standard normals n, draws of N(0, A^-1)."""
        found = list(noise)
        for k in range(len(found) - 1, -1, -1):
            diagonal, *lower = self.columns[k]
            value = found[k]
            for j, block in enumerate(lower, 1):
                value = value - block.mT @ found[k + j]
            found[k] = torch.linalg.solve_triangular(diagonal.mT, value, upper=True)
        return torch.stack(found)

    def inverse_blocks(self) -> Tensor:
        """Diagonal blocks of the inverse, (T, K, K), by the recursion of selected inversion.

        Source:
            Takahashi, Fagan & Chin (1973); Rue & Held (2005), Gaussian Markov Random Fields, section 2.4.
        """
        steps, inverse = len(self.columns), dict[tuple[int, int], Tensor]()

        def entry(i: int, j: int) -> Tensor:
            return inverse[i, j] if i >= j else inverse[j, i].mT

        for k in range(steps - 1, -1, -1):
            diagonal, *lower = self.columns[k]
            unit = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
            root = torch.linalg.solve_triangular(diagonal, unit, upper=False)
            scaled = [block @ root for block in lower]
            for i in range(k + len(lower), k, -1):
                inverse[i, k] = -sum(
                    (entry(i, k + j) @ block for j, block in enumerate(scaled, 1)), torch.zeros_like(root)
                )
            rest = sum(
                (inverse[k + j, k].mT @ block for j, block in enumerate(scaled, 1)), torch.zeros_like(root)
            )
            inverse[k, k] = root.mT @ root - rest
        return torch.stack([inverse[k, k] for k in range(steps)])


class TrajectoryGaussian(Denoiser):
    """Exact denoiser of the trajectories of a Gaussian of windows.

    Given the L - 1 steps before it a step does not depend on earlier ones, as in the window's covariance C,

        p(a_1, ..., a_T) = p(a_1, ..., a_{L-1}) prod_{k=L}^T N(a_k; A (a_{k-L+1}, ..., a_{k-1}), Q),

    which is the density of largest entropy with these windows, a vector autoregression of order L - 1 whose coefficients
    solve the Yule-Walker equations. It agrees with the joint Gaussian of a state that is Markov of an order below L. Its
    precision P has L - 1 blocks beside the diagonal, so that

        E[a | a_t, y] = (P + (alpha_t / sigma_t)^2 1 + M)^-1 (alpha_t / sigma_t^2 a_t + G^T R^-1 y),  M = G^T R^-1 G,

    costs a number of operations linear in T. The remainder outside the patterns is that of the windows.

    Args:
        window: Gaussian of windows.
        steps: T, at least the window's length less one.

    Raises:
        ValueError: If there are fewer steps.

    Source:
        Burg (1975), Maximum entropy spectral analysis; Dym & Gohberg (1981), doi:10.1016/0024-3795(81)90156-2, for
        matrices of blocks.
    """

    def __init__(self, window: WindowGaussian, steps: int) -> None:
        super().__init__()
        if steps < max(1, window.length - 1):
            raise InvalidValueError(
                f"a trajectory of {steps} steps is shorter than the {window.length - 1} that windows of "
                f"{window.length} steps start from; pad it with unobserved steps."
            )
        self.window = window
        self.schedule, self.event, self.length = window.schedule, window.event, steps
        self._columns = _precision(window, steps)
        self._last: tuple[float, BandedFactor] | None = None

    @property
    def basis(self) -> Tensor:
        """Patterns V, (D, K)."""
        return self.window.basis

    def coefficients(self, x: Tensor) -> Tensor:
        """(*B, T, *Z) -> (*B, T, K)."""
        return x.flatten(-len(self.event)) @ self.basis

    def expand(self, a: Tensor) -> Tensor:
        """(*B, T, K) -> (*B, T, *Z)."""
        return (a @ self.basis.mT).unflatten(-1, self.event)

    def factor(
        self, signal: float = 0.0, noise: float = 1.0, information: Tensor | None = None
    ) -> BandedFactor:
        """Factor of noise^2 (P + M) + signal^2 1.

        Args:
            signal: alpha_t.
            noise: sigma_t.
            information: Gauss-Newton matrix of each step, (T, K, K); 0 if None.
        """
        scaled: dict[int, Tensor] = {}  # most columns share their blocks

        def scale(block: Tensor) -> Tensor:
            if id(block) not in scaled:
                scaled[id(block)] = noise**2 * block
            return scaled[id(block)]

        columns = []
        for k, (diagonal, *lower) in enumerate(self._columns):
            shifted = scale(diagonal).clone()
            shifted.diagonal().add_(signal**2)
            if information is not None:
                own = information[k].to(shifted)
                shifted += noise**2 * (own + own.mT) / 2
            columns.append([shifted, *map(scale, lower)])
        return BandedFactor(columns)

    def posterior(self, information: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the coefficients under linear observations.

        Args:
            information: M of each step, (T, K, K).
            pulled: G^T R^-1 y of each step, (*B, T, K).

        Returns:
            Means (*B, T, K) and the covariance of each step, (T, K, K), float64.
        """
        factor = self.factor(information=information)
        return solved(factor, pulled.double()), factor.inverse_blocks()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, T, *Z), () -> (*B, T, *Z).

        Raises:
            ValueError: If the trajectories have another length or shape, or there are several times.
        """
        shape = (self.length, *self.event)
        if tuple(x_t.shape[-len(shape) :]) != shape or t.numel() != 1:
            raise InvalidValueError(
                f"this denoiser takes trajectories {shape}, (steps, channels), at one diffusion time, got samples of "
                f"shape {tuple(x_t.shape)} and {t.numel()} times."
            )
        alpha, sigma = self.schedule(t.reshape(()))
        a = self.coefficients(x_t)
        mean = float(alpha) * solved(self._prior_factor(t), a.double()).to(a)
        outside = alpha * self.window.remainder / (alpha**2 * self.window.remainder + sigma**2)
        return outside * x_t + self.expand(mean - outside * a)

    def _prior_factor(self, t: Tensor) -> BandedFactor:
        """Factor without observations, that of the last time again if it is asked for."""
        if self._last is None or self._last[0] != float(t):
            alpha, sigma = self.schedule(t.reshape(()))
            self._last = float(t), self.factor(float(alpha), float(sigma))
        return self._last[1]


class TrajectoryDenoiser(Denoiser):
    """A network that corrects a Gaussian of windows, as a denoiser of trajectories.

    m(x_t, t) = g_T(x_t, t) + s_t f(x_t, g, t), g_T the exact denoiser of the Gaussian's trajectories. The correction f of
    a step is that of the window in whose middle it is; of the first and last steps that of the first and last window.

    Args:
        denoiser: Denoiser of windows, a network's or the Gaussian alone.
        steps: T, at least a window.

    Raises:
        ValueError: If there are fewer steps, or windows have an even length.
    """

    def __init__(self, denoiser: NetworkDenoiser | WindowGaussian, steps: int) -> None:
        super().__init__()
        window = denoiser if isinstance(denoiser, WindowGaussian) else denoiser.gaussian
        if window.length % 2 == 0 or steps < window.length:
            raise InvalidValueError(
                f"trajectories are composed of windows of an odd number of steps and are not shorter, got {steps} steps "
                f"and windows of {window.length}; pad them with unobserved steps."
            )
        self.gaussian = TrajectoryGaussian(window, steps)
        self.windows = denoiser
        self.schedule, self.event, self.length = window.schedule, window.event, steps

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, T, *Z), () -> (*B, T, *Z)."""
        mean = self.gaussian(x_t, t)
        if isinstance(self.windows, WindowGaussian) or isinstance(self.windows.network, NoCorrection):
            return mean
        window, t = self.windows.gaussian, t.reshape(())
        rows = windows_of(x_t, window.length, len(self.event))
        parts = [
            self.windows.correction(part, window(part, t), t)
            for part in rows.flatten(0, -2 - len(self.event)).split(WINDOWS)
        ]
        return mean + middles(torch.cat(parts).reshape(rows.shape), len(self.event))


def windows_of(x: Tensor, length: int, event: int) -> Tensor:
    """Overlapping windows of trajectories: (*B, T, *Z) to (*B, T - L + 1, L, *Z), *Z of `event` axes."""
    return x.unfold(-1 - event, length, 1).movedim(-1, -1 - event)


def middles(windows: Tensor, event: int) -> Tensor:
    """Each step from the window in whose middle it is, of the first and last from the first and last window.

    Args:
        windows: (*B, T - L + 1, L, *Z), L odd.
        event: Number of axes of *Z.

    Returns:
        (*B, T, *Z).
    """
    lead = windows.movedim((-2 - event, -1 - event), (0, 1))
    half = lead.shape[1] // 2
    return torch.cat([lead[0, :half], lead[:, half], lead[-1, half + 1 :]]).movedim(0, -1 - event)


def forecast_mean(window: WindowGaussian, x: Tensor, steps: int) -> Tensor:
    """E[x_{L}, ... | x_1, ..., x_{L-1}] of a Gaussian of windows, continued step by step; 0 outside the patterns.

    Args:
        window: Gaussian of windows of L steps.
        x: The L - 1 steps before, (*B, L - 1, *Z).
        steps: Number of steps ahead.

    Returns:
        (*B, steps, *Z).
    """
    _, gain, _ = _autoregression(window)
    past = (x.flatten(-len(window.event)) @ window.basis).double()
    ahead: list[Tensor] = []
    for _ in range(steps):
        value = past.flatten(-2) @ gain.mT
        past = torch.cat([past[..., 1:, :], value[..., None, :]], -2)[..., : window.length - 1, :]
        ahead.append(value)
    return (torch.stack(ahead, -2).to(window.basis) @ window.basis.mT).unflatten(-1, window.event)


def solved(factor: BandedFactor, right: Tensor) -> Tensor:
    """A^-1 right for rows (*B, T, K)."""
    columns = right.movedim((-2, -1), (0, 1))  # (T, K, *B)
    return (
        factor.solve(columns.flatten(2) if columns.ndim > 2 else columns[..., None])
        .reshape(columns.shape)
        .movedim((0, 1), (-2, -1))
    )


def _precision(window: WindowGaussian, steps: int) -> list[list[Tensor]]:
    """Block columns of the precision of a trajectory; equal blocks are one tensor."""
    length, width = window.length, window.basis.shape[1]
    start, gain, noise = _autoregression(window)
    innovation = torch.cat([-gain, torch.eye(width).to(noise)], 1)
    each = innovation.mT @ torch.cholesky_solve(innovation, torch.linalg.cholesky((noise + noise.mT) / 2))
    kept: dict[tuple[int, ...], Tensor] = {}

    def block(i: int, k: int) -> Tensor:
        firsts = range(max(0, i - length + 1), min(k, steps - length) + 1)
        begins = i < length - 1
        key = (i - k, *(k - f for f in firsts), *((-1, k) if begins else ()))
        if key not in kept:
            parts = [_part(each, i - f, k - f, width) for f in firsts]
            parts += [_part(start, i, k, width)] if begins else []
            kept[key] = torch.stack(parts).sum(0)
        return kept[key]

    return [[block(i, k) for i in range(k, min(k + length, steps))] for k in range(steps)]


def _autoregression(window: WindowGaussian) -> tuple[Tensor, Tensor, Tensor]:
    """Precision of the first L - 1 steps, A (K, (L - 1) K) and Q (K, K) of a window of L steps, float64."""
    vectors, values = window.vectors.double(), window.values.double()
    covariance = (vectors * values) @ vectors.mT
    past = (window.length - 1) * window.basis.shape[1]
    before = covariance[:past, :past]
    start = torch.cholesky_inverse(torch.linalg.cholesky(before)) if past else before
    gain = covariance[past:, :past] @ start
    return start, gain, covariance[past:, past:] - gain @ covariance[:past, past:]


def _part(matrix: Tensor, i: int, k: int, width: int) -> Tensor:
    return matrix[i * width : (i + 1) * width, k * width : (k + 1) * width]
