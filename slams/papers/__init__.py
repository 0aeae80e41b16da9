"""Published experiments and their numbers: `slams reproduce`."""
