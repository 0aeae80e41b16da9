"""Series of days and stations out of a table of observations, as recipes read them."""

import numpy as np
import pandas as pd
import torch
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.core.geometry.distance import EARTH_RADIUS, unit_vector
from slams.data.files.coordinates import told
from slams.data.files.stations import GOOD, PLACE, VARIABLES, nowhere, unplaced

_QUARTERS = 4  # of a UTC day, each of which must have a report: noon alone isn't the mean of a day
_MOVE = 5.6  # km, 0.05 degrees of latitude; networks round one place in several ways


def daily(table: pd.DataFrame, variable: str) -> xr.DataArray:
    """A value a day and station, from the good observations.

    A mean is that of the four quarters of the UTC day, each of which must have a report. A total adds reports
    whose hours don't overlap and cover the day. Any other day is missing. A station that moved by more
    than 5.6 km counts as two. Reports without a place, or at 0 N 0 E, are left out; stations that have no others are
    named in a DataWarning.

    Args:
        table: Observations.
        variable: One of VARIABLES.

    Returns:
        (time, station) float32, datetime64[D] without gaps from the first to the last day of the table;
        coordinates lat, lon, station; attribute units.

    Raises:
        ValueError: If the variable isn't known, the table is empty, or no report has a place.
    """
    if variable not in VARIABLES:
        raise InvalidValueError(f"no observation is called {variable!r}; expected {', '.join(VARIABLES)}.")
    if table.empty:
        raise InvalidValueError("the table of observations is empty; there is no day to read.")
    kind = VARIABLES[variable]
    table = _settled(_placed(table))
    rows = table[(table["variable"] == variable) & (table["qc"] == GOOD)]
    places = table[PLACE].drop_duplicates().sort_values(PLACE)
    place = pd.MultiIndex.from_frame(places).get_indexer(pd.MultiIndex.from_frame(rows[PLACE]))
    last_second = np.timedelta64(
        1 if kind.hours else 0, "s"
    )  # a total that ends at 00 UTC is of the day before
    days = (rows["time"].to_numpy() - last_second).astype("datetime64[D]")
    first, final = (table["time"].agg([min, max]).to_numpy() - last_second).astype("datetime64[D]")
    calendar = np.arange(first, final + 1)
    shape = (calendar.size, len(places))
    flat = (days - first).astype(int) * shape[1] + place
    value = rows["value"].to_numpy(dtype=float)
    result = _totals(rows, flat, value, kind.hours, shape) if kind.hours else _means(rows, flat, value, shape)
    coords = {name: ("station", places[name].to_numpy()) for name in ("lat", "lon")}
    coords["station"] = ("station", places["station"].to_numpy(dtype=str))
    return xr.DataArray(
        result.astype("f4"),
        {"time": calendar.astype("datetime64[ns]"), **coords},
        ("time", "station"),
        variable,
        {"units": kind.units, "cell_methods": f"time: {kind.statistic}"},
    )


def _placed(table: pd.DataFrame) -> pd.DataFrame:
    """The reports that state where they were made."""
    there = ~nowhere(table) & ~unplaced(table)
    lost = sorted(set(table["station"]) - set(table.loc[there, "station"]))
    if not there.any():
        raise InvalidValueError(
            "no report of the table has a place; write latitude and longitude in degrees."
        )
    if lost:
        named = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        told("table of observations", f"{len(lost)} stations have no place and are left out: {named}.")
    return table[there]


def _settled(table: pd.DataFrame) -> pd.DataFrame:
    """Assign every station its most frequent position; reports from other positions keep theirs."""
    count = table.groupby(PLACE).size().rename("count").reset_index().sort_values("count", kind="stable")
    usual = count.drop_duplicates("station", keep="last").set_index("station")
    lat, lon = (usual[name].reindex(table["station"]).to_numpy() for name in ("lat", "lon"))
    here, there = (
        torch.from_numpy(np.stack(one, -1)) for one in ((lat, lon), table[["lat", "lon"]].to_numpy().T)
    )
    chord = (unit_vector(here) - unit_vector(there)).norm(dim=-1).numpy()
    near = 2 * EARTH_RADIUS * np.arcsin(np.minimum(chord / 2, 1.0)) < _MOVE
    return table.assign(lat=np.where(near, lat, table["lat"]), lon=np.where(near, lon, table["lon"]))


def _means(rows: pd.DataFrame, flat: np.ndarray, value: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Means of the quarters' means."""
    seconds = (rows["time"].to_numpy() - rows["time"].to_numpy().astype("datetime64[D]")).astype(int)
    cell, size = flat * _QUARTERS + seconds * _QUARTERS // 86400, shape[0] * shape[1] * _QUARTERS
    count = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=value, minlength=size)
    quarters = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return quarters.reshape(*shape, _QUARTERS).mean(-1)


def _totals(
    rows: pd.DataFrame, flat: np.ndarray, value: np.ndarray, hours: int, shape: tuple[int, int]
) -> np.ndarray:
    """Sums of reports that tile the day: 24 / hours of them, one in each interval."""
    stamps = rows["time"].to_numpy() - np.timedelta64(1, "s")
    seconds = (stamps - stamps.astype("datetime64[D]")).astype(int)
    slots = 24 // hours
    cell, size = flat * slots + seconds // (3600 * hours), shape[0] * shape[1] * slots
    total = np.full(size, np.nan)
    total[cell] = value  # of two reports of one interval the later stands
    return total.reshape(*shape, slots).sum(-1)


def daily_dataset(table: pd.DataFrame) -> xr.Dataset:
    """Every variable of a table by day and station, as `fields.read` opens it.

    Args:
        table: Observations.

    Returns:
        Variables (time, station) with lat, lon and station.
    """
    names = [name for name in VARIABLES if (table["variable"] == name).any()]
    return xr.Dataset({name: daily(table, name) for name in names})
