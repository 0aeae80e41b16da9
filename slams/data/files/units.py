"""Units of weather files: their many spellings, and conversions by pint with the registry of cf-xarray."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from tokenize import TokenError
from typing import Any

from slams.core.errors import InvalidValueError

IMPOSSIBLE = 1e19  # fill values (1e20, 9.97e36) that no attribute declares are beyond any physical field

_DAY = 86400.0  # s, to which a total belongs: files here have one record a day
_GRAVITY = 9.80665  # m s-2: a geopotential metre is this many m2 s-2
_WIND = 0.01  # m s-1: a rate of length above it is a speed, no rain
_USUAL = (
    "K",
    "degC",
    "Pa",
    "hPa",
    "mm",
    "mm/day",
    "kg m-2 s-1",
    "gpm",
    "m2 s-2",
    "W m-2",
    "kg kg-1",
    "m s-1",
)
_NO_UNIT = {"", "unknown", "none", "n/a", "na", "~", "undefined"}
_PURE = {
    "1",
    "-",
    "(0 - 1)",
    "(0-1)",
    "0-1",
    "0 - 1",
    "fraction",
    "unitless",
    "dimensionless",
    "nondimensional",
}
_DEGREE = r"(?:°|º|\bdeg(?:rees?)?)[\s_]*"
# what files write, and how the registry spells it; in this order
_SPELLINGS = [
    (r"[−–]", "-"),
    (r"²", "2"),
    (r"⁻¹", "-1"),
    (r"[·×]", " "),
    (r"\s*(?:\*\*|\^)\s*", ""),
    (r"\*", " "),
    (r"(?i)\s*\b(?:of )?(?:liquid )?water(?: equivalent)?\b|\s*\bw\.?\s?e\b\.?", ""),
    (r"(?<=\w)\.(?=[A-Za-z])", " "),
    (r"℃", "degC"),
    (rf"(?i){_DEGREE}c(?:elsius|entigrade)?\b", "degC"),
    (r"(?i)\b(?:celsius|centigrade)(?:[\s_]+deg(?:rees?)?)?\b", "degC"),
    (rf"(?i){_DEGREE}f(?:ahrenheit)?\b|\bfahrenheit\b", "degF"),
    (rf"(?i){_DEGREE}k(?:elvins?)?\b|\bkelvins?\b|^k$", "K"),
    (r"^c$", "degC"),
    (r"(?i)\b(?:mb|mbars?|millibars?|hpa|hectopascals?)\b", "hPa"),
    (r"(?i)\bkpa\b", "kPa"),
    (r"(?i)\bpa\b", "Pa"),
    (r"(?i)\bgeopotential (?:meters?|metres?)\b|\bgpm\b", "m"),
    (r"(?i)\bgeopotential (?:decameters?|decametres?)\b|\b(?:gpdam|dagpm)\b", "dam"),
    (r"(?i)^tenths? of (?:a )?", "0.1 "),
    (r"(?i)^hundredths? of (?:an? )?", "0.01 "),
    (r"\b(W|J|kg)(?=m-?\d)", r"\1 "),
]  # fmt: skip
_CAPITALS = [(r"\bw\b", "W"), (r"\bj\b", "J")]  # that a unit in capitals keeps

# kinds of quantity by their dimensions, the conventions that join them, and the size of 1 SI unit in the shared one
_KINDS = {
    "[length]": "depth",
    "[mass] / [length] ** 2": "areal mass",
    "[length] / [time]": "speed",
    "[mass] / [length] ** 2 / [time]": "mass flux",
    "[mass] / [time] ** 2": "energy",
    "[mass] / [time] ** 3": "flux",
    "[length] ** 2 / [time] ** 2": "geopotential",
}
_FAMILIES = {
    "water": {"depth", "areal mass", "speed", "mass flux"},
    "radiation": {"energy", "flux"},
    "height": {"depth", "geopotential"},
}
_SHARED = {
    "depth": 1000.0,
    "areal mass": 1.0,
    "speed": 1000.0 * _DAY,
    "mass flux": _DAY,
    "energy": 1.0 / _DAY,
    "flux": 1.0,
    "geopotential": 1000.0 / _GRAVITY,
}


def is_missing(unit: str | None) -> bool:
    """Whether a file states no unit.

    >>> is_missing("unknown"), is_missing("1")
    (True, False)
    """
    return unit is None or unit.strip().lower() in _NO_UNIT


def same(one: str, other: str) -> bool:
    """Whether two texts mean one unit, of daily data: a total in mm is a rate in mm/day.

    >>> same("W/m^2", "W m**-2"), same("mm", "kg m-2 day-1"), same("K", "degC")
    (True, True, False)
    """
    return one == other or _conversion(one, other, False) == (1.0, 0.0)


def conversion(have: str | None, want: str, subject: str, *, difference: bool = False) -> tuple[float, float]:
    """Scale and offset that take values from one unit to another: `want = scale * have + offset`.

    Beyond what dimensions allow, 1 kg m-2 of water stands 1 mm high, a total (mm, J m-2) is that of the day, so
    that it is a rate per day as well, and m2 s-2 become geopotential metres by g = 9.80665 m s-2. Months and
    years have no fixed length, and a mass ratio is no percentage: these are refused.

    Args:
        have: Unit in the file, None where it states none.
        want: Unit asked for.
        subject: Converted quantity, for messages.
        difference: Whether values are differences (anomalies), for which 1 K is 1 degC.

    Returns:
        (scale, offset).

    Raises:
        ValueError: If the file states no unit, or no conversion is known.

    Source:
        The units are those of pint with the definitions of cf-xarray, which follow UDUNITS.

    >>> conversion("kg m-2 s-1", "mm/day", "rain")
    (86400.0, 0.0)
    """
    if have is None or is_missing(have):
        raise InvalidValueError(
            f"{subject} states no unit, so it can't be turned into {want!r}: leave `units` out to take the "
            "values as they are, or write the attribute `units` into the file."
        )
    if have == want:
        return 1.0, 0.0
    found = _conversion(have, want, difference)
    if found is not None:
        return found
    if _parsed(have) is None:
        raise InvalidValueError(
            f"{subject} is in {have!r}, which is no unit with a fixed size that is known here, so {want!r} can't be "
            "reached; write the attribute `units` as UDUNITS spells it, such as 'degC', 'hPa' or 'kg m-2 s-1'."
        )
    reachable = sorted({have} | {unit for unit in _USUAL if _conversion(have, unit, difference) is not None})
    raise InvalidValueError(
        f"{subject} is in {have!r}, from which {want!r} can't be reached; ask for one of {reachable}."
    )


def is_difference(attrs: Mapping[Any, Any]) -> bool:
    """Whether values are differences, by CF's attributes: a conversion of temperature then has no offset."""
    names = f"{attrs.get('standard_name', '')} {attrs.get('long_name', '')}".lower()
    return "difference" in str(attrs.get("units_metadata", "")) or bool(re.search(r"anomal", names))


