"""Mean and spread of a field over the globe, streaming, by year: so that any years can be the training years."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError

_SUMS = ("weight", "mean", "m2")


@dataclass(frozen=True)
class Moments:
    """Weighted mean and sum of squared deviations of the values seen, per level.

    Joined by m2 = m2_a + m2_b + (mean_b - mean_a)^2 w_a w_b / (w_a + w_b), which loses nothing where sums of
    squares cancel.

    Args:
        weight: Sum of weights (levels) or ().
        mean: Weighted mean, 0 where the weight is.
        m2: Weighted sum of squared deviations from the mean.

    Source:
        Chan, Golub & LeVeque (1979), Stanford STAN-CS-79-773, eq. 2.1, with weights for numbers.
    """

    weight: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray, transform: str = "none") -> "Moments":
        """Statistics of one day.

        Args:
            values: ([level,] *S); NaN where missing.
            weights: (*S) of the points, such as areas.
            transform: Transform applied to the values first.

        Returns:
            Moments per level in float64.

        Raises:
            ValueError: If log1p is asked of values below -1.
        """
        levels = values.shape[: values.ndim - weights.ndim]
        rows = [_moments(level, weights.ravel(), transform) for level in values.reshape(-1, weights.size)]
        return cls(*(np.reshape(column, levels) for column in zip(*rows, strict=True)))

    def join(self, other: "Moments") -> "Moments":
        """Statistics of the union of both.

        Args:
            other: Moments of other values.

        Returns:
            The joint moments.
        """
        weight = self.weight + other.weight
        part = np.divide(other.weight, weight, out=np.zeros_like(weight), where=weight > 0)
        gap = other.mean - self.mean
        return Moments(weight, self.mean + gap * part, self.m2 + other.m2 + gap**2 * self.weight * part)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, NaN where nothing was seen."""
        variance = np.divide(self.m2, self.weight, out=np.full_like(self.m2, np.nan), where=self.weight > 0)
        return np.sqrt(variance)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, exactly."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in _SUMS}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Moments":
        """The inverse of `to_json`.

        Args:
            row: Row as returned by `to_json`.

        Returns:
            The same moments.
        """
        return cls(*(np.asarray(row[name], dtype=np.float64) for name in _SUMS))


@dataclass
class Statistics:
    """Moments of each year after a transform; they join to those of any years.

    Days are joined one after the other, so that it doesn't matter in which pieces they came.

    Args:
        transform: "none", or "log1p" for log(1 + x).
        years: Moments by year.
    """

    transform: str = "none"
    years: dict[int, Moments] = field(default_factory=dict)

    def add(self, values: np.ndarray, days: np.ndarray, weights: np.ndarray) -> None:
        """Take in some days, once each.

        Args:
            values: (T[, level], *S) before the transform.
            days: (T), datetime64.
            weights: (*S), see `area_weights`.

        Raises:
            ValueError: If log1p is asked of values below -1.
        """
        for day, value in zip(
            np.asarray(days, dtype="datetime64[Y]").astype(int) + 1970, values, strict=True
        ):
            new = Moments.of(value, weights, self.transform)
            old = self.years.get(int(day))
            self.years[int(day)] = new if old is None else old.join(new)

    def over(self, first: int | None = None, last: int | None = None) -> Moments:
        """Moments over some years, such as those of training.

        Args:
            first: First year; None begins with the first there.
            last: Last year; None ends with the last there.

        Returns:
            The joint moments.

        Raises:
            ValueError: If there is none of these years.
        """
        chosen = [
            year
            for year in sorted(self.years)
            if (first is None or year >= first) and (last is None or year <= last)
        ]
        if not chosen:
            there = f"{min(self.years)} to {max(self.years)}" if self.years else "none"
            raise InvalidValueError(
                f"there are no statistics for the years {first} to {last}; the store has {there}: choose "
                "training years among these."
            )
        joint = self.years[chosen[0]]
        for year in chosen[1:]:
            joint = joint.join(self.years[year])
        return joint

    def to_json(self) -> dict[str, Any]:
        """As an attribute of a store."""
        return {str(year): self.years[year].to_json() for year in sorted(self.years)}

    @classmethod
    def of_store(cls, attrs: Mapping[str, Any], transform: str = "none") -> "Statistics":
        """The statistics in a store's attributes.

        Args:
            attrs: Attributes of the store.
            transform: Name of a transform with stored statistics.

        Returns:
            The statistics.

        Raises:
            ValueError: If the store keeps none for this transform.
        """
        kept = attrs.get("statistics", {})
        if transform not in kept:
            raise InvalidValueError(
                f"the store keeps no statistics of the transform {transform!r} (it has "
                f"{', '.join(kept) or 'none'}); process it again."
            )
        return cls(transform, {int(year): Moments.from_json(row) for year, row in kept[transform].items()})


def _moments(values: np.ndarray, weights: np.ndarray, transform: str) -> tuple[float, float, float]:
    """Weight, mean and squared deviations of one level; sums by numpy, which don't depend on threads."""
    there = np.isfinite(values)
    seen, w = values[there].astype(np.float64), weights[there]
    if transform == "log1p":
        if seen.size and seen.min() <= -1:
            raise InvalidValueError(
                f"log(1 + x) needs values above -1, got {seen.min():g}; use the transform 'none'."
            )
        seen = np.log1p(seen)
    weight = float(w.sum())
    if not weight:
        return 0.0, 0.0, 0.0
    mean = float((w * seen).sum() / weight)
    seen -= mean
    return weight, mean, float((w * seen * seen).sum())


def area_weights(array: xr.DataArray, area: np.ndarray | None = None) -> np.ndarray:
    """Weights of the points of an array: areas of cells on a grid, ones for stations.

    Args:
        array: With coordinates lat and lon.
        area: Areas of the cells, where known.

    Returns:
        (lat, lon) or (station).
    """
    if "station" in array.dims:
        return np.ones(array.sizes["station"])
    if area is not None:
        return area
    return np.broadcast_to(np.cos(np.deg2rad(array.lat.values))[:, None], array.shape[-2:]).astype(np.float64)


def summary(statistics: Iterable[Statistics], training: tuple[int, int] | None) -> dict[str, Any]:
    """Mean and standard deviation over the training years, for people and for stores' attributes.

    Args:
        statistics: One for each transform.
        training: First and last year; None takes all.

    Returns:
        By transform: mean, std (per level), years; nothing where no training year is there yet.
    """
    rows: dict[str, Any] = {}
    for one in statistics:
        first, last = training or (min(one.years), max(one.years))
        found = [year for year in sorted(one.years) if first <= year <= last]
        if found:
            joint = one.over(first, last)
            mean, std = joint.mean.tolist(), joint.std.tolist()
            rows[one.transform] = {"mean": mean, "std": std, "years": [found[0], found[-1]]}
    return rows
