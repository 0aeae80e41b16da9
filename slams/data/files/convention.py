"""File convention of an archive: detection, decoding, and validity periods of values."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files.periods import Period


@dataclass(frozen=True)
class Quantity:
    """One variable of an archive, as the stores hold it.

    Args:
        name: Name of the variable and of its store.
        units: Unit of the stored values.
        valid_range: Lowest and highest value that isn't a fault of the file.
        method: Regridding: "conservative" keeps the area integral, "linear" interpolates.
        period: Stretch of time that a value stands for.
        long_name: Label of axes and tables.
        standard_name: CF's name of the quantity.
        transforms: Allowed transforms: "none", or "log1p" too.
        aliases: Other names of the variable in files.
    """

    name: str
    units: str
    valid_range: tuple[float, float]
    method: Literal["conservative", "linear"]
    period: Period
    long_name: str
    standard_name: str
    transforms: tuple[str, ...] = ("none",)
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Its names in files, its own first."""
        return (self.name, *self.aliases)


class Convention:
    """The conventions of one archive's files; the defaults are those of plain netCDF with one field a day.

    Attributes:
        name: Name in commands and recipes.
        quantities: Variables of the archive.
        negative_is_missing: Whether any negative value is a marker of missing values.
    """

    name: str
    quantities: tuple[Quantity, ...]
    negative_is_missing = False

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(quantity.name for quantity in self.quantities)

    def quantity(self, variable: str) -> Quantity:
        """One of the variables by name.

        Raises:
            ValueError: If the archive has none of that name.
        """
        for quantity in self.quantities:
            if quantity.name == variable:
                return quantity
        raise InvalidValueError(
            f"the archive {self.name!r} has no variable {variable!r}; it has {', '.join(self.variables)}."
        )

    def recognises(self, dataset: xr.Dataset, variable: str) -> bool:
        """Whether a recipe's file follows these conventions, by its header.

        Args:
            dataset: The open file.
            variable: Name of the variable in it.
        """
        return any(variable in quantity.names for quantity in self.quantities)

    def layout(self, dataset: xr.Dataset) -> str | None:
        """Layout of a file among the archive's, by dimensions and attributes, never by its name.

        Args:
            dataset: The open file.

        Returns:
            A short name, None if it is none of them.
        """
        held = (name for quantity in self.quantities for name in quantity.names if name in dataset.data_vars)
        return self.name if any(self.recognises(dataset, name) for name in held) else None

    def raw(self, path: Path) -> Callable[[Path], xr.Dataset] | None:
        """Reader of a format specific to the archive; None leaves the file to xarray."""
        return None

    def select(self, array: xr.DataArray, subject: str) -> xr.DataArray:
        """The records and levels of a file that a store holds.

        Args:
            array: (time[, level], lat, lon), canonical and lazy.
            subject: Name of the variable in messages.

        Raises:
            ValueError: If none of them is there, or the values contradict their unit.
        """
        return array

    def decode(self, array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
        """Corrections that the header doesn't show: padding, the true unit.

        Args:
            array: Array in canonical dimensions, perhaps lazy; any selection of days of a file.
            last: Last day of the file.
        """
        return array

    def daily(self, array: xr.DataArray) -> xr.DataArray:
        """One field a day out of the records of a recipe's file, in memory."""
        return array