def assumes_daily_total(have: str, want: str) -> bool:
    """Whether a conversion rests on a total of energy being that of the whole day.

    >>> assumes_daily_total("J m-2", "W m-2"), assumes_daily_total("mm", "mm/day")
    (True, False)
    """
    one, other = _parsed(have), _parsed(want)
    return one is not None and other is not None and {one.kind, other.kind} == {"energy", "flux"}


@lru_cache(maxsize=256)
def _conversion(have: str, want: str, difference: bool) -> tuple[float, float] | None:
    """Scale and offset, None where a unit is unknown or they measure different things."""
    one, other = _parsed(have), _parsed(want)
    if one is None or other is None or not _alike(one, other):
        return None
    if one.unit.dimensionality != other.unit.dimensionality:
        scales = one.bridge, other.bridge
        if scales[0] is None or scales[1] is None or not one.family & other.family:
            return None
        return _rounded(one.factor * scales[0] / (other.factor * scales[1])), 0.0
    quantity = one.unit._REGISTRY.Quantity
    offset = 0.0 if difference else float(quantity(0.0, one.unit).to(other.unit).magnitude)
    scale = one.factor * one.size / (other.factor * other.size)
    return _rounded(scale), _rounded(offset / other.factor)


@dataclass(frozen=True)
class _Unit:
    """A unit of the registry times a number, as in 0.1 mm.

    Attributes:
        factor: The number.
        unit: The unit.
        text: Its normalized text.
    """

    factor: float
    unit: Any
    text: str

    @property
    def size(self) -> float:
        """A difference of one unit in SI base units."""
        registry = self.unit._REGISTRY
        affine = not registry.Quantity(1.0, self.unit)._is_multiplicative
        unit = registry.parse_units(f"delta_{self.unit}") if affine else self.unit
        return float(registry.Quantity(1.0, unit).to_base_units().magnitude)

    @property
    def kind(self) -> str:
        """Kind of quantity by dimensions, of those that a convention turns into others; empty for the rest."""
        return _KINDS.get(str(self.unit.dimensionality), "")

    @property
    def family(self) -> set[str]:
        """Conventions by which it turns into units of other dimensions."""
        return {name for name, kinds in _FAMILIES.items() if self.kind in kinds}

    @property
    def bridge(self) -> float | None:
        """Size in the unit that its family shares; None for a speed that is no rain."""
        if not self.kind or self.kind == "speed" and self.factor * self.size >= _WIND:
            return None
        return self.size * _SHARED[self.kind]

    @property
    def ratio(self) -> str:
        """Which of the dimensionless kinds it is, empty with dimensions."""
        if str(self.unit.dimensionality) != "dimensionless":
            return ""
        words = {"angle": r"deg|rad|arc|turn", "percent": r"%|percent", "mass": r"\b[kmu]?g\b"}
        return next((name for name, word in words.items() if re.search(word, self.text)), "1")


