"""ERA5 on pressure levels from the Copernicus Climate Data Store, one request per variable and month."""

import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from slams import config
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.files import atomic
from slams.data.archives.base import Report
from slams.data.files.canonical import aliases
from slams.data.store.manifest import file_row, read_manifest, record_files

_DATASET = "reanalysis-era5-pressure-levels"
_ADDRESS = "https://cds.climate.copernicus.eu"
_HOW = (
    "sign in at https://cds.climate.copernicus.eu, accept the licence of ERA5 on the page of "
    f"{_DATASET!r}, copy `url` and `key` from your profile into the file ~/.cdsapirc (or into the environment "
    "variables CDSAPI_URL and CDSAPI_KEY), and run the command again"
)


def request(variable: str, year: int, month: int, hour: int = 0) -> dict[str, Any]:
    """One request: a month of a variable at one hour, on the levels and the grid of the system.

    Args:
        variable: Short name, such as "t".
        year: The year.
        month: 1 to 12.
        hour: Hour of the snapshot [UTC].

    Returns:
        A request as the data store expects it.

    >>> request("t", 2021, 2)["day"][-1]
    '28'
    """
    days = (date(year + month // 12, month % 12 + 1, 1) - date(year, month, 1)).days
    return {
        "product_type": ["reanalysis"],
        "variable": [aliases(variable)[0]],
        "year": [str(year)],
        "month": [f"{month:02d}"],
        "day": [f"{day:02d}" for day in range(1, days + 1)],
        "time": [f"{hour:02d}:00"],
        "pressure_level": [str(level) for level in config.PRESSURE_LEVELS],
        "grid": ["1.5", "1.5"],
        "data_format": "netcdf",
        "download_format": "unarchived",
    }


def client() -> Any:
    """A client of the data store.

    Returns:
        An object with `retrieve(name, request, target)`.

    Raises:
        ValueError: If there are no credentials, or cdsapi isn't installed; the message names the way to get them.
    """
    configured = Path(os.environ.get("CDSAPI_RC", "~/.cdsapirc")).expanduser().is_file()
    if not configured and not {"CDSAPI_URL", "CDSAPI_KEY"} <= set(os.environ):
        raise InvalidValueError(f"the Climate Data Store needs credentials, and there are none: {_HOW}.")
    try:
        import cdsapi
    except ImportError as error:
        raise InvalidValueError(
            "the Climate Data Store needs the package cdsapi: pip install slams[data]."
        ) from error
    return cdsapi.Client(quiet=True, progress=False)


def retrieve(
    years: Sequence[int],
    folder: Path,
    variables: Sequence[str],
    check: Callable[[Path], None],
    *,
    offline: bool = False,
    progress: Report | None = None,
    make_client: Callable[[], Any] = client,
) -> list[Path]:
    """Download the files of some years, one per variable and month; those listed in the manifest are kept.

    Args:
        years: The years wanted; months that haven't begun are left out.
        folder: The data folder.
        variables: Short names.
        check: Tests the header of a file.
        offline: Use only what is there.
        progress: Called with the name of each file that is there.
        make_client: Constructor of the client, called at the first request.

    Returns:
        Paths in order of variable and time.

    Raises:
        ValueError: If credentials or the package are missing, or a file has another header than asked for.
        FileNotFoundError: If `offline` and files are missing.
        OSError: If the data store refuses, with its message.
    """
    known = {row["path"] for row in read_manifest(folder)["files"]}
    today = date.today()
    names = [
        (f"cds/era5_{variable}_{year}{month:02d}.nc", variable, year, month)
        for variable in variables
        for year in sorted(set(years))
        for month in range(1, 13)
        if (year, month) <= (today.year, today.month)
    ]
    running = (today.year, today.month)  # a month that isn't over is asked for again
    missing = [
        entry
        for entry in names
        if entry[0] not in known
        or not (folder / entry[0]).is_file()
        or (entry[2:] == running and not offline)
    ]
    if missing and offline:
        raise MissingFileError(
            f"{len(missing)} files of ERA5 aren't in {folder}, the first is {missing[0][0]}; run without --offline."
        )
    service = make_client() if missing else None
    for name, variable, year, month in missing:
        _bring(service, folder, name, request(variable, year, month), check)
        if progress is not None:
            size = (folder / name).stat().st_size
            progress(name, size, size, "")
    return [folder / name for name, *_ in names]


def _bring(
    service: Any, folder: Path, name: str, asked: dict[str, Any], check: Callable[[Path], None]
) -> None:
    """One file: under a temporary name, checked, renamed, listed."""
    with atomic(folder / name) as temporary:
        try:
            service.retrieve(_DATASET, asked, str(temporary))
        except Exception as error:  # the client raises plain Exception and those of its HTTP library
            raise OSError(
                f"the Climate Data Store refused {asked['variable'][0]} of {asked['year'][0]}-{asked['month'][0]} "
                f"({error}); if it is about the key or the licence: {_HOW}."
            ) from error
        check(temporary)
    record_files(folder, [file_row(folder / name, name, f"{_ADDRESS}/datasets/{_DATASET}")])
