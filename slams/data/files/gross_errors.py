"""Values that can't be: markers of missing values that no attribute declares, and values out of any possible range."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from slams.core.errors import DataWarning, InvalidValueError
from slams.data.files import units
from slams.data.files.opening import numbers, packing_of

# of files without attributes for them; a value is a marker if it equals one and stands apart from all others
_MARKERS = (
    999,
    999.9,
    999.99,
    7777,
    8888,
    9999,
    9999.9,
    9999.99,
    99999,
    99999.9,
    999999,
    9999999,
    32766,
    32767,
    32768,
)
_SMALL = (
    -99,
    -99.9,
    -99.99,
    99.9,
    99.99,
)  # of fields that may reach them: markers only where they come again and again
_NO_FIELD = 1e10  # beyond all fields of the weather in any unit
_APART = 3.0  # ranges of the other values between them and a marker
_REPEATED, _APART_REPEATED = (
    3,
    0.5,
)  # the same number that often, with nothing near it, is no extreme of the weather
_OWN_SIZE = 0.5  # of a marker, by which it is further from all others at least
_MOST_MARKERS = 20  # distinct ones of one variable
_SHARE = 0.2  # of values out of the possible range: more are no gross errors, but another quantity or unit


@dataclass(frozen=True)
class Possible:
    """Possible range of a quantity.

    Args:
        text: Name in messages.
        units: Unit of the range.
        low, high: Lowest and highest possible value.
        names: CF's standard names, and words in the names of variables.
    """

    text: str
    units: str
    low: float
    high: float
    names: frozenset[str]


def _possible(text: str, unit: str, low: float, high: float, names: str) -> Possible:
    return Possible(text, unit, low, high, frozenset(names.split()))


# Records of the World Meteorological Organization (https://wmo.asu.edu) with a margin: air near the ground -89.2 to
# 56.7 degC, pressure at sea level 870 to 1084 hPa (reduced to the sea on a plateau up to 1094), rain of 24 hours 1825 mm.
# Above the ground the standard atmospheres of cold and warm winters; outgoing radiation by its archive's valid range, and
# by black bodies of 135 K and 306 K. The first entry with a name of the variable and a unit that converts is taken.
POSSIBLE = (
    _possible("dew points", "K", 150, 320, "dew_point_temperature dew d2m td tdps dewpoint"),
    _possible("sea surface temperature", "K", 265, 325, "sea_surface_temperature sst tos"),
    _possible("surface temperature", "K", 150, 375, "surface_temperature skt ts lst skin"),
    _possible(
        "air temperature near the ground",
        "K",
        180,
        333.2,
        "tas tasmax tasmin t2m t2 2m tmax tmin tmean tavg tg tx tn temperature_2m",
    ),
    _possible("air temperature", "K", 120, 340, "air_temperature ta air"),
    _possible(
        "temperature", "K", 100, 500, "t tmp temp temperature"
    ),  # perhaps of the sea, the ground or a satellite
    _possible("specific humidity", "kg kg-1", -0.005, 0.07, "specific_humidity q hus shum"),
    _possible("relative humidity", "%", -30, 200, "relative_humidity rh hur hurs rhum"),
    _possible("geopotential height", "gpm", -1500, 90000, "geopotential_height geopotential z zg hgt gh"),
    _possible(
        "sea level pressure", "hPa", 850, 1100, "air_pressure_at_mean_sea_level psl msl slp prmsl mslp"
    ),
    _possible("surface pressure", "hPa", 250, 1100, "surface_air_pressure ps sp"),
    _possible(
        "wind",
        "m s-1",
        -250,
        250,
        "eastward_wind northward_wind wind_speed u v ua va uas vas u10 v10 uwnd vwnd ws wspd wind",
    ),
    _possible("vertical velocity", "Pa s-1", -150, 150, "lagrangian_tendency_of_air_pressure w wap omega"),
    _possible(
        "rain",
        "mm/day",
        -0.1,
        2000,
        "lwe_precipitation_rate precipitation_flux precipitation_amount pr precip precipitation prcp pcp ppt rr rain "
        "rainfall tp prate apcp",
    ),
    _possible("outgoing radiation", "W m-2", 20, 500, "toa_outgoing_longwave_flux olr rlut ulwrf"),
    _possible("temperature", "K", 0, 10000, ""),
)


@dataclass
class LeftOut:
    """Count of values that were left out, by reason.

    Attributes:
        counts: Number and first example by reason.
        total: Values looked at.
    """

    counts: dict[str, tuple[int, str]] = field(default_factory=dict)
    total: int = 0

    def drop(self, array: xr.DataArray, wrong: np.ndarray, reason: str) -> xr.DataArray:
        """An array with NaN in place of wrong values, which are counted."""
        count = int(wrong.sum())
        if not count:
            return array
        first = np.unravel_index(int(wrong.argmax()), wrong.shape)
        example = f"{array.values[first]:g} on {str(array.time.values[first[0]])[:10]}"
        self.counts[reason] = (
            self.counts.get(reason, (0, ""))[0] + count,
            self.counts.get(reason, (0, example))[1],
        )
        return array.copy(data=np.where(wrong, np.nan, array.values))

    def join(self, other: "LeftOut") -> None:
        """Add the counts of another file."""
        self.total += other.total
        for reason, (count, example) in other.counts.items():
            before = self.counts.get(reason, (0, example))
            self.counts[reason] = before[0] + count, before[1]

    def text(self, name: str) -> str:
        """A sentence on a modality, empty if nothing was left out."""
        parts = [
            f"{count} {reason} (the first {example})" for reason, (count, example) in self.counts.items()
        ]
        return f"{name}: of {self.total} values are left out: {'; '.join(parts)}" if parts else ""


def without_markers(array: xr.DataArray, source: xr.DataArray, left: LeftOut) -> xr.DataArray:
    """Values without those outside a declared range, and without markers that no attribute declares.

    A declared range is in the units of the packed or of the unpacked values, by its type (CF 8.1); where that leaves
    less than half of the values, in the other.

    Args:
        array: Values in the unit of the file, in memory.
        source: The variable of the open file, with its attributes.
        left: Counts, extended.
    """
    values, left.total = array.values, left.total + int(np.isfinite(array.values).sum())
    present = np.isfinite(values)
    ranges = _declared(source)
    if ranges and present.any():
        outside = [present & ((values < low) | (values > high)) for low, high in ranges]
        chosen = 0 if 2 * outside[0].sum() <= present.sum() or len(ranges) == 1 else 1
        low, high = ranges[chosen]
        array = left.drop(array, outside[chosen], f"outside the declared range {low:g} to {high:g}")
    marked = undeclared(array.values, packing_of(source.encoding))
    found = ", ".join(f"{value:g}" for value in np.unique(array.values[marked])[:3])
    return left.drop(array, marked, f"markers of missing values that no attribute declares ({found})")


def undeclared(values: np.ndarray, packing: tuple[float, float] | None = None) -> np.ndarray:
    """Mask of markers: -999, 9999 and the like, further from all other values than three times the range of these.

    A marker is also further from them than half its own size. Half the range is enough for markers
    that come three times or more; -99 and 99.9 are markers only then.

    Args:
        values: Of any shape, NaN where missing.
        packing: Scale and offset of the file, whose markers may be packed numbers.
    """
    rest = np.isfinite(values)
    peeled: list[tuple[np.ndarray, float]] = []
    while rest.any():
        low, high = float(values[rest].min()), float(values[rest].max())
        for extreme in (low, high):
            mask = rest & (values == np.asarray(extreme, values.dtype))
            repeated = int(mask.sum()) >= _REPEATED
            if _is_marker(extreme, packing) or (repeated and _equals(extreme, _SMALL)):
                break
        else:
            break
        if len(peeled) == _MOST_MARKERS:  # a field of values as large as markers
            return np.zeros(values.shape, dtype=bool)
        peeled.append((mask, _APART_REPEATED if repeated else _APART))
        rest = rest & ~mask
    marked = np.zeros(values.shape, dtype=bool)
    if not peeled or not rest.any():
        return marked
    for mask, apart in peeled:
        value = float(values[mask][0])
        own = _OWN_SIZE * abs(value) if _equals(abs(value), (*_MARKERS, *_SMALL)) else 0.0
        # 999 hPa beside 1003 is no marker: one is far away by its own size too
        if max(low - value, value - high) > max(apart * (high - low), own):
            marked |= mask
    return marked


def _is_marker(value: float, packing: tuple[float, float] | None) -> bool:
    stored = abs(round((value - packing[1]) / packing[0])) if packing is not None else 0
    return abs(value) >= _NO_FIELD or _equals(abs(value), _MARKERS) or stored in _MARKERS


def _equals(value: float, markers: tuple[float, ...]) -> bool:
    return any(abs(value - marker) < 1e-6 * abs(marker) for marker in markers)


def _declared(source: xr.DataArray) -> list[tuple[float, float]]:
    """Declared ranges in unpacked units: by their type, and where packed also read the other way."""
    attrs = source.attrs
    given = {key: numbers(attrs[key]) for key in ("valid_range", "valid_min", "valid_max") if key in attrs}
    low, high = -np.inf, np.inf
    if (both := given.get("valid_range")) is not None and both.size == 2:
        low, high = float(both[0]), float(both[1])
    elif "valid_range" not in given:
        low = float(given["valid_min"][0]) if given.get("valid_min", np.zeros(0)).size else low
        high = float(given["valid_max"][0]) if given.get("valid_max", np.zeros(0)).size else high
    if not low < high or (np.isinf(low) and np.isinf(high)):
        return []
    packing, stored = packing_of(source.encoding), np.dtype(source.encoding.get("dtype", source.dtype))
    if packing is None or stored.kind not in "iu":
        return [(low, high)]
    ends = sorted(end * packing[0] + packing[1] for end in (low, high))
    unpacked, packed = (low, high), (ends[0], ends[1])
    raw = next(attrs[key] for key in ("valid_range", "valid_min", "valid_max") if key in attrs)
    return [packed, unpacked] if np.asarray(raw).dtype.kind in "iu" else [unpacked, packed]


def without_impossible(
    array: xr.DataArray, subject: str, left: LeftOut, *, amount: bool = False
) -> xr.DataArray:
    """Values without those out of the possible range of their quantity.

    Args:
        array: Values with the attribute units, and standard_name or a name.
        subject: Name of the variable in messages.
        left: Counts, extended.
        amount: Whether values are an amount (a transform by log1p), of which none is negative in any unit.

    Returns:
        The array; as it is, with a `DataWarning`, where more than a fifth is out of range.
    """
    found = possible_range(array.attrs)
    text, low, high = found or ("amounts", -0.1, np.inf)
    if found is None and not amount:
        return array
    values = array.values
    wrong = (values < low) | (values > high)
    reason = f"outside {low:g} to {high:g} {array.attrs.get('units', '')}, the possible range of {text}"
    present = int(np.isfinite(values).sum())
    if wrong.sum() > _SHARE * present:
        warnings.warn(
            f"{subject}: {int(wrong.sum())} of {present} values are {reason}; none was left out, since so many mean "
            "another unit or quantity: correct the attributes `units`, scale_factor and add_offset of the file.",
            DataWarning,
            stacklevel=2,
        )
        return array
    return left.drop(array, wrong, reason)


def possible_range(attrs: Mapping[Any, Any]) -> tuple[str, float, float] | None:
    """Name and possible range of a quantity in its unit, None where it isn't known.

    >>> possible_range({"source_name": "stn_tas", "units": "degC"})[0]
    'air temperature near the ground'
    """
    unit = str(attrs.get("units", ""))
    if units.is_missing(unit) or units.is_difference(attrs):
        return None
    source = str(attrs.get("source_name", "")).lower()
    words = {source, *re.split(r"[^a-z0-9]+", source)}
    words |= {word.rstrip("0123456789") for word in words} | {str(attrs.get("standard_name", ""))}
    if words & {"anom", "anomaly", "anomalies"}:
        return None
    for entry in POSSIBLE:
        if entry.names & words or not entry.names:
            try:
                scale, offset = units.conversion(entry.units, unit, "")
            except InvalidValueError:  # another quantity under that name
                continue
            ends = sorted((entry.low * scale + offset, entry.high * scale + offset))
            return entry.text, ends[0], ends[1]
    return None
