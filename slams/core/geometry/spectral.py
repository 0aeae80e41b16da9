"""Spherical harmonics on a Gaussian grid: transform, derivatives, Jacobian, Laplacian."""

import numpy as np
import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError


def legendre(truncation: int, mu: np.ndarray) -> np.ndarray:
    """Associated Legendre functions, normalized to mean square 1 over -1 <= mu <= 1.

    P_m^m = sqrt((2m+1)/(2m)) sqrt(1 - mu^2) P_{m-1}^{m-1} and
    e_{n+1} P_{n+1} = mu P_n - e_n P_{n-1} with e_n = sqrt((n^2 - m^2)/(4n^2 - 1)), stable upward in n.

    Args:
        truncation: Largest order m and degree n.
        mu: Sine of latitude, (H,).

    Returns:
        P[m, n, h], (truncation + 1, truncation + 1, H) in float64; zero for n < m.

    Source:
        Press et al. (2007), Numerical Recipes, eq. 6.7.8-6.7.10, without the Condon-Shortley phase.
    """
    size = truncation + 1
    values = np.zeros((size, size, mu.size))
    diagonal = np.ones_like(mu)
    for m in range(size):
        if m > 0:
            diagonal = diagonal * np.sqrt((2 * m + 1) / (2 * m) * (1 - mu**2))
        values[m, m] = diagonal
        for n in range(m, truncation):
            below = _epsilon(n, m) * values[m, n - 1] if n > m else 0.0
            values[m, n + 1] = (mu * values[m, n] - below) / _epsilon(n + 1, m)
    return values


def _epsilon(n: np.ndarray | int, m: np.ndarray | int) -> np.ndarray:
    """e_n^m = sqrt((n^2 - m^2)/(4 n^2 - 1)), 0 where n < m."""
    n, m = np.asarray(n, dtype=float), np.asarray(m, dtype=float)
    return np.sqrt(np.maximum(n**2 - m**2, 0.0) / np.abs(4 * n**2 - 1))


