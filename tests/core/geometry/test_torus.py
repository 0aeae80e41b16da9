"""Laws of fields on the doubly periodic square."""

import math

import pytest
import torch

from slams.core.geometry import torus
from slams.core.geometry.torus import Torus

F64 = torch.float64


def centres(size):
    """x as a column and y as a row, at the centres of cells."""
    points = (torch.arange(size, dtype=F64) + 0.5) * 2 * math.pi / size
    return points[:, None], points[None, :]


def waves(size):
    """A trigonometric polynomial of degree 3, with different terms along x and y."""
    x, y = centres(size)
    return (
        0.3
        + torch.sin(3 * x - y)
        + 0.5 * torch.cos(x + 2 * y)
        + 0.2 * torch.sin(3 * y)
        + 0.1 * torch.cos(2 * x)
    )


def limited(grid, *shape, rng):
    """Random fields without waves beyond the truncation."""
    return grid.synthesis(grid.analysis(torch.randn(*shape, grid.size, grid.size, dtype=F64, generator=rng)))


@pytest.mark.parametrize("size", [4, 7, 8, 12, 15, 32])
def test_products_of_kept_waves_are_free_of_aliasing(size, rng):
    """Each kept coefficient of a product equals that on a grid four times finer, where nothing can fold."""
    grid, fine = Torus(size, F64), Torus(4 * size, F64)
    a, b = limited(grid, 2, rng=rng)
    k = grid.truncation
    expected = fine.analysis(torus.resample(a, 4 * size) * torus.resample(b, 4 * size))
    # The two grids start half a cell from the origin, each its own.
    kx, ky = torus.wavenumbers(4 * size, a)
    expected = expected[..., : k + 1] * torch.exp(
        1j * (kx + ky[: k + 1]) * (math.pi / size - math.pi / (4 * size))
    )
    actual = grid.analysis(a * b)
    torch.testing.assert_close(actual[: k + 1], expected[: k + 1], rtol=0, atol=1e-13)
    torch.testing.assert_close(actual[size - k :], expected[4 * size - k :], rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [5, 8, 31])
def test_mean_product_is_that_of_the_grid(size, rng):
    grid = Torus(size, F64)
    a, b = limited(grid, 2, 3, rng=rng)
    torch.testing.assert_close(
        grid.mean_product(grid.analysis(a), grid.analysis(b)), (a * b).mean((-2, -1)), rtol=0, atol=1e-13
    )


def test_velocity_of_a_vorticity_has_that_vorticity_and_no_divergence(rng):
    grid = Torus(16, F64)
    w = limited(grid, 3, rng=rng)
    w = w - w.mean((-2, -1), keepdim=True)
    velocity = grid.synthesis(grid.analysis(w).unsqueeze(-3) * grid.biot_savart())
    torch.testing.assert_close(torus.vorticity(velocity), w, rtol=0, atol=1e-12)
    turned = torch.stack([-velocity[:, 1], velocity[:, 0]], 1)  # its rotation is the divergence
    assert torus.vorticity(turned).abs().max() < 1e-12


@pytest.mark.parametrize("size", [9, 16])
def test_spectrum_sums_to_the_kinetic_energy(size, rng):
    velocity = torch.randn(3, 2, size, size, dtype=F64, generator=rng)
    energy = velocity.square().sum(-3).mean((-2, -1)) / 2
    torch.testing.assert_close(torus.energy_spectrum(velocity).sum(-1), energy, rtol=1e-13, atol=0)


@pytest.mark.parametrize("size", [9, 16])
def test_vorticity_of_a_wave_is_its_derivative(size):
    """w = dv/dx - du/dy with x along axis -2: positive for anticlockwise flow."""
    x, y = centres(size)
    velocity = torch.stack([torch.sin(2 * y + x), torch.cos(3 * x - y)])
    expected = -3 * torch.sin(3 * x - y) - 2 * torch.cos(2 * y + x)
    torch.testing.assert_close(torus.vorticity(velocity), expected, rtol=0, atol=1e-12)


def test_derivative_of_the_shortest_wave_is_zero():
    """Its phase between the points is unknown; anything else would make w depend on the side of a cell."""
    velocity = torch.zeros(2, 8, 8, dtype=F64)
    velocity[1] = (-1.0) ** torch.arange(8)[:, None]
    assert torus.vorticity(velocity).abs().max() == 0


def test_clockwise_vorticity_is_minus_spacing_times_vorticity_to_second_order():
    """Sign, unit and order of the published convention: the error falls by 4 when the spacing is halved."""
    errors = []
    for size in (32, 64):
        x, y = centres(size)
        velocity = torch.stack([torch.sin(2 * y + x), torch.cos(3 * x - y)])
        h = 2 * math.pi / size
        errors.append((-torus.clockwise_vorticity(velocity) / h - torus.vorticity(velocity)).abs().max())
    assert errors[0] < 0.5
    assert 3.8 < errors[0] / errors[1] < 4.2


@pytest.mark.parametrize("size, other", [(8, 16), (16, 8), (8, 12), (9, 16), (15, 9), (16, 15)])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, 0.0), (0.25, -1.5)])
def test_resampling_evaluates_the_trigonometric_polynomial(size, other, shift):
    x, y = centres(other)
    h = 2 * math.pi / other
    x, y = x + shift[0] * h, y + shift[1] * h
    expected = 0.3 + torch.sin(3 * x - y) + 0.5 * torch.cos(x + 2 * y) + 0.2 * torch.sin(3 * y)
    expected = expected + 0.1 * torch.cos(2 * x)
    torch.testing.assert_close(torus.resample(waves(size), other, shift=shift), expected, rtol=0, atol=1e-13)


def test_coarsening_takes_the_mean_of_each_block(rng):
    field = torch.randn(2, 12, 12, dtype=F64, generator=rng)
    coarse = torus.coarsen(field, 3)
    for i in range(4):
        for j in range(4):
            block = field[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            torch.testing.assert_close(coarse[:, i, j], block.mean((1, 2)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "fourier"])
def test_upsampling_knows_no_edge(mode, rng):
    """A shift by whole cells goes through it: no cell is nearer to a border than another."""
    field = torch.randn(2, 9, 9, dtype=F64, generator=rng)
    shifted = torus.upsample(field.roll((4, 2), (-2, -1)), 3, mode)
    torch.testing.assert_close(
        shifted, torus.upsample(field, 3, mode).roll((12, 6), (-2, -1)), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("mode, low, high", [("nearest", 1.9, 2.1), ("bilinear", 3.8, 4.2)])
def test_upsampling_converges_with_its_order_to_the_centres_of_small_cells(mode, low, high):
    """Order 1 and 2: half a cell of displacement would leave order 1."""
    errors = [
        (torus.upsample(waves(size), 4, mode) - waves(4 * size)).square().mean().sqrt() for size in (48, 96)
    ]
    assert low < errors[0] / errors[1] < high


def test_what_cannot_be_is_refused(rng):
    field = torch.zeros(12, 12)
    with pytest.raises(ValueError, match="blocks of 5 do not divide"):
        torus.coarsen(field, 5)
    with pytest.raises(ValueError, match="got 2 and 'linear'"):
        torus.upsample(field, 2, "linear")
    with pytest.raises(ValueError, match="at least 2 points"):
        torus.resample(field, 1)
    with pytest.raises(ValueError, match="at least 4 points"):
        Torus(3)
