"""The synthetic archive is read as the real ones are, and is smooth, skewed and seeded."""

import numpy as np
import pytest
import torch

from slams.cli import main
from slams.core.errors import InvalidValueError
from slams.data.store.store import FieldStore
from slams.data.synthetic import Grids, Weather, write_archive

SMALL = Grids((13, 24), (36, 72))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("raw"), days=4, first="2000-12-30", seed=3, grids=SMALL)


def test_the_readers_of_the_real_archives_read_it(archive, tmp_path) -> None:
    found = {}
    for source, folder, name in (("era5", "era5", "t"), ("cpc", "cpc", "precip"), ("olr", "olr", "olr")):
        out = tmp_path / folder
        settings = ["--variables", "t"] if source == "era5" else []
        assert main(["data", source, "--source", str(archive / folder), "--out", str(out), *settings]) == 0
        found[name] = FieldStore(out / f"{name}.zarr")
        assert len(found[name].dates) == 4
    t, rain, olr = (found[name].read(found[name].dates).values for name in ("t", "precip", "olr"))
    assert t.shape == (4, 10, 121, 240) and t.min() > 180 and t.max() < 330
    wet = rain[np.isfinite(rain)]
    assert 0.3 < np.isnan(rain).mean() < 0.9 and 0.05 < (wet > 0.1).mean() < 0.6
    assert olr.min() > 80 and olr.max() < 350


def test_other_settings_in_the_same_folder_are_refused(archive) -> None:
    with pytest.raises(InvalidValueError, match="another set-up"):
        write_archive(archive, days=5, first="2000-12-30", seed=3, grids=SMALL)


def test_a_second_run_keeps_what_is_there(archive) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    write_archive(archive, days=4, first="2000-12-30", seed=3, grids=SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}


def test_weather_persists_and_is_the_same_on_every_grid() -> None:
    """Correlation from day to day .85 at most of the waves that turn; a coarse grid holds values of a finer one."""
    weather = Weather(0)
    lat = np.linspace(60, -60, 9)
    fine, coarse = weather.fields(lat, 96), weather.fields(lat[::2], 48)
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-9)
    series = []
    for _ in range(300):
        series.append(weather.fields(lat, 96)[0])
        weather.step()
    x = torch.tensor(np.array(series)).flatten(1)
    assert 0.5 < float(x.var()) < 2.0
    apart = float(torch.corrcoef(torch.stack([x[1:].flatten(), x[:-1].flatten()]))[0, 1])
    assert 0.3 < apart < 0.86
