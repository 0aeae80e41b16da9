"""Where files are: the paths and constants users edit.

Relative paths start at the working folder, so run the commands from the folder that holds `data` and
`logs`, or set the environment variables SLAMS_DATA and SLAMS_LOGS. Nothing is read or created here.
"""

import os
from pathlib import Path

DATA_DIR = Path(os.environ.get("SLAMS_DATA", "data"))
LOG_DIR = Path(os.environ.get("SLAMS_LOGS", "logs"))

# ERA_DATADIR holds era5/ and climatology/, as in the published system.
ERA_DATADIR = DATA_DIR
CPC_DATADIR = DATA_DIR / "cpc"
OLR_DATADIR = DATA_DIR / "noaa"
STATIONS_DATADIR = DATA_DIR / "stations"
PLANET_DATADIR = DATA_DIR / "planet"

# Winters 1983-1998 over Iberia: E-OBS, NCEP and stations in one file, not part of the package.
IBERIA_FILE = Path(os.environ.get("SLAMS_IBERIA", DATA_DIR / "iberia_djf_1983-1998.nc"))

# Years that `slams data` fetches where none are named: what the recipes train, validate and test on.
YEARS = (2000, 2022)

# Pressure levels of the published system [hPa], in its order. Always select by label.
PRESSURE_LEVELS = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)

# Where `slams data` fetches from; a mirror with the same names, or a local folder, serves as well (--source).
CPC_URL = "https://downloads.psl.noaa.gov/Datasets/cpc_global_precip"  # precip.YYYY.nc
OLR_URL = "https://downloads.psl.noaa.gov/Datasets/interp_OLR"  # olr.day.mean.nc and the twice-daily file
ERA5_URL = (
    "https://huggingface.co/datasets/LEAP/ChaosBench/resolve/main/era5"  # era5_chunks.zip and its parts
)
CLIMATOLOGY_URL = "https://huggingface.co/datasets/LEAP/ChaosBench/resolve/main/climatology"
WEATHERBENCH_URL = (  # another ERA5: --source with this address
    "https://storage.googleapis.com/weatherbench2/datasets/era5/"
    "1959-2023_01_10-6h-240x121_equiangular_with_poles_conservative.zarr"
)
ISD_URL = "https://www.ncei.noaa.gov/pub/data/noaa"  # YYYY/USAF-WBAN-YYYY.gz


def resolve(path: str) -> str:
    """A path of a recipe, in which $IBERIA is the file above and $DATA the folder.

    >>> resolve("fields/t.nc")
    'fields/t.nc'
    """
    if path == "$IBERIA":
        return str(IBERIA_FILE)
    return str(DATA_DIR / path.removeprefix("$DATA/")) if path.startswith("$DATA/") else path