def _alike(one: _Unit, other: _Unit) -> bool:
    """Whether dimensionless units compare: 1 is a mass ratio or a fraction, which aren't each other's."""
    kinds = {one.ratio, other.ratio}
    return len(kinds) == 1 or kinds in ({"1", "mass"}, {"1", "percent"})


@lru_cache(maxsize=256)
def _parsed(text: str) -> _Unit | None:
    """A unit by its text, None if unknown or of no fixed size."""
    from cf_xarray.units import units as registry  # half a second, which most commands don't need
    from pint.errors import PintError

    factor, plain = _normalized(text)
    if factor is None or re.search(r"(?i)\b(months?|mon|years?|yrs?|annum|seasons?|decades?)\b", plain):
        return None
    try:
        return _Unit(factor, registry.parse_units(plain), plain)
    except (PintError, AttributeError, ValueError, TypeError, KeyError, TokenError, SyntaxError):
        return None  # pint raises what its tokenizer does


def _normalized(text: str) -> tuple[float | None, str]:
    """The number before a unit, and the unit as the registry spells it; None where numbers stand elsewhere."""
    plain = " ".join(text.split())
    if plain.lower() in _PURE:
        return 1.0, "1"
    if plain == plain.upper() and re.search(r"[A-Z]{2}|[MS]", plain):  # MM is no megametre
        plain = plain.lower()
        for spelling, meant in _CAPITALS:
            plain = re.sub(spelling, meant, plain)
    for spelling, meant in _SPELLINGS:
        plain = re.sub(spelling, meant, plain)
    factor = 1.0
    number = re.match(r"(\d*\.?\d+(?:[eE][-+]?\d+)?|10-\d+)\s+(?=\S)", plain)
    if number is not None:
        factor = 10.0 ** int(number[1][2:]) if number[1].startswith("10-") else float(number[1])
        plain = plain[number.end() :]
    hours = re.search(r"(/|\bper)\s*\(?(\d+) ?-?([A-Za-z]+)\)?", plain)  # mm/3h: a total of three hours
    if hours is not None:
        factor /= float(hours[2])
        plain = f"{plain[: hours.start()]}/{hours[3]}{plain[hours.end() :]}"
    stray = re.search(r"(?<![A-Za-z\d-])\d+\s*[A-Za-z]", plain)  # mm 3h-1 would be three times too much
    return (None if stray else factor), plain.strip()


def _rounded(value: float) -> float:
    """Without the last digit, in which 86399.99999999999 differs from a day."""
    return float(f"{value:.15g}")
