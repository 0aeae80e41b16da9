"""Analyses as CF files: one root group of state variables, one group a modality that was observed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import slams
from slams.core.errors import InvalidValueError
from slams.core.files import atomic, sha256_of
from slams.core.settings import plain
from slams.data.files.read import write_netcdf
from slams.pipeline.inputs.named_files import FileSource
from slams.pipeline.model.amounts import FILE_NAME
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe

_STANDARD = {
    "lat": ("latitude", "degrees_north"),
    "lon": ("longitude", "degrees_east"),
    "level": ("air_pressure", "hPa"),
    "station": ("platform_id", None),
}


def field_array(
    model: Model, name: str, values: Tensor, dates: np.ndarray, *, member: bool, physical: bool = True
) -> xr.DataArray:
    """Values of a modality with their coordinates.

    Args:
        model: Model with the layouts.
        name: Name of the modality.
        values: Values (N, T, *S) with members, else (T, *S), after the transform.
        dates: Dates (T).
        member: Whether the values have a member axis.
        physical: Whether to undo the transform (log1p).

    Returns:
        Array with dims (time[, member][, level], lat, lon) or (time[, member], station), float32, in the unit of the
        source.
    """
    layout = model.layouts[name]
    modality = model.recipe.modalities[name]
    array = values.movedim(0, 1) if member else values
    if "level" not in layout.dims:
        array = array.squeeze(2 if member else 1)
    data = array.numpy().astype(np.float32)
    if physical:
        data = modality.transformed.inverse(data)
    lead = ("time", "member") if member else ("time",)
    coords: dict[str, Any] = {"time": dates.astype("datetime64[ns]")}
    if member:
        coords["member"] = np.arange(data.shape[1])
    for key, labels in layout.labels.items():
        standard, units = _STANDARD[key]
        dim = key if key in layout.dims else layout.dims[-1]
        facts = {"standard_name": standard} | ({"units": units} if units else {"cf_role": "timeseries_id"})
        kind = object if key == "station" else float  # objects are strings of any length
        coords[key] = (dim, np.array(labels, dtype=kind), facts)
    attributes = {
        "units": layout.units,
        "long_name": name,
        "source_modality": name,
        "source_name": layout.source_name,
        "transform": modality.transform,
        **_gross_errors(model, name),
    }
    return xr.DataArray(
        data, dims=(*lead, *layout.dims), coords=coords, attrs=attributes, name=layout.source_name
    )


def _gross_errors(model: Model, name: str) -> dict[str, Any]:
    """Attributes by which gross errors are left out of a truth: the credible range of each level."""
    modality = model.recipe.modalities[name]
    if not modality.gross_errors:
        return {"gross_errors": "kept"}
    low, high = (end.double().numpy() for end in model.codec.statistics[name].credible_range())
    if np.isinf(high).any():  # a run of an earlier version
        return {}
    undo = modality.transformed.inverse
    low = np.where(np.isinf(low), low, undo(low))
    return {"climate_range": np.stack([low, undo(high)], 1).ravel()}


def provenance(model: Model, folder: Path, observations: Any, seed: int) -> dict[str, str]:
    """Provenance of an analysis, as attributes."""
    weights = {name: sha256_of(folder / name) for name in ("codec.safetensors", "denoiser.safetensors")}
    if model.prior.amounts:
        weights[FILE_NAME] = sha256_of(folder / FILE_NAME)
    return {
        "Conventions": "CF-1.11",
        "title": "Posterior ensemble of multimodal latent assimilation",
        "recipe": model.recipe.name,
        "versions": json.dumps(
            {"slams": slams.__version__, "torch": torch.__version__, "xarray": xr.__version__}
        ),
        "seed": str(seed),
        "sha256": json.dumps(weights),
        "observations": json.dumps(observations),
        "planet": "synthetic" if model.recipe.planet.years else "Earth",
    }


def analysis_tree(
    model: Model,
    dates: np.ndarray,
    members: Mapping[str, Tensor],
    observed: Mapping[str, tuple[Tensor, Tensor]],
    attributes: Mapping[str, str],
    baselines: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    observations: Mapping[str, Tensor] | None = None,
) -> xr.DataTree:
    """An analysis as labelled arrays: state variables at the root, one group a modality that was observed.

    The group of an observed modality has its name, or observed_NAME where a state variable is called so.

    Args:
        model: Trained model.
        dates: Dates (T).
        members: State variables (N, T, *S), physical.
        observed: Members at the observation points (N, T, *S) and mask of observed values (T, *S) by modality,
            bool.
        attributes: Attributes of the root.
        baselines: Groups of baselines, in the root's layout, by name.
        observations: Observed values (T, *S), NaN where unobserved, for the groups of observed modalities.
    """
    root = dataset_of(model, members, dates, member=True).assign_attrs(attributes)
    groups = {"/": root}
    for name, (values, seen) in observed.items():
        value = field_array(model, name, values, dates, member=True).rename("value")
        flag = field_array(model, name, seen.float(), dates, member=False, physical=False)
        dataset = xr.Dataset({"value": value, "observed": flag.astype(bool).drop_attrs(deep=False)})
        if observations is not None:
            array = field_array(model, name, observations[name], dates, member=False)
            dataset["observation"] = array.rename("observation")
        # netCDF has one namespace for the variables and groups of a level
        groups[f"/observed_{name}" if name in root else f"/{name}"] = dataset
    for name, fields in (baselines or {}).items():
        groups[f"/{name}"] = dataset_of(model, fields, dates, member=True)
    groups = {key: _renamed(dataset, root, key[1:]) for key, dataset in groups.items()}
    return xr.DataTree.from_dict(groups)


def write_tree(tree: xr.DataTree, path: Path) -> None:
    """Write an analysis atomically, as netCDF or (suffix .zarr) as zarr."""
    if path.suffix != ".zarr":
        write_netcdf(tree, path)
        return
    with atomic(path) as temporary:
        tree.to_zarr(temporary, consolidated=False)


def attributes_of(
    model: Model,
    folder: Path,
    sources: Mapping[str, FileSource],
    *,
    dates: str | None,
    seed: int,
    baselines: bool,
) -> dict[str, str]:
    """Attributes of the file: what it is made from, and every setting that its numbers depend on."""
    a = model.recipe.assimilation
    settings = {"dates": dates or "all", "baselines": baselines, "assimilation": plain(a)}
    return {
        **provenance(model, folder, _about(model.recipe, sources), seed),
        "settings": json.dumps(settings, sort_keys=True),
    }


def _about(recipe: Recipe, sources: Mapping[str, FileSource]) -> dict[str, Any]:
    """Observed modalities and files, for the attributes of the file."""
    about: dict[str, Any] = {
        name: {"files": [Path(f).name for f in source.files], "variable": source.variable}
        for name, source in sources.items()
    }
    for name, kept in recipe.experiment.withhold.items():
        about.setdefault(name, {})["withheld"] = list(kept)  # one that is not observed is refused by name
    for name, operator in recipe.assimilation.operators.items():
        if name in about:
            about[name]["operator"] = asdict(operator)
    for name, modality in recipe.modalities.items():
        if name in about and modality.error_std is not None:
            about[name]["error_std"] = modality.error_std
    return about


_SAME = ("sha256", "observations", "settings")  # attributes of an analysis that is repeated, with any seed


def refuse_to_replace(path: Path, attributes: Mapping[str, str]) -> None:
    """Refuse to write over anything but an earlier analysis by the same run with the same settings.

    Raises:
        ValueError: If there is a file that is something else, with what differs.
    """
    if not path.exists():
        return
    try:
        if path.suffix == ".zarr":
            tree = xr.open_datatree(path, engine="zarr", consolidated=False, chunks=None)
        else:
            tree = xr.open_datatree(path)
        with tree:
            before = {name: str(tree.attrs.get(name)) for name in _SAME}
    except (OSError, ValueError, RuntimeError, KeyError):
        before = {}
    remedy = "give another --out, or --overwrite to replace it"
    if not before:
        raise InvalidValueError(f"{path} is there and is no analysis; {remedy}.")
    different = [
        "run" if name == "sha256" else f"{name}: {_changes(before[name], attributes[name])}"
        for name in _SAME
        if before[name] != attributes[name]
    ]
    if different:
        raise InvalidValueError(f"{path} is another analysis, of another {'; '.join(different)}; {remedy}.")


def _changes(before: str, now: str) -> str:
    """Entries of two texts in JSON that differ."""
    one, other = ({} if text == "None" else json.loads(text) for text in (before, now))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)} (now {other.get(name)})" for name in names)


def dataset_of(model: Model, fields: Mapping[str, Tensor], dates: np.ndarray, *, member: bool) -> xr.Dataset:
    """Physical fields of several modalities, (N, T, *S) with members, else (T, *S), under their names in the files."""
    return xr.Dataset(
        {
            model.layouts[n].source_name: field_array(model, n, v, dates, member=member)
            for n, v in fields.items()
        }
    )


def _renamed(dataset: xr.Dataset, root: xr.Dataset, name: str) -> xr.Dataset:
    """A group whose coordinates differ in name where they differ from the root's, which groups inherit."""
    if not name:
        return dataset
    own = [
        str(c)
        for c in dataset.coords
        if c in root.dims and c not in ("time", "member") and not dataset[c].equals(root[c])
    ]
    if "member" in dataset.dims and dataset.sizes["member"] != root.sizes["member"]:
        own.append("member")
    return dataset.rename({c: f"{c}_{name}" for c in own})


def write_truth(path: Path, model: Model, dates: np.ndarray, truth: Mapping[str, Tensor]) -> None:
    """The verifying fields of a test, in the layout of their source."""
    write_netcdf(dataset_of(model, truth, dates, member=False), path)
