"""Power spectra of fields: along latitude circles, and of regional or masked fields."""

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError


def power_spectrum(field: Tensor, lat: Tensor) -> tuple[Tensor, Tensor]:
    """Power per zonal wavenumber of a field on latitude circles, averaged over area.

    P_m = Σ_lat cos(lat) (2 - δ_{m0} - δ_{m,W/2}) |a_m|² / Σ cos(lat), a_m the Fourier coefficients along
    longitude; the sum over m is the area-weighted mean square of the field (Parseval).

    Args:
        field: Field without missing values (..., H, W) [unit].
        lat: Latitudes (H) [degree].

    Returns:
        Zonal wavenumbers (W // 2 + 1) and power (..., W // 2 + 1) [unit²].

    Raises:
        ValueError: If `lat` has not H entries or the field has missing values.
    """
    height, width = field.shape[-2:]
    if lat.shape != (height,):
        raise InvalidValueError(f"lat has shape {tuple(lat.shape)}, but the field has {height} latitudes.")
    if bool(torch.isnan(field).any()):
        raise InvalidValueError(
            "field has missing values, which have no zonal spectrum; use radial_spectrum."
        )
    power = (torch.fft.rfft(field.double(), dim=-1).abs() / width) ** 2
    power[..., 1 : (width + 1) // 2] *= 2
    area = torch.cos(torch.deg2rad(lat.double())).clamp(min=0).to(power.device)
    power = torch.einsum("...hm,h->...m", power, area / area.sum())
    return torch.arange(width // 2 + 1, device=power.device), power


def radial_spectrum(field: Tensor) -> tuple[Tensor, Tensor]:
    """Isotropic power of a regional or masked field, by the two-dimensional cosine transform.

    The mean over valid cells is removed and missing cells get the anomaly 0; the variances of the orthonormal
    DCT-II are summed over rings of k = min(H, W) sqrt((i/H)² + (j/W)²), whose wavelength is 2 min(H, W) cells
    / k. The cosine transform needs no periodic domain. The sum over k is the mean square of the filled
    anomaly.

    Args:
        field: Field (..., H, W) [unit], NaN where missing.

    Returns:
        Integer radii k = 1 .. ⌊√2 min(H, W)⌋ (K) and power (..., K) [unit²]; rings beyond min(H, W) are
        incomplete.

    Source:
        Denis, Côté & Laprise (2002), doi:10.1175/1520-0493(2002)130<1812:SDOTDA>2.0.CO;2, section 2.
    """
    values = field.double()
    anomaly = torch.nan_to_num(values - values.nanmean((-2, -1), keepdim=True))
    height, width = values.shape[-2:]
    variance = scipy.fft.dctn(anomaly.cpu().numpy(), axes=(-2, -1), norm="ortho") ** 2 / (height * width)
    side = min(height, width)
    radius = side * np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    # Down to the integer, but the near-constant waves below 1 of an oblong domain belong to the first ring.
    ring = torch.from_numpy(np.maximum(np.floor(radius + 1e-9).astype(int), 1)).flatten() - 1
    rings = int(np.floor(2**0.5 * side))
    power = torch.zeros(*values.shape[:-2], rings, dtype=torch.float64)
    power.index_add_(-1, ring, torch.from_numpy(variance).flatten(-2))
    return torch.arange(1, rings + 1), power.to(field.device)
