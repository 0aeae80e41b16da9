import numpy as np
import pytest

from slams.data.processing.regrid import Grid, Regridder

CPC = Grid(89.75 - 0.5 * np.arange(360), 0.25 + 0.5 * np.arange(720))
OLR = Grid(90 - 2.5 * np.arange(73), 2.5 * np.arange(144))
COARSE = Grid(90 - 7.5 / 2 - 7.5 * np.arange(24), 3.75 + 7.5 * np.arange(48))
UPWARDS = Grid(-88.0 + 4 * np.arange(45), -177.5 + 5 * np.arange(72))
ERA5, BLOCKS = Grid.named("1.5deg"), Grid.named("1.5deg-published")
SOURCES = {"cpc": CPC, "olr": OLR, "coarse": COARSE, "upwards, from -180": UPWARDS}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_areas_sum_to_the_sphere(source):
    np.testing.assert_allclose([source.area.sum(), ERA5.area.sum()], 1.0, atol=1e-13)


@pytest.mark.parametrize("method", ["conservative", "linear"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_constant_stays_a_constant(source, method):
    values, fraction = Regridder(source, ERA5, method)(np.full((source.lat.size, source.lon.size), 273.15))
    np.testing.assert_allclose(values, 273.15, rtol=1e-14)
    np.testing.assert_allclose(fraction, 1.0, rtol=1e-14)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_linear_interpolation_is_exact_for_linear_fields(source):
    regridder = Regridder(source, ERA5, "linear")
    ones = np.ones((source.lat.size, source.lon.size))
    values, _ = regridder(np.stack([source.lat[:, None] * ones, source.lon[None] * ones]))
    np.testing.assert_allclose(values[0], ERA5.lat[:, None] * np.ones(240), atol=1e-11)
    turned = source.lon[0] + np.mod(ERA5.lon - source.lon[0], 360)
    away = np.flatnonzero(turned <= source.lon[-1])
    rows = np.abs(ERA5.lat) <= np.abs(source.lat).max()
    np.testing.assert_allclose(values[1][rows][:, away], np.tile(turned[away], (rows.sum(), 1)), atol=1e-11)


def test_the_seam_is_interpolated_across():
    values, _ = Regridder(OLR, ERA5, "linear")(np.cos(np.deg2rad(OLR.lon)) * np.ones((73, 1)))
    between = (358.5 - 357.5) / 2.5
    expected = (1 - between) * np.cos(np.deg2rad(357.5)) + between
    np.testing.assert_allclose(values[:, -1], expected, rtol=1e-14)


def test_a_pole_that_the_source_lacks_has_one_value():
    field = np.random.default_rng(0).normal(size=(360, 720))
    values, _ = Regridder(CPC, ERA5, "linear")(field)
    expected = 1.5 * field[0].mean() - 0.5 * field[1].mean()
    np.testing.assert_allclose(values[0], expected, atol=1e-13)


def test_block_means_are_exact_where_cells_nest():
    field = np.random.default_rng(0).gamma(0.5, 4.0, (360, 720))
    weights = CPC.area.reshape(120, 3, 240, 3)
    expected = (field.reshape(120, 3, 240, 3) * weights).sum((1, 3)) / weights.sum((1, 3))
    np.testing.assert_allclose(Regridder(CPC, BLOCKS)(field)[0], expected, rtol=1e-13)
    even = np.repeat(np.random.default_rng(1).gamma(0.5, 4.0, (360, 240)), 3, axis=1)
    even = np.repeat(even[::3], 3, axis=0)
    np.testing.assert_allclose(Regridder(CPC, BLOCKS)(even)[0], even[::3, ::3], rtol=1e-13)


def test_conservative_means_are_those_of_the_exact_integral():
    """sin(lat) integrates in closed form: its mean over a row is (sin2 + sin1) / 2."""
    fine = Grid(90 - 0.05 * (np.arange(3600) + 0.5), 5.0 + 10 * np.arange(36))
    low, high = np.sin(np.deg2rad(fine.lat_edges)).T
    field = ((low + high) / 2)[:, None] * np.ones(36)
    south, north = np.sin(np.deg2rad(ERA5.lat_edges)).T
    values, _ = Regridder(fine, ERA5)(field)
    np.testing.assert_allclose(values, ((south + north) / 2)[:, None] * np.ones(240), atol=1e-9)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_integral_over_the_valid_area_is_conserved(source):
    rng = np.random.default_rng(0)
    field = rng.gamma(0.5, 4.0, (3, source.lat.size, source.lon.size))
    field[rng.random(field.shape) < 0.4] = np.nan
    values, fraction = Regridder(source, ERA5, threshold=0)(field)
    found = np.nansum(values * fraction * ERA5.area, axis=(1, 2))
    np.testing.assert_allclose(found, np.nansum(field * source.area, axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("method", ["conservative", "linear"])
def test_missing_stays_missing_and_never_becomes_zero(method):
    field = np.full((360, 720), 5.0)
    field[100:200, 600:] = np.nan
    values, fraction = Regridder(CPC, ERA5, method)(field)
    assert np.isnan(values).any() and np.isnan(values[fraction < 0.49]).all()
    np.testing.assert_allclose(values[np.isfinite(values)], 5.0, rtol=1e-13)
    area = np.where(np.isnan(values), ERA5.area, 0).sum() / np.where(np.isnan(field), CPC.area, 0).sum()
    assert abs(area - 1) < 1 / 33 + 1 / 40  # half a cell at each side of a box of 33 x 40


def test_beyond_a_regional_grid_there_is_nothing():
    region = Grid(60 - np.arange(20.0), -10 + np.arange(25.0))
    for method in ("conservative", "linear"):
        values, _ = Regridder(region, ERA5, method)(np.ones((20, 25)))
        inside = (ERA5.lat[:, None] <= 60) & (ERA5.lat[:, None] >= 41)
        inside = inside & ((ERA5.lon >= 350) | (ERA5.lon <= 14))
        assert np.isfinite(values[inside]).all() and np.isnan(values[ERA5.lat < 40]).all()
        assert np.isnan(values[:, (ERA5.lon > 16) & (ERA5.lon < 348)]).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Grid([10, 5, 7], [0, 1]), "strictly in one direction"),
        (lambda: Grid([95, 5], [0, 1]), "leaves the sphere"),
        (lambda: Grid([10, 5], [0, 180, 360]), "repeats a meridian"),
        (lambda: Grid.named("2deg"), "no grid '2deg'"),
        (lambda: Regridder(CPC, ERA5, "cubic"), "must be one of conservative, linear"),
        (lambda: Regridder(CPC, ERA5)(np.zeros((4, 5))), "aren't on the source grid"),
    ],
)
def test_bad_grids_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
