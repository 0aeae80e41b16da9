"""An analysis file against truth: `slams evaluate`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from slams.core.codec import TRANSFORMS, Transform
from slams.core.console import Console
from slams.core.errors import DataWarning, InvalidValueError
from slams.core.files import writable
from slams.data.files.modality import Modality
from slams.data.files.read import find
from slams.evaluation import Scores
from slams.evaluation.metrics import shown
from slams.evaluation.tables import PrintedTable, console_table, wide, write_metrics
from slams.pipeline.inputs.fields import read_file
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.named_files import match
from slams.pipeline.results.evaluation_report import parts_shown, write_evaluation
from slams.pipeline.results.figures import View
from slams.pipeline.results.scoring import BLOCK
from slams.pipeline.results.window_scores import score


@dataclass
class AnalysedVariable:
    """One variable of an analysis file.

    Attributes:
        name: Modality.
        layout: Layout of its values.
        transform: Transform before the model; the file holds values before it.
        methods: Members (time, member, ...) by method, still on disk.
        observed: Mask of observed values (time, ...), if any were.
        observation: Observed values (time, ...), NaN elsewhere, if the file has them.
        credible: Lowest and highest value of each level in the training's climate (C, 2), if the file has them.
        gross_errors: Whether gross errors are left out of a truth.
    """

    name: str
    layout: Layout
    transform: Transform
    methods: dict[str, xr.DataArray] = field(default_factory=dict)
    observed: xr.DataArray | None = None
    observation: xr.DataArray | None = None
    credible: Tensor | None = None
    gross_errors: bool = True


def evaluate(
    analysis: str | Path, truths: Sequence[str], report_dir: str | Path, console: Console | None = None
) -> Path:
    """Score every variable with a given truth.

    Everything is scored in the unit of the analysis file, rain too, although the model sees its logarithm.
    Windows of the intervals are stretches of 15 days, joined where successive scores are correlated.

    Args:
        analysis: Analysis file of `slams assimilate` or a run, .nc or .zarr.
        truths: Files, as FILE or NAME=FILE with the name of a modality.
        report_dir: Folder for metrics.csv, report.html and figures/.
        console: Console for the progress.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: If a file isn't there.
        ValueError: If `analysis` is no analysis, or a truth shares no day or lies on other points.
    """
    page = scored(analysis, truths, report=report_dir, console=console or Console()).page
    assert page is not None
    return page


@dataclass(frozen=True)
class AnalysisScores(PrintedTable):
    """Scores of an analysis, in a table that prints itself.

    Attributes:
        rows: Rows of metrics.csv.
        views: Each scored variable, for figures.
        page: Path of the report, if requested.
    """

    rows: list[dict[str, Any]]
    views: list[View]
    page: Path | None = None

    title = "scores"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The main scores, one line a method, variable and part."""
        found = []
        for view in self.views:
            for part, table in _tables(view):
                name = view.name if part == "all" else f"{view.name}, {part}"
                found += [{"variable": f"{name} [{view.units}]", **line} for line in table]
        return found


