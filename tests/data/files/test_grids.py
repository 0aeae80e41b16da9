import numpy as np
import pytest
import xarray as xr

from slams.data.files.read import align

LAT, LON = [50.0, 45.0, 40.0], [0.0, 5.0, 10.0, 15.0]


def labelled(lat, lon, name="a"):
    values = np.asarray(lat)[:, None] + (np.asarray(lon)[None, :] % 360) / 1000
    return xr.DataArray(
        values[None], {"time": [0], "lat": list(lat), "lon": list(lon)}, ("time", "lat", "lon"), name
    )


def test_alignment_is_by_label_across_conventions():
    array = labelled([-10.0, 0.0, 10.0], [-180.0, -90.0, 0.0, 90.0])
    reference = labelled([10.0, 0.0, -10.0], [0.0, 90.0, 180.0, 270.0], "b")
    aligned = align(array, reference)
    np.testing.assert_allclose(aligned.values, reference.values, atol=1e-9)
    assert np.array_equal(aligned.lon, reference.lon) and np.array_equal(aligned.lat, reference.lat)


def test_alignment_forgives_rounding_and_nothing_more():
    reference = labelled(LAT, LON, "b")
    assert np.array_equal(align(labelled(np.array(LAT) + 9e-4, LON), reference).lat, reference.lat)
    with pytest.raises(
        ValueError,
        match=r"'a' doesn't lie on the grid of 'b'.*at lat 50.*3 x 4 points.*expected 3 x 4 points",
    ):
        align(labelled(np.array(LAT) + 2e-3, LON), reference)


def test_a_part_of_a_larger_grid_is_found():
    aligned = align(labelled(np.arange(60.0, 20, -2.5), np.arange(0.0, 360, 2.5)), labelled(LAT, LON, "b"))
    np.testing.assert_allclose(aligned.values, labelled(LAT, LON).values, atol=1e-9)


def test_stations_are_aligned_by_place():
    def points(lat, lon, values):
        return xr.DataArray(
            [values], {"lat": ("station", lat), "lon": ("station", lon)}, ("time", "station"), "p"
        )

    aligned = align(
        points([41.5, 40.0, 38.0], [2.0, 357.0, 0.0], [1, 2, 3]), points([38.0, 40.0], [0.0, -3.0], [0, 0])
    )
    assert aligned.values.tolist() == [[3, 2]] and aligned.lon.values.tolist() == [0.0, -3.0]
    with pytest.raises(ValueError, match="nothing there at station"):
        align(points([41.5], [2.0], [1]), points([41.5], [3.0], [1]))
