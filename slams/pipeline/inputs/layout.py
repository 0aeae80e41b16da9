"""Layouts: dimensions and coordinates of a modality."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Dimensions and coordinates of a modality, enough to align another file with it.

    Attributes:
        dims: Names of the dimensions after time, such as ("level", "lat", "lon") or ("station",).
        coords: Values of the coordinates by name.
        units: Unit before the transform.
        source_name: Name of the variable in its files.
        lag: Days from a date to the label of the record in the files that belongs to it.
        names: Names of the stations; empty if they have none. Runs of versions before 0.2 keep none.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, tuple[float, ...]]
    units: str
    source_name: str
    lag: int = 0
    names: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, array: xr.DataArray, lag: int = 0) -> "Layout":
        """The layout of an array of `slams.data.files.read.read`."""
        names = [name for name in ("level", "lat", "lon") if name in array.coords]
        coords = {name: tuple(np.atleast_1d(array[name].values).astype(float).tolist()) for name in names}
        dims, source = tuple(str(d) for d in array.dims[1:]), array.attrs.get("source_name", array.name)
        named = "station" in array.coords and array["station"].dtype.kind in "OUT"
        stations = tuple(map(str, array["station"].values)) if named else ()
        return cls(dims, coords, array.attrs["units"], str(source), lag, stations)

    def array(self) -> xr.DataArray:
        """A field of NaN with this layout, for alignment."""
        coords = {
            name: (name if name in self.dims else self.dims[-1], list(c)) for name, c in self.labels.items()
        }
        return xr.DataArray(np.full(self._sizes, np.nan, np.float32), dims=self.dims, coords=coords)

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """Coordinates, and the names of the stations if they have any."""
        return dict(self.coords) | ({"station": self.names} if self.names else {})

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(self.coords[d if d in self.coords else "lat"]) for d in self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape with a channel axis: (C, H, W) or (C, P)."""
        return self._sizes if "level" in self.dims else (1, *self._sizes)

    @property
    def size(self) -> int:
        """Number of values of a field."""
        return math.prod(self.shape)

    @property
    def is_grid(self) -> bool:
        """Whether the values are on a latitude-longitude grid."""
        return "lat" in self.dims

    @property
    def is_global(self) -> bool:
        """Whether the longitudes close the circle."""
        lon = np.asarray(self.coords["lon"])
        return self.is_grid and len(lon) > 2 and bool(abs(lon[-1] - lon[0] + (lon[1] - lon[0]) - 360) < 1e-2)

    def points(self) -> Tensor:
        """(latitude, longitude) of every point of one channel, (P, 2) [degrees]."""
        lat, lon = torch.tensor(self.coords["lat"]), torch.tensor(self.coords["lon"])
        if self.is_grid:
            lat, lon = (x.flatten() for x in torch.meshgrid(lat, lon, indexing="ij"))
        return torch.stack([lat, lon], -1).float()

    def weights(self) -> Tensor:
        """Area weights of one channel with mean 1, (H, W), or ones (P)."""
        if not self.is_grid:
            return torch.ones(len(self.coords["lat"]))
        cosine = torch.cos(torch.deg2rad(torch.tensor(self.coords["lat"], dtype=torch.float64)))
        weight = cosine[:, None].expand(-1, len(self.coords["lon"])).float()
        return weight / weight.mean()

    def levels(self) -> tuple[str, ...]:
        """Labels of the channels, empty without levels."""
        return tuple(f"{level:g}" for level in self.coords.get("level", ()))


def read_layouts(tree: Mapping[str, Any]) -> dict[str, Layout]:
    """Layouts by name, from the plain values of `dataclasses.asdict`."""
    return {
        name: Layout(
            **kept
            | {"dims": tuple(kept["dims"]), "coords": {k: tuple(v) for k, v in kept["coords"].items()}}
            | {"names": tuple(kept.get("names", ()))}
        )
        for name, kept in tree.items()
    }
