"""Smooth random weather in the files, grids and headers of the real archives, to try a chain at its full size.

    python -m slams.data.synthetic FOLDER [--first 2000-01-01] [--days 400] [--seed 0]

writes FOLDER/era5 (temperature, 10 x 121 x 240, a zarr a day as ChaosBench has it), FOLDER/cpc (rain, 360 x 720, a
file a year as of NOAA PSL) and FOLDER/olr (radiation, 73 x 144): what `slams data era5|cpc|olr --source` reads. It says
whether a chain runs and what it costs, nothing of skill.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from slams.config import PRESSURE_LEVELS
from slams.core.files import atomic
from slams.core.stages import claim

_ZONAL, _MERIDIONAL = 24, 14  # waves
_PERSISTENCE = 0.85  # of an amplitude from day to day
_DRY = np.float32(-9.96921e36)
_NOTE = "SYNTHETIC: smooth random fields; not observations of the Earth"


@dataclass(frozen=True)
class Grids:
    """Number of latitudes and longitudes of each archive; those of the real ones by default."""

    era5: tuple[int, int] = (121, 240)
    cpc: tuple[int, int] = (360, 720)
    olr: tuple[int, int] = (73, 144)


class Weather:
    """Two fields of waves that travel eastward, fade and are born again: amplitudes (2, zonal, meridional), complex.

    Amplitudes are autoregressive with a spectrum that falls with the wave number; fields are made of them on any grid.

    Args:
        seed: Seed of all days.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0])
        m, k = np.arange(_ZONAL)[:, None], np.arange(1, _MERIDIONAL + 1)
        self._scale = (4.0 + m**2 + 2.0 * k**2) ** -0.8
        self._scale /= np.sqrt((np.where(m == 0, 0.25, 1.0) * self._scale**2).sum())
        turn = np.exp(-2j * np.pi * m / 30)  # a wave crosses its length in a month over its number
        self._turn = _PERSISTENCE * turn
        self.amplitudes = self._noise()

    def _noise(self) -> np.ndarray:
        pair = self._rng.standard_normal((2, 2, *self._scale.shape))
        return self._scale * (pair[0] + 1j * pair[1])

    def step(self) -> None:
        """The next day."""
        self.amplitudes = self._turn * self.amplitudes + (1 - _PERSISTENCE**2) ** 0.5 * self._noise()

    def fields(self, lat: np.ndarray, width: int, first: float = 0.0) -> np.ndarray:
        """Both fields of about unit variance, (2, H, W), at latitudes [degrees] and W longitudes from `first` on."""
        k = np.arange(1, _MERIDIONAL + 1)
        rows = np.sin(k * np.pi * (lat[:, None] + 90) / 180 + 0.1 * k) @ self.amplitudes.transpose(0, 2, 1)
        shift = np.exp(1j * np.arange(_ZONAL) * np.deg2rad(first))
        spectrum = np.zeros((2, len(lat), width // 2 + 1), complex)
        used = min(_ZONAL, width // 2)
        spectrum[..., :used] = (rows * shift)[..., :used]
        found: np.ndarray = np.fft.irfft(spectrum, width, axis=-1) * width / 2**0.5
        return found


def write_archive(
    folder: str | Path,
    *,
    first: str = "2000-01-01",
    days: int = 400,
    seed: int = 0,
    grids: Grids = Grids(),
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write the files of consecutive days, a day at a time; files that are there are kept.

    Args:
        folder: Folder of the files.
        first: First day.
        days: Number of days.
        seed: Seed of the weather.
        grids: Sizes of the grids.
        progress: Called with 1 after each day.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder has files of other settings.
    """
    folder, start = Path(folder), np.datetime64(first, "D")
    for name in ("era5", "cpc", "olr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "first": str(start),
        "days": days,
        "seed": seed,
        "grids": [*grids.era5, *grids.cpc, *grids.olr],
    }
    claim(folder / "synthetic.json", settings)
    dates = start + np.arange(days)
    for year in np.unique(dates.astype("datetime64[Y]")):
        path = folder / "cpc" / f"precip.{year}.nc"
        if not path.exists():
            chosen = dates.astype("datetime64[Y]") == year
            _write_daily(path, dates[chosen], _rains(seed, grids.cpc, chosen), _RAIN, grids.cpc)
    path = folder / "olr" / "olr.day.mean.nc"
    if not path.exists():
        _write_daily(path, dates, _radiation(seed, grids.olr, days), _OLR, grids.olr)
    lat, lon = _axes(grids.era5, poles=True)
    for day, (dry, moist) in zip(dates, _days(seed, lat, lon, days), strict=True):
        path = folder / "era5" / f"era5_full_1.5deg_{str(day).replace('-', '')}.zarr"
        if not path.exists():
            _write_temperature(path, day, lat, lon, dry, moist)
        progress(1)
    return folder


def _days(seed: int, lat: np.ndarray, lon: np.ndarray, days: int) -> Iterator[np.ndarray]:
    weather = Weather(seed)
    for _ in range(days):
        yield weather.fields(lat, len(lon), float(lon[0]))
        weather.step()


def _axes(size: tuple[int, int], *, poles: bool) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes from north to south and longitudes, at the corners or in the middle of cells."""
    height, width = size
    lat = np.linspace(90, -90, height) if poles else 90 - 180 / height * (np.arange(height) + 0.5)
    return lat, 360 / width * (np.arange(width) + (0 if poles else 0.5))


def _rain(dry: np.ndarray, moist: np.ndarray) -> np.ndarray:
    """Rain [mm]: none on most days, skewed where it falls, more where cold air meets warm."""
    rain: np.ndarray = 4 * np.maximum(np.exp(moist + 0.15 * dry**2) - 2.0, 0)
    return np.round(np.minimum(rain, 300), 2).astype(np.float32)


def _rains(seed: int, size: tuple[int, int], chosen: np.ndarray) -> Iterator[np.ndarray]:
    lat, lon = _axes(size, poles=False)
    land = Weather(seed + 1).fields(lat, len(lon), float(lon[0]))[0] > 0.4
    for (dry, moist), wanted in zip(_days(seed, lat, lon, len(chosen)), chosen, strict=True):
        if wanted:
            yield np.where(land, _rain(dry, moist), _DRY)


def _radiation(seed: int, size: tuple[int, int], days: int) -> Iterator[np.ndarray]:
    lat, lon = _axes(size, poles=True)
    for dry, moist in _days(seed, lat, lon, days):
        clear = 200 + 80 * np.cos(np.deg2rad(lat))[:, None] ** 2 + 6 * dry
        yield (clear - 45 * np.tanh(_rain(dry, moist) / 10) - 5 * moist).astype(np.float32)


def _write_temperature(
    path: Path, day: np.datetime64, lat: np.ndarray, lon: np.ndarray, dry: np.ndarray, moist: np.ndarray
) -> None:
    """A day as ChaosBench has it: fronts in the lower levels, waves that tilt with height."""
    level = np.array(PRESSURE_LEVELS, np.float64)
    height = -7.0 * np.log(level / 1000)[:, None, None]
    season = np.cos(2 * np.pi * ((day - day.astype("datetime64[Y]")).astype(int) - 20) / 365.25)
    contrast = 28 * np.clip(1 - height / 16, 0.1, 1)  # between equator and poles, least in the stratosphere
    climate = np.maximum(290 - 6.3 * height, 212) - contrast * (np.sin(np.deg2rad(lat)) ** 2)[:, None]
    climate = climate - (9 * season * np.sin(np.deg2rad(lat)))[:, None]
    angle = 0.12 * height
    wave = np.cos(angle) * (dry + 0.8 * np.tanh(3 * dry)) + np.sin(angle) * (moist + 0.3 * dry * moist)
    field = (climate + 4.5 * wave).astype(np.float32)
    dataset = xr.Dataset(
        {"t": (("level", "latitude", "longitude"), field, {"units": "K"})},
        {
            "level": ("level", level.astype("i4"), {"units": "millibars", "long_name": "pressure_level"}),
            "latitude": ("latitude", lat.astype("f4"), {"units": "degrees_north"}),
            "longitude": ("longitude", lon.astype("f4"), {"units": "degrees_east"}),
            "time": day.astype("datetime64[ns]"),
        },
        {"Conventions": "CF-1.6", "source": _NOTE},
    )
    with atomic(path) as temporary:
        dataset.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)


_RAIN = {
    "name": "precip",
    "epoch": "1900-01-01",
    "title": "CPC GLOBAL PRCP V1.0 RT",
    "attributes": {
        "missing_value": _DRY,
        "var_desc": "Precipitation",
        "statistic": "Total",
        "long_name": "Daily total of precipitation",
        "cell_methods": "time: sum",
        "units": "mm",
        "valid_range": np.array([0, 1000], np.float32),
        "dataset": "CPC Global Precipitation",
    },
}
_OLR = {
    "name": "olr",
    "epoch": "1800-01-01",
    "title": "NOAA Interpolated OLR",
    "attributes": {
        "missing_value": _DRY,
        "var_desc": "Outgoing Longwave Radiation",
        "statistic": "Mean",
        "long_name": "Daily OLR",
        "units": "W/m^2",
        "valid_range": np.array([0, 500], np.float32),
        "dataset": "NOAA Interpolated OLR",
    },
}


def _write_daily(
    path: Path, dates: np.ndarray, fields: Iterator[np.ndarray], about: dict, size: tuple[int, int]
) -> None:
    """A file of PSL's layout, written day by day."""
    lat, lon = _axes(size, poles=about["name"] == "olr")
    with atomic(path) as temporary, netCDF4.Dataset(temporary, "w", format="NETCDF4_CLASSIC") as file:
        file.set_auto_maskandscale(False)
        file.setncatts({"Conventions": "CF-1.2", "title": about["title"], "source": _NOTE})
        file.createDimension("time", None)
        time = file.createVariable("time", "f8", ("time",))
        step = "0000-00-01 00:00:00"
        time.setncatts(
            {
                "units": f"hours since {about['epoch']} 00:00:00",
                "long_name": "Time",
                "standard_name": "time",
                "axis": "T",
                "delta_t": step,
                "avg_period": step,
            }
        )
        for axis, values, units in (("lat", lat, "degrees_north"), ("lon", lon, "degrees_east")):
            file.createDimension(axis, len(values))
            variable = file.createVariable(axis, "f4", (axis,))
            variable.setncatts({"units": units})
            variable[:] = values
        variable = file.createVariable(
            about["name"], "f4", ("time", "lat", "lon"), zlib=True, complevel=1, chunksizes=(1, *size)
        )
        variable.setncatts(about["attributes"])
        epoch = np.datetime64(about["epoch"], "h")
        for row, (day, field) in enumerate(zip(dates, fields, strict=True)):
            time[row] = (day.astype("datetime64[h]") - epoch).astype(float)
            variable[row] = field


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", default="2000-01-01")
    parser.add_argument("--days", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(write_archive(a.folder, first=a.first, days=a.days, seed=a.seed))


if __name__ == "__main__":
    main()
