"""Posteriors as labelled arrays."""

from typing import Any

import torch
import xarray as xr
from torch import Tensor

import slams
from slams.assimilation.base import Labels, Posterior

_AXES = {"lat": "Y", "lon": "X", "y": "Y", "x": "X"}


def dataset(posterior: Posterior) -> xr.Dataset:
    """See `Posterior.to_dataset`."""
    samples, mean, variance = posterior.samples, posterior.mean, posterior.variance
    whole = samples if samples is not None else mean if mean is not None else variance
    if whole is None:
        raise ValueError("neither members nor moments were kept; pass keep='members' or keep='moments'.")
    labels = posterior.labels or Labels("")
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
    for name, value in posterior.diagnostics.items():
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
        "seed": "none" if posterior.seed is None else str(posterior.seed),
        "version": slams.__version__,
    }
    return xr.Dataset(data, coords, attributes)


def _plain(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
