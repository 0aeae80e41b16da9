"""What is particular to ERA5 files: short and long names, expver, ChaosBench's geopotential in metres.

Layouts: CDS before September 2024 (time, level, int16), CDS since (valid_time, pressure_level descending,
number, expver), WeatherBench2 (long names, longitude before latitude), ChaosBench (a zarr a day).
"""

import numpy as np
import xarray as xr

_LONG_NAMES = {
    "t": "temperature",
    "z": "geopotential",
    "q": "specific_humidity",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "w": "vertical_velocity",
    "t2m": "2m_temperature",
    "tp": "total_precipitation",
    "msl": "mean_sea_level_pressure",
}
_GRAVITY = 9.80665  # m s-2, the constant of the IFS


def recognises(dataset: xr.Dataset, variable: str) -> bool:
    """Whether the header is one of ERA5's.

    Args:
        dataset: The open file.
        variable: Name of the variable in it.

    Returns:
        True for CDS, WeatherBench2 and ChaosBench layouts of a variable known here.
    """
    known = variable in _LONG_NAMES or variable in _LONG_NAMES.values()
    dims = set(map(str, dataset[variable].dims))
    return known and {"latitude", "longitude"} <= dims


def aliases(variable: str) -> tuple[str, ...]:
    """Other names of a variable: the long for the short one and the reverse.

    >>> aliases("t"), aliases("temperature"), aliases("precip")
    (('temperature',), ('t',), ())
    """
    return tuple(b for pair in _LONG_NAMES.items() for a, b in (pair, pair[::-1]) if a == variable)


def join_expver(array: xr.DataArray) -> xr.DataArray:
    """Join final (expver 1) and preliminary (expver 5) fields of old CDS files, point by point.

    Args:
        array: With a dimension `expver`.

    Returns:
        The array without it.
    """
    order = np.argsort([int(version) for version in array["expver"].values], kind="stable")
    joined = array.isel(expver=int(order[0]), drop=True)
    for position in order[1:]:
        joined = joined.fillna(array.isel(expver=int(position), drop=True))
    return joined.assign_attrs(array.attrs)


def decode(array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
    """Name the unit of geopotential after what the values are.

    ChaosBench divides z by g and may keep `m**2 s**-2`. In the standard atmosphere the height of a level is
    close to 7.4 km * ln(1013 / p), of which z / height is 1 or 9.8.

    Args:
        array: In canonical dimensions.
        last: Last day of the file, of no use here.

    Returns:
        The array, with the unit `gpm` where z is a height.
    """
    if array.attrs.get("source_name") not in ("z", "geopotential") or "level" not in array.dims:
        return array
    level = float(array.level.min())
    if level > 850:  # too near the ground for the ratio to tell
        return array
    height = 7400.0 * np.log(1013.25 / level)
    ratio = (
        float(array.isel(time=0).sel(level=level).mean()) / height
    )  # one record: the others may be on disk
    return array.assign_attrs(units="gpm") if ratio < _GRAVITY / 3 else array
