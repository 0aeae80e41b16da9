"""Continents and mountains of the synthetic planet: smooth, deterministic, about a third land."""

import torch
from torch import Tensor

# Centre latitude, centre longitude, half-width in latitude and in longitude [degrees].
_CONTINENTS = (
    (50.0, 75.0, 30.0, 66.0),  # the great northern continent
    (6.0, 22.0, 30.0, 25.0),
    (46.0, 258.0, 28.0, 35.0),
    (-15.0, 298.0, 33.0, 21.0),
    (-25.0, 135.0, 17.0, 25.0),
    (-88.0, 90.0, 22.0, 999.0),  # the southern ice cap
)
_RANGES = (
    (38.0, 88.0, 11.0, 18.0, 1.0),  # centre, half-widths [degrees] and height relative to the highest
    (46.0, 250.0, 15.0, 9.0, 0.65),
    (-20.0, 289.0, 20.0, 7.0, 0.6),
)


def _separation(longitude: Tensor, centre: float) -> Tensor:
    """Signed distance in longitude [degrees], in [-180, 180)."""
    return torch.remainder(longitude - centre + 180, 360) - 180


def land_fraction(latitude: Tensor, longitude: Tensor) -> Tensor:
    """Smooth land fraction of the planet: rounded continents with coasts about 8 degrees wide.

    A point's fraction is the largest over continents of 1 / (1 + exp(4 (r - 1) w / 8)), r the distance from
    the centre in half-widths and w the latitudinal half-width [degrees].

    Args:
        latitude: Latitudes [degrees], (H,).
        longitude: Longitudes [degrees east], (W,).

    Returns:
        Fractions in [0, 1], (H, W); land is where it exceeds 1/2.
    """
    fraction = torch.zeros(latitude.numel(), longitude.numel(), dtype=latitude.dtype)
    for centre_lat, centre_lon, height, width in _CONTINENTS:
        north = ((latitude - centre_lat) / height)[:, None]
        east = (_separation(longitude, centre_lon) / width)[None, :]
        # A superellipse fills its box better than an ellipse: continents have flanks, not only caps.
        radius = (north.abs() ** 3 + east.abs() ** 3) ** (1 / 3)
        fraction = torch.maximum(fraction, torch.sigmoid(4 * (1 - radius) * height / 8))
    return fraction


def orography(latitude: Tensor, longitude: Tensor) -> Tensor:
    """Height of three Gaussian mountain ranges relative to the highest.

    Args:
        latitude: Latitudes [degrees], (H,).
        longitude: Longitudes [degrees east], (W,).

    Returns:
        Heights in [0, 1], (H, W).
    """
    height = torch.zeros(latitude.numel(), longitude.numel(), dtype=latitude.dtype)
    for centre_lat, centre_lon, north, east, peak in _RANGES:
        along = ((latitude - centre_lat) / north)[:, None]
        across = (_separation(longitude, centre_lon) / east)[None, :]
        height = height + peak * torch.exp(-(along**2) - across**2)
    return height
