"""Reports of stations in one table: values, moments, places, quality and errors as the lines say."""

import gzip

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.archives import REGISTRY, isd, metar
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.data.files.station_days import daily
from slams.data.files.stations import (
    COLUMNS,
    VARIABLES,
    assemble,
    error_std,
    quality,
    read_table,
    wind_components,
    write_table,
)
from tests.data import archive_files as files

STATIONS = REGISTRY["stations"]


def one(table, variable):
    return table[table["variable"] == variable].set_index("time")["value"]


def times(first, count, step):
    return np.datetime64(first, "s") + np.timedelta64(step, "m") * np.arange(count)


LINES = [
    files.isd_line("2016-01-01T00:00", -2.2, -3.7, 1013.2, (3.0, 90), [(6, 1.2), (24, 5.0)]),
    files.isd_line("2016-01-01T01:00", wind=(0.0, None), lat=-60.75, lon=-12.767),
    files.isd_line("2016-01-01T02:00", 10.0, kind="FM-15"),
    files.isd_line("2016-01-01T23:59", 99.0, kind="SOD"),
    files.isd_line("2016-01-01T03:00", -2.0, qc="3"),
    files.isd_line("2016-01-01T04:00", -2.0, 1.5, qc="2", rain=[(12, 0.0)]),
]


def test_lines_of_isd_become_observations_in_si_units(tmp_path):
    path = files.isd(tmp_path / "any.gz", LINES)
    table = STATIONS.open(path)
    assert tuple(table.columns) == COLUMNS and set(table["station"]) == {"024130-99999"}
    first = table[table["time"] == np.datetime64("2016-01-01T00:00")].set_index("variable")["value"]
    expected = {
        "temperature": 270.95,
        "dew_point": 269.45,
        "sea_level_pressure": 101320,
        "u_wind": -3.0,
        "v_wind": 0.0,
    }
    expected |= {"precipitation_6h": 1.2, "precipitation_24h": 5.0}
    assert set(first.index) == set(expected)
    for name, value in expected.items():
        assert first[name] == pytest.approx(value, rel=2e-7, abs=1e-6)
    calm = table[table["time"] == np.datetime64("2016-01-01T01:00")]
    assert sorted(calm["variable"]) == ["u_wind", "v_wind"] and (calm["value"] == 0).all()
    assert calm["lat"].unique() == [-60.75] and calm["lon"].unique() == [-12.767]
    warm = table[table["variable"] == "temperature"].set_index("time")
    assert warm["qc"].tolist() == [0, 0, 2, 1] and warm["value"].max() < 300  # no summary of a day
    error = warm["error_std"].tolist()
    assert error[0] == pytest.approx(error_std("temperature", 0.1)) and error[1] == pytest.approx(
        error_std("temperature", 1.0)
    )


def test_error_is_that_of_instrument_and_rounding():
    """Rounding to a step is uniform: its standard deviation is step / sqrt(12)."""
    draws = np.random.default_rng(0).uniform(0, 50, 200_000)
    rounding = np.std(np.rint(draws) - draws)
    both = np.hypot(VARIABLES["temperature"].instrument_std, rounding)
    assert error_std("temperature", 1.0) == pytest.approx(both, rel=0.01)  # 1 % is 6 standard errors


