"""Laws of observation operators."""

import pytest
import torch

from slams.observation.operators import AvgPool, Compose, Flatten, Interpolate, Select, Stride

C, H, W = 2, 6, 8
LAT = torch.linspace(75, -75, H, dtype=torch.float64)
LON = torch.arange(W, dtype=torch.float64) * 45
POINTS = torch.tensor([[10.0, 20.0], [-74.0, 300.0], [75.0, 0.0]], dtype=torch.float64)
AREA = torch.cos(torch.deg2rad(LAT))[:, None]

OPERATORS = {
    "flatten": Flatten(),
    "select": Select(torch.tensor([3, 90, 0])),
    "stride": Stride(3, 1),
    "mean": AvgPool(2, AREA),
    "plain mean": AvgPool(2),
    "interpolate": Interpolate(LAT, LON, POINTS, periodic=True),
    "composed": Compose([AvgPool(2, AREA), Stride(2), Flatten()]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_linear_operator_equals_its_tangent(name, rng):
    """h(x) = J x: an offset, a clamp or a stray nonlinearity breaks it."""
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    _, tangent = torch.func.jvp(OPERATORS[name], (torch.zeros_like(x),), (x,))
    torch.testing.assert_close(OPERATORS[name](x), tangent, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_leading_axes_are_a_batch(name, rng):
    x = torch.randn(3, 2, C, H, W, dtype=torch.float64, generator=rng)
    each = torch.stack([torch.stack([OPERATORS[name](x[i, j]) for j in range(2)]) for i in range(3)])
    torch.testing.assert_close(OPERATORS[name](x), each, rtol=0, atol=1e-14)


def test_select_takes_components_of_the_flattened_event(rng):
    x = torch.randn(4, C, H, W, generator=rng)
    expected = torch.stack([x[:, 0, 0, 3], x[:, 1, 5, 2], x[:, 0, 0, 0]], -1)
    assert torch.equal(OPERATORS["select"](x), expected)


def test_stride_takes_every_third_point_from_the_offset_on(rng):
    x = torch.randn(C, H, W, generator=rng)
    rows = torch.stack([torch.stack([x[:, i, j] for j in (1, 4, 7)], -1) for i in (1, 4)], -2)
    assert torch.equal(Stride(3, 1)(x), rows)


def test_block_means_are_weighted_by_area(rng):
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    pooled = AvgPool(2, AREA)(x)
    for i in range(H // 2):
        for j in range(W // 2):
            block, weight = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], AREA[2 * i : 2 * i + 2]
            expected = (block * weight).sum((1, 2)) / (2 * weight.sum())
            torch.testing.assert_close(pooled[:, i, j], expected, rtol=0, atol=1e-14)


def test_block_means_keep_the_mean_over_the_sphere(rng):
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    coarse = AvgPool(2)(AREA.expand(H, W)[None])[0]
    before = (x * AREA).sum((1, 2)) / (AREA.sum() * W)
    after = (AvgPool(2, AREA)(x) * coarse).sum((1, 2)) / coarse.sum()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-14)


@pytest.mark.parametrize("falling", [True, False])
def test_interpolation_reproduces_a_bilinear_field(falling, rng):
    """a + b lat + c lon + d lat lon is what bilinear interpolation is exact for."""
    lat = LAT if falling else LAT.flip(0)
    a, b, c, d = torch.randn(4, dtype=torch.float64, generator=rng).tolist()
    field = a + b * lat[:, None] + c * LON + d * lat[:, None] * LON
    points = torch.rand(50, 2, dtype=torch.float64, generator=rng) * torch.tensor(
        [150.0, 315.0]
    ) - torch.tensor([75.0, 0.0])
    expected = a + b * points[:, 0] + c * points[:, 1] + d * points[:, 0] * points[:, 1]
    found = Interpolate(lat, LON, points)(field)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def test_interpolation_at_grid_points_is_the_grid(rng):
    x = torch.randn(H, W, dtype=torch.float64, generator=rng)
    points = torch.cartesian_prod(LAT, LON)
    torch.testing.assert_close(Interpolate(LAT, LON, points)(x), x.flatten(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("turn", [0.0, -360.0, 360.0])
def test_interpolation_crosses_the_seam_of_a_periodic_grid(turn, rng):
    """Between 315 and 360 = 0 degrees east, whatever the convention of the points."""
    x = torch.randn(H, W, dtype=torch.float64, generator=rng)
    points = torch.tensor([[float(LAT[2]), 315 + 45 * 0.25 + turn]], dtype=torch.float64)
    found = Interpolate(LAT, LON, points, periodic=True)(x)
    torch.testing.assert_close(found, (0.75 * x[2, 7] + 0.25 * x[2, 0])[None], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("point", "periodic", "axis"), [([80, 0], True, "latitude"), ([0, 330], False, "longitude")]
)
def test_a_point_outside_the_grid_is_refused(point, periodic, axis):
    with pytest.raises(ValueError, match=f"1 of 1 points lie outside the grid's {axis}s"):
        Interpolate(LAT, LON, torch.tensor([point]), periodic=periodic)


def test_operators_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="blocks of 4 do not divide a grid of 6 x 8"):
        AvgPool(4)(torch.zeros(C, H, W))
    with pytest.raises(ValueError, match="step >= 1"):
        Stride(2, 2)
    with pytest.raises(ValueError, match="at least one non-negative index"):
        Select(torch.tensor([1, -1]))


def test_composed_operators_move_with_the_composition():
    """Their buffers are the composition's, so that `to` reaches them."""
    composed = Compose([AvgPool(2, AREA), lambda x: 2 * x])
    assert composed.to(torch.float32).operators[0].weights.dtype == torch.float32
