"""The published system's layout: one zarr a day and modality, and climatologies by parameter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.core.files import atomic
from slams.data.files.opening import open_dataset

_DIMS = {"lat": "latitude", "lon": "longitude"}
_LAYOUT = {  # folder, name of the daily stores, and whether ERA5's long names of dimensions are used
    "era5": ("era5", "era5_full_1.5deg_", True),
    "precip": ("cpc/precip", "cpc_precip_1.5deg_", False),
    "olr": ("noaa/olr", "noaa_olr_1.5deg_", False),
}
_CLIMATOLOGY = {
    "era5": "climatology/climatology_era5.zarr",
    "precip": "cpc/climatology/climatology_precip.zarr",
    "olr": "noaa/climatology/climatology_olr.zarr",
}


def write_published(fields: Sequence[xr.DataArray], folder: Path) -> list[Path]:
    """Write fields as the published system reads them: a zarr of format 2 a day, time a scalar coordinate.

    Missing values stay missing: that the published code takes them for zero is its choice, not the data's. Days
    that stand there whole are replaced.

    Args:
        fields: Variables on one grid and the same days, as `fields.read` or `FieldStore.read` return them: the
            variables of ERA5 together, or `precip`, or `olr`, alone; any selection of days.
        folder: Data folder of the published configuration.

    Returns:
        The paths, in order of time.

    Raises:
        ValueError: If there is no field, the days differ, or modalities are mixed.
    """
    kind = _kind([str(field.name) for field in fields])
    days = fields[0].time.values.astype("datetime64[D]")
    for field in fields[1:]:
        if not np.array_equal(field.time.values.astype("datetime64[D]"), days):
            raise InvalidValueError(
                f"{field.name} and {fields[0].name} don't have the same days; give the common ones."
            )
    subfolder, stem, long_names = _LAYOUT[kind]
    paths = []
    for index, day in enumerate(days):
        path = Path(folder) / subfolder / f"{stem}{str(day).replace('-', '')}.zarr"
        one = xr.Dataset(
            {str(field.name): field.isel(time=index).reset_coords(drop=True) for field in fields}
        )
        one = one.assign_coords(time=day.astype("datetime64[ns]"))
        _write(one.rename(_DIMS) if long_names else one, path)
        paths.append(path)
    return paths


def write_climatology(mean: xr.DataArray, sigma: xr.DataArray, kind: str, folder: Path) -> Path:
    """Write means and standard deviations by parameter where the published system looks for them.

    Args:
        mean: (param,) with `param` such as "t-850" or "precip".
        sigma: (param,).
        kind: "era5", "precip" or "olr".
        folder: Data folder of the published configuration.

    Returns:
        The path.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in _CLIMATOLOGY:
        raise InvalidValueError(f"a climatology is of {', '.join(_CLIMATOLOGY)}, got {kind!r}.")
    path = Path(folder) / _CLIMATOLOGY[kind]
    _write(xr.Dataset({"mean": mean.astype("f8"), "sigma": sigma.astype("f8")}), path)
    return path


def read_climatology(path: str | Path, params: Sequence[str] | None = None) -> xr.Dataset:
    """Means and standard deviations by parameter.

    Args:
        path: `climatology_*.zarr`.
        params: Those wanted, in this order, such as "t-850"; None takes all.

    Returns:
        `mean` and `sigma` (param,), float64.

    Raises:
        ValueError: If it isn't a climatology, or a parameter isn't there.
    """
    with open_dataset(Path(path)) as dataset:
        if not {"mean", "sigma", "param"} <= set(map(str, dataset.variables)):
            raise InvalidValueError(
                f"{path} isn't a climatology of the published system: expected mean, sigma and param, found "
                f"{sorted(map(str, dataset.variables))}."
            )
        whole = dataset[["mean", "sigma"]].load()
    whole = whole.assign_coords(param=[str(name) for name in whole["param"].values]).astype("f8")
    if params is None:
        return whole
    absent = [name for name in params if name not in whole["param"].values]
    if absent:
        held = ", ".join(whole["param"].values[:12])
        raise InvalidValueError(
            f"{path} has no parameter {', '.join(absent)}; it has {held} ({whole.sizes['param']} in all)."
        )
    return whole.sel(param=list(params))


def _kind(names: Sequence[str]) -> str:
    """The modality that variables belong to."""
    kinds = {name if name in _LAYOUT else "era5" for name in names}
    if len(kinds) != 1 or (kinds != {"era5"} and len(names) > 1):
        raise InvalidValueError(
            f"expected variables of ERA5, or precip, or olr, got {list(names)}; write each modality on its own."
        )
    return kinds.pop()


def _write(dataset: xr.Dataset, path: Path) -> None:
    """A zarr of format 2, which older readers open, in one step."""
    for variable in dataset.variables.values():
        variable.encoding = {}
    with atomic(path) as temporary:
        dataset.to_zarr(temporary, zarr_format=2, consolidated=True)
