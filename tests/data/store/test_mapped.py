"""Windows from stores: the same days in every modality, the same values by every way of loading."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader

from slams.data.files.periods import DAILY_MEAN, RAIN_DAY, SNAPSHOT, bounds
from slams.data.joining import matching_lags
from slams.data.store.mapped import map_store
from slams.data.store.store import FieldStore
from slams.data.windows import WindowDataset

FIRST = np.datetime64("2000-01-01")


def store(path: Path, days: np.ndarray, period=None, levels: int = 0) -> FieldStore:
    """Every value tells its day: days since 1970, plus the place."""
    place = np.linspace(0, 0.5, 12 * max(levels, 1)).reshape(*([levels] if levels else []), 3, 4)
    number = days.astype("datetime64[D]").astype(int)
    values = (number.reshape(-1, *([1] * place.ndim)) + place).astype("f4")
    coords = {"time": days, "lat": [1.0, 0.0, -1.0], "lon": [0.0, 1.0, 2.0, 3.0]}
    dims = ("time", *(("level",) if levels else ()), "lat", "lon")
    if levels:
        coords["level"] = np.arange(1.0, levels + 1)
    array = xr.DataArray(values, coords, dims, path.stem, {"units": "K", "source_name": "x"})
    if period is None:
        return FieldStore.create(path, array)
    return FieldStore.create(
        path, array.to_dataset().assign(time_bnds=(("time", "bnds"), bounds(days, period)))
    )


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, FieldStore]:
    """State and rain with different days and different gaps."""
    t = FIRST + np.r_[0:20, 23:40]
    rain = FIRST + np.r_[3:31, 32:45]
    return {
        "t": store(tmp_path / "t.zarr", t, SNAPSHOT, 2),
        "rain": store(tmp_path / "rain.zarr", rain, RAIN_DAY),
    }


def test_windows_hold_the_same_days_and_cross_no_gap(stores) -> None:
    """State of day d with the rain of day d - 1: the values say which day they are."""
    lags, rule = matching_lags(stores, "t", "end")
    assert lags == {"t": 0, "rain": -1} and "end of the rain day" in rule
    dataset = WindowDataset.from_stores(stores, 5, lags=lags)
    lost = {
        *range(20, 23),
        32,
        *range(4),
    }  # of the state; the rain of day 31, and before day 3, belongs to the next
    free = [day for day in range(40) if day not in lost]
    starts = [day for day in free if all(day + k in free for k in range(5))]
    assert [int((dataset.days(i)[0] - FIRST).astype(int)) for i in range(len(dataset))] == starts
    for i in range(len(dataset)):
        window, days = dataset[i], dataset.days(i).astype(int)
        assert window["t"].shape == (5, 2, 3, 4) and window["rain"].shape == (5, 3, 4)
        np.testing.assert_array_equal(window["t"][:, 0, 0, 0], days)
        np.testing.assert_array_equal(window["rain"][:, 0, 0], days - 1)
    assert dataset.report is not None and "3 runs" in dataset.report.text()


def test_lags_follow_the_rule(tmp_path: Path) -> None:
    days = FIRST + np.arange(9)
    mean = store(tmp_path / "mean.zarr", days, DAILY_MEAN)
    shot = store(tmp_path / "shot.zarr", days, SNAPSHOT)
    bare = store(tmp_path / "bare.zarr", days)
    for rule, lag in (("end", -1), ("start", 0), ("date", 0)):
        assert matching_lags({"shot": shot, "mean": mean}, "shot", rule)[0]["mean"] == lag
    lags, words = matching_lags({"shot": shot, "bare": bare}, "shot", "end")
    assert lags == {"shot": 0, "bare": 0} and "bare without time bounds" in words


@pytest.mark.parametrize("workers", [0, 2])
def test_every_way_of_loading_gives_the_store(stores, workers: int) -> None:
    """Shuffled, batched, in this process or in others: what the store reads by date."""
    dataset = WindowDataset.from_stores(stores, 3, span=("2000-01-05", "2000-01-20"))
    rng = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, 4, shuffle=True, generator=rng, num_workers=workers)
    seen = []
    for batch in loader:
        assert isinstance(batch, dict) and batch["t"].dtype == torch.float32
        for t, rain in zip(batch["t"], batch["rain"], strict=True):
            first = np.datetime64(int(t[0, 0, 0, 0]), "D")
            days = first + np.arange(3)
            np.testing.assert_array_equal(t, stores["t"].read(days).values)
            np.testing.assert_array_equal(rain, stores["rain"].read(days).values)
            seen.append(first)
    expected = [np.datetime64("2000-01-05") + k for k in range(14)]
    assert sorted(seen) == expected and seen != expected


def test_spawned_workers_load_the_same_values(stores) -> None:
    """macOS and Windows spawn workers, which get the dataset by pickle and the collation by import."""
    dataset = WindowDataset.from_stores(stores, 5)
    loader = DataLoader(dataset, 4, num_workers=1, multiprocessing_context="spawn")
    loaded = [batch["t"] for batch in loader]
    plain = [batch["t"] for batch in DataLoader(dataset, 4)]
    assert len(loaded) == len(plain) and all(map(torch.equal, loaded, plain))


def test_a_field_travels_to_another_process_by_its_path(stores) -> None:
    """Not with its values: a spawned worker would get a copy of the archive."""
    field = map_store(stores["t"])
    sent = pickle.dumps(field)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[:], field[:])


def test_workers_that_are_spawned_bring_the_same_batches(stores) -> None:
    """Windows and macOS start workers afresh: what a fork would inherit has to travel."""
    dataset = WindowDataset.from_stores(stores, 3)
    spawned = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    for one, two in zip(spawned, DataLoader(dataset, batch_size=4), strict=True):
        assert set(one) == set(two) == set(stores)
        for name in one:
            torch.testing.assert_close(one[name], two[name], equal_nan=True)


def test_a_copy_that_another_process_reads_may_stay_on_windows(stores, monkeypatch) -> None:
    old = map_store(stores["t"])

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "The process cannot access the file", str(path))

    days = stores["t"].dates[-1:] + 1
    array = store(stores["t"].path.parent / "more" / "t.zarr", days, SNAPSHOT, 2).read().to_dataset()
    array = array.assign(time_bnds=(("time", "bnds"), bounds(days, SNAPSHOT)))
    grown = FieldStore.append(stores["t"].path, array)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(map_store(grown)) == len(old) + 1 and old.path.exists()


def test_changing_a_sample_changes_neither_file_nor_the_next_sample(stores) -> None:
    dataset = WindowDataset.from_stores(stores, 3)
    before = dataset[0]["t"].clone()
    dataset[0]["t"].fill_(-1)
    torch.testing.assert_close(dataset[0]["t"], before)
    np.testing.assert_array_equal(map_store(stores["t"])[:3], stores["t"].read(stores["t"].dates[:3]).values)


def test_the_copy_is_made_once_and_again_when_the_store_grows(stores, tmp_path: Path) -> None:
    said: list[str] = []
    map_store(stores["t"], say=said.append)
    map_store(stores["t"], say=said.append)
    assert len(said) == 1 and "GB" in said[0] and " s" in said[0]
    old = map_store(stores["t"])
    days = stores["t"].dates[-1] + np.arange(1, 4)
    more = store(tmp_path / "more" / "t.zarr", days, SNAPSHOT, 2)
    array = more.read().to_dataset().assign(time_bnds=(("time", "bnds"), bounds(days, SNAPSHOT)))
    grown = map_store(FieldStore.append(stores["t"].path, array), say=said.append)
    assert len(said) == 2 and len(grown) == len(old) + 3
    np.testing.assert_array_equal(grown[: len(old)], old[:])  # who reads the older copy goes on with it
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_fingerprint_cannot_lead_out_of_the_cache(stores) -> None:
    stores["t"].fingerprint = "/../../../x"
    with pytest.raises(ValueError, match="fingerprint"):
        map_store(stores["t"])
