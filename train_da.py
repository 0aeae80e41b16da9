"""Train and test a recipe: python train_da.py [--config_filepath RECIPE] [key=value ...]."""

import sys

from slams.cli import train

if __name__ == "__main__":
    sys.exit(train())
