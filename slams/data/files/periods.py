"""Validity periods of records, means over time windows, and matching of records to states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError

Calendar = Literal["refuse", "date", "year"]
Rule = Literal["end", "start", "date"]

_DAY = np.timedelta64(1, "D")
_TOLERANCE = np.timedelta64(6, "h")
_RULES = {
    "end": "the record whose period ends at the time of the state (a state at the end of the rain day)",
    "start": "the record whose period starts at the time of the state (a state at the start of the rain day)",
    "date": "the record that carries the same date, whatever time of the day it stands for",
}


@dataclass(frozen=True)
class Period:
    """Validity period of a daily value, relative to 00 UTC of the day that labels it.

    Args:
        start: Start [hours].
        end: End [hours]; the start again for a snapshot.
        cell_method: CF's word: "sum", "mean" or "point".

    Raises:
        ValueError: If it ends before it starts.
    """

    start: float
    end: float
    cell_method: str

    def __post_init__(self) -> None:
        """Check at the door."""
        if self.end < self.start:
            raise InvalidValueError(
                f"a period must not end ({self.end} h) before it starts ({self.start} h)."
            )


SNAPSHOT = Period(0, 0, "point")
RAIN_DAY = Period(0, 24, "sum")
DAILY_MEAN = Period(0, 24, "mean")


def years_of(days: np.ndarray) -> np.ndarray:
    """Calendar years of days or moments, int64."""
    return days.astype("datetime64[Y]").astype(np.int64) + 1970


def bounds(days: np.ndarray, period: Period) -> np.ndarray:
    """Start and end of the validity period of each day's value.

    Args:
        days: (T), anything that becomes datetime64[D].
        period: Validity period within the day.

    Returns:
        (T, 2), datetime64[s].

    >>> bounds(np.array(["2000-02-28"]), RAIN_DAY).tolist()
    [[datetime.datetime(2000, 2, 28, 0, 0), datetime.datetime(2000, 2, 29, 0, 0)]]
    """
    labels = np.asarray(days, dtype="datetime64[D]").astype("datetime64[s]")
    offsets = np.rint(np.array([period.start, period.end]) * 3600).astype("timedelta64[s]")
    return labels[:, None] + offsets


def average(
    array: xr.DataArray,
    width: np.timedelta64 = _DAY,
    *,
    records: int | None = None,
    allow_partial: bool = False,
) -> xr.DataArray:
    """Means over windows of time: a record belongs to the window that contains its stamp.

    Windows start at multiples of `width` since 1970-01-01. One without all its records is left out, since half
    a day is biased by the cycle of the sun; a missing value in one of the records makes the mean missing there.

    Args:
        array: (time, ...), stamps rising strictly; what is lazy stays lazy.
        width: Length of a window.
        records: Records of a whole window; None takes `records_per` of the stamps.
        allow_partial: Take the mean of what a window has.

    Returns:
        (time, ...) stamped with the start of each window, float64 sums inside.

    Raises:
        ValueError: If stamps don't rise strictly, or a window holds more than `records`.
    """
    stamps = array.time.values.astype("datetime64[s]")
    if (np.diff(stamps) <= np.timedelta64(0, "s")).any():
        wrong = int(np.flatnonzero(np.diff(stamps) <= np.timedelta64(0, "s"))[0])
        raise InvalidValueError(
            f"times to average must rise strictly, but {stamps[wrong + 1]} follows {stamps[wrong]}; sort them "
            "and drop what comes twice."
        )
    whole = records or records_per(stamps, width)
    number = stamps.astype(np.int64) // width.astype("timedelta64[s]").astype(np.int64)
    windows, first, counts = np.unique(number, return_index=True, return_counts=True)
    if counts.size and counts.max() > whole:
        raise InvalidValueError(
            f"a window of {width} that starts {_stamp(windows[counts.argmax()], width)} holds {counts.max()} "
            f"records, expected {whole}; correct `records`."
        )
    kept = np.flatnonzero((counts == whole) | allow_partial)
    labels = _stamp(windows[kept], width)
    total = sum(_record(array, first[kept], counts[kept], k) for k in range(whole)) if kept.size else None
    if total is None:
        return array.isel(time=slice(0, 0)).assign_coords(time=labels)
    divisor = xr.DataArray(counts[kept].astype(np.float64), dims="time")
    mean = (total / divisor).astype(array.dtype if array.dtype.kind == "f" else np.float64)
    return mean.assign_coords(time=labels).transpose(*array.dims).rename(array.name).assign_attrs(array.attrs)


def records_per(stamps: np.ndarray, width: np.timedelta64 = _DAY) -> int:
    """Number of records of a complete time window, by the commonest step between stamps.

    Args:
        stamps: Rising.
        width: Length of a window.

    Returns:
        At least 1.
    """
    steps = np.diff(stamps.astype("datetime64[s]")).astype(np.int64)
    if not steps.size:
        return 1
    values, counts = np.unique(steps, return_counts=True)
    common = values[counts.argmax()]
    return max(1, int(round(int(width.astype("timedelta64[s]").astype(np.int64)) / common)))


def standard_times(stamps: np.ndarray, choice: Calendar = "refuse") -> tuple[np.ndarray, np.ndarray]:
    """Convert time stamps of any calendar to the Gregorian one.

    Calendars without leap years need no choice: each of their days exists, 29 February is a gap. A year of
    360 days has days that don't exist.

    Args:
        stamps: datetime64, or cftime objects of one calendar.
        choice: "refuse" days that don't exist; "date" keeps the labels, drops 30 February and leaves every
            31st as a gap; "year" puts day k of 360 at the same part of the true year, so that five or six days
            a year are gaps and seasons stay where they are.

    Returns:
        Stamps, datetime64[s], and the positions of `stamps` that they come from.

    Raises:
        ValueError: If days don't exist and the choice is "refuse", or the choice isn't known.
    """
    if choice not in get_args(Calendar):
        raise InvalidValueError(f"choice must be one of {', '.join(get_args(Calendar))}, got {choice!r}.")
    stamps = np.atleast_1d(stamps)
    everyone = np.arange(stamps.size)
    if np.issubdtype(stamps.dtype, np.datetime64):
        return stamps.astype("datetime64[s]"), everyone
    if choice == "year" and stamps.size and stamps[0].calendar == "360_day":
        return np.array([_stretched(stamp) for stamp in stamps], dtype="datetime64[s]"), everyone
    found: list[tuple[int, np.datetime64]] = []
    for position, stamp in enumerate(stamps):
        try:
            found.append((position, np.datetime64(stamp.isoformat(), "s")))
        except ValueError as error:
            if choice == "refuse":
                raise InvalidValueError(
                    f"calendar {stamp.calendar!r} has days that don't exist, the first is {stamp.isoformat()}; "
                    "choose 'date' to drop them or 'year' to spread 360 days over the year, for a file with xarray: "
                    "dataset.convert_calendar('standard', align_on='date')."
                ) from error
    positions = np.array([position for position, _ in found], dtype=np.int64)
    return np.array([stamp for _, stamp in found], dtype="datetime64[s]"), positions


@dataclass(frozen=True)
class Match:
    """Match the records of each modality to states.

    Args:
        dates: Dates of the states that every modality has a record for, datetime64[D].
        positions: Positions of these records in each modality, the state among them.
        rule: The rule.
        state: Name of the state.
    """

    dates: np.ndarray
    positions: Mapping[str, np.ndarray]
    rule: Rule
    state: str

    def text(self) -> str:
        """The rule in a sentence, for reports."""
        others = ", ".join(name for name in self.positions if name != self.state) or "nothing else"
        return f"{others} joined to {self.state} at {self.dates.size} times: {_RULES[self.rule]}"


def match(
    periods: Mapping[str, np.ndarray], state: str, rule: Rule = "end", tolerance: np.timedelta64 = _TOLERANCE
) -> Match:
    """Join records of several modalities to the states by their validity periods.

    Args:
        periods: Start and end of each record (T, 2), rising, by modality.
        state: Modality of the state.
        rule: "end" takes the record whose period ends when the state's does: a snapshot at 00 UTC then closes
            the rain day before it. "start" compares the starts, "date" the labels (days of the starts).
        tolerance: Largest difference between ends (starts): rain days end between 00 and 06 UTC or so in most
            countries.

    Returns:
        The common states, rising.

    Raises:
        ValueError: If the rule or the state isn't known, or nothing is in common.
    """
    if rule not in get_args(Rule) or state not in periods:
        raise InvalidValueError(
            f"rule must be one of {', '.join(get_args(Rule))} and the state one of {', '.join(periods)}, got "
            f"{rule!r} and {state!r}."
        )
    times = {name: _when(values, rule) for name, values in periods.items()}
    apart = np.timedelta64(0, "s") if rule == "date" else tolerance.astype("timedelta64[s]")
    nearest = {name: _nearest(times[state], found) for name, found in times.items()}
    common = np.ones(times[state].size, dtype=bool)
    for name, position in nearest.items():
        if times[name].size:
            common &= np.abs(times[name][position] - times[state]) <= apart
        else:
            common[:] = False
    if not common.any():
        spans = "; ".join(f"{n}: {t[0]} to {t[-1]}" if t.size else f"{n}: nothing" for n, t in times.items())
        raise InvalidValueError(
            f"no state of {state!r} has a record of every modality by the rule {rule!r} ({spans}); give periods "
            "that overlap, or choose another rule."
        )
    positions = {name: position[common] for name, position in nearest.items()}
    labels = periods[state][positions[state], 0].astype("datetime64[D]")
    return Match(labels, positions, rule, state)


def _record(array: xr.DataArray, first: np.ndarray, counts: np.ndarray, k: int) -> Any:
    """The k-th record of each window, zero where a window has fewer."""
    record = array.isel(time=first + np.minimum(k, counts - 1)).astype(np.float64).drop_vars("time")
    there = xr.DataArray(counts > k, dims="time")
    return record if bool(there.all()) else record.where(there, 0.0)


def _stamp(window: Any, width: np.timedelta64) -> Any:
    """Start of a window by its number."""
    seconds = np.asarray(window) * width.astype("timedelta64[s]").astype(np.int64)
    return seconds.astype("datetime64[s]")


def _stretched(stamp: Any) -> np.datetime64:
    """Day k of a year of 360 at the same part of the true year, the hour kept."""
    start = np.datetime64(f"{stamp.year:04d}-01-01", "D")
    length = int((np.datetime64(f"{stamp.year + 1:04d}-01-01", "D") - start) / _DAY)
    day = start + np.timedelta64(int((stamp.dayofyr - 0.5) * length / 360), "D")
    second = stamp.hour * 3600 + stamp.minute * 60 + stamp.second
    return day.astype("datetime64[s]") + np.timedelta64(second, "s")


def _when(periods: np.ndarray, rule: Rule) -> np.ndarray:
    """The time by which a record is joined."""
    edge = np.asarray(periods)[:, 1 if rule == "end" else 0].astype("datetime64[s]")
    return edge.astype("datetime64[D]").astype("datetime64[s]") if rule == "date" else edge


def _nearest(wanted: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Position of the nearest of rising times; the earlier of two equally near."""
    if not have.size:
        return np.zeros(wanted.size, dtype=np.int64)
    right = np.searchsorted(have, wanted).clip(max=have.size - 1)
    left = (right - 1).clip(min=0)
    return np.where(np.abs(wanted - have[left]) <= np.abs(have[right] - wanted), left, right)
