"""Units of daily weather files, and conversions between them."""

import re

from slams.core.errors import InvalidValueError

IMPOSSIBLE = 1e19  # fill values (1e20, 9.97e36) that no attribute declares are beyond any physical field

# Daily data: a total in mm is a rate in mm/day, and 1 kg of water on 1 m2 stands 1 mm high.
_ALIASES = {
    "K": ["k", "kelvin", "kelvins", "degk", "deg_k", "degree_kelvin", "degrees_kelvin"],
    "degC": ["c", "degc", "deg_c", "celsius", "degree_celsius", "degrees_celsius", "degreec", "°c"],
    "Pa": ["pa", "pascal", "pascals"],
    "hPa": ["hpa", "mb", "mbar", "millibar", "millibars", "hectopascal", "hectopascals"],
    "mm/day": [
        "mm",
        "mm day-1",
        "mm d-1",
        "millimeter",
        "millimeters",
        "kg m-2",
        "kg m-2 day-1",
        "kg m-2 d-1",
    ],
    "kg m-2 s-1": ["kg m-2 s-1", "mm s-1"],
    "gpm": ["gpm", *(f"geopotential {metre}" for metre in ("meter", "meters", "metre", "metres"))],
}
_CANONICAL = {alias: unit for unit, aliases in _ALIASES.items() for alias in aliases}

# value in the second unit = scale * value in the first + offset
_CONVERSIONS: dict[tuple[str, str], tuple[float, float]] = {
    ("K", "degC"): (1.0, -273.15),
    ("degC", "K"): (1.0, 273.15),
    ("Pa", "hPa"): (0.01, 0.0),
    ("hPa", "Pa"): (100.0, 0.0),
    ("kg m-2 s-1", "mm/day"): (86400.0, 0.0),
    ("mm/day", "kg m-2 s-1"): (1 / 86400.0, 0.0),
    ("m2 s-2", "gpm"): (1 / 9.80665, 0.0),
    ("gpm", "m2 s-2"): (9.80665, 0.0),
}


def canonical(unit: str) -> str:
    """One spelling for the many of a unit.

    Args:
        unit: Unit as spelt in files and recipes.

    Returns:
        A canonical name for the units known here, otherwise the text with exponents written as `m-2`.

    >>> canonical("millibars"), canonical("W/m^2"), canonical("kg m**-2 s**-1")
    ('hPa', 'W m-2', 'kg m-2 s-1')
    """
    text = " ".join(unit.replace("**", "").replace("^", "").replace("*", " ").replace(".", " ").split())
    first, *divisors = [part.strip() for part in text.split("/")]
    inverse = [
        re.sub(r"^([^\d\s-]+)(\d*)$", lambda m: f"{m[1]}-{m[2] or 1}", token)
        for token in " ".join(divisors).split()
    ]
    text = " ".join([first, *inverse]).strip()
    return _CANONICAL.get(text.lower(), text)


def conversion(have: str | None, want: str, subject: str) -> tuple[float, float]:
    """Scale and offset that take values from one unit to another: `want = scale * have + offset`.

    Args:
        have: Unit in the file, None where it states none.
        want: Unit asked for.
        subject: Converted quantity, for messages.

    Returns:
        (scale, offset).

    Raises:
        ValueError: If the file states no unit, or no conversion is known.

    >>> conversion("kg m-2 s-1", "mm/day", "rain")
    (86400.0, 0.0)
    """
    if not have:
        raise InvalidValueError(
            f"{subject} states no unit, so it can't be turned into {want!r}: leave `units` out to take the "
            "values as they are, or write the attribute `units` into the file."
        )
    pair = canonical(have), canonical(want)
    if pair[0] == pair[1]:
        return 1.0, 0.0
    if pair not in _CONVERSIONS:
        reachable = sorted({have} | {b for a, b in _CONVERSIONS if a == pair[0]})
        raise InvalidValueError(
            f"{subject} is in {have!r}, from which {want!r} can't be reached; ask for one of {reachable}."
        )
    return _CONVERSIONS[pair]
