"""Coordinates of files in degrees and hPa: units, missing places, regions across a seam, levels of other kinds."""

import re
import warnings

import numpy as np
import xarray as xr

from slams.core.errors import DataWarning, InvalidValueError
from slams.data.files import units

_TOLERANCE = 1e-3  # degrees, in which two meridians are one; float32 rounds to 2e-5
_LONG = {"lat": "latitude", "lon": "longitude"}
_POSITIVE = r"(?:decimal[_ ]*)?(?:degrees?|deg|°|1)?[_ ]*(?:north|n|east|e|true)?"
_NEGATIVE = r"(?:degrees?|deg|°)[_ ]*(?:south|s|west|w)"
_OTHER_LEVEL = r"model|hybrid|sigma|height|altitude|depth|theta|isentrop|potential_temp|sea_water|ocean|_eta_"
_PRESSURE = r"pressure|isobaric|plev"
_HIGHEST = 1100.0  # hPa, above which no level lies
_LOWEST_SURE = 200.0  # hPa: levels without a unit that all lie above this one could be heights or numbers


def told(subject: str, what: str) -> None:
    """A DataWarning, once for all files of a modality: Python shows equal ones once."""
    warnings.warn(f"{subject.split(' in ', maxsplit=1)[0]}: {what}", DataWarning, stacklevel=3)


def degrees(variable: xr.Variable, role: str, subject: str) -> np.ndarray:
    """Latitudes or longitudes in degrees north or east.

    Args:
        variable: The coordinate; radians and degrees south or west are converted.
        role: "lat" or "lon".
        subject: Name of the variable in messages.

    Returns:
        float64, NaN where missing.

    Raises:
        ValueError: If its unit is none of an angle.
    """
    unit = str(variable.attrs.get("units", "")).strip().lower()
    values = np.asarray(variable.values, dtype=np.float64)
    if re.fullmatch(_POSITIVE, unit):
        return values
    if re.fullmatch(_NEGATIVE, unit):
        return -values
    if unit in ("rad", "radian", "radians"):
        return np.rad2deg(values)
    raise InvalidValueError(
        f"{subject}: the {_LONG[role]} is in {unit!r}, expected degrees: coordinates of a map projection must be turned "
        "into latitude and longitude (and a grid be regridded) first; if they are degrees, correct the attribute `units`."
    )


def check_line(values: np.ndarray, role: str, subject: str) -> None:
    """Check the latitudes or longitudes of a grid.

    Raises:
        ValueError: If some are missing or come twice, or lie beyond the poles or the turn.
    """
    name = _LONG[role]
    missing = np.flatnonzero(~np.isfinite(values))
    if missing.size:
        raise InvalidValueError(
            f"{subject}: {name} {missing[0]} (numbered from 0) of {values.size} is missing; write its value, or drop "
            "that line, e.g. with xarray's dropna on that coordinate."
        )
    ordered = np.sort(values)
    twice = np.flatnonzero(np.diff(ordered) < 1e-6)
    if twice.size:
        raise InvalidValueError(
            f"{subject}: {name} {ordered[twice[0]]:g} comes more than once; drop the repetition, e.g. with xarray's "
            "drop_duplicates."
        )
    if role == "lat":
        _refuse_beyond_poles(values, subject)
    elif not _turn(ordered).all():
        even = values.size > 2 and np.diff(ordered).max() <= 1.5 * np.median(np.diff(ordered))
        if not (even and _turn(ordered).any() and ordered[-1] - ordered[0] <= 540.0):
            raise InvalidValueError(
                f"{subject}: longitudes run from {ordered[0]:g} to {ordered[-1]:g}; expected degrees east, -180 to 360: "
                "a marker of missing values, or metres of a projection, is no place."
            )


