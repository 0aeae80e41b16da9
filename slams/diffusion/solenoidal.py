"""Gaussian trajectories of plane velocities without divergence, alike everywhere: the covariance is one matrix a wave."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.geometry.torus import wavenumbers

_LEAST = 1e-10  # of a wave's largest eigenvalue, and of that of all waves: what rounding leaves of either


class Solenoidal(nn.Module):
    """Velocities without mean and divergence as one real amplitude, and its waves.

    With t(k) = (-k_y, k_x) / |k|, v(k) = i t(k) a(k): a is real where v is, and both have the same sum of squares. Waves
    of the shortest length, whose direction is undefined on a grid, are dropped.

    Args:
        size: Cells N along a side, even.
    """

    tangent: Tensor
    wave_numbers: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        kx, ky = wavenumbers(size, torch.empty(0, dtype=torch.float64))
        length = (kx**2 + ky**2).sqrt()
        carried = (length > 0) & (kx.abs() < size // 2) & (ky < size // 2)
        tangent = torch.stack([-ky + 0 * kx, kx + 0 * ky]) / length.clamp(min=1) * carried
        self.register_buffer("tangent", tangent, persistent=False)
        grid = torch.stack([kx + 0 * ky, ky + 0 * kx])
        self.register_buffer("wave_numbers", grid * carried, persistent=False)

    def analysis(self, velocity: Tensor) -> Tensor:
        """Velocities (*B, 2, N, N) to the waves of the amplitude (*B, N, N / 2 + 1), complex."""
        waves = torch.fft.rfft2(velocity, norm="ortho") * self.tangent.to(velocity)
        return -1j * (waves[..., 0, :, :] + waves[..., 1, :, :])

    def synthesis(self, waves: Tensor) -> Tensor:
        """Inverse of `analysis` on velocities without divergence."""
        both = 1j * waves.unsqueeze(-3) * self.tangent.to(waves.real)
        return torch.fft.irfft2(both, s=(self.size, self.size), norm="ortho")

    def field(self, waves: Tensor) -> Tensor:
        """A scalar's values (*B, N, N)."""
        return torch.fft.irfft2(waves, s=(self.size, self.size), norm="ortho")

    def waves(self, field: Tensor) -> Tensor:
        """A scalar's waves (*B, N, N / 2 + 1)."""
        return torch.fft.rfft2(field, norm="ortho")


@dataclass(frozen=True)
class FlowMoments:
    """First and second moments of trajectories of velocities.

    Attributes:
        mean: (2, N, N), the same at all times.
        quarter: Covariances of p successive amplitudes of the waves |k_x|, |k_y|, (N / 2 + 1, N / 2 + 1, p, p), float64.
        rest: Variance of each direction that no wave of `Solenoidal` has; what averages over blocks leave of divergence.
    """

    mean: Tensor
    quarter: Tensor
    rest: float


def flow_moments(x: Tensor, mean: Tensor, length: int, *, rows: int = 8) -> FlowMoments:
    """Covariances of each wave, averaged over trajectories, starts and reflections.

    The sum of squares of windows is never negative, which averages of lags of their own would be for directions that
    hardly vary. Reflections of either axis leave out what is imaginary.

    Args:
        x: Velocities (n, T, 2, N, N).
        mean: Mean to subtract, (2, N, N).
        length: p.
        rows: Trajectories at once.

    Raises:
        ValueError: If the trajectories are shorter than p.
    """
    if x.shape[1] < length:
        raise InvalidValueError(
            f"covariances of {length} states need trajectories as long, got {x.shape[1]}; take fewer."
        )
    size = x.shape[-1]
    frame, half, starts = Solenoidal(size), size // 2 + 1, x.shape[1] - length + 1
    total, left = torch.zeros(size, half, length, length, dtype=torch.float64), 0.0
    for part in x.split(rows):
        waves = frame.analysis(part - mean)
        left += float((part - mean - frame.synthesis(waves)).double().square().sum())
        series = torch.view_as_real(waves).double().permute(2, 3, 0, 4, 1)  # (N, N / 2 + 1, n, 2, T)
        pieces = series.unfold(-1, length, 1).reshape(size, half, -1, length)
        total += pieces.mT @ pieces
    total /= len(x) * starts
    folded = total[:half].clone()
    folded[1 : half - 1] = (folded[1 : half - 1] + total[half:].flip(0)) / 2
    directions = 2 * size**2 - ((size - 1) ** 2 - 1)
    return FlowMoments(mean, folded, left / (x.shape[0] * x.shape[1] * directions))


