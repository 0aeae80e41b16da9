"""ERA5 on pressure levels, a snapshot a day at 00 UTC: ChaosBench, the Climate Data Store, WeatherBench2, ARCO.

Layouts: CDS before September 2024 (time, level, int16), CDS since (valid_time, pressure_level descending,
number, expver), WeatherBench2 (long names, longitude before latitude), ChaosBench (a zarr a day, geopotential
in metres).
"""

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from slams import config
from slams.core.errors import InvalidValueError
from slams.data.archives import cds, weatherbench
from slams.data.archives.base import Archive, Report, within
from slams.data.archives.local import is_local, years_in
from slams.data.download.fetch import Item, fetch
from slams.data.download.unpack import parts_of, unpack
from slams.data.files.canonical import aliases
from slams.data.files.convention import Quantity
from slams.data.files.periods import SNAPSHOT

_HOUR = 0  # UTC, of the snapshot
_GRAVITY = 9.80665  # m s-2, the constant of the IFS
_TAIL = 66_000  # bytes; the end record of a zip lies in the last 65557


class ERA5(Archive):
    """Six variables on the levels of the system.

    z is in geopotential metres. ChaosBench divided by 9.81 m s-2 and is taken as it is; others are divided by
    9.80665 m s-2, so that their heights are larger by 0.03 %: don't mix the two in one store.

    Source:
        Hersbach et al. (2020), doi:10.1002/qj.3803; Nathaniel et al. (2024), arXiv:2402.00712 (ChaosBench);
        Rasp et al. (2024), doi:10.1029/2023MS004019 (WeatherBench2).
    """

    name = "era5"
    quantities = tuple(
        Quantity(name, unit, possible, "linear", SNAPSHOT, long_name, standard_name, aliases=aliases(name))
        for name, unit, possible, long_name, standard_name in (
            ("t", "K", (150.0, 350.0), "temperature", "air_temperature"),
            ("z", "gpm", (-1500.0, 60000.0), "geopotential height", "geopotential_height"),
            # spectral: slightly negative
            ("q", "kg kg-1", (-0.001, 0.1), "specific humidity", "specific_humidity"),
            ("u", "m s-1", (-250.0, 250.0), "eastward wind", "eastward_wind"),
            ("v", "m s-1", (-250.0, 250.0), "northward wind", "northward_wind"),
            ("w", "Pa s-1", (-100.0, 100.0), "vertical velocity", "lagrangian_tendency_of_air_pressure"),
        )
    )
    url, folder, first_year = config.ERA5_URL, config.ERA_DATADIR / "era5", 1940
    file = "era5_chunks.zip"

    def items(self, years: Sequence[int], source: str | Path | None = None) -> list[Item]:
        """ChaosBench's archive, or what a folder holds; `obtain` takes the other sources. See `Archive.items`."""
        base = self.url if source is None else source
        if is_local(base) is not None:
            return super().items(years, base)
        within(years, self.first_year, self.name)
        return [Item(f"{str(base).rstrip('/')}/{self.file}", self.file)]

    def obtain(
        self,
        years: Sequence[int],
        source: str | Path | None,
        folder: Path,
        *,
        jobs: int = 4,
        offline: bool = False,
        progress: Report | None = None,
        variables: Sequence[str] | None = None,
    ) -> list[Path]:
        """Get the files of some years; see `Archive.obtain`.

        Args:
            years: The years wanted.
            source: "cds"; the address of a zarr (WeatherBench2, ARCO), or "weatherbench" for that in
                slams/config.py; the address or folder of ChaosBench's archive; a folder of files or stores.
            folder: The data folder.
            jobs: Downloads at a time.
            offline: Use only what is there.
            progress: Progress bars, as in `fetch`.
            variables: Those wanted, where they can be had one by one; None takes all.

        Returns:
            Paths that `open` reads.
        """
        names = self.variables if variables is None else tuple(variables)
        if source == "cds":
            return cds.retrieve(
                within(years, self.first_year, self.name),
                folder,
                names,
                self.check,
                offline=offline,
                progress=progress,
            )
        base = config.WEATHERBENCH_URL if source == "weatherbench" else source or self.url
        local = is_local(base)
        if local is None and str(base).rstrip("/").endswith(".zarr"):
            return weatherbench.obtain(
                str(base), years, folder, names, hour=_HOUR, jobs=jobs, offline=offline, progress=progress
            )
        if local is None:
            whole = self._archive_parts(str(base), years, folder, jobs, offline, progress)
        else:
            zips = (
                [local] if local.suffix == ".zip" else sorted(local.glob("*.zip")) if local.is_dir() else []
            )
            if not zips:
                return super().obtain(years, local, folder, jobs=jobs, offline=offline, progress=progress)
            whole = parts_of(zips[0])
        unpacked = unpack(whole, folder, wanted=lambda name: _of_years(name, years), progress=progress)
        stores = [path for path in unpacked if path.suffix == ".zarr"]
        return self._of_ours(stores, years)

    def _archive_parts(
        self, base: str, years: Sequence[int], folder: Path, jobs: int, offline: bool, progress: Report | None
    ) -> list[Path]:
        """The zip of ChaosBench and its parts, whose number is in the last."""
        settings = {"jobs": jobs, "offline": offline, "progress": progress}
        last = fetch(self.items(years, base), folder, **settings)[0].path  # type: ignore[arg-type]
        stem = self.file.removesuffix(".zip")
        names = [f"{stem}.z{number:02d}" for number in range(1, parts_before(last) + 1)]
        address = base.rstrip("/")
        fetch([Item(f"{address}/{name}", name) for name in names], folder, **settings)  # type: ignore[arg-type]
        return parts_of(last)

    def _of_ours(self, paths: Sequence[Path], years: Sequence[int]) -> list[Path]:
        """Stores with the header of the archive and a day in the years."""
        found = []
        for path in paths:
            with self.opened(path) as dataset:
                self.known(dataset, path)
                if not years or set(years_in(dataset, path)) & set(years):
                    found.append(path)
        if not found:
            raise InvalidValueError(
                f"the archive of ERA5 holds no day of {sorted(set(years))}; ask for other years."
            )
        return found

    def recognises(self, dataset: xr.Dataset, variable: str) -> bool:
        """By the name of the variable, also of those that no store holds, and full names of its dimensions."""
        named = bool(aliases(variable))
        return named and {"latitude", "longitude"} <= set(map(str, dataset[variable].dims))

    def layout(self, dataset: xr.Dataset) -> str | None:
        """By names of variables and dimensions, and whether time is one of them; see `Convention.layout`."""
        for quantity in self.quantities:
            for name in quantity.names:
                if name in dataset.data_vars and self.recognises(dataset, name):
                    return _layout(dataset, name)
        return None

    def select(self, array: xr.DataArray, subject: str) -> xr.DataArray:
        """The snapshots of 00 UTC on the levels of the system, rising."""
        hours = array.time.values.astype("datetime64[h]").astype(int) % 24
        if not (hours == _HOUR).any():
            raise InvalidValueError(
                f"{subject} has no record at {_HOUR:02d} UTC, it has {sorted(set(hours.tolist()))}; a store holds "
                "snapshots of one hour: fetch that hour."
            )
        array = array.isel(time=np.flatnonzero(hours == _HOUR)) if (hours != _HOUR).any() else array
        if "level" not in array.dims:
            raise InvalidValueError(
                f"{subject} has no pressure levels; expected some of {config.PRESSURE_LEVELS} hPa."
            )
        held = array.level.values
        nearest = {float(level): int(np.abs(held - level).argmin()) for level in config.PRESSURE_LEVELS}
        found = {level: k for level, k in nearest.items() if abs(held[k] - level) < 1e-3 * level}
        if not found:
            raise InvalidValueError(
                f"{subject} has the levels {held.tolist()}, none of {config.PRESSURE_LEVELS} hPa."
            )
        return array.isel(level=list(found.values())).assign_coords(level=list(found))

    def decode(self, array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
        """Set the unit of geopotential by its values.

        ChaosBench divides z by g and may keep `m**2 s**-2`. In the standard atmosphere the height of a level
        is close to 7.4 km * ln(1013 / p), of which z / height is 1 or 9.8.
        """
        if array.attrs.get("source_name") not in ("z", "geopotential") or "level" not in array.dims:
            return array
        level = float(array.level.min())
        if level > 850:  # too near the ground for the ratio to be decisive
            return array
        height = 7400.0 * np.log(1013.25 / level)
        first = array.isel(time=0).sel(level=level)  # one record: the others may be on disk
        return array.assign_attrs(units="gpm") if float(first.mean()) / height < _GRAVITY / 3 else array


def _layout(dataset: xr.Dataset, name: str) -> str | None:
    """A known layout of a variable, by its dimensions."""
    dims = set(map(str, dataset[name].dims))
    times, levels = dims & {"time", "valid_time"}, dims & {"level", "pressure_level"}
    if dims - times - levels - {"latitude", "longitude", "number", "expver"} or not levels:
        return None
    if not times:
        alone = any(key in dataset.variables and dataset[key].ndim == 0 for key in ("time", "valid_time"))
        return "a record a file (ChaosBench)" if alone else None
    if len(name) > 1:
        return "WeatherBench2"
    return "CDS since 2024" if "valid_time" in dims else "CDS until 2024"


def parts_before(last: Path) -> int:
    """Number of parts before the last one of a split zip, by its end record.

    Args:
        last: The part `NAME.zip`.

    Returns:
        0 for a zip in one piece.

    Raises:
        ValueError: If it isn't the end of a zip.
    """
    with last.open("rb") as file:
        file.seek(max(0, last.stat().st_size - _TAIL))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise InvalidValueError(f"{last} isn't a zip, or is cut short; remove it and fetch it again.")
    number = int(struct.unpack_from("<H", tail, end + 4)[0])
    locator = tail.rfind(b"PK\6\7", 0, end)
    if number == 0xFFFF and locator >= 0:
        number = int(struct.unpack_from("<I", tail, locator + 16)[0]) - 1
    if number > 999:
        raise InvalidValueError(f"{last} claims {number} parts before it; remove it and fetch it again.")
    return number


def _of_years(name: str, years: Sequence[int]) -> bool:
    """Whether a member may belong to the years; members without a date in the name are unpacked."""
    date = re.search(r"_((?:19|20)\d\d)\d{4}\.zarr/", name)
    return date is None or not years or int(date[1]) in years