def region(lon: np.ndarray, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes of a grid from west to east without a seam inside.

    A circle and a line that is whole in its own convention keep it. A region that the convention cuts in two, 345 to
    359 and 0 to 15 or 165 to 180 and -179 to -165, is joined: it begins behind the widest gap. A meridian that comes
    again after a turn is dropped, with a DataWarning.

    Args:
        lon: Longitudes as the file orders them [degrees].
        subject: Name of the variable in messages.

    Returns:
        Positions in the file, and rising longitudes.

    >>> region(np.array([350.0, 355.0, 0.0, 5.0]), "x")
    (array([0, 1, 2, 3]), array([-10.,  -5.,   0.,   5.]))
    """
    order = np.argsort(lon, kind="stable")
    if lon.size > 1:
        turned, first = np.mod(lon[order], 360.0), np.argsort(np.mod(lon[order], 360.0), kind="stable")
        tolerance = min(_TOLERANCE, 0.1 * float(np.median(np.diff(lon[order]))))
        gaps = np.diff(turned[first], append=turned[first[0]] + 360.0)
        after = np.roll(first, -1)
        again = np.maximum(first, after)[gaps < tolerance]
        if again.size:
            names = ", ".join(f"{lon[order][k]:g}" for k in sorted(again)[:3])
            told(
                subject,
                f"{again.size} meridians come again after a turn (longitude {names}) and are dropped.",
            )
            order = np.delete(order, again)
    line = lon[order]
    inside = np.diff(line)
    seam = 360.0 - (line[-1] - line[0])
    widest = int(inside.argmax()) if inside.size else 0
    hole = inside.size and inside[widest] > seam + _TOLERANCE
    if not hole or (inside.size > 1 and inside[widest] <= 1.5 * np.median(inside)):
        return order, line
    west, east = line[widest + 1 :], line[: widest + 1]
    pieces = (west - 360.0, east) if west[-1] > 180.0 else (west, east + 360.0)
    return np.roll(order, -(widest + 1)), np.concatenate(pieces)


def placed(lat: np.ndarray, lon: np.ndarray, names: np.ndarray | None, subject: str) -> np.ndarray:
    """Positions of the stations that have a place; the others are named in a DataWarning.

    NaN, a marker such as -9999, and 0 N 0 E, which stands where nobody wrote a place, are none.

    Raises:
        ValueError: If none has a place, or a place is off the sphere.
    """
    there = _stated(lat, 90.0) & _stated(lon, 360.0) & ~((lat == 0) & (lon == 0))
    label = [f"station {k}" if names is None else str(names[k]) for k in range(lat.size)]
    if not there.any():
        raise InvalidValueError(
            f"{subject}: no station has a place (latitude {lat[:3]}, longitude {lon[:3]}, ...); write latitude and "
            "longitude of each in degrees; metres of a projection must be converted first."
        )
    _refuse_beyond_poles(lat[there], subject)
    off = np.flatnonzero(there & ~_turn(lon))
    if off.size:
        raise InvalidValueError(
            f"{subject}: {label[off[0]]} lies at longitude {lon[off[0]]:g}; expected degrees east, -180 to 360: correct "
            "it, or leave the station out."
        )
    if not there.all():
        gone = np.flatnonzero(~there)
        where = ", ".join(f"{label[k]} at {lat[k]:g} N {lon[k]:g} E" for k in gone[:5])
        where += ", ..." if gone.size > 5 else ""
        told(
            subject,
            f"{gone.size} of {lat.size} stations have no place and are left out ({where}); "
            "write where they stand.",
        )
    return np.flatnonzero(there)


def pressure(variable: xr.Variable, name: str, subject: str) -> np.ndarray | None:
    """Levels [hPa], None for the single entry of another vertical axis, which is no level then.

    Pressure is known by the unit, unless the names state another axis or a level lies above 1100 hPa; without a unit by
    the names "pressure", "isobaric" and "plev", whose values above 1100 are Pa; without either, by values that look like
    pressure levels [hPa]: multiples of 5 below 1100, or 1, 2, 3, 7, that reach 200 and aren't numbered through.

    Args:
        variable: The coordinate.
        name: Its name.
        subject: Name of the variable in messages.

    Raises:
        ValueError: If the axis isn't pressure, or could be something else.
    """
    attrs = {key: str(value) for key, value in variable.attrs.items()}
    unit, standard = attrs.get("units", ""), attrs.get("standard_name", "")
    words = " ".join([name, standard, attrs.get("long_name", "")]).lower()
    values = np.atleast_1d(np.asarray(variable.values, dtype=np.float64))
    named = name == "p" or bool(re.search(_PRESSURE, words))
    other = standard != "air_pressure" and bool(re.search(_OTHER_LEVEL, f"_{words}_".replace(" ", "_")))
    if not other and _is_pressure(unit, subject):
        scale, _ = units.conversion(unit, "hPa", subject)
        if values.max() * scale <= _HIGHEST:
            return values * scale
    unstated = units.is_missing(unit) or (named and unit in ("1", "level", "levels"))
    if not other and unstated and attrs.get("positive", "down") != "up":
        if named and (values.max() > _HIGHEST or name.lower().endswith("inpa")):
            return values / 100.0
        if named or _usual(values):
            return values
    if values.size == 1:
        told(subject, f"its {name} {values[0]:g} [{unit or 'no unit'}] is no pressure, and is left out.")
        return None
    raise InvalidValueError(
        f"{subject}: {name} ({values[0]:g} to {values[-1]:g}, units {unit or 'not stated'!r}, called "
        f"{' '.join(words.split())!r}) isn't known to be pressure, and levels are stored in hPa; write the attributes "
        "units = 'hPa' (or 'Pa') and standard_name = 'air_pressure' if it is; otherwise interpolate to "
        "pressure levels, or select one entry."
    )


def _is_pressure(unit: str, subject: str) -> bool:
    try:
        units.conversion(unit, "hPa", subject)
    except InvalidValueError:
        return False
    return True


def _usual(values: np.ndarray) -> bool:
    """Whether values without any name look like pressure levels in hPa."""
    through = values.size > 1 and bool((np.abs(np.diff(np.sort(values))) == 1).all())
    familiar = (np.mod(values, 5) == 0) | np.isin(values, (1, 2, 3, 7))
    return (
        bool(_LOWEST_SURE <= values.max() <= _HIGHEST and values.min() > 0 and familiar.all()) and not through
    )


def _stated(values: np.ndarray, limit: float) -> np.ndarray:
    """Whether coordinates are none of NaN, fill values, and markers such as -9999 or 99.999 beyond a limit."""
    nines = np.array([set(f"{abs(value):.7g}") <= set("9.") for value in values])
    return np.isfinite(values) & (np.abs(values) < 1e10) & ~(nines & (np.abs(values) > limit))


def _turn(lon: np.ndarray) -> np.ndarray:
    return (lon >= -180.0 - _TOLERANCE) & (lon <= 360.0 + _TOLERANCE)


def _refuse_beyond_poles(lat: np.ndarray, subject: str) -> None:
    reach = float(np.abs(lat).max())
    if reach > 90.001:
        raise InvalidValueError(
            f"{subject}: latitudes reach {reach:g}; expected -90 to 90 degrees north: are latitude and longitude "
            "swapped, or metres of a projection?"
        )