def extended(covariance: Tensor, length: int) -> Tensor:
    """Covariance of a longer series: a step depends on the p - 1 before it as in the p steps given, and on no others.

    Args:
        covariance: Covariance of p steps, (*B, p, p).
        length: L.

    Returns:
        (*B, L, L); the first L steps of those given if L <= p.
    """
    steps = covariance.shape[-1]
    if length <= steps:
        return covariance[..., :length, :length]
    past, last = covariance[..., :-1, :-1], covariance[..., -1:, :-1]
    values, vectors = torch.linalg.eigh(past)
    floor = (_LEAST * values[..., -1:]).clamp(min=1e-300)
    weights = ((last @ vectors) / values.clamp(min=floor)[..., None, :]) @ vectors.mT  # (*B, 1, p - 1)
    spare = (covariance[..., -1:, -1:] - weights @ last.mT).clamp(min=0)
    full = covariance.new_zeros(*covariance.shape[:-2], length, length)
    full[..., :steps, :steps] = covariance
    for k in range(steps, length):
        reach = slice(k - steps + 1, k)
        full[..., k : k + 1, :k] = weights @ full[..., reach, :k]
        full[..., :k, k : k + 1] = full[..., k : k + 1, :k].mT
        full[..., k : k + 1, k : k + 1] = weights @ full[..., reach, reach] @ weights.mT + spare
    return full


class FlowCovariance(nn.Module):
    """C of trajectories of velocities, diagonal in waves, of any length; see `CovarianceMatching`.

    Args:
        moments: Moments of p successive states.
        length: L; beyond p as `extended`.
        dtype: Dtype of its arguments.

    Raises:
        ValueError: If a number of waves is not that of a grid of even size.
    """

    values: Tensor
    vectors: Tensor

    def __init__(self, moments: FlowMoments, length: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        quarter, self.rest = moments.quarter, moments.rest
        half = quarter.shape[0]
        if quarter.ndim != 4 or quarter.shape[1] != half or half < 3:
            raise InvalidValueError(
                f"waves |k_x|, |k_y| of an even grid are as many, got {tuple(quarter.shape)}."
            )
        self.frame = Solenoidal(2 * (half - 1))
        self.length = length
        values, vectors = torch.linalg.eigh(extended(quarter.double(), length))
        values = (
            values.clamp(min=_LEAST * float(values.max()))
            * (self.frame.tangent.abs().sum(0)[:half] > 0)[..., None]
        )
        index = torch.cat([torch.arange(half), torch.arange(half - 2, 0, -1)])
        self.register_buffer("values", values[index].to(dtype), persistent=False)
        self.register_buffer("vectors", vectors[index].to(dtype), persistent=False)

    def axes(self, x: Tensor) -> int:
        """Event axes of samples.

        Raises:
            ValueError: If the samples are no such trajectories.
        """
        wanted = (self.length, 2, self.frame.size, self.frame.size)
        if tuple(x.shape[-4:]) != wanted:
            raise InvalidValueError(
                f"a covariance of velocities {wanted} does not belong to samples of shape {tuple(x.shape)}; take one of "
                "their length and grid."
            )
        return 4

    def rotate(self, waves: Tensor) -> Tensor:
        """Waves of successive amplitudes to the eigenvectors' coefficients, (*B, L, N, N / 2 + 1) to the same."""
        return _per_wave(self.vectors.mT, waves)

    def back(self, coefficients: Tensor) -> Tensor:
        """Inverse of `rotate`."""
        return _per_wave(self.vectors, coefficients)

    def spectrum(self, waves: Tensor) -> Tensor:
        """Eigenvalues in the order of `rotate`, (L, N, N / 2 + 1), in the precision of the waves."""
        return self.values.movedim(-1, 0).to(waves.real)

    def posterior(self, v: Tensor, ratio: Tensor) -> Tensor:
        """(C^-1 + ratio 1)^-1 v.

        Args:
            v: (*B, L, 2, N, N).
            ratio: (alpha_t / sigma_t)^2, () or with four last axes of 1.
        """
        z = self.rotate(self.frame.analysis(v))
        values = self.spectrum(z)
        if ratio.ndim:
            ratio = ratio.squeeze(-1)
        width = values / (1 + ratio * values)
        rest = self.rest / (1 + ratio * self.rest)
        own = self.frame.synthesis(self.back(z * (width - rest)))
        return own + (rest.unsqueeze(-1) if ratio.ndim else rest) * v


def _per_wave(matrix: Tensor, waves: Tensor) -> Tensor:
    """A real matrix for each wave on the axis of steps: (N, M, L, L), (*B, L, N, M) -> (*B, L, N, M)."""
    lead = waves.shape[:-3]
    columns = torch.view_as_real(waves.reshape(-1, *waves.shape[-3:]).permute(2, 3, 1, 0).contiguous())
    out = matrix.to(columns) @ columns.flatten(-2)  # (N, M, L, 2 B)
    out = torch.view_as_complex(out.unflatten(-1, (-1, 2)).contiguous())
    return out.permute(3, 2, 0, 1).reshape(*lead, *waves.shape[-3:])
