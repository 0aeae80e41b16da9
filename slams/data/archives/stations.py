"""Weather stations from the Integrated Surface Database and METAR tables, in one table of observations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from slams import config
from slams.core.errors import InvalidValueError
from slams.data.archives import isd, metar
from slams.data.archives.base import Report, span, within
from slams.data.archives.local import is_local
from slams.data.download.fetch import Item, fetch
from slams.data.files.stations import quality, read_table, write_table


class Stations:
    """Reports of stations; `process` joins them to the table that recipes read.

    Source:
        Smith, Lott & Vose (2011), doi:10.1175/2011BAMS3015.1 (ISD).
    """

    name = "stations"
    url: str = config.ISD_URL
    folder: Path = config.STATIONS_DATADIR
    first_year: int = 1901
    table = "observations.nc"

    def items(
        self, years: Sequence[int], source: str | Path | None = None, stations: Sequence[str] = ()
    ) -> list[Item]:
        """Files to download.

        Args:
            years: The years wanted.
            source: Base address of ISD, or of NCEI's tables (https://www.ncei.noaa.gov/data/global-hourly/access), or
                a local folder of files of both and of METAR; None takes slams/config.py's.
            stations: Names such as "024130-99999"; needed for an address, where nothing can be listed.

        Returns:
            Files for `fetch`.

        Raises:
            ValueError: If no station is named for an address, or a folder holds no reports.
        """
        base = self.url if source is None else source
        local = is_local(base)
        if local is not None:
            found = [path for path in _files(local) if isd.is_isd(path) or metar.is_metar(path)]
            if not found:
                raise InvalidValueError(
                    f"{local} holds no file of ISD or METAR reports; give the folder that does."
                )
            return [Item(str(path), path.name, check=self.check) for path in found]  # used where they lie
        if not stations:
            raise InvalidValueError(
                "name the stations wanted, such as 024130-99999 (USAF and WBAN number of "
                "https://www.ncei.noaa.gov/pub/data/noaa/isd-history.csv), or give a folder with their files."
            )
        running = int(str(np.datetime64("today"))[:4])
        tables = "global-hourly" in str(base)

        def name(station: str, year: int) -> str:
            return f"{year}/{station.replace('-', '')}.csv" if tables else f"{station}-{year}.gz"

        return [
            Item(
                f"{str(base).rstrip('/')}/{'' if tables else f'{year}/'}{name(station, year)}",
                name(station, year),
                check=self.check,
                grows=year == running,
            )
            for year in within(years, self.first_year, self.name)
            for station in stations
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
        stations: Sequence[str] = (),
    ) -> list[Path]:
        """Get the files; see `Archive.obtain`, and `items` for `stations`."""
        items = self.items(years, source, stations)
        return [one.path for one in fetch(items, folder, jobs=jobs, offline=offline, progress=progress)]

    def check(self, path: Path) -> None:
        """Test that a file opens and holds reports.

        Args:
            path: The file.

        Raises:
            ValueError: If not.
        """
        if not isd.is_isd(path) and not metar.is_metar(path):
            raise InvalidValueError(
                f"{path} holds neither lines of ISD, nor a table of NCEI, nor a METAR table with the columns of MADIS."
            )

    def open(self, path: str | Path) -> pd.DataFrame:
        """One file as a table of observations.

        Args:
            path: An ISD or METAR file, or a table that this package wrote.

        Returns:
            A table; see slams/data/stations.py.

        Raises:
            ValueError: If it is none of them.
        """
        path = Path(path)
        if isd.is_isd(path):
            return isd.read(path)
        if metar.is_metar(path):
            return metar.read(path)
        return read_table(path)

    def process(self, sources: Sequence[Path], out: Path, years: Sequence[int] | None = None) -> Path:
        """Join files to one table, with what the table held before.

        Args:
            sources: Files that `open` reads.
            out: The table, `observations.nc` or `observations.parquet`.
            years: Years wanted; None takes all.

        Returns:
            The path of the table.

        Raises:
            ValueError: If nothing of these years is there.
        """
        tables = [read_table(out)] if Path(out).exists() else []
        for path in sources:
            table = self.open(path)
            wanted = np.ones(len(table), dtype=bool) if not years else table["time"].dt.year.isin(list(years))
            tables.append(table[wanted])
        whole = quality(pd.concat(tables, ignore_index=True)) if tables else pd.DataFrame()
        if whole.empty:
            raise InvalidValueError(
                f"there is no observation of {span(years or [])} in {len(sources)} files."
            )
        return write_table(whole, out)


def _files(local: Path) -> list[Path]:
    """Files under a folder, or the file itself."""
    return [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.is_file())
