"""Observations at stations as one table, whatever they were reported in.

The columns of a table, one row an observation:

| column | type | meaning |
|---|---|---|
| time | datetime64[s] | moment of the observation, UTC; of rain, the end of its hours |
| lat, lon | float64 | degrees north and east, lon in [-180, 180) |
| level | float32 | pressure [hPa]; missing near the ground |
| variable | text | one of VARIABLES |
| value | float32 | in the unit of the variable |
| error_std | float32 | standard deviation of the error of instrument and rounding, in the same unit |
| station | text | the network's name of the station |
| qc | int8 | 0 good, 1 suspect, 2 bad |

In netCDF the table is CF's feature type `point`: stations once, an index and codes for the rest.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.core.files import atomic

COLUMNS = ("time", "lat", "lon", "level", "variable", "value", "error_std", "station", "qc")
GOOD, SUSPECT, BAD = 0, 1, 2
PLACE = ["station", "lat", "lon"]
_DEW_POINT_EXCESS = 1.0  # K above the temperature that two rounded reports can show


@dataclass(frozen=True)
class Observed:
    """One kind of observation.

    Args:
        units: Unit of its values.
        valid_range: Range of valid values; others are marked bad.
        instrument_std: Error of a well-kept instrument, without rounding.
        hours: Length of the interval that a total covers; 0 for moments.
        spike: A report that differs this much from both neighbours within three hours is suspect; inf: none.

    Source:
        WMO (2018), Guide to Instruments and Methods of Observation, WMO-No. 8, annex 1.A: half of the
        achievable uncertainty, which is stated at two standard deviations.
    """

    units: str
    valid_range: tuple[float, float]
    instrument_std: float
    hours: int = 0
    spike: float = float("inf")

    @property
    def statistic(self) -> Literal["mean", "sum"]:
        """Daily statistic of the values."""
        return "sum" if self.hours else "mean"


VARIABLES = {
    "temperature": Observed("K", (183.0, 333.0), 0.1, spike=15.0),
    "dew_point": Observed("K", (173.0, 310.0), 0.25, spike=15.0),
    "sea_level_pressure": Observed("Pa", (86000.0, 109000.0), 7.5, spike=1500.0),
    "altimeter": Observed("Pa", (86000.0, 109000.0), 7.5, spike=1500.0),
    "u_wind": Observed("m s-1", (-100.0, 100.0), 0.25),
    "v_wind": Observed("m s-1", (-100.0, 100.0), 0.25),
    "precipitation_1h": Observed("mm", (0.0, 305.0), 0.05, hours=1),
    "precipitation_3h": Observed("mm", (0.0, 600.0), 0.05, hours=3),
    "precipitation_6h": Observed("mm", (0.0, 900.0), 0.05, hours=6),
    "precipitation_12h": Observed("mm", (0.0, 1200.0), 0.05, hours=12),
    "precipitation_24h": Observed("mm", (0.0, 1825.0), 0.05, hours=24),
}
_DTYPES = {"lat": "f8", "lon": "f8", "level": "f4", "value": "f4", "error_std": "f4", "qc": "i1"}


def error_std(variable: str, step: float) -> float:
    """Error of one report: sqrt(instrument² + step² / 12), the second term from rounding to `step`.

    Args:
        variable: One of VARIABLES.
        step: Unit of the last digit reported.

    Returns:
        A standard deviation in the unit of the variable.

    >>> round(error_std("temperature", 1.0), 3)
    0.306
    """
    return float(np.hypot(VARIABLES[variable].instrument_std, step / np.sqrt(12.0)))


def wind_components(speed: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eastward and northward wind from its speed and the direction it comes from.

    u = -s sin d, v = -s cos d. Calm air has no direction, and needs none.

    Args:
        speed: s [m/s].
        direction: d [degrees clockwise from north].

    Returns:
        (u, v) [m/s], NaN where the direction of moving air is missing.
    """
    angle = np.deg2rad(np.where(speed == 0, 0.0, direction))
    return -speed * np.sin(angle) + 0.0, -speed * np.cos(angle) + 0.0  # + 0.0: no negative zeros


def assemble(
    base: pd.DataFrame, values: Mapping[str, tuple[np.ndarray, np.ndarray | float, np.ndarray]]
) -> pd.DataFrame:
    """One table out of reports that carry several variables each.

    Args:
        base: A row a report: time, lat, lon, station.
        values: Arrays by variable: values (NaN where not reported), error_std and the source's qc.

    Returns:
        A table, checked by `quality`, ordered by time, station and variable.
    """
    parts = []
    for name, (value, error, flag) in values.items():
        there = np.isfinite(value)
        part = base.loc[there, ["time", "lat", "lon", "station"]].copy()
        part["level"], part["variable"] = np.float32(np.nan), name
        part["value"], part["qc"] = value[there], np.asarray(flag)[there]
        part["error_std"] = np.broadcast_to(error, value.shape)[there]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    return quality(_typed(table))


