"""What is particular to CPC global daily rain from gauges, as NOAA PSL publishes it (`precip.YYYY.nc`).

360 x 720 cells of 0.5 degrees, mm a day, ocean missing; missing_value -9.96921e36 without a _FillValue; the
file of the current year ends in days that are missing everywhere.
"""

import numpy as np
import xarray as xr


def recognises(dataset: xr.Dataset, variable: str) -> bool:
    """Whether the header is that of CPC rain.

    Args:
        dataset: The open file.
        variable: Name of the variable in it.

    Returns:
        True if the variable is `precip` and the file or the variable names the data set.
    """
    names = (
        dataset[variable].attrs.get("dataset", ""),
        dataset.attrs.get("title", ""),
        dataset.attrs.get("dataset_title", ""),
    )
    return variable == "precip" and any("CPC" in str(name) for name in names)


def decode(array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
    """Rain without missing markers (any negative value is one) and without the padding of an unfinished year.

    Args:
        array: (time, lat, lon) [mm/day], canonical; any selection of days of a file.
        last: Last day of the file: padding is a stretch of empty days that reaches it.

    Returns:
        The array without padding; an empty day elsewhere stays, to be reported.
    """
    array = array.where(array >= 0)
    days = array.time.values.astype("datetime64[D]")
    filled = array.notnull().any(("lat", "lon")).values
    keep = days.size
    while keep and not filled[keep - 1] and days[keep - 1] == last:
        keep, last = keep - 1, last - np.timedelta64(1, "D")
    return array.isel(time=slice(0, keep))
