"""CPC rain to a store: python process_cpc.py [--years A-B] [--source URL|DIR] [--out DIR], as `slams data cpc`."""

import sys

from slams.cli import data

if __name__ == "__main__":
    sys.exit(data("cpc"))
