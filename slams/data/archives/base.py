"""Archives: addresses and files, and their conversion to labelled arrays in the unit of the store."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.archives.local import fields_under, is_local, years_in
from slams.data.download.fetch import Item, fetch
from slams.data.files import axes, units
from slams.data.files.canonical import calendar_days, canonical, find_variable
from slams.data.files.convention import Convention, Quantity
from slams.data.files.opening import open_dataset, refuse_absent_chunks
from slams.data.files.periods import Period, standard_times
from slams.data.processing.plan import PIECE_BYTES

Report = Callable[[str, int, int | None, str], None]


class Archive(Convention):
    """A source of gridded data: location of its files, and their conversion to fields in the unit of the store.

    Attributes:
        url: Base address.
        file: Name of a file there; with `{year}`, one a year.
        folder: Folder of files and stores of `slams data`.
        first_year: First year of the archive.
        delay: Days after the end of a year until its file is complete.
    """

    url: str
    file: str
    folder: Path
    first_year: int
    delay = 31

    def __repr__(self) -> str:
        """Its name."""
        return f"<archive {self.name}: {', '.join(self.variables)}>"

    @property
    def method(self) -> dict[str, str]:
        """Regridding method of each variable."""
        return {quantity.name: quantity.method for quantity in self.quantities}

    @property
    def period(self) -> Mapping[str, Period]:
        """Validity period of the values of each variable."""
        return {quantity.name: quantity.period for quantity in self.quantities}

    @property
    def transforms(self) -> dict[str, tuple[str, ...]]:
        """Allowed transforms of each variable."""
        return {quantity.name: quantity.transforms for quantity in self.quantities}

    def items(self, years: Sequence[int], source: str | Path | None = None) -> list[Item]:
        """Files to download for some years.

        Args:
            years: The years wanted.
            source: Base address or local folder; None takes `url`.

        Returns:
            Files for `slams.data.download.fetch.fetch`, each with the check of its header.

        Raises:
            ValueError: If a year is out of the archive's range, or a local folder holds nothing of it.
        """
        base = self.url if source is None else source
        local = is_local(base)
        if local is not None:
            return self._local(local, years)
        wanted = within(years, self.first_year, self.name)
        if "{year}" not in self.file:  # one file of all years, which grows; or the address of the file itself
            whole = str(base).endswith(Path(self.file).suffix)
            url = str(base) if whole else f"{str(base).rstrip('/')}/{self.file}"
            return [Item(url, url.rsplit("/", 1)[1], check=self.check, grows=True)]
        running = int(str(np.datetime64("today") - self.delay)[:4])
        names = {year: self.file.format(year=year) for year in wanted}
        return [
            Item(f"{str(base).rstrip('/')}/{name}", name, check=self.check, grows=year >= running)
            for year, name in names.items()
        ]

    def obtain(
        self,
        years: Sequence[int],
        source: str | Path | None,
        folder: Path,
        *,
        jobs: int = 4,
        offline: bool = False,
        progress: Report | None = None,
        variables: Sequence[str] | None = None,
    ) -> list[Path]:
        """Download the files of some years, and unpack packed ones.

        Args:
            years: The years wanted.
            source: Base address or local folder; None takes `url`.
            folder: The data folder.
            jobs: Downloads at a time.
            offline: Use only what is there.
            progress: Progress bars, as in `fetch`.
            variables: Those wanted, where they can be had one by one; None takes all.

        Returns:
            Paths that `open` reads.
        """
        got = fetch(self.items(years, source), folder, jobs=jobs, offline=offline, progress=progress)
        return [one.path for one in got]

    def opened(self, path: Path) -> xr.Dataset:
        """A file of any format of the archive, open; nothing but its header is read."""
        return open_dataset(path, (self,))

    def check(self, path: Path) -> None:
        """Test that a file opens and has a header of this archive.

        Args:
            path: The file.

        Raises:
            ValueError: If not, with what was found.
        """
        with self.opened(path) as dataset:
            self.known(dataset, path)
            for name in {name for one in self.quantities for name in one.names} & set(
                map(str, dataset.data_vars)
            ):
                refuse_absent_chunks(path, dataset, name, f"{self.name} {name} in {path}", torn=True)

    def has(self, path: Path, variable: str) -> bool:
        """Whether a file has a variable under one of its names."""
        with self.opened(path) as dataset:
            return any(name in dataset.variables for name in self.quantity(variable).names)

    def holding(self, paths: Sequence[Path], variable: str) -> list[Path]:
        """Files with a variable, since the data store has one file per variable.

        Args:
            paths: Files of the archive.
            variable: One of `variables`.

        Returns:
            Files that `open` reads for it; stores of zarr, which hold all variables, aren't looked into.

        Raises:
            ValueError: If none has it.
        """
        found = [path for path in paths if path.is_dir() or self.has(path, variable)]
        if not found:
            raise InvalidValueError(
                f"none of the {len(paths)} files of {self.name!r} has the variable {variable!r}."
            )
        return found

    def open(self, path: str | Path, variable: str) -> xr.DataArray:
        """One file, lazily: nothing but the header and the stamps is read.

        Args:
            path: File or folder.
            variable: One of `variables`.

        Returns:
            (time[, level], lat, lon) float32 in dask chunks of records, in the file's times (there may be several
            a day), lat descending, lon ascending, level [hPa] ascending, NaN where missing; attributes units,
            long_name, standard_name, cell_methods, source_name, layout. A value out of range raises ValueError
            when it is computed. `close()` closes the file.

        Raises:
            ValueError: If the header isn't one of the archive's, or unit, levels or stamps are at fault.
        """
        path, quantity = Path(path), self.quantity(variable)
        subject = f"{self.name} {variable} in {path}"
        dataset = self.opened(path)
        try:
            layout = self.known(dataset, path)
            name = find_variable(dataset, quantity.names, path, f"archive {self.name!r}")
            refuse_absent_chunks(path, dataset, name, subject, torn=True)
            array = canonical(_in_chunks(dataset, name), name, "grid", variable, subject)
            array = array.assign_coords(time=_stamps(array.time, subject))
            array = self.select(array, subject)
            if array.sizes["time"]:
                array = self.decode(array, array.time.values.astype("datetime64[D]")[-1])
            array = self._cleaned(array, quantity, subject)
        except BaseException:
            dataset.close()
            raise
        array.attrs = {
            "units": quantity.units,
            "long_name": quantity.long_name,
            "standard_name": quantity.standard_name,
            "cell_methods": f"time: {quantity.period.cell_method.removeprefix('time: ')}",
            "source_name": name,
            "layout": layout,
        }
        array.set_close(dataset.close)
        return array

    def _cleaned(self, array: xr.DataArray, quantity: Quantity, subject: str) -> xr.DataArray:
        """Values in the unit of the store, without markers; tested when they are computed."""
        scale, offset = units.conversion(array.attrs.get("units"), quantity.units, subject)
        settings = {"scale": scale, "offset": offset, "negative": self.negative_is_missing}
        blocks = array.data.map_blocks(
            _clean,
            **settings,
            possible=quantity.valid_range,
            subject=f"{subject} [{quantity.units}]",
            dtype="f4",
        )
        return array.copy(data=blocks)

    def known(self, dataset: xr.Dataset, path: Path) -> str:
        """The layout of a file.

        Raises:
            ValueError: If it isn't one of the archive's.
        """
        layout = self.layout(dataset)
        if layout is None:
            found = {str(name): dict(variable.sizes) for name, variable in dataset.data_vars.items()}
            raise InvalidValueError(
                f"{path} isn't a file of the archive {self.name!r}: it holds {found or 'no variable'}; expected "
                f"{' or '.join(self.variables)} in one of its layouts. Give the file of the archive, or the "
                "source it belongs to."
            )
        return layout

    def _local(self, folder: Path, years: Sequence[int]) -> list[Item]:
        """Files of a local folder that are the archive's and have days of the years."""
        found, others = [], []
        for path in fields_under(folder, self.raw):
            with self.opened(path) as dataset:
                layout = self.layout(dataset)
                here = set(years_in(dataset, path)) if layout else set()
            if layout and (not years or here & set(years)):
                found.append(Item(str(path), path.name, check=self.check))
            else:
                others.append(f"{path.name} ({min(here)} to {max(here)})" if here else path.name)
        if not found:
            raise InvalidValueError(
                f"{folder} holds nothing of the archive {self.name!r} for {span(years)}"
                f"{'; it holds ' + ', '.join(others[:5]) if others else ''}: give the folder of its files, or "
                "other years."
            )
        return found


