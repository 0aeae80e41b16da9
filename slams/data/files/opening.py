"""Files opened lazily: their format by content, what their attributes declare as missing, and why one can't be read."""

import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
import zarr

from slams.core.errors import InvalidValueError, SlamsError
from slams.data.files import axes, station_days, stations
from slams.data.files.convention import Convention
from slams.data.safety import refuse_pickles

_HEAD = 64
_OTHERS = {  # first bytes of formats that end up among weather data, and the remedy
    b"PK\x03\x04": ("a zip archive", "unpack it, and give what was in it"),
    b"\x1f\x8b": ("packed with gzip", "unpack it with gunzip"),
    b"BZh": ("packed with bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("packed with xz", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it with unzstd"),
    b"\x0e\x03\x13\x01": ("HDF4", "convert it to netCDF, e.g. with h4tonccf"),
    b"BUFR": ("BUFR", "convert it to netCDF, e.g. with ecCodes"),
    b"<": (
        "a page of the web, such as a server's message",
        "fetch it again, with a login where one is needed",
    ),
}
_GRIB = ("GRIB", "convert it to netCDF, e.g. with `cdo -f nc4 copy IN OUT.nc` or with xarray and cfgrib")
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}  # bytes of netCDF's types


def open_dataset(path: Path, conventions: Iterable[Convention] = ()) -> xr.Dataset:
    """Open a file or folder lazily: netCDF, zarr, a format of an archive's own, or a table of observations.

    Args:
        path: File or folder.
        conventions: Archives whose own formats it may have.

    Returns:
        What it holds; only the header and the coordinates have been read (a table is read whole).

    Raises:
        ValueError: If it can't be opened, with the reason: another format, a file shorter than its header promises, a
            time axis without dates, a pickle to be loaded.
    """
    try:
        if path.is_dir():
            refuse_pickles(path)
            consolidated = (path / ".zmetadata").exists()
            return _decoded(xr.open_zarr(path, chunks=None, consolidated=consolidated, decode_cf=False), path)
        for convention in conventions:
            if (opener := convention.raw(path)) is not None:
                return opener(path)
        if path.suffix == ".parquet":
            return station_days.daily_dataset(stations.read_table(path))
        _refuse_others(path)
        raw = xr.open_dataset(path, decode_cf=False)
        if stations.is_table(raw):
            raw.close()
            return station_days.daily_dataset(stations.read_table(path))
        return _decoded(raw, path)
    except SlamsError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidValueError(
            f"{path} can't be opened ({error}); it is damaged, cut short, or of a format xarray has no engine for: "
            "write or fetch it again, or convert it to netCDF."
        ) from error


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Name the variable and its file where its values can't be read, whatever library found that.

    Args:
        subject: Name of the variable and its file.

    Raises:
        ValueError: If the block fails.
    """
    try:
        yield
    except (SlamsError, MemoryError):
        raise
    except Exception as error:  # of HDF5, zarr and a dozen codecs, which share no class
        raise InvalidValueError(
            f"{subject} can't be read to its end ({type(error).__name__}: {error}); the file is damaged: write or "
            "fetch it again."
        ) from error


def _refuse_others(path: Path) -> None:
    """Check the first bytes of a file, and the length of a classic netCDF."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise InvalidValueError(f"{path} is empty; write or fetch it again.")
    found = next((other for start, other in _OTHERS.items() if head.lstrip().startswith(start)), None)
    if b"GRIB" in head:
        found = _GRIB
    if found is not None:
        raise InvalidValueError(f"{path} is {found[0]}, not netCDF: {found[1]}.")
    if head[:3] == b"CDF":
        promised, there = _classic_size(path), path.stat().st_size
        if there < promised:
            raise InvalidValueError(
                f"{path} is shorter than its header promises ({there} bytes of {promised}), and what is gone would "
                "read as zero; fetch or write it again."
            )