class SphericalHarmonics(nn.Module):
    """Transform between a Gaussian grid and triangularly truncated spherical harmonics.

    f(lon, mu) = sum_n f_0n P_n^0(mu) + 2 Re sum_{m>0} sum_n f_mn P_n^m(mu) exp(i m lon),
    on the unit sphere. Latitudes run from NORTH to SOUTH, longitudes from 0 eastward. With
    W >= 3 T + 1 and H >= (3 T + 1)/2 products of two fields are free of aliasing.

    Coefficients are complex, (*B, M, N) with M = N = truncation + 1, zero for n < m, and imaginary
    part zero for m = 0.

    Args:
        truncation: T of the triangular truncation, at least 1.
        latitudes: Number H of Gaussian latitudes.
        longitudes: Number W of longitudes, even.
        dtype: Dtype of the grid fields, float32 or float64.

    Raises:
        ValueError: If the grid cannot resolve the truncation.

    Source:
        Machenhauer (1979), GARP Publ. 17, vol. 2, ch. 3; Durran (2010), sec. 6.4.
    """

    latitude: Tensor
    longitude: Tensor
    mu: Tensor
    weights: Tensor
    laplacian: Tensor
    _values: Tensor
    _slope: Tensor
    _quadrature: Tensor
    _order: Tensor
    _from_below: Tensor
    _from_above: Tensor
    _triangle: Tensor

    def __init__(
        self,
        truncation: int = 21,
        latitudes: int = 32,
        longitudes: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if truncation < 1 or longitudes < 2 * truncation + 1 or latitudes < truncation + 1:
            raise InvalidValueError(
                f"a {latitudes} x {longitudes} grid cannot hold truncation {truncation}; "
                "use at least truncation + 1 latitudes and 2 truncation + 1 longitudes."
            )
        self.truncation, self.shape = truncation, (latitudes, longitudes)
        nodes, weights = np.polynomial.legendre.leggauss(latitudes)
        mu, weights = nodes[::-1].copy(), weights[::-1].copy() / 2
        values = legendre(truncation + 1, mu)
        m, n = np.meshgrid(np.arange(truncation + 1), np.arange(truncation + 1), indexing="ij")
        kept = values[: truncation + 1, : truncation + 1]
        below = np.concatenate([np.zeros_like(kept[:, :1]), kept[:, :-1]], 1)
        above = values[: truncation + 1, 1:]
        lower, upper = _epsilon(n, m), _epsilon(n + 1, m)
        slope = ((n + 1) * lower)[..., None] * below - (n * upper)[..., None] * above
        slope = slope * (n >= m)[..., None]
        for name, array in {
            "latitude": np.rad2deg(np.arcsin(mu)),
            "longitude": np.arange(longitudes) * 360.0 / longitudes,
            "mu": mu[:, None],
            "weights": np.broadcast_to(weights[:, None] / longitudes, self.shape).copy(),
            "laplacian": -(n * (n + 1.0))[0],
            "_values": kept,
            "_slope": slope,
            "_quadrature": (kept * weights).transpose(0, 2, 1),
            "_order": np.arange(truncation + 1.0)[:, None],
            "_from_below": -(n**2 - 1.0) * lower,
            "_from_above": -n * (n + 2.0) * upper,
            "_triangle": (n >= m) * np.where(m == 0, 1.0, 2.0),
        }.items():
            self.register_buffer(
                name, torch.from_numpy(np.ascontiguousarray(array)).to(dtype), persistent=False
            )

    def _to_grid(self, coefficients: Tensor, functions: Tensor) -> Tensor:
        """Sum over degree, then over order."""
        lead, size = coefficients.shape[:-2], self.truncation + 1
        columns = torch.view_as_real(coefficients.reshape(-1, size, size)).permute(1, 0, 3, 2)
        rows = torch.bmm(columns.reshape(size, -1, size), functions)  # (M, X 2, H)
        rows = rows.reshape(size, -1, 2, self.shape[0]).permute(1, 3, 0, 2).contiguous()
        field = torch.fft.irfft(torch.view_as_complex(rows), n=self.shape[1], norm="forward")
        return field.reshape(*lead, *self.shape)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """Grid values of a field, (*B, M, N) complex to (*B, H, W) real."""
        return self._to_grid(coefficients, self._values)

    def analysis(self, field: Tensor) -> Tensor:
        """Coefficients of a field by Fourier sums and Gaussian quadrature, (*B, H, W) to (*B, M, N)."""
        lead, size = field.shape[:-2], self.truncation + 1
        waves = torch.fft.rfft(field.reshape(-1, *self.shape), norm="forward")[..., :size]  # (X, H, M)
        rows = torch.view_as_real(waves).permute(2, 0, 3, 1).reshape(size, -1, self.shape[0])
        columns = torch.bmm(rows, self._quadrature).reshape(size, -1, 2, size).permute(1, 0, 3, 2)
        return torch.view_as_complex(columns.contiguous()).reshape(*lead, size, size)

    def gradient(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives on the grid: d/dlon and cos^2(lat) d/dmu = cos(lat) d/dlat, each (*B, H, W)."""
        return self._to_grid(1j * self._order * coefficients, self._values), self._to_grid(
            coefficients, self._slope
        )

    def jacobian(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        """J(a, b) = a_lon b_mu - a_mu b_lon on the grid = v . grad b for the flow of stream function a.

        Args:
            first: `gradient` of a.
            second: `gradient` of b.

        Returns:
            J, (*B, H, W); without aliasing the means of J, a J and b J vanish.
        """
        return (first[0] * second[1] - first[1] * second[0]) / (1 - self.mu**2)

    def balance(self, coefficients: Tensor) -> Tensor:
        """div(mu grad a) in coefficients: the sphere's linear balance operator, (*B, M, N) to (*B, M, N).

        [div(mu grad a)]_n = -(n^2 - 1) e_n a_{n-1} - n (n + 2) e_{n+1} a_{n+1}.
        """
        below = torch.nn.functional.pad(coefficients[..., :-1], (1, 0))
        above = torch.nn.functional.pad(coefficients[..., 1:], (0, 1))
        return self._from_below * below + self._from_above * above

    def inverse_laplacian(self, coefficients: Tensor) -> Tensor:
        """The field of zero mean whose Laplacian is given, (*B, M, N); a mean in the input is dropped."""
        inverse = torch.where(self.laplacian == 0, torch.zeros_like(self.laplacian), 1 / self.laplacian)
        return inverse * coefficients

    def mean_product(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean over the sphere of the product of two fields, from coefficients: (*B, M, N) to (*B)."""
        return (self._triangle * (first.real * second.real + first.imag * second.imag)).sum((-2, -1))

    def mean(self, field: Tensor) -> Tensor:
        """Mean over the sphere of a grid field, (*B, H, W) to (*B)."""
        return (field * self.weights).sum((-2, -1))
