"""NOAA's outgoing long-wave radiation, by day: 2.5 degrees (packed, unpacked, twice daily) and the 1 degree CDR.

Old PSL files pack short integers and give valid_range (0-500) in unpacked units, so that a reader that
applies it to the packed ones masks everything; xarray doesn't apply it. Twice-daily files hold the passes of
a day.
"""

import numpy as np
import xarray as xr

from slams import config
from slams.core.errors import InvalidValueError
from slams.data.archives.base import Archive
from slams.data.files.convention import Quantity
from slams.data.files.periods import DAILY_MEAN, average

_STEPS = {2.5: "2.5 degrees", 1.0: "1 degree CDR"}


class OutgoingLongwave(Archive):
    """Mean of the passes of a day; 1978-03-17 to 1978-12-31 is missing.

    Source:
        Liebmann & Smith (1996), Bull. Amer. Meteor. Soc. 77, 1275-1277; Lee (2014), NOAA CDR, doi:10.7289/V5SJ1HH2.
    """

    name = "olr"
    quantities = (
        Quantity(
            "olr",
            "W m-2",
            (0.0, 500.0),  # the archive's own valid_range
            "linear",
            DAILY_MEAN,
            "outgoing long-wave radiation at the top of the atmosphere",
            "toa_outgoing_longwave_flux",
        ),
    )
    url, folder, first_year = config.OLR_URL, config.OLR_DATADIR, 1974
    file = "olr.day.mean.nc"

    def layout(self, dataset: xr.Dataset) -> str | None:
        """By grid, packing and passes a day, since all its products may be called `olr.day.mean.nc`.

        Args:
            dataset: The open file.

        Returns:
            Such as "2.5 degrees, packed, twice daily"; None if it isn't a global field of OLR.
        """
        if "olr" not in dataset.variables:
            return None
        olr = dataset["olr"]
        lat, lon = (next((d for d in olr.dims if str(d).startswith(name)), None) for name in ("lat", "lon"))
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

    def daily(self, array: xr.DataArray) -> xr.DataArray:
        """Means of the passes; an incomplete day is missing, since half a day is biased by the diurnal cycle.

        Raises:
            ValueError: If values lie outside 0-500 W m-2, which means a wrongly decoded file.
        """
        possible, low, high = self.quantities[0].valid_range, float(array.min()), float(array.max())
        if low < possible[0] or high > possible[1]:
            raise InvalidValueError(
                f"outgoing long-wave radiation runs from {low:g} to {high:g}, expected {possible[0]:g} to "
                f"{possible[1]:g} W m-2; check scale_factor, add_offset and missing_value of the file."
            )
        stamps = array.time.values
        counts = np.unique(stamps.astype("datetime64[D]"), return_counts=True)[1]
        passes = int(counts.max(initial=1))
        if passes == 1 or not (np.diff(stamps) > np.timedelta64(0)).all():  # repeated stamps are a fault
            return array
        mean = average(array, records=passes, allow_partial=True)
        return mean.where(xr.DataArray(counts == passes, dims="time"))
