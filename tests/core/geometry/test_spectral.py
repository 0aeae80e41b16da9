"""Laws of the spherical harmonics."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from slams.core.geometry.spectral import SphericalHarmonics


@pytest.fixture(scope="module")
def sphere() -> SphericalHarmonics:
    return SphericalHarmonics(21, 32, 64, torch.float64)


def smooth(sphere, *lead, rng):
    """Random coefficients of the truncation."""
    return sphere.analysis(torch.randn(*lead, *sphere.shape, dtype=torch.float64, generator=rng))


@pytest.mark.parametrize(("truncation", "shape"), [(21, (32, 64)), (10, (16, 32)), (42, (64, 128))])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_analysis_inverts_synthesis(truncation, shape, dtype, tolerance, rng):
    sphere = SphericalHarmonics(truncation, *shape, dtype)
    coefficients = sphere.analysis(torch.randn(2, 3, *shape, dtype=dtype, generator=rng))
    torch.testing.assert_close(
        sphere.analysis(sphere.synthesis(coefficients)), coefficients, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 0), (3, 2), (13, 5), (21, 21), (21, 0)])
def test_synthesis_equals_scipy_harmonics(sphere, n, m):
    """scipy's Y is normalized to integral 1 over 4 pi and carries the sign (-1)^m."""
    coefficients = torch.zeros(22, 22, dtype=torch.complex128)
    coefficients[m, n] = 0.3 + (0.4j if m else 0.0)
    colatitude = np.deg2rad(90 - sphere.latitude.numpy())[:, None]
    longitude = np.deg2rad(sphere.longitude.numpy())[None]
    harmonic = sph_harm_y(n, m, colatitude, longitude) * np.sqrt(4 * np.pi) * (-1) ** m
    expected = (complex(coefficients[m, n]) * harmonic).real * (2 if m else 1)
    np.testing.assert_allclose(sphere.synthesis(coefficients).numpy(), expected, atol=1e-12)


def test_quadrature_integrates_polynomials(sphere):
    """Mean of mu^k is 1/(k+1) for even k, exact up to degree 2 H - 1 = 63."""
    for k in (0, 2, 10, 42, 62):
        mean = sphere.mean((sphere.mu**k).expand(sphere.shape))
        assert float(mean) == pytest.approx(1 / (k + 1), rel=1e-12)


def test_latitudes_run_north_to_south_and_longitudes_from_zero(sphere):
    assert (sphere.latitude.diff() < 0).all() and sphere.latitude[0] > 85
    torch.testing.assert_close(sphere.longitude[[0, -1]], torch.tensor([0.0, 354.375], dtype=torch.float64))


def test_laplacian_is_the_divergence_of_the_gradient(sphere, rng):
    """<a lap b> = -<grad a . grad b> for every pair: eigenvalues -n (n + 1) from an independent formula."""
    a, b = smooth(sphere, rng=rng), smooth(sphere, rng=rng)
    (a_east, a_north), (b_east, b_north) = sphere.gradient(a), sphere.gradient(b)
    dot = sphere.mean((a_east * b_east + a_north * b_north) / (1 - sphere.mu**2))
    torch.testing.assert_close(sphere.mean_product(a, sphere.laplacian * b), -dot, rtol=1e-11, atol=1e-11)
    assert sphere.laplacian[21] == -21 * 22


def test_gradient_of_a_known_field(sphere):
    """f = mu^2 + cos(lat) cos(lon): derivatives in closed form."""
    longitude, cosine = torch.deg2rad(sphere.longitude), (1 - sphere.mu**2).sqrt()
    field = sphere.mu**2 + cosine * torch.cos(longitude)
    east, north = sphere.gradient(sphere.analysis(field))
    torch.testing.assert_close(east, -cosine * torch.sin(longitude), rtol=0, atol=1e-12)
    expected = 2 * sphere.mu * (1 - sphere.mu**2) - sphere.mu * cosine * torch.cos(longitude)
    torch.testing.assert_close(north, expected, rtol=0, atol=1e-12)


def test_mean_product_is_parseval(sphere, rng):
    a, b = smooth(sphere, 3, rng=rng), smooth(sphere, 3, rng=rng)
    expected = sphere.mean(sphere.synthesis(a) * sphere.synthesis(b))
    torch.testing.assert_close(sphere.mean_product(a, b), expected, rtol=1e-12, atol=1e-12)


def test_jacobian_conserves_both_arguments(sphere, rng):
    """Means of J, a J and b J vanish: no aliasing at 3 T + 1 longitudes."""
    a, b = smooth(sphere, rng=rng), smooth(sphere, rng=rng)
    change = sphere.analysis(sphere.jacobian(sphere.gradient(a), sphere.gradient(b)))
    size = sphere.mean_product(change, change).sqrt()
    one = torch.zeros_like(a)
    one[0, 0] = 1
    for test in (one, a, b):
        assert abs(sphere.mean_product(test, change)) < 1e-12 * size


def test_balance_is_the_divergence_of_mu_times_gradient(sphere, rng):
    """<b div(mu grad a)> = -<mu grad a . grad b>."""
    a, b = smooth(sphere, rng=rng), smooth(sphere, rng=rng)
    (a_east, a_north), (b_east, b_north) = sphere.gradient(a), sphere.gradient(b)
    expected = -sphere.mean(sphere.mu * (a_east * b_east + a_north * b_north) / (1 - sphere.mu**2))
    torch.testing.assert_close(sphere.mean_product(b, sphere.balance(a)), expected, rtol=1e-10, atol=1e-10)


def test_inverse_laplacian_inverts_up_to_the_mean(sphere, rng):
    a = smooth(sphere, rng=rng)
    back = sphere.inverse_laplacian(sphere.laplacian * a)
    expected = a * (sphere.laplacian != 0)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-13)


def test_longitude_shift_commutes_with_transform(sphere, rng):
    field = sphere.synthesis(smooth(sphere, rng=rng))
    m = torch.arange(22, dtype=torch.float64)[:, None]
    turned = sphere.analysis(field) * torch.exp(-1j * m * 2 * torch.pi * 5 / 64)
    torch.testing.assert_close(sphere.synthesis(turned), field.roll(5, -1), rtol=0, atol=1e-12)


def test_too_coarse_a_grid_is_refused():
    with pytest.raises(ValueError, match="cannot hold truncation 21"):
        SphericalHarmonics(21, 16, 64)