def span(years: Sequence[int]) -> str:
    """Text for a set of years.

    >>> span([1999, 1998]), span([2001]), span([])
    ('1998 to 1999', '2001', 'any year')
    """
    if not years:
        return "any year"
    return str(years[0]) if len(set(years)) == 1 else f"{min(years)} to {max(years)}"


def within(years: Sequence[int], first: int, archive: str) -> list[int]:
    """Sorted years, checked against the archive's range.

    Args:
        years: The years wanted.
        first: First year of the archive.
        archive: Its name, for the message.

    Returns:
        Each year once.

    Raises:
        ValueError: If there are none, or one lies before the archive begins or in the future.
    """
    last = int(str(np.datetime64("today"))[:4])
    wrong = sorted(year for year in set(years) if not first <= year <= last)
    if wrong or not years:
        raise InvalidValueError(
            f"the archive {archive!r} has the years {first} to {last}, asked were {wrong or 'none'}."
        )
    return sorted(set(years))


def _in_chunks(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """A lazy variable in dask chunks of records; lazy arithmetic needs dask."""
    variable = dataset[name]
    size: dict[str, int] = {str(dim): length for dim, length in variable.sizes.items()}
    for dim in map(str, variable.dims):
        if dim in dataset.variables and axes.role_of(dim, dataset.variables[dim]) == "time":
            record = 4 * variable.size // max(1, variable.sizes[dim])
            size[dim] = int(np.clip(PIECE_BYTES // max(1, record), 1, max(1, variable.sizes[dim])))
    return dataset.assign({name: variable.chunk(size)})


def _stamps(time: xr.DataArray, subject: str) -> np.ndarray:
    """Stamps as datetime64[ns], strictly rising; a day of another calendar keeps its label."""
    calendar_days(time, subject)  # refuses what is no date
    values, _ = standard_times(time.values)
    wrong = np.flatnonzero(np.diff(values) <= np.timedelta64(0))
    if wrong.size:
        first = int(wrong[0])
        what = "comes twice" if values[first] == values[first + 1] else f"is followed by {values[first + 1]}"
        raise InvalidValueError(
            f"{subject}: the times don't rise strictly, {values[first]} {what} ({wrong.size} such steps); sort "
            "the file by time and drop repetitions, e.g. with xarray's sortby and drop_duplicates."
        )
    return values.astype("datetime64[ns]")


def _clean(
    block: np.ndarray,
    *,
    scale: float,
    offset: float,
    negative: bool,
    possible: tuple[float, float],
    subject: str,
) -> np.ndarray:
    """One block: markers become NaN, values change their unit in double precision, and are tested."""
    low, high = _extremes(block)  # costs a tenth of looking at each value, and mostly shows that all is well
    if high >= units.IMPOSSIBLE or low <= -units.IMPOSSIBLE or (negative and low < 0):
        marked = np.abs(block) >= units.IMPOSSIBLE
        if negative:
            marked |= block < 0
        block = np.where(marked, np.nan, block)
        low, high = _extremes(block)
    if (scale, offset) != (1.0, 0.0):
        block = block.astype(np.float64) * scale + offset
        low, high = _extremes(block)
    if low < possible[0] or high > possible[1]:
        raise InvalidValueError(
            f"{subject} runs from {low:g} to {high:g}, expected {possible[0]:g} to {possible[1]:g}; check unit, "
            "scale_factor, add_offset and missing_value of the file."
        )
    return block.astype(np.float32, copy=False)


def _extremes(block: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum; NaN without values, which compares false to any range."""
    if not block.size:
        return np.nan, np.nan
    return float(np.fmin.reduce(block, axis=None)), float(np.fmax.reduce(block, axis=None))