def quality(table: pd.DataFrame) -> pd.DataFrame:
    """Gross error checks, which only lower the quality given by the source.

    Bad: out of the possible range, or at an impossible place. Suspect: a spike against both neighbours in
    time, a dew point above the temperature of the same report, the place 0 N 0 E, which stands for a missing
    one. Of several reports of one station, variable and moment the best, and among equals the last, is kept.

    Args:
        table: Observations.

    Returns:
        The table in order of time, station and variable, without repetitions.
    """
    table = table.sort_values("qc", ascending=False, kind="stable")
    table = table.drop_duplicates(["station", "variable", "time"], keep="last")
    table = table.sort_values(["time", "station", "variable"], kind="stable").reset_index(drop=True)
    value, qc = table["value"].to_numpy(), table["qc"].to_numpy().copy()
    low = table["variable"].map({name: kind.valid_range[0] for name, kind in VARIABLES.items()}).to_numpy()
    high = table["variable"].map({name: kind.valid_range[1] for name, kind in VARIABLES.items()}).to_numpy()
    doubtful = _spikes(table) | _moister_than_saturated(table) | unplaced(table)
    qc[doubtful] = np.maximum(qc[doubtful], SUSPECT)
    qc[(value < low) | (value > high) | nowhere(table)] = BAD
    return table.assign(qc=qc.astype("i1"))


def nowhere(table: pd.DataFrame) -> np.ndarray:
    """Reports without a place on the sphere."""
    return ~(table["lat"].abs() <= 90).to_numpy() | ~(table["lon"].abs() <= 180).to_numpy()


def unplaced(table: pd.DataFrame) -> np.ndarray:
    """Reports at 0 N 0 E, where no land station stands."""
    return ((table["lat"] == 0) & (table["lon"] == 0)).to_numpy()


def _spikes(table: pd.DataFrame) -> np.ndarray:
    """Values far from the reports before and after, both on the same side and within three hours."""
    spike = np.zeros(len(table), dtype=bool)
    for (_, variable), rows in table.groupby(["station", "variable"], sort=False):
        limit = VARIABLES[str(variable)].spike
        if not np.isfinite(limit) or len(rows) < 3:
            continue
        value = rows["value"].to_numpy(dtype=float)
        near = np.diff(rows["time"].to_numpy()) <= np.timedelta64(3, "h")
        step = np.diff(value)
        alone = (np.abs(step[:-1]) > limit) & (np.abs(step[1:]) > limit) & (step[:-1] * step[1:] < 0)
        spike[rows.index.to_numpy()[1:-1][alone & near[:-1] & near[1:]]] = True
    return spike


