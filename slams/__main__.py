"""`python -m slams` is the command `slams`."""

from slams.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
