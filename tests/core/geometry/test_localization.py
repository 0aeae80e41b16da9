"""Laws of the taper, of distances, and of the lists of neighbours against the dense matrices."""

import math
import warnings

import pytest
import torch

from slams.core.errors import DataWarning
from slams.core.geometry.localization import (
    Localization,
    gaspari_cohn,
    great_circle,
    half_width,
    line_distance,
    torus_distance,
)

KM = 6371.0


def normal_points(count: int, rng: torch.Generator) -> torch.Tensor:
    """(latitude, longitude) uniform over the sphere, the poles and the date line among them."""
    sine = 2 * torch.rand(count, dtype=torch.float64, generator=rng) - 1
    lon = 720 * torch.rand(count, dtype=torch.float64, generator=rng) - 360
    points = torch.stack([torch.rad2deg(sine.asin()), lon], 1)
    points[:3] = torch.tensor([[90.0, 10.0], [-90.0, 0.0], [0.0, 180.0]])
    return points


def spaces(
    rng: torch.Generator, kind: str, radius: float, **more
) -> tuple[Localization, torch.Tensor, torch.Tensor]:
    """A localization made from points, with both matrices of distances made the plain way."""
    if kind == "line":
        state = 10 * torch.rand(30, dtype=torch.float64, generator=rng)
        seen = 10 * torch.rand(9, dtype=torch.float64, generator=rng)
        made = Localization.line(state, seen, radius, **more)
        return made, line_distance(state, seen), line_distance(seen, seen)
    if kind == "periodic":
        seen = 24 * torch.rand(9, dtype=torch.float64, generator=rng) - 8  # some a turn away
        made = Localization.periodic(20, seen, radius, period=8.0, **more)
        state = torch.arange(20, dtype=torch.float64) * 0.4
        return made, line_distance(state, seen, 8.0), line_distance(seen, seen, 8.0)
    if kind == "torus":
        seen = 12 * torch.rand(9, 2, dtype=torch.float64, generator=rng)
        made = Localization.torus((5, 6), seen, radius, periods=(5.0, 12.0), **more)
        state = torch.cartesian_prod(torch.arange(5.0), torch.arange(0.0, 12.0, 2.0)).double()
        return made, torus_distance(state, seen, (5.0, 12.0)), torus_distance(seen, seen, (5.0, 12.0))
    state, seen = normal_points(40, rng), normal_points(9, rng)
    made = Localization.sphere(state, seen, 1500 * radius, **more)
    return made, great_circle(state, seen) / 1500, great_circle(seen, seen) / 1500


KINDS = ("line", "periodic", "torus", "sphere")


def test_taper_has_the_published_values():
    """The two polynomials of the paper, written out, at points on either side of 1 and beyond 2."""
    r = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.2, 1.7, 1.99, 2.0, 5.0], dtype=torch.float64)
    near = -(r**5) / 4 + r**4 / 2 + 5 * r**3 / 8 - 5 * r**2 / 3 + 1
    far = r**5 / 12 - r**4 / 2 + 5 * r**3 / 8 + 5 * r**2 / 3 - 5 * r + 4 - 2 / (3 * r)
    expected = torch.where(r <= 1, near, torch.where(r < 2, far, 0.0))
    torch.testing.assert_close(gaspari_cohn(3.0 * r, 3.0), expected, rtol=0, atol=1e-14)
    assert float(gaspari_cohn(torch.tensor(1.0, dtype=torch.float64), 1.0)) == pytest.approx(
        5 / 24, abs=1e-15
    )


@pytest.mark.parametrize("joint", [1.0, 2.0])
def test_taper_is_twice_continuously_differentiable(joint):
    """Value and two derivatives agree on either side, up to the third derivative times the distance, 1e-6."""

    def derivatives(at: float) -> list[torch.Tensor]:
        r = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = gaspari_cohn(r, 1.0)
        (first,) = torch.autograd.grad(value, r, create_graph=True)
        (second,) = torch.autograd.grad(first, r)
        return [value.detach(), first.detach(), second]

    for below, above in zip(derivatives(joint - 1e-6), derivatives(joint + 1e-6), strict=True):
        torch.testing.assert_close(below, above, rtol=0, atol=5e-5)


def test_taper_falls_and_stays_in_its_range_in_single_precision():
    weights = gaspari_cohn(torch.linspace(0, 3, 3001), 1.0)
    assert bool((weights >= 0).all()) and bool((weights <= 1).all())
    assert bool((weights.diff() <= 1e-6).all()) and bool((weights[2000:] == 0).all())


@pytest.mark.parametrize("radius", [0.5, 2.0, 4.0])
def test_taper_matrix_on_a_circle_is_positive_semidefinite(radius):
    """A circulant matrix: its eigenvalues are the transform of a row. Up to a support of half the circle."""
    place = torch.arange(40, dtype=torch.float64) * 0.4
    taper = gaspari_cohn(line_distance(place[:1], place, 16.0), radius)[0]
    assert float(torch.fft.fft(taper).real.min()) > -1e-12


def test_half_width_makes_the_taper_of_published_settings():
    """Support ends at 3.64 radii, and the taper at the radius is near exp(-1/2)."""
    at = gaspari_cohn(torch.tensor([4.0, 3.64 * 4.0], dtype=torch.float64), half_width(4.0))
    assert abs(float(at[0]) - math.exp(-0.5)) < 0.03 and float(at[1]) < 1e-12


