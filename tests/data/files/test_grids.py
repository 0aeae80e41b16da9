import warnings

import numpy as np
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.files.modality import Modality
from slams.data.files.read import align, read

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


def stations(lat, lon, values=None, names=None):
    """One day at stations; their values count them unless given."""
    coords = {"time": [0], "lat": ("station", list(lat)), "lon": ("station", list(lon))}
    coords |= {} if names is None else {"station": ("station", list(names))}
    values = np.arange(1.0, len(lat) + 1) if values is None else values
    return xr.DataArray(np.asarray(values, dtype="f4")[None], coords, ("time", "station"), "p")


@pytest.mark.parametrize(
    "one, other",
    [
        ((-16.8, 180.0), (-16.8, -180.0)),
        ((-16.8, 179.995), (-16.8, -179.995)),
        ((-90.0, 0.0), (-90.0, -179.98)),
        ((80.0, 20.0), (80.0, 20.08)),
        ((40.0, 3.0), (40.01, 3.01)),
        ((40.0, -3.0), (40.0, 357.0)),
    ],
)
def test_one_station_is_known_by_its_distance_on_the_sphere(one, other):
    """Date line, pole, 1.5 km at 80 N and a survey that differs by 0.01 degrees; 3 km away is another station."""
    reference = stations([one[0], 10.0], [one[1], 50.0])
    aligned = align(stations([10.0, other[0]], [50.0, other[1]]), reference)
    assert aligned.values.tolist() == [[2, 1]] and np.array_equal(aligned.lon, reference.lon)
    with pytest.warns(DataWarning, match="1 of 2 stations aren't in the file"):
        far = align(stations([10.0, one[0] + (0.027 if one[0] < 0 else -0.027)], [50.0, one[1]]), reference)
    assert np.isnan(far.values[0, 0]) and far.values[0, 1] == 1


def test_a_station_that_is_not_in_the_file_is_missing_and_named():
    reference = stations([10.0, 20.0, 30.0], [1.0, 2.0, 3.0], names=["A", "B", "C"])
    for names, label in ((["C", "A"], r"B \(20 N 2 E\)"), (None, r"B \(20 N 2 E\)")):
        with pytest.warns(
            DataWarning, match=f"'p': 1 of 3 stations aren't in the file and are missing: {label}"
        ):
            aligned = align(stations([30.0, 10.0], [3.0, 1.0], names=names), reference)
        np.testing.assert_array_equal(aligned.values, [[2, np.nan, 1]])
        assert aligned.station.values.tolist() == ["A", "B", "C"]


def test_stations_at_one_place_keep_their_own_values():
    """By name where they have one, otherwise in their order."""
    lat, lon = [10.0, 10.0, 30.0], [1.0, 1.0, 3.0]
    reference = stations(lat, lon, names=["A", "B", "C"])
    swapped = stations(lat, lon, names=["B", "A", "C"])
    assert align(swapped, reference).values.tolist() == [[2, 1, 3]]
    assert align(stations(lat, lon), stations(lat, lon)).values.tolist() == [[1, 2, 3]]


def test_a_name_counts_within_ten_kilometres_and_before_distance():
    reference = stations([10.0, 10.0], [1.0, 1.05], names=["A", "B"])
    crossed = stations([10.0, 10.0], [1.0, 1.05], names=["B", "A"])
    with pytest.warns(DataWarning, match="2 stations have moved.*A .* by 5.5 km"):
        assert align(crossed, reference).values.tolist() == [[2, 1]]
    elsewhere = stations([50.0, 10.0], [1.0, 1.0], names=["A", "X"])
    with pytest.warns(DataWarning, match="other names and are known by their place: X for A"):
        aligned = align(elsewhere, reference)
    np.testing.assert_array_equal(aligned.values, [[2, np.nan]])