def test_wind_comes_from_where_it_is_said_to_come():
    u, v = wind_components(np.array([5.0, 5, 5, 0, 3]), np.array([0.0, 90, 225, np.nan, np.nan]))
    np.testing.assert_allclose(u[:4], [0, -5, 5 / 2**0.5, 0], atol=1e-12)
    np.testing.assert_allclose(v[:4], [-5, 0, 5 / 2**0.5, 0], atol=1e-12)
    assert np.isnan(u[4]) and np.isnan(v[4])  # moving air of unknown direction


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_metar_tables_become_observations_with_the_flags_of_madis(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    flags = ["V", "S", "Q", "X", "Z"]
    path = files.metar(
        tmp_path / f"reports{suffix}",
        times("2020-01-01T00:53", 5, 60),
        temperature=[280, 281, 280, 282, np.nan],
        temperatureDD=flags,
        windSpeed=[2.0, 0, 3, 4, 1],
        windDir=[180, np.nan, np.nan, 270, 360],
        seaLevelPress=[101320] * 5,
        precip1Hour=np.array([0.0003, 0, 0, np.nan, 0.001]),
    )
    table = STATIONS.open(path)
    warm = table[table["variable"] == "temperature"]
    assert warm["qc"].tolist() == [0, 0, 1, 2] and warm["value"].tolist() == [280, 281, 280, 282]
    assert warm["time"].tolist() == list(pd.to_datetime(times("2020-01-01T00:53", 4, 60)))
    np.testing.assert_allclose(one(table, "v_wind").to_numpy(), [2, 0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(one(table, "precipitation_1h").to_numpy(), [0.3, 0, 0, 1.0], rtol=1e-6)
    assert table["lon"].unique() == pytest.approx([-93.22]) and table["level"].isna().all()


def test_temperatures_of_metar_in_celsius_are_refused(tmp_path):
    path = files.metar(tmp_path / "a.csv", times("2020-01-01T00:00", 3, 60), temperature=[7.0, 8, 9])
    with pytest.raises(ValueError, match="median 8; expected kelvin"):
        STATIONS.open(path)


def table_of(variable, stamps, values, station="A", qc=0, lat=50.0, lon=10.0):
    frame = pd.DataFrame(
        {"time": np.asarray(stamps).astype("datetime64[s]"), "value": np.asarray(values, "f4")}
    )
    return frame.assign(
        lat=lat,
        lon=lon,
        level=np.float32(np.nan),
        variable=variable,
        error_std=np.float32(0.3),
        station=station,
        qc=qc,
    )[list(COLUMNS)]


def test_gross_checks_find_what_can_not_be_and_leave_the_rest_alone():
    values = np.array([280.0, 281, 310, 282, 283, 400, 284])
    table = table_of("temperature", times("2020-01-01", 7, 60), values)
    dew = table_of("dew_point", times("2020-01-01", 2, 60), [285.0, 280.5])
    lost = table_of("temperature", times("2020-01-01", 1, 60), [280.0], station="B", lat=95.0)
    checked = quality(pd.concat([table, dew, lost], ignore_index=True))
    of = {key: rows["qc"].tolist() for key, rows in checked.groupby(["station", "variable"])}
    assert of["A", "temperature"] == [0, 0, 1, 0, 0, 2, 0]
    assert of["A", "dew_point"] == [1, 0] and of["B", "temperature"] == [2]


def test_of_repeated_reports_the_best_then_the_last_stays():
    moment = times("2020-01-01", 1, 60)
    parts = [table_of("temperature", moment, [value], qc=qc) for value, qc in ((280, 0), (281, 0), (290, 1))]
    assert quality(pd.concat(parts, ignore_index=True))["value"].tolist() == [281]


@pytest.mark.parametrize("suffix", [".nc", ".parquet"])
def test_a_table_comes_back_as_it_was_written(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    one_, two = (
        table_of("temperature", times("2020-01-01", 3, 60), [280, 281, 282.5]),
        table_of(
            "u_wind", times("2020-01-01", 2, 60), [1.5, -2], station="B, moved", lat=-12.3456, lon=200.0
        ),
    )
    table = quality(pd.concat([one_, two], ignore_index=True))
    path = write_table(table, tmp_path / f"observations{suffix}")
    back = read_table(path)
    expected = table.assign(lon=(table["lon"] + 180) % 360 - 180)
    pd.testing.assert_frame_equal(back, expected, check_dtype=False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_table_is_cf_points_that_anyone_can_read(tmp_path):
    path = write_table(
        table_of("temperature", times("2020-01-01", 3, 60), [280, 281, 282]), tmp_path / "o.nc"
    )
    with xr.open_dataset(path) as dataset:
        assert dataset.attrs["featureType"] == "point"
        names = dataset["variable"].attrs["flag_meanings"].split()
        assert [names[code] for code in dataset["variable"].values] == ["temperature"] * 3
        assert dataset["qc"].attrs["flag_meanings"] == "good suspect bad"
    with pytest.raises(ValueError, match=r"must end in \.nc or \.parquet"):
        write_table(read_table(path), tmp_path / "o.csv")


def test_a_daily_mean_needs_every_quarter_of_the_day_and_is_not_drawn_to_busy_hours():
    """Sixty reports at noon and one in each other quarter: the mean of the four quarters' means."""
    stamps = np.r_[times("2020-01-01T03:00", 1, 1), times("2020-01-01T09:00", 1, 1)]
    stamps = np.r_[stamps, times("2020-01-01T12:00", 60, 1), times("2020-01-01T21:00", 1, 1)]
    values = np.r_[280.0, 284, np.full(60, 290), 286]
    lone = times("2020-01-03T12:00", 4, 60)  # noon only
    table = pd.concat([table_of("temperature", stamps, values), table_of("temperature", lone, [290] * 4)])
    array = daily(table, "temperature")
    assert array.time.values.astype("datetime64[D]").astype(str).tolist() == [
        "2020-01-01",
        "2020-01-02",
        "2020-01-03",
    ]
    np.testing.assert_array_equal(array.values[:, 0], np.array([285, np.nan, np.nan], "f4"))


def test_daily_rain_adds_intervals_that_cover_the_day_and_midnight_belongs_to_the_day_before():
    ends = times("2020-01-01T06:00", 4, 360)
    table = table_of("precipitation_6h", ends, [1, 2, 3, 4])
    assert daily(table, "precipitation_6h").values.tolist() == [[10.0]]
    assert np.isnan(daily(table[1:], "precipitation_6h").values).all()  # a quarter is missing: no total
    assert daily(table.assign(qc=[0, 0, 0, 1]), "precipitation_6h").isnull().all()


def test_recipes_read_stations_of_a_table_by_name(tmp_path):
    rng = np.random.default_rng(0)
    stamps = times("2020-01-01", 8 * 3, 180)
    values = {name: rng.normal(280, 3, 24) for name in ("A", "B")}
    parts = [
        table_of("temperature", stamps, v, station=k, lat=50 + i, lon=5.0)
        for i, (k, v) in enumerate(values.items())
    ]
    path = write_table(quality(pd.concat(parts, ignore_index=True)), tmp_path / "observations.nc")
    array = read(Modality("stn", (str(path),), "temperature", "observation", kind="stations", units="degC"))
    truth = np.stack([v.astype("f4").reshape(3, 8).mean(1) for v in values.values()], 1) - 273.15
    np.testing.assert_allclose(array.values, truth, atol=5e-5)
    assert array.lat.values.tolist() == [50, 51] and array.station.values.tolist() == ["A", "B"]
    assert array.attrs["units"] == "degC"


def test_files_are_joined_to_one_table_once(tmp_path):
    for year in (2015, 2016):
        lines = [files.isd_line(f"{year}-12-31T{hour:02d}:00", hour / 2) for hour in range(24)]
        files.isd(tmp_path / f"024130-99999-{year}.gz", lines)
    out = tmp_path / "out" / "observations.nc"
    sources = [item.url for item in STATIONS.items([2015, 2016], tmp_path)]
    assert len(sources) == 2
    STATIONS.process(sources[:1], out)
    STATIONS.process(sources, out)
    whole = read_table(STATIONS.process(sources, out, [2015, 2016]))
    assert len(whole) == 48 and whole["time"].is_monotonic_increasing
    assert len(read_table(STATIONS.process(sources, tmp_path / "b.nc", [2016]))) == 24
    with pytest.raises(ValueError, match="no observation of 1999"):
        STATIONS.process(sources, tmp_path / "c.nc", [1999])


def test_the_table_of_ncei_is_the_same_observations_as_the_lines(tmp_path):
    table = STATIONS.open(files.global_hourly(tmp_path / "2016" / "02413099999.csv", LINES))
    pd.testing.assert_frame_equal(table, STATIONS.open(files.isd(tmp_path / "a.gz", LINES)))
    first = table[table["time"] == np.datetime64("2016-01-01T00:00")].set_index("variable")["value"]
    assert first["temperature"] == np.float32(273.15 - 2.2) and first["sea_level_pressure"] == 101320
    assert first["precipitation_6h"] == np.float32(1.2) and first["u_wind"] == -3.0
    grades = table[table["variable"] == "temperature"].set_index("time")["qc"]
    assert grades[np.datetime64("2016-01-01T03:00")] == 2 and grades[np.datetime64("2016-01-01T04:00")] == 1


def test_tables_of_two_years_under_one_name_are_found_and_a_cut_or_foreign_one_is_named(tmp_path):
    for year in (2015, 2016):
        lines = [files.isd_line(f"{year}-12-31T{hour:02d}:00", hour / 2) for hour in range(24)]
        path = files.global_hourly(tmp_path / f"{year}" / "02413099999.csv", lines)
    sources = [item.url for item in STATIONS.items([], tmp_path)]
    assert len(read_table(STATIONS.process(sources, tmp_path / "out" / "o.nc"))) == 48
    whole = path.read_text()
    path.write_text(whole.rsplit(',"', 3)[0] + "\n")  # the last report without its last fields
    with pytest.raises(ValueError, match=f"line 25 of {path}"):
        isd.read(path)
    path.write_text(whole.replace('"+0115,1"', '"warm,1"'))
    with pytest.raises(ValueError, match=f"{path} holds what .*'warm'"):
        isd.read(path)
    path.write_text(whole.replace("LATITUDE", "Y"))
    with pytest.raises(ValueError, match="no column LATITUDE.*includeStationLocation=1"):
        isd.read(path)
    path.write_text('"STATION","DATE","LATITUDE","LONGITUDE","TEMP","SLP"\n')  # a summary of days
    assert not isd.is_isd(path)


def test_addresses_of_tables_keep_years_apart():
    items = STATIONS.items(
        [2015, 2016], "https://www.ncei.noaa.gov/data/global-hourly/access", ["024130-99999"]
    )
    assert [item.url.split("access/")[1] for item in items] == [item.name for item in items]
    assert [item.name for item in items] == ["2015/02413099999.csv", "2016/02413099999.csv"]


def test_addresses_need_stations_and_other_files_are_refused(tmp_path):
    items = STATIONS.items([2016], "https://mirror.example/noaa", ["024130-99999"])
    assert items[0].url == "https://mirror.example/noaa/2016/024130-99999-2016.gz"
    with pytest.raises(ValueError, match="name the stations wanted"):
        STATIONS.items([2016])
    (tmp_path / "notes.txt").write_text("no reports")
    with pytest.raises(ValueError, match="no file of ISD or METAR"):
        STATIONS.items([2016], tmp_path)
    with pytest.raises(ValueError, match="neither lines of ISD, nor"):
        STATIONS.check(tmp_path / "notes.txt")


def test_cut_and_damaged_lines_are_named(tmp_path):
    lines = [files.isd_line("2016-01-01T00:00", 1.0), files.isd_line("2016-01-01T01:00", 1.0)[:50]]
    with pytest.raises(ValueError, match="line 2 of"):
        isd.read(files.isd(tmp_path / "a.gz", lines))
    whole = gzip.compress(("\n".join(lines[:1] * 500)).encode())
    (tmp_path / "b.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="cut short"):
        isd.read(tmp_path / "b.gz")


# Real files


def test_the_true_station_is_read_as_its_lines_say(realdata):
    """An independent reading of the fixed columns, one line at a time."""
    path = realdata / "isd_024130-99999-2016.gz"
    if not path.exists():
        pytest.skip(f"{path.name} isn't there")
    with gzip.open(path, "rt", encoding="latin-1") as file:
        lines = file.read().splitlines()
    truth = {}
    for line in lines:
        stamp = pd.Timestamp(f"{line[15:23]}T{line[23:27]}")
        for name, start, width, missing in (
            ("temperature", 87, 5, "+9999"),
            ("dew_point", 93, 5, "+9999"),
            ("sea_level_pressure", 99, 5, "99999"),
        ):
            text = line[start : start + width]
            if text != missing and not line[41:46].startswith(("SOD", "SOM")):
                value = int(text) / 10
                truth[name, stamp] = value * 100 if name == "sea_level_pressure" else value + 273.15
    table = STATIONS.open(path)
    found = {
        (row.variable, row.time): row.value for row in table.itertuples() if (row.variable, row.time) in truth
    }
    assert set(found) == set(truth) and len(found) > 4000
    for key, value in truth.items():
        assert found[key] == pytest.approx(value, rel=2.0**-23)
    assert table["station"].unique() == ["024130-99999"]
    assert set(zip(table["lat"], table["lon"], strict=True)) == {(60.75, 12.767), (60.757, 12.772)}
    assert daily(table, "temperature").sizes["station"] == 1  # one place, rounded in two ways
    assert (table.loc[table["variable"] == "temperature", "qc"] == 0).mean() > 0.95


def test_true_metar_reports_are_read_as_the_table_says(realdata):
    pytest.importorskip("pyarrow")
    path = realdata / "metar_2020-01_sample.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} isn't there")
    frame = pd.read_parquet(path)
    table = metar.read(path)
    for name, column, scale in (
        ("temperature", "temperature", 1),
        ("sea_level_pressure", "seaLevelPress", 1),
        ("precipitation_1h", "precip1Hour", 1000),
    ):
        reported = frame[frame[column].notna()].drop_duplicates(["stationName", "timeObs"], keep=False)
        keys = pd.MultiIndex.from_arrays(
            [reported["stationName"], reported["timeObs"].astype("datetime64[s]")]
        )
        rows = table[table["variable"] == name].set_index(["station", "time"])
        found = rows.loc[keys]
        np.testing.assert_allclose(
            found["value"].to_numpy(), reported[column].to_numpy("f8") * scale, rtol=2e-7
        )
        grades = reported[f"{column}DD"].map({**dict.fromkeys("VSCZG", 0), "Q": 1, "X": 2, "B": 2})
        assert (found["qc"].to_numpy() >= grades.to_numpy()).all()  # our checks only ever lower
        assert ((found["qc"] > 0).to_numpy() & (grades == 0).to_numpy()).mean() < 0.01
    assert set(table["station"]) == set(frame["stationName"])
    speed = np.hypot(one(table, "u_wind").to_numpy(), one(table, "v_wind").to_numpy())
    assert speed.min() >= 0 and speed.max() == pytest.approx(
        frame.loc[frame["windDir"].notna() | (frame["windSpeed"] == 0), "windSpeed"].max(), rel=1e-6
    )


def hourly(lat, lon, station="S"):
    """Three days of 280 K, from places by turns."""
    moments = times("2001-01-01", 72, 60)
    places = {
        name: np.resize(np.asarray(values, dtype=float), 72) for name, values in (("lat", lat), ("lon", lon))
    }
    base = pd.DataFrame({"time": moments} | places | {"station": station})
    return assemble(base, {"temperature": (np.full(72, 280.0), 0.1, np.zeros(72, "i1"))})


@pytest.mark.parametrize(
    "lat, lon",
    [
        ([10], [20.0, 20.02]),
        ([-16.8], [180.0, -179.99]),
        ([-16.8], [179.99, -179.99]),
        ([-90.0], [0.0, -179.98]),
        ([80.0], [20.0, 20.08]),
        ([50.0], [350.0, -10.0]),
    ],
)
def test_reports_of_one_place_are_one_station_with_whole_days(lat, lon):
    array = daily(hourly(lat, lon), "temperature")
    assert array.sizes["station"] == 1 and np.array_equal(array.values[:, 0], np.full(3, 280, "f4"))


def test_a_station_that_moved_far_counts_as_two():
    assert daily(hourly([50.0], [10.0, 10.1]), "temperature").sizes["station"] == 2  # 7.1 km


@pytest.mark.parametrize("lat, lon", [(0.0, 0.0), (np.nan, np.nan), (50.0, -9999.0), (99.999, 999.999)])
def test_reports_without_a_place_make_no_station(lat, lon):
    """Some of a station's, which keeps its others; all of another's, which is named."""
    table = pd.concat([hourly([50.0, lat], [10.0, lon]), hourly([lat], [lon], "T")])
    assert (table["qc"] > 0)[table["station"] == "T"].all()
    with pytest.warns(DataWarning, match="1 stations have no place and are left out: T"):
        array = daily(quality(table), "temperature")
    assert array.station.values.tolist() == ["S"]
    assert array.lat.values.tolist() == [50] and array.lon.values.tolist() == [10]
    assert np.array_equal(array.values[:, 0], np.full(3, 280, "f4"))
    with pytest.raises(ValueError, match="no report of the table has a place"):
        daily(hourly([lat], [lon]), "temperature")
