"""Posteriors as labelled arrays."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor

import slams
from slams.core.errors import InvalidValueError

_AXES = {"lat": "Y", "lon": "X", "y": "Y", "x": "X"}


class Axes(Protocol):
    """Labels of arrays, as in `slams.assimilation.base.Labels`."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def dims(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def coords(self) -> Mapping[str, tuple[Tensor, str]]: ...  # noqa: D102
    @property
    def dt(self) -> float: ...  # noqa: D102


def dataset(
    samples: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    diagnostics: Mapping[str, Tensor],
    labels: Axes,
    seed: int | None,
) -> xr.Dataset:
    """See `Posterior.to_dataset`."""
    whole = samples if samples is not None else mean if mean is not None else variance
    if whole is None:
        raise InvalidValueError(
            "neither members nor moments were kept; pass keep='members' or keep='moments'."
        )
    event = len(labels.dims) or 1
    dims = labels.dims or ("component",)
    front = whole.ndim - event - (2 if samples is not None else 1)
    lead = ("replicate",) if front == 1 else tuple(f"replicate_{i}" for i in range(front))
    data: dict[str, Any] = {}
    if samples is not None:
        data["state"] = ((*lead, "time", "member", *dims), _plain(samples.movedim(front, front + 1)))
    for name, value in (("mean", mean), ("variance", variance)):
        if value is not None:
            data[name] = ((*lead, "time", *dims), _plain(value))
    steps = whole.shape[front + (samples is not None)]
    for name, value in diagnostics.items():
        if value.shape == (*whole.shape[:front], steps):
            data[name] = ((*lead, "time"), _plain(value))
    time = torch.arange(steps, dtype=torch.float64) * labels.dt
    coords: dict[str, Any] = {
        "time": ("time", _plain(time), {"long_name": "model time", "units": "1", "axis": "T"})
    }
    for name, (values, units) in labels.coords.items():
        attributes = {"units": units, "long_name": {"lat": "latitude", "lon": "longitude"}.get(name, name)}
        coords[name] = (name, _plain(values), attributes | ({"axis": _AXES[name]} if name in _AXES else {}))
    if samples is not None:
        coords["member"] = ("member", list(range(samples.shape[front])), {"long_name": "member", "axis": "E"})
    attributes = {
        "method": labels.method,
        "settings": str(dict(labels.settings)),
        "seed": "none" if seed is None else str(seed),
        "version": slams.__version__,
    }
    return xr.Dataset(data, coords, attributes)


def _plain(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