def test_an_exact_match_is_quiet():
    both = stations([10.0, 20.0], [1.0, 2.0], names=["A", "B"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        align(both, both)


def station_file(path, start, lat, lon, names=None, values=None):
    days = (np.datetime64(start) + np.arange(2)).astype("datetime64[ns]")
    values = np.arange(10.0, 10.0 + len(lat)) if values is None else values
    data = {"t": (("time", "station"), np.tile(values, (2, 1)).astype("f4"), {"units": "K"})}
    places = {
        "lat": ("station", lat, {"units": "degrees_north"}),
        "lon": ("station", lon, {"units": "degrees_east"}),
    }
    coords = {"time": days} | ({} if names is None else {"station": names})
    xr.Dataset(data | places, coords).to_netcdf(path)
    return str(path)


def series(*paths):
    return read(Modality("g", paths, "t", "observation", kind="stations"))


def test_yearly_files_are_joined_by_name_and_by_place(tmp_path):
    """Two at one place in another order, one that closed and one that opened."""
    lat, lon = [10.0, 10.0, 30.0], [1.0, 1.0, 3.0]
    a = station_file(tmp_path / "a.nc", "2001-01-01", lat, lon, ["A", "B", "C"])
    b = station_file(tmp_path / "b.nc", "2002-01-01", [50.0, *lat[:2]], [5.0, *lon[:2]], ["D", "B", "A"])
    with pytest.warns(DataWarning, match="aren't in the file"):
        array = series(a, b)
    assert array.station.values.tolist() == ["A", "B", "C", "D"]
    np.testing.assert_array_equal(array.values[0], [10, 11, 12, np.nan])
    np.testing.assert_array_equal(array.values[-1], [12, 11, np.nan, 10])


@pytest.mark.parametrize(
    "place", [(np.nan, np.nan), (30.0, np.nan), (30.0, -9999.0), (99.999, 999.999), (0.0, 0.0)]
)
def test_a_station_without_a_place_is_named_and_touches_no_other(tmp_path, place):
    path = station_file(
        tmp_path / "a.nc", "2001-01-01", [10.0, 20.0, place[0]], [1.0, 2.0, place[1]], ["A", "B", "X"]
    )
    with pytest.warns(DataWarning, match=r"1 of 3 stations have no place and are left out \(X at"):
        array = series(path)
    assert array.station.values.tolist() == ["A", "B"] and array.values[0].tolist() == [10, 11]
    assert align(array, array).values[0].tolist() == [10, 11]


def test_places_off_the_sphere_are_refused_with_the_station(tmp_path):
    wrong = station_file(tmp_path / "a.nc", "2001-01-01", [10.0, 20.0], [1.0, 400.0], ["A", "B"])
    with pytest.raises(ValueError, match="B lies at longitude 400"):
        series(wrong)
    metres = station_file(tmp_path / "b.nc", "2001-01-01", [4.5e6, 4.6e6], [5e5, 6e5])
    with pytest.raises(ValueError, match="latitudes reach 4.6e.06.*metres"):
        series(metres)
    nowhere = station_file(tmp_path / "c.nc", "2001-01-01", [np.nan, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="no station has a place"):
        series(nowhere)


@pytest.mark.parametrize("dims", ["scalar", "grid"])
def test_a_lone_station_needs_no_station_dimension(tmp_path, dims):
    days = np.array(["2001-01-01", "2001-01-02"], "datetime64[ns]")
    if dims == "scalar":
        place = {"lat": ((), 10.0, {"units": "degrees_north"}), "lon": ((), 1.0, {"units": "degrees_east"})}
        file = xr.Dataset({"t": ("time", [1.0, 2.0], {"units": "K"})}, {"time": days} | place)
    else:
        values = np.array([1.0, 2.0])[:, None, None]
        file = xr.Dataset(
            {"t": (("time", "lat", "lon"), values, {"units": "K"})},
            {"time": days, "lat": [10.0], "lon": [1.0]},
        )
    file.to_netcdf(tmp_path / "a.nc")
    array = series(str(tmp_path / "a.nc"))
    assert array.dims == ("time", "station") and array.values.tolist() == [[1], [2]]
    assert array.lat.values.tolist() == [10] and array.lon.values.tolist() == [1]


@pytest.mark.parametrize(
    "names, found",
    [
        (("station_name", np.array([b"A", b"BB"], "S2"), {"cf_role": "timeseries_id"}), ["A", "BB"]),
        (("wmo_id", ["10384", "10385"], {}), ["10384", "10385"]),
        (("country", ["DE", "FR"], {}), None),
        (("station", [10384, 10385], {}), ["10384", "10385"]),
        (("station", [0, 1], {}), None),
    ],
)
def test_names_of_stations_are_read(tmp_path, names, found):
    """By cf_role, by a variable called so, by the dimension; numbers that only count are no names."""
    path = station_file(tmp_path / "a.nc", "2001-01-01", [10.0, 20.0], [1.0, 2.0])
    with xr.open_dataset(path) as file:
        file.load().assign_coords({names[0]: ("station", names[1], names[2])}).to_netcdf(tmp_path / "b.nc")
    array = series(str(tmp_path / "b.nc"))
    assert (array.station.values.tolist() if "station" in array.coords else None) == found