def _moister_than_saturated(table: pd.DataFrame) -> np.ndarray:
    """Dew points above the temperature of the same station and moment."""
    temperature = table[table["variable"] == "temperature"].set_index(["station", "time"])["value"]
    dew = np.flatnonzero(table["variable"] == "dew_point")
    keys = pd.MultiIndex.from_frame(table.loc[dew, ["station", "time"]])
    excess = table["value"].to_numpy()[dew] - temperature.reindex(keys).to_numpy()
    wrong = np.zeros(len(table), dtype=bool)
    wrong[dew[excess > _DEW_POINT_EXCESS]] = True
    return wrong


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and type."""
    absent = [name for name in COLUMNS if name not in table.columns]
    if absent:
        raise InvalidValueError(
            f"a table of observations needs the columns {', '.join(COLUMNS)}; {', '.join(absent)} are missing."
        )
    unknown = sorted(set(table["variable"]) - set(VARIABLES))
    if unknown:
        raise InvalidValueError(f"unknown variables {unknown}; expected {', '.join(VARIABLES)}.")
    typed = table.loc[:, list(COLUMNS)].astype(_DTYPES)
    return typed.assign(
        time=typed["time"].to_numpy().astype("datetime64[s]"),
        variable=typed["variable"].astype(str),
        station=typed["station"].astype(str),
        lon=typed["lon"]
        .where(typed["lon"].between(-180.0, 180.0, "left"), typed["lon"] - 360.0)
        .where(typed["lon"].between(-180.0, 360.0)),  # a marker such as -9999 is no place
    )


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table atomically: netCDF by CF, or parquet (which needs pyarrow) by its suffix.

    Args:
        table: Observations.
        path: `observations.nc` or `observations.parquet`.

    Returns:
        The path.

    Raises:
        ValueError: If columns are missing, or the suffix is another.
    """
    target, table = Path(path).expanduser(), _typed(table)
    if target.suffix == ".parquet":
        require_pyarrow(target)
        with atomic(target) as temporary:
            table.to_parquet(temporary, index=False)
    elif target.suffix == ".nc":
        compressed = {name: {"zlib": True, "complevel": 4} for name in ("time", "value", "station_index")}
        with atomic(target) as temporary:
            _points(table).to_netcdf(temporary, encoding=compressed, engine="netcdf4")
    else:
        raise InvalidValueError(f"{target} must end in .nc or .parquet.")
    return target


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what `write_table` wrote.

    Args:
        path: The file.

    Returns:
        A table with COLUMNS.

    Raises:
        ValueError: If it isn't a table of observations.
    """
    source = Path(path).expanduser()
    if source.suffix == ".parquet":
        require_pyarrow(source)
        return _typed(pd.read_parquet(source))
    with xr.open_dataset(source) as dataset:
        if not is_table(dataset):
            raise InvalidValueError(
                f"{source} isn't a table of observations; `slams data stations` writes one."
            )
        dataset = dataset.load()
    names = np.array(str(dataset["variable"].attrs["flag_meanings"]).split())
    index, codes = dataset["station_index"].values, dataset["variable"].values
    lists = ((index, dataset.sizes["station"]), (codes, names.size))
    if dataset.sizes["obs"] and any(k.min() < 0 or k.max() >= size for k, size in lists):
        raise InvalidValueError(
            f"{source} points to stations or variables that it doesn't list; write it again."
        )
    columns = {name: dataset[name].values for name in ("time", "level", "value", "error_std", "qc")}
    columns |= {"variable": names[codes], "station": dataset["station"].values[index]}
    columns |= {name: dataset[name].values[index] for name in ("lat", "lon")}
    return _typed(pd.DataFrame(columns))


def is_table(dataset: xr.Dataset) -> bool:
    """Whether an open file is a table of observations."""
    known = {"station_index", "variable", "value", "error_std", "qc"} <= set(map(str, dataset.variables))
    return known and dataset.attrs.get("featureType") == "point"


def require_pyarrow(path: Path) -> None:
    """Parquet is read by a package that isn't installed by default."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InvalidValueError(
            f"{path} is parquet, which needs pyarrow: pip install pyarrow (or slams[data])."
        ) from error


def _points(table: pd.DataFrame) -> xr.Dataset:
    """The table as a CF dataset of points."""
    places = table[PLACE].drop_duplicates().sort_values(PLACE)
    index = pd.MultiIndex.from_frame(places).get_indexer(pd.MultiIndex.from_frame(table[PLACE]))
    names = list(VARIABLES)
    codes = table["variable"].map(names.index).to_numpy(dtype="i1")
    units = "; ".join(f"{name}: {kind.units}" for name, kind in VARIABLES.items())
    meanings = {"flag_values": np.arange(len(names), dtype="i1"), "flag_meanings": " ".join(names)}
    grades = {"flag_values": np.array([0, 1, 2], dtype="i1"), "flag_meanings": "good suspect bad"}
    degrees = {"lat": ("degrees_north", "latitude"), "lon": ("degrees_east", "longitude")}
    return xr.Dataset(
        {
            "time": ("obs", table["time"].to_numpy(), {"standard_name": "time"}),
            "level": ("obs", table["level"].to_numpy(), {"units": "hPa", "standard_name": "air_pressure"}),
            "variable": ("obs", codes, {"long_name": "what is observed"} | meanings),
            "value": ("obs", table["value"].to_numpy(), {"long_name": "value", "comment": units}),
            "error_std": (
                "obs",
                table["error_std"].to_numpy(),
                {"long_name": "standard deviation of the error"},
            ),
            "qc": ("obs", table["qc"].to_numpy(), {"long_name": "quality"} | grades),
            "station_index": ("obs", index.astype("i4"), {"instance_dimension": "station"}),
            "station": ("station", places["station"].to_numpy(dtype=object), {"cf_role": "timeseries_id"}),
            **{
                name: ("station", places[name].to_numpy(), {"units": unit, "standard_name": standard})
                for name, (unit, standard) in degrees.items()
            },
        },
        attrs={"Conventions": "CF-1.11", "featureType": "point"},
    )