def scored(
    analysis: str | Path,
    truths: Sequence[str],
    *,
    report: str | Path | None = None,
    console: Console,
) -> AnalysisScores:
    """Scores of every variable with a given truth; raises as `evaluate`.

    Args:
        analysis: Analysis file of `slams assimilate` or a run, .nc or .zarr.
        truths: Files, as FILE or NAME=FILE with the name of a modality.
        report: Folder for metrics.csv, report.html and figures/; none is written if None.
        console: Console for the progress.
    """
    if report is not None:
        _refuse_run(Path(report).expanduser())
    with open_analysis(analysis) as tree:
        targets = targets_of(tree)
        dates = tree.to_dataset()["time"].values.astype("datetime64[D]")
        variables = {name: target.layout.source_name for name, target in targets.items()}
        sources = match(truths, variables, list(variables))
        scores, rows, views = Scores(apart=BLOCK), list[dict[str, Any]](), []
        earth = tree.attrs.get("planet", "Earth") == "Earth"
        with console.bar("scoring", sum(len(targets[n].methods) for n in sources)) as advance:
            for name, source in sources.items():
                target = targets[name]
                days, truth = _truth(target, source.files, source.variable, dates)
                at = np.searchsorted(dates, days)
                members, masks = {}, _masks(target, truth, at)
                for method, array in target.methods.items():
                    members[method] = _tensor(array.isel(time=at), target.layout)
                    score(
                        scores, method, name, target.layout, members[method], truth, blocks(days), masks,
                        amount=target.transform.lower is not None,
                    )  # fmt: skip
                    advance(1, f"{name}: {method}")
                layout, points = target.layout, _observations(targets, target, at)
                views.append(
                    View(
                        name, layout, layout.units, days, truth, members["analysis"], scores, rows, list(target.methods),
                        points, masks.get("withheld"), coastlines=earth,
                    )
                )  # fmt: skip
        attributes = {str(k): str(v) for k, v in tree.attrs.items()}
    rows += [dict(row) for row in scores.rows()]
    if report is None:
        return AnalysisScores(rows, views)
    folder = Path(report).expanduser()
    write_metrics(folder / "metrics.csv", rows)
    transforms = {view.name: targets[view.name].transform for view in views}
    with console.bar("writing the report", 1) as advance:
        path = write_evaluation(folder, Path(analysis).name, attributes, views, transforms)
        advance(1, str(path))
    for view in views:
        _show(view, console)
    for name, transform in transforms.items():
        if transform.name != "none":
            console.say(f"{name}: scored in the unit of the file, not as {transform.label('x')}")
    console.say(f"report: {path.resolve()}")
    return AnalysisScores(rows, views, path)


def _refuse_run(folder: Path) -> None:
    """Refuse to write a report over that of a trained run, or where nothing can be written."""
    if (folder / "codec.safetensors").exists():
        raise InvalidValueError(
            f"{folder} is a trained run, whose metrics.csv, report.html and figures would be lost; give another --report."
        )
    writable(folder / "report.html")


def _show(view: View, console: Console) -> None:
    """The main scores, on the console."""
    for part, table in _tables(view):
        where = "" if part == "all" else f", {part} points"
        console.rich.print(console_table(table, title=f"{view.name} [{view.units}]{where}"))


def _tables(view: View) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The main scores of each part that has any."""
    metrics = shown((row["metric"] for row in view.rows), "console")
    for part in parts_shown(view.rows, view.name):
        table = wide(view.rows, variable=view.name, part=part, metrics=metrics, interval=False)
        if table:
            yield part, table


def open_analysis(path: str | Path) -> xr.DataTree:
    """Open an analysis file lazily.

    Raises:
        FileNotFoundError: If it isn't there; similar names are listed.
        ValueError: If it isn't an analysis.
    """
    (found,) = find((str(path),))[:1]
    try:
        if found.is_dir():
            tree = xr.open_datatree(found, engine="zarr", consolidated=False, chunks=None)
        else:
            tree = xr.open_datatree(found)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidValueError(
            f"{found} can't be opened ({error}); give the .nc or .zarr that `slams assimilate` wrote."
        ) from error
    members = [
        name for name, array in tree.to_dataset().data_vars.items() if {"time", "member"} <= set(array.dims)
    ]
    if not members or "recipe" not in tree.attrs:
        found_variables = ", ".join(map(str, tree.data_vars)) or "no variable"
        tree.close()
        raise InvalidValueError(
            f"{found} is no analysis: expected variables with dims (time, member, ...) and the attribute "
            f"`recipe`, found {found_variables}; give the file that `slams assimilate` wrote."
        )
    return tree


def targets_of(tree: xr.DataTree) -> dict[str, AnalysedVariable]:
    """The variables of an analysis by modality: states with every method, and observations."""
    targets: dict[str, AnalysedVariable] = {}
    for array in tree.to_dataset().data_vars.values():
        target = _target(array, str(array.attrs.get("source_modality", array.name)))
        target.methods["analysis"] = array
        targets[target.name] = target
    states = {target.layout.source_name: target for target in targets.values()}
    for group, node in tree.children.items():
        dataset = node.to_dataset(inherit=False)
        if group.startswith("baseline_") or group == "reconstruction":
            for variable, array in dataset.data_vars.items():
                if str(variable) in states:
                    states[str(variable)].methods[group.removeprefix("baseline_")] = _plain(array, group)
        elif "value" in dataset and "observed" in dataset:
            value = _plain(dataset["value"], group)
            name = str(value.attrs.get("source_modality", group))
            if name not in targets:
                targets[name] = _target(value, name)
                targets[name].methods["analysis"] = value
            targets[name].observed = _plain(dataset["observed"], group)
            if "observation" in dataset:
                targets[name].observation = _plain(dataset["observation"], group)
    return targets


def _target(array: xr.DataArray, name: str) -> AnalysedVariable:
    first = array.isel(member=0, drop=True)
    first.attrs = {"units": "", "source_name": str(array.name)} | array.attrs
    target = AnalysedVariable(name, Layout.of(first), TRANSFORMS[array.attrs.get("transform", "none")])
    target.gross_errors = array.attrs.get("gross_errors") != "kept"
    if "climate_range" in array.attrs:
        target.credible = torch.as_tensor(np.reshape(array.attrs["climate_range"], (-1, 2)))
    return target


def _plain(array: xr.DataArray, group: str) -> xr.DataArray:
    """Coordinates under their usual names: a group renames those that differ from the root's."""
    suffix = f"_{group}"
    names = {str(c) for c in (*array.dims, *array.coords)}
    return array.rename({name: name.removesuffix(suffix) for name in names if name.endswith(suffix)})


