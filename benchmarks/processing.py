"""What processing a year of CPC rain costs beside reading and writing alone, and how its memory grows.

    python benchmarks/processing.py [--folder DIR] [--days 365] [--years 6]

Makes years of rain in the layout of NOAA PSL (360 x 720, float32, deflated, 64 % missing), and then measures, each
in a process of its own: reading a year's file by xarray, 16 days at a time, and writing fields to a store with the
same chunks (the floor); and `slams.data.processing.process` of one year and of all (conservative to 1.5 degrees,
time bounds, statistics, checksums, manifest). Pairs take turns, and CPU seconds count, so that a busy machine
matters less. The floor writes at the resolution of the result, taken from every third cell: writing the source's would
be nine times as much, and flatter the ratio.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

PEAK_BAR, RATIO_BAR = 1e9, 1.5


def year_of_rain(path: Path, year: int, days: int) -> Path:
    """A file with the header of PSL: wet areas of some cells, and a mask of land for the whole year."""
    rng = np.random.default_rng(year)
    land = np.kron(rng.random((30, 60)) < 0.36, np.ones((12, 12), dtype=bool))
    first = np.datetime64(f"{year}-01-01", "D")
    lat, lon = 89.75 - 0.5 * np.arange(360), 0.25 + 0.5 * np.arange(720)
    values = np.empty((days, 360, 720), dtype=np.float32)
    for day in range(days):
        wet = np.kron(rng.gamma(0.2, 8.0, (90, 180)), np.ones((4, 4))) * rng.gamma(2.0, 0.5, (360, 720))
        values[day] = np.where(land, np.round(np.where(wet > 0.5, wet, 0.0), 2), np.nan)
    coords = {"time": (first + np.arange(days)).astype("datetime64[ns]"), "lat": lat, "lon": lon}
    attrs = {"units": "mm", "dataset": "CPC Global Precipitation", "var_desc": "Precipitation"}
    array = xr.DataArray(values, coords, ("time", "lat", "lon"), "precip", attrs)
    array.lat.attrs["units"], array.lon.attrs["units"] = "degrees_north", "degrees_east"
    packing = {"zlib": True, "complevel": 2, "chunksizes": (1, 360, 720), "_FillValue": None}
    stamps = {"units": "hours since 1900-01-01 00:00:00", "dtype": "f8"}
    dataset = array.to_dataset().assign_attrs(title="CPC GLOBAL PRCP V1.0 RT")
    dataset = dataset.fillna(-9.96921e36)
    dataset.precip.attrs = attrs | {"missing_value": np.float32(-9.96921e36), "valid_range": [0.0, 1000.0]}
    dataset.to_netcdf(
        path, engine="netcdf4", format="NETCDF4_CLASSIC", encoding={"precip": packing, "time": stamps}
    )
    return path


def floor(source: Path, out: Path) -> None:
    """Read all of it, missing values as NaN, and write fields of the size of the result."""
    from slams.data.processing.regrid import Grid
    from slams.data.store.store import FieldStore

    grid = Grid.named("1.5deg")

    def parts():
        with xr.open_dataset(source, engine="netcdf4") as file:
            for start in range(0, file.sizes["time"], 16):
                block = file.precip[start : start + 16].values
                days = file.time.values[start : start + 16]
                small = np.full((len(block), 121, 240), np.nan, dtype=np.float32)
                small[:, :120] = block[:, 1::3, 1::3]
                coords = {"time": days, "lat": grid.lat, "lon": grid.lon}
                yield xr.DataArray(small, coords, ("time", "lat", "lon"), "precip", {"units": "mm/day"})

    FieldStore.create(out / "precip.zarr", parts())


def processed(sources: list[Path], out: Path) -> None:
    """The real thing."""
    from slams.data.archives import ARCHIVES
    from slams.data.processing.process import process

    process(ARCHIVES["cpc"], sources, out)


def child(what: str, folder: Path) -> None:
    """One measurement: CPU seconds of the work without imports, peak memory of the process."""
    if what.startswith("make"):
        year, days = map(int, what.split()[1:])
        year_of_rain(folder / "raw" / f"precip.{year}.nc", year, days)
        return
    import netCDF4  # noqa: F401  imports are no part of the work

    from slams.data import archives, store  # noqa: F401
    from slams.data.processing import process  # noqa: F401

    xr.DataArray(np.zeros(2)).chunk().compute(
        scheduler="synchronous"
    )  # brings dask, which both would have at hand in a longer run

    out = folder / f"out_{what}"
    shutil.rmtree(out, ignore_errors=True)
    sources = sorted((folder / "raw").glob("*.nc"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, wall = time.process_time(), time.perf_counter()
    if what == "floor":
        floor(sources[0], out)
    else:
        processed(sources[: int(what)], out)
    print(
        json.dumps(
            {
                "cpu": time.process_time() - start,
                "wall": time.perf_counter() - wall,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "imports": before,
            }
        )
    )


def run(what: str, folder: Path) -> str:
    """A child in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", what, "--folder", str(folder)]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(what: str, folder: Path) -> dict[str, float]:
    """One measurement."""
    row: dict[str, float] = json.loads(run(what, folder).splitlines()[-1])
    return row


def main() -> int:
    """Measure, print, compare with the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where files are made and kept; default: a temporary one")
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument(
        "--years", type=int, default=6, help="process this many, whose memory must be that of one"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="slams_processing_"))
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    for year in range(1998, 1998 + arguments.years):
        if not (folder / "raw" / f"precip.{year}.nc").exists():
            run(f"make {year} {arguments.days}", folder)  # apart: a child inherits the peak of its parent
    measure("floor", folder)  # warms the cache of files
    runs = [(measure("floor", folder), measure("1", folder)) for _ in range(3)]
    base, full = (min((run[k] for run in runs), key=lambda row: row["cpu"]) for k in (0, 1))
    ratio, peak = full["cpu"] / base["cpu"], full["peak"]
    size = (folder / "raw" / "precip.1998.nc").stat().st_size
    print(f"one year, {arguments.days} days, file of {size / 1e6:.0f} MB")
    print(f"reading and writing alone  {base['cpu']:6.2f} s CPU  peak {base['peak'] / 1e6:5.0f} MB")
    print(
        f"processing                 {full['cpu']:6.2f} s CPU  peak {peak / 1e6:5.0f} MB "
        f"(imports {full['imports'] / 1e6:.0f} MB)"
    )
    print(f"ratio {ratio:.2f} (bar {RATIO_BAR}), peak {peak / 1e9:.2f} GB (bar {PEAK_BAR / 1e9:.0f})")
    good = ratio <= RATIO_BAR and peak < PEAK_BAR
    if arguments.years > 1:
        many = measure(str(arguments.years), folder)["peak"]
        print(
            f"{arguments.years} years: peak {many / 1e6:.0f} MB, one year {peak / 1e6:.0f} MB (bar 1.1 times)"
        )
        good = good and many < 1.1 * peak
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
