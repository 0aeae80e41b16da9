import cftime
import numpy as np
import pytest
import xarray as xr

from slams.data.files.periods import DAILY_MEAN, RAIN_DAY, SNAPSHOT, average, bounds, match, standard_times

DAYS = np.datetime64("2000-02-26") + np.arange(8)


def records(stamps):
    """Each record holds its own hour since 2000."""
    hours = (stamps - np.datetime64("2000-01-01")) / np.timedelta64(1, "h")
    return xr.DataArray(
        hours, {"time": stamps.astype("datetime64[ns]")}, ("time",), "olr", {"units": "W m-2"}
    )


@pytest.mark.parametrize("lost", range(16))
def test_a_missing_record_shifts_nothing(lost):
    stamps = np.arange("2000-02-26", "2000-03-05", 12, dtype="datetime64[h]")
    whole = average(records(stamps))
    found = average(records(np.delete(stamps, lost)), records=2)
    kept = np.delete(np.arange(8), lost // 2)
    assert np.array_equal(found.time, whole.time[kept]) and np.array_equal(found, whole[kept])
    loose = average(records(np.delete(stamps, lost)), allow_partial=True)
    other = records(stamps).values[lost ^ 1]
    assert loose.sizes["time"] == 8 and loose[lost // 2] == other


def test_a_missing_value_makes_the_mean_missing_there():
    array = records(np.arange("2000-02-26", "2000-02-28", 12, dtype="datetime64[h]"))
    array[1] = np.nan
    assert np.isnan(average(array)).values.tolist() == [True, False]
    with pytest.raises(ValueError, match="must rise strictly"):
        average(array.isel(time=[0, 0, 1]))


def test_the_state_at_the_end_of_the_rain_day_is_the_default():
    """The snapshot of 29 February 00 UTC ends the rain day, and the mean, of the 28th."""
    periods = {
        "t": bounds(DAYS, SNAPSHOT),
        "rain": bounds(DAYS[1:], RAIN_DAY),
        "olr": bounds(np.delete(DAYS, 4), DAILY_MEAN),
    }
    found = match(periods, "t")
    assert "the record whose period ends at the time of the state" in found.text()
    assert np.array_equal(DAYS[found.positions["t"]], found.dates)
    assert np.array_equal(DAYS[1:][found.positions["rain"]] + 1, found.dates)
    assert np.array_equal(np.delete(DAYS, 4)[found.positions["olr"]] + 1, found.dates)
    assert np.array_equal(found.dates, np.delete(DAYS[2:], 3))
    for rule in ("start", "date"):
        assert np.array_equal(match(periods, "t", rule).dates, np.delete(DAYS[1:], 3))
    with pytest.raises(ValueError, match="no state of 't' has a record"):
        match({"t": periods["t"], "rain": periods["rain"] + np.timedelta64(365, "D")}, "t")


def test_calendars_keep_labels_or_are_refused():
    noleap = cftime.num2date(np.arange(58, 61), "days since 2000-01-01", "noleap")
    times, kept = standard_times(noleap)
    assert times.astype("datetime64[D]").astype(str).tolist() == ["2000-02-28", "2000-03-01", "2000-03-02"]
    assert kept.tolist() == [0, 1, 2]
    year = cftime.num2date(np.arange(360), "days since 2001-01-01", "360_day")
    with pytest.raises(ValueError, match="the first is 2001-02-29"):
        standard_times(year)
    times, kept = standard_times(year, "date")
    assert times.size == 358 and 58 not in kept and 59 not in kept
    times, kept = standard_times(year, "year")
    steps = np.diff(times.astype("datetime64[D]")).astype(int)
    assert kept.size == 360 and set(steps) == {1, 2} and (steps == 2).sum() in (4, 5)
    assert times[-1] >= np.datetime64("2001-12-31")
