"""CPC rain to a store: python process_cpc.py [--years A-B] [--source URL|DIR] [--out DIR], as `slams data cpc`."""

import sys

from slams.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "cpc", *sys.argv[1:]]))
