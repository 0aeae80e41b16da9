"""Laws of observation operators."""

import math

import pytest
import torch

from slams.observation import operators
from slams.observation.operators import (
    AvgPool,
    Box,
    Compose,
    FirstMinusLast,
    Flatten,
    Identity,
    Interpolate,
    InterpolateLine,
    InterpolateTorus,
    Mask,
    Pointwise,
    Select,
    Stack,
    Stride,
    Vorticity,
)

C, H, W = 2, 6, 8
LAT = torch.linspace(75, -75, H, dtype=torch.float64)
LON = torch.arange(W, dtype=torch.float64) * 45
POINTS = torch.tensor([[10.0, 20.0], [-74.0, 300.0], [75.0, 0.0]], dtype=torch.float64)
AREA = torch.cos(torch.deg2rad(LAT))[:, None]

OPERATORS = {
    "flatten": Flatten(),
    "select": Select(torch.tensor([3, 90, 0])),
    "stride": Stride(3, 1, axes=2),
    "mean": AvgPool(2, AREA),
    "plain mean": AvgPool(2),
    "interpolate": Interpolate(LAT, LON, POINTS, periodic=True),
    "composed": Compose([AvgPool(2, AREA), Stride(2, axes=2), Flatten()]),
    "identity": Identity(3),
    "mean on a line": AvgPool(4, axes=1),
    "stride on a line": Stride(3),
    "grid mask": Mask.grid((H, W), 3),
    "centre mask": Mask.centre((H, W)),
    "random mask": Mask.random((H, W), 0.8, torch.Generator().manual_seed(0)),
    "ring": Mask.ring((H, W), 0.2, 0.9),
    "box": Box((1, 4), (2, 8)),
    "loop": FirstMinusLast(2),
    "vorticity": Vorticity((0.2, 0.3)),
    "spectral vorticity": Vorticity((0.2, 0.3), scheme="spectral"),
    "line": InterpolateLine(torch.arange(8.0), torch.tensor([0.3, 7.9, -4.2]), period=8.0),
    "torus": InterpolateTorus(torch.arange(6.0), torch.arange(8.0), POINTS, (6.0, 8.0)),
    "sphere": Interpolate(LAT, LON, torch.tensor([[89.0, 7.0], [-80.0, 359.0]]), periodic=True, poles=True),
    "stack": Stack({"a": Stride(3, axes=2), "b": Vorticity()}, events=(3, 2)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_linear_operator_equals_its_tangent(name, rng):
    """h(x) = J x: an offset, a clamp or a stray nonlinearity breaks it."""
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    _, tangent = torch.func.jvp(OPERATORS[name], (torch.zeros_like(x),), (x,))
    torch.testing.assert_close(OPERATORS[name](x), tangent, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_of_a_linear_operator_is_its_transpose(name, rng):
    """<h(x), w> = <x, h^T w>: gradients flow through every operator, once through each value."""
    h = OPERATORS[name]
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    y, pull = torch.func.vjp(h, x)
    w = torch.randn(y.shape, dtype=torch.float64, generator=rng)
    torch.testing.assert_close((y * w).sum(), (x * pull(w)[0]).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_leading_axes_are_a_batch(name, rng):
    x = torch.randn(3, 2, C, H, W, dtype=torch.float64, generator=rng)
    each = torch.stack([torch.stack([OPERATORS[name](x[i, j]) for j in range(2)]) for i in range(3)])
    torch.testing.assert_close(OPERATORS[name](x), each, rtol=0, atol=1e-13)


def test_select_takes_components_of_the_flattened_event(rng):
    x = torch.randn(4, C, H, W, generator=rng)
    expected = torch.stack([x[:, 0, 0, 3], x[:, 1, 5, 2], x[:, 0, 0, 0]], -1)
    assert torch.equal(OPERATORS["select"](x), expected)


def test_a_ring_is_open_at_both_radii():
    """Places -1, -1/2, 0, 1/2, 1 of squares 1, 1/4, 0, 1/4, 1, which are exact."""
    assert Mask.ring((5,), 0.0, 1.0)(torch.arange(5.0)).tolist() == [1.0, 3.0]


def test_stride_takes_every_third_point_from_the_offset_on(rng):
    x = torch.randn(C, H, W, generator=rng)
    rows = torch.stack([torch.stack([x[:, i, j] for j in (1, 4, 7)], -1) for i in (1, 4)], -2)
    assert torch.equal(Stride(3, 1, axes=2)(x), rows)
    assert torch.equal(Stride(1, axes=2)(x), x)


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


def test_points_of_a_region_are_found_in_any_convention_of_longitude():
    """A field equal to its longitude on 10 W to 10 E: 359.5 is -0.5, and 100 E lies outside."""
    lat, lon = torch.tensor([45.0, 40.0]), torch.arange(-10.0, 11.0)
    field = lon.expand(2, -1)
    points = torch.tensor([[42.0, 359.5], [41.0, -0.5], [40.0, 5.25]])
    torch.testing.assert_close(Interpolate(lat, lon, points)(field), torch.tensor([-0.5, -0.5, 5.25]))
    torch.testing.assert_close(Interpolate(lat, lon + 360, points)(field), torch.tensor([-0.5, -0.5, 5.25]))
    with pytest.raises(ValueError, match="lie outside the grid's longitudes"):
        Interpolate(lat, lon, torch.tensor([[42.0, 100.0]]))


def test_linear_interpolation_is_exact_for_a_line_and_closes_a_circle(rng):
    grid = torch.rand(9, dtype=torch.float64, generator=rng) * 6
    points = grid.min() + (grid.max() - grid.min()) * torch.rand(30, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(
        InterpolateLine(grid, points)(2 - 3 * grid), 2 - 3 * points, rtol=0, atol=1e-12
    )
    x = torch.randn(8, dtype=torch.float64, generator=rng)
    for turn in (-8.0, 0.0, 16.0):
        seam = InterpolateLine(torch.arange(8.0), torch.tensor([7.25 + turn, turn]), period=8.0)(x)
        torch.testing.assert_close(seam, torch.stack([0.75 * x[7] + 0.25 * x[0], x[0]]), rtol=0, atol=1e-12)


def test_torus_interpolation_is_bilinear_in_every_cell_and_over_both_seams(rng):
    """Inside the grid exact for a bilinear field; a shifted field at shifted points is the same everywhere."""
    y, x = torch.arange(6, dtype=torch.float64) * 0.5, torch.arange(8, dtype=torch.float64) * 2
    points = torch.rand(40, 2, dtype=torch.float64, generator=rng) * torch.tensor([2.5, 14.0])
    bilinear = 1 + 2 * y[:, None] - x + 0.5 * y[:, None] * x
    expected = 1 + 2 * points[:, 0] - points[:, 1] + 0.5 * points.prod(1)
    found = InterpolateTorus(y, x, points, (3.0, 16.0))(bilinear)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    field = torch.randn(6, 8, dtype=torch.float64, generator=rng)
    moved = InterpolateTorus(y, x, points + torch.tensor([2.0 - 3.0, 10.0 + 32.0]), (3.0, 16.0))
    torch.testing.assert_close(
        moved(field.roll((4, 5), (0, 1))),
        InterpolateTorus(y, x, points, (3.0, 16.0))(field),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("falling", [True, False])
def test_a_pole_has_the_mean_of_the_circle_around_it(falling, rng):
    lat = LAT if falling else LAT.flip(0)
    field = torch.randn(H, W, dtype=torch.float64, generator=rng)
    north, south = field[lat.argmax()], field[lat.argmin()]
    points = torch.tensor([[90.0, 123.0], [-90.0, 0.0], [81.0, 45.0], [-75.0, 337.5], [82.5, -22.5]])
    found = Interpolate(lat, LON, points, periodic=True, poles=True)(field)
    edge = (north[7] + north[0]) / 2
    expected = torch.stack(
        [
            north.mean(),
            south.mean(),
            0.6 * north[1] + 0.4 * north.mean(),
            (south[7] + south[0]) / 2,
            (edge + north.mean()) / 2,
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_interpolation_on_the_sphere_is_of_second_order_also_at_the_poles():
    """A smooth function of position, here x + 2 y z: halving the grid divides the error by four."""
    points = torch.tensor(
        [[89.0, 10.0], [86.0, 200.0], [-88.5, 359.0], [-90.0, 5.0], [30.3, 179.7], [1.0, -0.2]],
        dtype=torch.float64,
    )

    def field(lat: torch.Tensor, lon: torch.Tensor) -> torch.Tensor:
        a, b = torch.deg2rad(lat), torch.deg2rad(lon)
        return a.cos() * b.cos() + 2 * a.cos() * b.sin() * a.sin()

    errors = []
    for rows in (18, 36, 72, 144):
        lat = 90 - (torch.arange(rows, dtype=torch.float64) + 0.5) * 180 / rows
        lon = torch.arange(2 * rows, dtype=torch.float64) * 180 / rows
        h = Interpolate(lat, lon, points, periodic=True, poles=True)
        errors.append(
            float((h(field(lat[:, None], lon)) - field(points[:, 0], points[:, 1])).square().mean().sqrt())
        )
    assert math.log2(errors[0] / errors[-1]) / 3 > 1.8


def test_a_row_at_the_pole_stays_what_it_is(rng):
    lat = torch.linspace(90, -90, 7, dtype=torch.float64)
    field = torch.randn(7, W, dtype=torch.float64, generator=rng)
    points = torch.tensor([[90.0, 45.0], [75.0, 90.0], [-90.0, 0.0]])
    found = Interpolate(lat, LON, points, periodic=True, poles=True)(field)
    expected = torch.stack([field[0, 1], (field[0, 2] + field[1, 2]) / 2, field[6, 0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def mode(
    rows: int, columns: int, *, rotated: bool = False
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """u = sin(2x) cos(3y), v = cos(x + y) on (0, 2 pi)^2, its vorticity and spacing; x down the rows if rotated."""
    y, x = (torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) for n in (rows, columns))
    y, x = y[:, None], x[None]
    spacing = (2 * math.pi / rows, 2 * math.pi / columns)
    if rotated:
        (y, x), spacing = (x, y), spacing[::-1]
    velocity = torch.stack(torch.broadcast_tensors((2 * x).sin() * (3 * y).cos(), (x + y).cos()))
    return velocity, -(x + y).sin() + 3 * (2 * x).sin() * (3 * y).sin(), spacing


@pytest.mark.parametrize("x_axis", [-1, -2])
def test_vorticity_is_dv_dx_minus_du_dy(x_axis):
    """Exact for a resolved mode with the spectral scheme; of second order with differences (slope within 0.05)."""
    velocity, exact, spacing = mode(16, 20, rotated=x_axis == -2)
    found = Vorticity(spacing, scheme="spectral", x_axis=x_axis)(velocity)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    errors = []
    for factor in (4, 8):
        velocity, exact, spacing = mode(16 * factor, 20 * factor, rotated=x_axis == -2)
        errors.append(float((Vorticity(spacing, x_axis=x_axis)(velocity) - exact).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.05


@pytest.mark.parametrize("scheme", ["centred", "spectral"])
def test_a_gradient_has_no_vorticity(scheme, rng):
    """With the same derivative as the operator's: differences commute."""
    potential = torch.randn(7, 9, dtype=torch.float64, generator=rng)  # odd sizes: no Nyquist wave
    h = Vorticity(0.5, scheme=scheme)
    velocity = torch.stack([h.derivative(potential, -1, 0.5), h.derivative(potential, -2, 0.5)])
    torch.testing.assert_close(h(velocity), torch.zeros(7, 9, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        (Pointwise("arctan"), math.atan),
        (Pointwise("exp", shift=-0.6), lambda x: math.exp(x - 0.6)),
        (Pointwise("cube", scale=0.5), lambda x: x**3 / 8),
        (Pointwise("saturate", scale=2.0, shift=1.0), lambda x: (2 * x + 1) / (1 + abs(2 * x + 1))),
    ],
)
def test_pointwise_functions_are_what_their_names_say(operator, function):
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = torch.tensor([function(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(operator(x), expected, rtol=0, atol=1e-13)


def test_masks_leave_the_published_numbers_of_points():
    """128 x 128 points: 43^2 of a grid of stride 3, three quarters around the centre, 10 and 5 % at random."""
    size = torch.zeros(2, 128, 128)
    assert Mask.grid((128, 128), 3)(size).shape == (2, 43**2)
    assert Mask.centre((128, 128))(size).shape == (2, 128**2 * 3 // 4)
    assert Mask.random((128, 128), 0.9)(size).shape == (2, 1638)
    assert Mask.random((128, 128), 0.95)(size).shape == (2, 819)


def test_masks_return_the_seen_values_alone(rng):
    x = torch.randn(2, 8, 8, generator=rng)
    keep = torch.rand(8, 8, generator=rng) < 0.3
    assert torch.equal(Mask(keep)(x), x[:, keep])
    centre = torch.ones(8, 8, dtype=torch.bool)
    centre[2:6, 2:6] = False
    assert torch.equal(Mask.centre((8, 8))(x), x[:, centre])
    assert torch.equal(Mask.grid((8, 8), 3)(x), x[:, ::3, ::3].flatten(1))


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
    with pytest.raises(ValueError, match="reads component 9 of an event of 8"):
        Select(torch.tensor([9]), 1)(torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"did you mean arctan\?"):
        Pointwise("arctn")
    with pytest.raises(ValueError, match="mask has shape"):
        Mask.grid((4, 4), 2)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="leaves at least one point"):
        Mask(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="leaves none"):
        Mask.random((3, 3), 0.95)
    with pytest.raises(ValueError, match=r"velocity of shape \(\*B, 2, H, W\)"):
        Vorticity()(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="0 <= first < last"):
        Box((3, 3))
    with pytest.raises(ValueError, match="reaches beyond a grid of 4 x 4"):
        Box((1, 5))(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="reaches beyond a grid of 4 x 8"):
        Box((1, 5), (2, 8))(torch.zeros(4, 8))
    with pytest.raises(ValueError, match="reaches beyond a grid of 5 x 7"):
        Box((1, 5), (2, 8))(torch.zeros(5, 7))
    with pytest.raises(ValueError, match="L > 1"):
        FirstMinusLast()(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="needs operators and one `events` each"):
        Stack([])
    with pytest.raises(ValueError, match="closed circles"):
        Interpolate(LAT, LON, POINTS, poles=True)
    with pytest.raises(ValueError, match="exceed one period"):
        InterpolateLine(torch.arange(9.0), torch.zeros(1), period=7.0)
    with pytest.raises(ValueError, match=r"made for a grid of shape \(6, 8\)"):
        Interpolate(LAT, LON, POINTS)(torch.zeros(8, 6))


def test_a_ring_is_what_lies_between_two_circles():
    """Its share of the square is pi (b - a) / 4, up to the cells on its two edges."""
    seen = len(Mask.ring((256, 256), 0.4, 0.6).index)
    assert seen / 256**2 == pytest.approx(math.pi * 0.2 / 4, rel=0.02)


def test_a_trajectory_is_a_loop_where_it_ends_as_it_began(rng):
    x = torch.randn(3, 5, 2, 4, 4, generator=rng)
    gap = FirstMinusLast()(x)
    torch.testing.assert_close(gap[:, 2], x[:, 0] - x[:, 4])
    x[:, -1] = x[:, 0]
    assert not FirstMinusLast()(x).any()


def test_composed_operators_move_with_the_composition():
    """Their buffers are the composition's, so that `to` reaches them."""
    composed = Compose([AvgPool(2, AREA), lambda x: 2 * x])
    assert composed.to(torch.float32).operators[0].weights.dtype == torch.float32


@pytest.mark.parametrize(
    "name, settings, context, made",
    [
        ("identity", {}, {"event": 1}, operators.Identity()),
        ("stride", {"step": 2, "offset": 1}, {"axes": 1}, operators.Stride(2, 1)),
        ("select", {"index": [3, 0]}, {"event": 1}, operators.Select(torch.tensor([3, 0]), event=1)),
        ("block_mean", {"size": 4}, {"axes": 1}, operators.AvgPool(4, axes=1)),
        ("arctan", {"scale": 2.0}, {"event": 1}, operators.Pointwise("arctan", scale=2.0)),
        ("exp", {"shift": -0.6}, {}, operators.Pointwise("exp", shift=-0.6)),
    ],
)
def test_an_operator_by_name_is_the_class_with_these_settings(name, settings, context, made):
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    assert torch.equal(operators.by_name(name, settings, **context)(x), made(x))


def test_points_by_name_take_the_grid_from_the_caller():
    lat, lon = torch.linspace(40, 30, 6), torch.linspace(0, 20, 11)
    points = [[35.0, 3.0], [31.0, 17.0]]
    x = torch.arange(66.0).reshape(6, 11)
    made = operators.by_name("points", {"points": points}, lat=lat, lon=lon)
    assert torch.equal(made(x), operators.Interpolate(lat, lon, torch.tensor(points))(x))


def test_unknown_operators_and_settings_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean stride\?"):
        operators.by_name("strid")
    with pytest.raises(ValueError, match=r"did you mean stride.step\?"):
        operators.by_name("stride", {"stepp": 2})
    with pytest.raises(ValueError, match=r"stride.step must be int, got 'two'"):
        operators.by_name("stride", {"step": "two"})