def _tensor(array: xr.DataArray, layout: Layout) -> Tensor:
    """(N, T, *S), or (T, *S) without members, with a channel axis."""
    lead = ("member", "time") if "member" in array.dims else ("time",)
    tensor = torch.from_numpy(array.transpose(*lead, *layout.dims).values)
    return tensor if "level" in layout.dims else tensor.unsqueeze(len(lead))


def _truth(
    target: AnalysedVariable, files: Sequence[str], variable: str, dates: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    layout = target.layout
    modality = Modality(
        target.name,
        tuple(files),
        variable,
        "state",
        kind="grid" if layout.is_grid else "stations",
        units=layout.units or None,
        levels=tuple(layout.coords["level"]) if "level" in layout.dims else None,
        gross_errors=target.gross_errors,
    )
    days, truth = read_file(modality, layout, dates=dates)
    if target.credible is not None:
        low, high = target.credible.to(truth).T.reshape(2, -1, *(1,) * (truth.ndim - 2))
        wrong = (truth < low) | (truth > high)
        if bool(wrong.any()):
            first = days[int(wrong.flatten(1).any(1).float().argmax())]
            warnings.warn(
                f"{target.name}: {int(wrong.sum())} of {int(torch.isfinite(truth).sum())} values of the truth are left "
                f"out, far outside the training's climate (the first on {first}).",
                DataWarning,
                stacklevel=2,
            )
            truth = truth.masked_fill(wrong, torch.nan)
    return days, truth


def _masks(target: AnalysedVariable, truth: Tensor, rows: np.ndarray) -> dict[str, Tensor]:
    """Masks of observed and withheld values, where any of them have a truth."""
    if target.observed is None:
        return {}
    seen, verifiable = _tensor(target.observed.isel(time=rows), target.layout), torch.isfinite(truth)
    masks = {"observed": seen, "withheld": ~seen}
    return {part: mask for part, mask in masks.items() if bool((mask & verifiable).any())}


def blocks(days: np.ndarray) -> list[tuple[str, slice]]:
    """Stretches of at most 15 days from their first day on, gaps included, and the name of each.

    >>> blocks(np.array(["2000-01-01", "2000-01-15", "2000-01-16"], dtype="datetime64[D]"))
    [('2000-01-01', slice(0, 2, None)), ('2000-01-16', slice(2, 3, None))]
    """
    starts = [0]
    for row, day in enumerate(days):
        if day - days[starts[-1]] >= np.timedelta64(BLOCK, "D"):
            starts.append(row)
    return [(str(days[a]), slice(a, b)) for a, b in zip(starts, [*starts[1:], len(days)], strict=True)]


def _observations(
    targets: Mapping[str, AnalysedVariable], target: AnalysedVariable, rows: np.ndarray
) -> tuple[Layout, Tensor] | None:
    """Observations of the same quantity, for maps: its own values, else stations, else a grid."""
    alike = [
        other
        for other in targets.values()
        if other.observation is not None
        and (other.layout.units, other.transform) == (target.layout.units, target.transform)
        and len(other.layout.levels()) in (0, len(target.layout.levels()))
    ]
    if not alike:
        return None
    best = min(alike, key=lambda other: (other is not target, other.layout.is_grid))
    assert best.observation is not None
    return best.layout, _tensor(best.observation.isel(time=rows), best.layout)