def test_great_circle_is_the_law_of_cosines(rng):
    a, b = normal_points(20, rng), normal_points(15, rng)
    (lat, lon), (lat2, lon2) = (torch.deg2rad(p).unbind(1) for p in (a, b))
    cosine = (
        torch.outer(lat.sin(), lat2.sin()) + torch.outer(lat.cos(), lat2.cos()) * (lon[:, None] - lon2).cos()
    )
    angle = torch.acos(cosine.clamp(-1, 1))
    torch.testing.assert_close(
        great_circle(a, b), KM * angle, rtol=0, atol=1e-3
    )  # acos loses half the digits


def test_distances_are_the_shorter_way_round(rng):
    a, b = (torch.randn(7, dtype=torch.float64, generator=rng) * 20 for _ in range(2))
    turns = torch.arange(-40, 41) * 5.0
    images = (a[:, None, None] - b[None, :, None] - turns).abs().amin(-1)
    torch.testing.assert_close(line_distance(a, b, 5.0), images, rtol=0, atol=1e-12)
    plane = torch.stack([a, b], 1)
    both = (line_distance(a, a, 5.0) ** 2 + line_distance(b, b, 3.0) ** 2).sqrt()
    torch.testing.assert_close(torus_distance(plane, plane, (5.0, 3.0)), both, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.05, 1.1, float("inf")])
def test_neighbour_lists_hold_what_the_matrix_holds(kind, radius, rng):
    """Also with no neighbour anywhere and with everybody everywhere; both tapers, pairs under the cutoff dropped."""
    made, across, among = spaces(rng, kind, radius)
    for found, distance in [(made.rho_xy, across), (made.rho_yy, among)]:
        taper = gaspari_cohn(distance, radius)
        torch.testing.assert_close(found, torch.where(taper < 1e-3, 0.0, taper), rtol=0, atol=1e-9)
    plain = Localization(across, radius, among=among)
    torch.testing.assert_close(plain.rho_xy, made.rho_xy, rtol=0, atol=1e-9)
    torch.testing.assert_close(plain.rho_yy, made.rho_yy, rtol=0, atol=1e-9)
    assert made.index.shape == made.weight.shape
    longest = max(1, int((made.rho_xy > 0).sum(1).max()))
    assert made.index.shape[1] == longest  # memory is the longest list, not O


@pytest.mark.parametrize("kind", KINDS)
def test_selected_transposed_and_repeated_lists_are_those_of_the_matrix(kind, rng):
    made, _, _ = spaces(rng, kind, 1.1)
    columns = torch.tensor([7, 0, 3])
    chosen = made.select(columns)
    assert torch.equal(chosen.rho_xy, made.rho_xy[:, columns])
    assert torch.equal(chosen.rho_yy, made.rho_yy[columns][:, columns])
    assert torch.equal(made.transposed().rho_xy, made.rho_xy.mT)
    assert torch.equal(made.repeated(2).rho_xy, made.rho_xy.repeat(2, 1))
    single = made.to(torch.zeros(1))
    assert single.rho_xy.dtype == single.rho_yy.dtype == torch.float32


def test_domains_join_variables_with_the_same_neighbours(rng):
    made = Localization.torus((4, 4), 4 * torch.rand(5, 2, generator=rng), 0.8).repeated(3)
    first, group = made.domains()
    assert torch.equal(made.index[first][group], made.index)
    assert torch.equal(made.weight[first][group], made.weight)
    rows = made.rho_xy.unique(dim=0)
    assert len(first) == len(rows) <= 16


def test_chunks_of_a_long_line_join_without_a_seam():
    """20000 variables are several chunks; each has the same list, shifted."""
    made = Localization.periodic(20000, torch.arange(20000), 3.0)
    shifted = (made.index - torch.arange(20000)[:, None] + 10) % 20000
    assert bool((made.weight > 0).all())
    assert bool((shifted.sort(1).values == shifted[:1].sort(1).values).all())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="radius must be positive, got -1"):
        Localization.line(3, torch.zeros(2), -1.0)
    with pytest.raises(ValueError, match="must be positive, got nan"):
        gaspari_cohn(torch.zeros(1), float("nan"))
    with pytest.raises(ValueError, match="cutoff is a taper"):
        Localization(torch.zeros(2, 2), 1.0, cutoff=1.0)
    with pytest.raises(ValueError, match="positions need 2 coordinates"):
        Localization.torus((3, 3), torch.zeros(4, 3), 1.0)
    with pytest.raises(ValueError, match=r"need distances \(d, O\)"):
        Localization(torch.zeros(2, 3), 1.0, among=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="distances among the observations are unknown"):
        _ = Localization(torch.zeros(2, 3), 1.0).rho_yy


def test_swapped_latitude_and_longitude_on_the_sphere_are_refused_or_told():
    """Beyond the poles it is an error; within, nothing is near a variable, which is asked about."""
    iberia = torch.cartesian_prod(torch.linspace(36.0, 44.0, 5), torch.linspace(-9.0, 3.0, 5))
    pacific = torch.cartesian_prod(torch.linspace(-10.0, 10.0, 3), torch.linspace(150.0, 170.0, 3))
    for state, positions in ((pacific.flip(-1), pacific), (pacific, pacific.flip(-1))):
        with pytest.raises(ValueError, match="reach latitude 170.*in this order"):
            Localization.sphere(state, positions, 500.0)
    with pytest.raises(ValueError, match="longitude 400"):
        Localization.sphere(iberia, torch.tensor([[40.0, 400.0]]), 500.0)
    with pytest.warns(DataWarning, match="no observation lies within 1000 km.*swapped"):
        Localization.sphere(iberia, iberia.flip(-1), 500.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Localization.sphere(iberia, iberia, 500.0)