def _classic_size(path: Path) -> int:
    """Bytes that the header of a netCDF of format 1, 2 or 5 (CDF-1, CDF-2, CDF-5) promises.

    Source:
        Unidata, NetCDF classic format specification; Northwestern University, CDF-5 file format specification.
    """
    try:
        with path.open("rb") as file:
            version = file.read(4)[3]
            count = ">q" if version == 5 else ">i"
            place = ">i" if version == 1 else ">q"

            def number(form: str = count) -> int:
                return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

            def skip(size: int) -> None:
                file.seek(-(-size // 4) * 4, 1)

            def entries() -> range:
                number(">i")  # the tag of the list
                return range(number())

            def attributes() -> None:
                for _ in entries():
                    skip(number())
                    kind = number(">i")
                    skip(number() * _SIZES[kind])

            records, lengths = number(), []
            for _ in entries():
                skip(number())
                lengths.append(number())
            attributes()
            variables = []
            for _ in entries():
                skip(number())
                shape = [lengths[number()] for _ in range(number())]
                attributes()
                size = _SIZES[number(">i")]
                number()  # the size in the header, which is capped in large files
                variables.append((number(place), shape, size))
    except (struct.error, IndexError, KeyError) as error:
        raise InvalidValueError(
            f"{path} is shorter than its header promises: it ends within the header; fetch or write it again."
        ) from error
    return _classic_end(records, variables)


def _classic_end(records: int, variables: list[tuple[int, list[int], int]]) -> int:
    """Last byte of the values, from the begin, the shape and the bytes a value of each variable."""
    along = [v for v in variables if v[1] and v[1][0] == 0]
    sizes = [int(np.prod(shape[1:], dtype=np.int64)) * size for _, shape, size in along]
    # a lone record variable isn't padded
    record = sizes[0] if len(sizes) == 1 else sum(-(-size // 4) * 4 for size in sizes)
    ends = [begin + int(np.prod(shape, dtype=np.int64)) * size for begin, shape, size in variables]
    if records > 0:  # -1: a stream, whose length is the file's
        ends += [
            begin + (records - 1) * record + size for (begin, _, _), size in zip(along, sizes, strict=True)
        ]
    return max(ends, default=0)


def _decoded(raw: xr.Dataset, path: Path) -> xr.Dataset:
    """Dates and numbers of what a file holds; lazy."""
    for variable in raw.variables.values():
        _settle_markers(variable)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "variable .* has multiple fill values"
            )  # all of them are obeyed
            return xr.decode_cf(raw)
    except (ValueError, OverflowError) as error:
        raw.close()
        for name, variable in raw.variables.items():
            _refuse_undated(name, variable, path)
        raise InvalidValueError(f"{path} can't be decoded ({error}); correct its attributes.") from error


def _settle_markers(variable: xr.Variable) -> None:
    """Bring the attributes of missing values to the form that xarray obeys: numbers, as the file stores them.

    Markers may come as text or, of packed integers, in unpacked units. Packed integers without a marker have that of
    netCDF's library for values that were never written.
    """
    attrs, kind, packing = variable.attrs, variable.dtype, packing_of(variable.attrs)
    declared = [key for key in ("_FillValue", "missing_value") if key in attrs]
    if kind.kind not in "iuf":
        return
    if not declared and packing is not None and kind.kind in "iu" and kind.itemsize > 1:
        attrs["_FillValue"] = kind.type(netCDF4.default_fillvals[f"{kind.kind}{kind.itemsize}"])
    for key in declared:
        values, text = numbers(attrs[key]), isinstance(attrs[key], str)
        if kind.kind in "iu" and not np.isfinite(values).all():
            continue  # NaN, which no integer is
        stored = np.ones(values.shape, dtype=bool)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            stored = (values == np.rint(values)) & (values >= limits.min) & (values <= limits.max)
            stored |= str(attrs.get("_Unsigned", "")).lower() == "true"
        if packing is not None and not stored.all():
            values = np.where(stored, values, np.rint((values - packing[1]) / packing[0]))
            values = values.clip(limits.min, limits.max)
        elif not text:
            continue
        attrs[key] = values.astype(kind) if values.size > 1 else values.astype(kind)[:1].squeeze()[()]
        if not values.size:
            del attrs[key]


def numbers(value: Any) -> np.ndarray:
    """Numbers of an attribute, which may be text such as "-99, -999"; none if it holds no number."""
    if isinstance(value, (str, bytes)):
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        value = [float(word) for word in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)]
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


def packing_of(attributes: Mapping[Any, Any]) -> tuple[float, float] | None:
    """Scale and offset of packed values, None if they aren't packed."""
    if not {"scale_factor", "add_offset"} & set(attributes):
        return None
    scale, offset = (
        numbers(attributes.get(key, x)) for key, x in (("scale_factor", 1.0), ("add_offset", 0.0))
    )
    return float(scale[0]), float(offset[0])


def _refuse_undated(name: Any, variable: xr.Variable, path: Path) -> None:
    """Check that a variable with a unit of time decodes."""
    units, calendar = str(variable.attrs.get("units", "")), variable.attrs.get("calendar")
    if "since" not in units and calendar is None:
        return
    try:
        xr.conventions.decode_cf_variable(str(name), variable)
    except (ValueError, OverflowError) as error:
        months = re.match(r"\s*(month|year|common_year)s?\b", units)
        raise InvalidValueError(
            f"{path}: the time axis {str(name)!r} has the units {units!r}"
            f"{f' and the calendar {calendar!r}' if calendar else ''}, which give no dates"
            f"{' (months and years have no fixed length)' if months else ''}; write it in units such as 'days since "
            "1900-01-01' with the calendar 'standard'."
        ) from error


@dataclass(frozen=True)
class AbsentChunks:
    """Chunks of a variable of a zarr that aren't on disk, and read as its fill value.

    Attributes:
        count, total: Number of absent chunks and of all.
        fill: Fill value.
        missing: Whether the fill value is a declared marker of missing values.
        torn: Whether a record has a part of its chunks only.
        first: Place of the first, for messages.
    """

    count: int
    total: int
    fill: Any
    missing: bool
    torn: bool
    first: str

    def text(self, subject: str) -> str:
        """A sentence."""
        reads = "missing" if self.missing else f"{self.fill or 0}"
        return (
            f"{subject}: {self.count} of {self.total} chunks aren't there, the first at {self.first}; they would "
            f"read as {reads}"
        )


def absent_chunks(path: Path, dataset: xr.Dataset, name: str) -> AbsentChunks | None:
    """Absent chunks of a variable, None if all are there or the file isn't a zarr.

    Args:
        path: The zarr.
        dataset: The same, open.
        name: Name of the variable in it.
    """
    if not path.is_dir():
        return None
    array: Any = zarr.open_group(path, mode="r")[name]
    variable, steps = dataset[name].variable, array.shards or array.chunks
    counts = [-(-size // step) for size, step in zip(array.shape, steps, strict=True)]
    held = {file.relative_to(path / name).as_posix() for file in (path / name).rglob("*") if file.is_file()}
    lacking = [index for index in np.ndindex(*counts) if array.metadata.encode_chunk_key(index) not in held]
    if not lacking:
        return None
    markers = np.concatenate(
        [
            numbers(variable.encoding[key])
            for key in ("_FillValue", "missing_value")
            if key in variable.encoding
        ]
        or [np.zeros(0)]
    )
    fill = (
        np.float64(0.0 if array.fill_value is None else array.fill_value)
        if array.dtype.kind in "iuf"
        else 0.0
    )
    roles = [axes.role_of(dim, dataset[dim].variable) if dim in dataset else None for dim in variable.dims]
    when = roles.index("time") if "time" in roles else None
    rows = {index[when] for index in lacking} if when is not None else {0}
    each = len(lacking) if when is None else int(np.prod(counts)) // counts[when]
    start = {dim: k * step for dim, k, step in zip(variable.dims, lacking[0], steps, strict=True)}
    places = [f"{dim} {dataset[dim].values[at] if dim in dataset else at}" for dim, at in start.items()]
    return AbsentChunks(
        len(lacking),
        int(np.prod(counts)),
        array.fill_value,
        bool(np.isnan(fill) or (markers == fill).any()),
        when is None or len(lacking) != each * len(rows),
        ", ".join(places) or "its only value",
    )


def refuse_absent_chunks(
    path: Path, dataset: xr.Dataset, name: str, subject: str, *, torn: bool = False
) -> str:
    """Check for chunks of a zarr that never arrived; those that read as missing are allowed.

    Args:
        path: The file.
        dataset: The same, open.
        name: Name of the variable in it.
        subject: Name of the variable in messages.
        torn: Whether to refuse also a record of which only a part is missing.

    Returns:
        A sentence on the chunks that read as missing values, empty if all are there.

    Raises:
        ValueError: If chunks would read as numbers that nobody wrote.
    """
    again = "fetch or write it again (with write_empty_chunks=True where zarr left out chunks equal to the fill value)"
    for coordinate in map(str, dataset.coords):
        lone = dataset[coordinate].size == 1  # a value that may be the fill value itself: day 0, the equator
        absent = None if lone or coordinate == name else absent_chunks(path, dataset, coordinate)
        if absent is not None:
            raise InvalidValueError(f"{absent.text(f'coordinate {coordinate!r} of {path}')}; {again}.")
    absent = absent_chunks(path, dataset, name)
    if absent is None:
        return ""
    if not absent.missing or (torn and absent.torn):
        raise InvalidValueError(f"{absent.text(subject)}; {again}.")
    return absent.text(subject)
