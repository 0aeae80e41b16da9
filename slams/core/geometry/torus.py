"""Fields on the doubly periodic square [0, 2 pi]^2: Fourier sums, spectra, vorticity, and change of grid.

A field is (*B, N, N): axis -2 is x, axis -1 is y, and the value [i, j] sits at the centre of a cell,
x = (i + 1/2) h, y = (j + 1/2) h, h = 2 pi / N, so that block means of a field are a field on a coarser grid.
A velocity is (*B, 2, N, N), channel 0 along x.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from slams.core.errors import InvalidValueError


def wavenumbers(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Integer wavenumbers of `rfft2` of a (size, size) field.

    Args:
        size: Points N along a side.
        like: Real tensor whose dtype and device the result takes.

    Returns:
        k_x, (N, 1), and k_y, (N // 2 + 1).
    """
    kx = torch.fft.fftfreq(size, 1 / size, dtype=like.dtype, device=like.device)
    ky = torch.fft.rfftfreq(size, 1 / size, dtype=like.dtype, device=like.device)
    return kx[:, None], ky


class Torus(nn.Module):
    """Transform between a grid and Fourier sums whose products are free of aliasing.

    f(x_i, y_j) = sum over |k_x|, |k_y| <= K of f_k exp(2 pi i (k_x i + k_y j) / N) with K the largest integer
    below N / 3: of the product of two such fields every coefficient up to K is exact.

    Coefficients are complex, (*B, N, K + 1), those of k_y < 0 being the conjugates; the N - 2 K - 1 rows
    of too large k_x are 0.

    Args:
        size: Points N along a side, at least 4.
        dtype: float32 or float64.

    Raises:
        ValueError: If the grid is too small.

    Source:
        Orszag (1971), doi:10.1175/1520-0469(1971)028<1074:OTEOAI>2.0.CO;2.

    >>> Torus(128).truncation
    42
    """

    kx: Tensor
    ky: Tensor

    def __init__(self, size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if size < 4:
            raise InvalidValueError(f"a grid needs at least 4 points along a side, got {size}.")
        self.size, self.truncation = size, (size - 1) // 3
        kx, ky = wavenumbers(size, torch.empty(0, dtype=dtype))
        self.register_buffer("kx", kx, persistent=False)
        self.register_buffer("ky", ky[: self.truncation + 1].clone(), persistent=False)

    @property
    def square(self) -> Tensor:
        """|k|^2, (N, K + 1) in float64."""
        return self.kx.double() ** 2 + self.ky.double() ** 2

    @property
    def kept(self) -> Tensor:
        """1 where |k_x| <= K, else 0, (N, 1)."""
        return (self.kx.abs() <= self.truncation).to(self.kx)

    @property
    def inverse(self) -> Tensor:
        """1 / |k|^2, and 0 for the mean and beyond the truncation, (N, K + 1) in float64."""
        return torch.where(self.square > 0, self.kept / self.square.clamp(min=1), 0)

    def raw(self, field: Tensor) -> Tensor:
        """Coefficients of `analysis` with waves beyond |k_x| = K included."""
        return torch.fft.rfft2(field, norm="forward")[..., : self.truncation + 1]

    def analysis(self, field: Tensor) -> Tensor:
        """Coefficients of a field, (*B, N, N) real to (*B, N, K + 1) complex."""
        return self.raw(field) * self.kept.to(field)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Grid values of a field, (*B, N, K + 1) complex to (*B, N, N) real."""
        # Two calls, as only the last transform can leave out its empty columns: a third of the first is saved.
        columns = torch.fft.ifft(coefficients, dim=-2, norm="forward")
        return torch.fft.irfft(columns, n=self.size, norm="forward")

    def rotation(self, velocity: Tensor) -> Tensor:
        """Coefficients of dv/dx - du/dy from those of (u, v): (*B, 2, N, K + 1) to (*B, N, K + 1)."""
        u, v = velocity.unbind(-3)
        return 1j * (self.kx.to(u.real) * v - self.ky.to(u.real) * u)

    def biot_savart(self) -> Tensor:
        """Factors that make the velocity without mean and divergence of a vorticity, (2, N, K + 1) in complex128.

        u_k = i k_y / |k|^2 w_k, v_k = -i k_x / |k|^2 w_k.
        """
        return 1j * torch.stack([self.ky * self.inverse, -self.kx * self.inverse])

    def mean_product(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean over the square of the product of two fields, from coefficients: (*B, N, K + 1) to (*B)."""
        twice = torch.where(self.ky > 0, 2, 1).to(self.kx)
        return (twice * (first * second.conj()).real).sum((-2, -1))


def energy_spectrum(velocity: Tensor) -> Tensor:
    """Kinetic energy in shells of wavenumbers: E_m = sum of |v_k|^2 / 2 over m - 1/2 <= |k| < m + 1/2.

    Args:
        velocity: Velocity, (*B, 2, N, N).

    Returns:
        E_m for m = 0, 1, ..., M, with M the shell of the corner; (*B, M + 1). Its sum is the mean of |v|^2 / 2.

    >>> x = (torch.arange(8.0) + 0.5) * math.pi / 4
    >>> v = torch.stack([torch.zeros(8, 8), (3 * x).sin()[:, None].expand(8, 8)])
    >>> round(float(energy_spectrum(v)[3]), 4)
    0.25
    """
    size = velocity.shape[-1]
    kx, ky = wavenumbers(size, velocity)
    twice = torch.where((ky > 0) & (2 * ky < size), 2.0, 1.0).to(velocity)
    density = torch.fft.rfft2(velocity, norm="forward").abs().square().sum(-3) * twice / 2
    shell = (kx**2 + ky**2).sqrt().add(0.5).long()
    energy = density.new_zeros(*density.shape[:-2], int(shell.max()) + 1)
    return energy.index_add(-1, shell.flatten(), density.flatten(-2))


def vorticity(velocity: Tensor) -> Tensor:
    """dv/dx - du/dy, positive anticlockwise (x to the right, y up), by Fourier sums.

    Args:
        velocity: Velocity (*B, 2, N, N) [length / time], a side being 2 pi lengths.

    Returns:
        [1 / time], (*B, N, N).
    """
    kx, ky = wavenumbers(velocity.shape[-1], velocity)
    # The phase of the shortest wave is unknown: its derivative on the grid is 0.
    kx, ky = (torch.where(2 * k.abs() == velocity.shape[-1], 0, k) for k in (kx, ky))
    u, v = torch.fft.rfft2(velocity).unbind(-3)
    return torch.fft.irfft2(1j * (kx * v - ky * u), s=velocity.shape[-2:])


def clockwise_vorticity(velocity: Tensor) -> Tensor:
    """du/dy - dv/dx by centred differences, in grid units: positive CLOCKWISE, not divided by the spacing.

    The convention of published observations of the Kolmogorov flow; to second order it is -h times `vorticity`
    with h = 2 pi / N. On a grid r times coarser the same flow gives about r times the values.

    Args:
        velocity: Velocity (*B, 2, N, N) [length / time].

    Returns:
        [length / time], (*B, N, N).

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, as their experiments compute it.
    """
    u, v = velocity.unbind(-3)
    return (u.roll(-1, -1) - u.roll(1, -1) - v.roll(-1, -2) + v.roll(1, -2)) / 2


def coarsen(field: Tensor, factor: int) -> Tensor:
    """Means over blocks of factor x factor cells.

    Args:
        field: Field on the grid, (*B, N, N).
        factor: Cells along the side of a block, a divisor of N.

    Returns:
        (*B, N / factor, N / factor).

    Raises:
        ValueError: If `factor` does not divide N.
    """
    if factor < 1 or any(side % factor for side in field.shape[-2:]):
        raise InvalidValueError(
            f"blocks of {factor} do not divide a grid of {tuple(field.shape[-2:])}; choose a divisor."
        )
    return field.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean((-3, -1))


def upsample(field: Tensor, factor: int, mode: str = "bilinear") -> Tensor:
    """Values at the centres of cells `factor` times smaller, interpolated around the torus.

    Args:
        field: Field on the grid, (*B, N, N).
        factor: Cells along the side of each old cell, at least 1.
        mode: "nearest", "bilinear" (error of second order in the spacing) or "fourier" (`resample`).

    Returns:
        (*B, factor N, factor N).

    Raises:
        ValueError: If `factor` is below 1 or there is no such mode.
    """
    if factor < 1 or mode not in ("nearest", "bilinear", "fourier"):
        raise InvalidValueError(
            f'need a factor of at least 1 and mode "nearest", "bilinear" or "fourier", got {factor} and {mode!r}.'
        )
    if mode == "fourier":
        return resample(field, factor * field.shape[-1])
    flat = pad(field.reshape(-1, 1, *field.shape[-2:]), (1, 1, 1, 1), mode="circular")
    fine = interpolate(flat, scale_factor=factor, mode=mode)[..., factor:-factor, factor:-factor]
    return fine.reshape(*field.shape[:-2], *fine.shape[-2:])


def resample(field: Tensor, size: int, *, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The Fourier sum of a field at the points of another grid; waves that this cannot hold are dropped.

    Args:
        field: Field on the grid, (*B, N, N).
        size: Points M along a side of the new grid.
        shift: Displacement of the new points from the centres of their cells along x and y [cells]; (1/2, 0)
            is the middle of the face towards larger x.

    Returns:
        (*B, M, M).

    Raises:
        ValueError: If `size` is below 2.
    """
    old = field.shape[-1]
    if size < 2:
        raise InvalidValueError(f"a grid needs at least 2 points along a side, got {size}.")
    keep = (min(old, size) - 1) // 2  # without the shortest wave, which has no phase
    kx, ky = wavenumbers(old, field)
    # [i, j] is at (i + 1/2) h: phases of exp(i k h / 2) go with the origin of index space.
    steps = [(1 + 2 * s) * math.pi / size - math.pi / old for s in shift]
    waves = torch.fft.rfft2(field, norm="forward") * torch.exp(1j * (kx * steps[0] + ky * steps[1]))
    low, high = waves[..., : keep + 1, : keep + 1], waves[..., old - keep :, : keep + 1]
    gap = waves.new_zeros(*waves.shape[:-2], size - 2 * keep - 1, keep + 1)
    return torch.fft.irfft2(torch.cat([low, gap, high], -2), s=(size, size), norm="forward")
