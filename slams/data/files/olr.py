"""What is particular to NOAA's interpolated outgoing long-wave radiation.

Old PSL files pack short integers and give valid_range (0-500) in unpacked units, so that a reader that
applies it to the packed ones masks everything; xarray doesn't apply it. Twice-daily files hold the passes of
a day.
"""

import numpy as np
import xarray as xr

_POSSIBLE = (0.0, 500.0)  # W m-2, the archive's own valid_range
_STEPS = {2.5: "2.5 degrees", 1.0: "1 degree CDR"}


def recognises(dataset: xr.Dataset, variable: str) -> bool:
    """Whether the header is that of an OLR archive.

    Args:
        dataset: The open file.
        variable: Name of the variable in it.

    Returns:
        True if the variable is `olr`.
    """
    return variable == "olr"


def layout(dataset: xr.Dataset) -> str | None:
    """Which of the archive's products a file is: all may be called `olr.day.mean.nc`.

    Args:
        dataset: The open file.

    Returns:
        Grid step, packing and number of passes, such as "2.5 degrees, packed, twice daily"; None if it isn't
        a global field of OLR.
    """
    if "olr" not in dataset.variables:
        return None
    olr = dataset["olr"]
    lat, lon = (next((dim for dim in olr.dims if str(dim).startswith(name)), None) for name in ("lat", "lon"))
    if lat is None or lon is None or olr.ndim != 3 or lon not in dataset.variables or olr.sizes[lon] < 2:
        return None
    step = float(np.abs(np.diff(dataset[lon].values[:2].astype(float)))[0])
    grid = next((text for size, text in _STEPS.items() if abs(size - step) < 1e-3), None)
    whole = round(360 / step) if step else 0
    if grid is None or olr.sizes[lon] != whole or olr.sizes[lat] not in (whole // 2, whole // 2 + 1):
        return None
    packed = np.issubdtype(olr.encoding.get("dtype", olr.dtype), np.integer)
    times = dataset[next(dim for dim in olr.dims if dim not in (lat, lon))].values
    passes = times.size > 1 and np.median(np.diff(times)) < np.timedelta64(24, "h")
    return ", ".join([grid, "packed" if packed else "unpacked", "twice daily" if passes else "daily"])


def decode(array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
    """Daily means in the possible range.

    Args:
        array: (time, lat, lon) [W m-2], canonical; the stamps may come twice a day.
        last: Last day of the file, of no use here.

    Returns:
        One field a day. A day with one of two passes is missing: half a day is biased by the cycle of the
        sun.

    Raises:
        ValueError: If values lie outside 0-500 W m-2, which means a wrongly decoded file.
    """
    low, high = float(array.min()), float(array.max())
    if low < _POSSIBLE[0] or high > _POSSIBLE[1]:
        raise ValueError(
            f"outgoing long-wave radiation runs from {low:g} to {high:g}, expected {_POSSIBLE[0]:g} to "
            f"{_POSSIBLE[1]:g} W m-2; "
            "check scale_factor, add_offset and missing_value of the file."
        )
    days = array.time.values.astype("datetime64[D]")
    unique, counts = np.unique(days, return_counts=True)
    passes = int(counts.max(initial=1))
    if (
        passes == 1 or not (np.diff(array.time.values) > np.timedelta64(0)).all()
    ):  # repeated stamps are a fault, not passes
        return array
    axis = array.get_axis_num("time")
    total = np.add.reduceat(
        array.values, np.flatnonzero(np.r_[True, np.diff(days) > np.timedelta64(0)]), axis=axis
    )
    shape = [-1 if dim == "time" else 1 for dim in array.dims]
    whole = np.where(counts == passes, passes, np.nan).reshape(shape)
    coords = {name: value for name, value in array.coords.items() if name != "time"} | {"time": unique}
    return xr.DataArray(total / whole, dims=array.dims, coords=coords, name=array.name, attrs=array.attrs)
