"""NOAA radiation to a store: python process_noaa.py [--years A-B] [--source URL|DIR] [--out DIR], as `slams data olr`."""

import sys

from slams.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "olr", *sys.argv[1:]]))
