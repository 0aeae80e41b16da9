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

# Pressure levels of the published system [hPa], in its order. Always select by label.
PRESSURE_LEVELS = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
