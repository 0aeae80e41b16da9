"""Assimilation of new files by a trained run: `slams assimilate`."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from slams.core.console import Console
from slams.core.device import computing_device
from slams.core.errors import DataWarning, InvalidValueError
from slams.core.files import writable
from slams.core.random import fork
from slams.core.settings import override
from slams.pipeline.baselines.file import FILE_NAME, load_baselines
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.baselines.members import BASELINES, ClosedForm, members_of, prior, reconstruction
from slams.pipeline.inputs.fields import far_from_climate, phase_of, read_file
from slams.pipeline.inputs.named_files import FileSource, match
from slams.pipeline.inputs.operators import thinned
from slams.pipeline.inputs.segments import Segment, past_segments, seen_on, segments_of
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded, posterior
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.results.analysis_file import (
    analysis_tree,
    attributes_of,
    refuse_to_replace,
    write_tree,
)

_SETTABLE = re.compile(
    r"device|data\.gross_errors|assimilation\.\w+|assimilation\.operators\.[^.]+|experiment\.withhold\.[^.]+|data\.modalities\.[^.]+\.error_std"
)
_VALUES = 2**24  # of all windows of all members in one segment: it bounds the memory to about 2 GB
_BATCH = 8  # short runs drawn together


@dataclass
class Record:
    """Observations on all days that any of the files has.

    Attributes:
        dates: Dates (T), datetime64[D].
        values: Anomalies (T, *S) as the files have them, NaN where missing.
        seen: Values without the withheld ones.
    """

    dates: np.ndarray
    values: dict[str, Tensor]
    seen: dict[str, Tensor]


def assimilate(
    run: str | Path,
    observations: Sequence[str],
    out: str | Path,
    *,
    members: int | None = None,
    modalities: Sequence[str] | None = None,
    dates: str | None = None,
    seed: int = 0,
    baselines: bool = False,
    only_past: bool = False,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Analyse every day of the observations.

    With `assimilation.uses: past` the analysis of a day is that of the `assimilation.memory` days up to it: a filter.
    Else each run of consecutive days is one trajectory; very long ones are drawn in segments, across whose seams
    members have no continuity. A state variable is read only if NAME=FILE or `modalities` names it; all its
    values then count as observed.

    Args:
        run: Folder of a trained run; nothing outside it is needed.
        observations: Files, as FILE or NAME=FILE.
        out: Analysis to write, .nc or .zarr.
        members: Ensemble size; the recipe's if None.
        modalities: Names of the modalities to use.
        dates: First and last day as "A..B"; all if None.
        seed: Seed of all random draws.
        baselines: Whether to write the baselines' analyses, too.
        only_past: Whether the analysis of a day uses no observation after it, as with assimilation.uses=past.
        overrides: Settings of a trained run: device=…, assimilation.KEY=…, withhold.NAME=[…] (stations, numbered from 0
            in the order of the training file), data.modalities.NAME.error_std=….
        overwrite: Whether to replace any file at `out`. One of the same run and settings is always replaced.
        console: Console for the progress.

    Returns:
        The path of the analysis.

    Raises:
        FileNotFoundError: If the run or a file isn't there.
        ValueError: If a setting, a file, a variable or the dates are invalid, or `out` holds something else.
    """
    console = console or Console()
    target, folder = Path(out).expanduser(), Path(run).expanduser()
    if target.suffix not in (".nc", ".zarr"):
        raise InvalidValueError(f"an analysis is written as .nc or .zarr, got {str(out)!r}.")
    _span(dates)  # an invalid one raises before the weights are read
    model = Model.load(folder)
    overrides = [*overrides, *(["assimilation.uses=past"] if only_past else [])]
    model = Model(model.codec, model.prior, configure(model.recipe, overrides, members))
    model.on(computing_device(model.recipe.device))
    sources = sources_of(model.recipe, observations, modalities)
    if target.resolve() in {Path(f).resolve() for source in sources.values() for f in source.files}:
        raise InvalidValueError(f"{target} is one of the observation files; write the analysis elsewhere.")
    if not overwrite:
        about = attributes_of(model, folder, sources, dates=dates, seed=seed, baselines=baselines)
        refuse_to_replace(target, about)
    writable(target)
    tree = analyse(model, folder, sources, dates=dates, seed=seed, baselines=baselines, console=console)
    with console.bar("writing the analysis", 1) as advance:
        write_tree(tree, target)
        advance(1, str(target))
    return target


def analyse(
    model: Model,
    folder: Path,
    sources: Mapping[str, FileSource],
    *,
    dates: str | None = None,
    seed: int = 0,
    baselines: bool = False,
    console: Console,
) -> xr.DataTree:
    """The analysis of every day of the observations, laid out as an analysis file.

    Args:
        model: Model of the run, with the settings of this analysis.
        folder: Folder of the run.
        sources: Files of each modality.
        dates: First and last day as "A..B"; all if None.
        seed: Seed of all random draws.
        baselines: Whether to add the baselines' analyses as groups.
        console: Console for the progress.

    Raises:
        FileNotFoundError: If the baselines are wanted and the run has none.
        ValueError: If a file or the dates are invalid, or baselines of a filter are wanted.
    """
    past = model.recipe.assimilation.uses == "past"
    if past and baselines:
        raise InvalidValueError(
            "the baselines use all observations of a file, a filter only past ones; leave one of both out "
            "(`slams forecast RUN --score` compares filters)."
        )
    fitted = load_baselines(model, folder / FILE_NAME) if baselines else None
    console.say(f"observed: {', '.join(sources)}")
    record = read_record(model, sources, _span(dates))
    if past:
        segments = past_segments(record.dates, memory_of(model.recipe))
    else:
        segments = segments_of(record.dates, model.recipe.prior.window, _longest(model))
    found, shown = _analyse(model, record, segments, seed, console), _shown(model, record)
    groups = None if fitted is None else _baseline_groups(model, fitted, record, segments, seed, console)
    phase = phase_of(record.dates)
    return analysis_tree(
        model,
        record.dates,
        {n: found[n] for n in model.recipe.analysed},
        {n: (found[n], torch.isfinite(x)) for n, x in shown.items()},
        attributes_of(model, folder, sources, dates=dates, seed=seed, baselines=baselines),
        groups,
        observations={n: model.codec.physical(n, x, phase) for n, x in shown.items()},
    )


def configure(recipe: Recipe, overrides: Sequence[str] = (), members: int | None = None) -> Recipe:
    """Override the settings of a trained run's recipe that training does not fix.

    Stations are withheld only by these overrides, not by the settings of the run's own test.

    Args:
        recipe: Recipe of the run.
        overrides: Overrides as of `assimilate`.
        members: Ensemble size, if not None.

    Raises:
        ValueError: If a setting is fixed by training, unknown, or has an invalid value.
    """
    tree = to_tree(recipe)
    tree["experiment"]["withhold"] = {}
    tree["device"] = "auto"  # the machine it was trained on may have been another
    settings = [f"experiment.{s}" if s.startswith("withhold.") else s for s in overrides]
    for setting in settings:
        key = setting.partition("=")[0]
        if not _SETTABLE.fullmatch(key):
            raise InvalidValueError(
                f"{key!r} is not adjustable in a trained run; device, assimilation.KEY, withhold.NAME and "
                "data.modalities.NAME.error_std are."
            )
        name = key.split(".")[2] if key.count(".") > 1 else None
        if name is not None and name not in tree["data"]["modalities"]:
            raise InvalidValueError(
                f"{key!r} names no modality; there are {', '.join(tree['data']['modalities'])}."
            )
    tree = override(tree, settings)
    if members is not None:
        if members < 1:
            raise InvalidValueError(f"an ensemble needs at least one member, got members={members}.")
        tree["assimilation"]["members"] = members
    return from_tree(tree)


def read_record(
    model: Model, sources: Mapping[str, FileSource], span: tuple[np.datetime64, np.datetime64] | None = None
) -> Record:
    """Read observations onto the points of the training and join them on all days that any has.

    Args:
        model: Trained model.
        sources: Files of each modality.
        span: First and last day.

    Raises:
        ValueError: If no day is in the span, all values are missing, or a station to withhold does not exist.
    """
    recipe = model.recipe
    files = {}
    for name, source in sources.items():
        modality = replace(recipe.modalities[name], files=tuple(source.files), variable=source.variable)
        files[name] = read_file(modality, model.layouts[name])
    days = np.unique(np.concatenate([d for d, _ in files.values()]))
    dates = days if span is None else days[(days >= span[0]) & (days <= span[1])]
    if not dates.size:
        raise InvalidValueError(
            f"the observations have no day from {span[0]} to {span[1]}: they hold {days[0]} to {days[-1]}; "
            "change --dates or give other files."
            if span is not None and days.size
            else "the observation files hold no day at all; give other files."
        )
    phase = phase_of(dates)
    values = {}
    for name, (have, x) in files.items():
        whole = torch.full((len(dates), *x.shape[1:]), torch.nan)
        requested = np.isin(have, dates)
        whole[torch.from_numpy(np.searchsorted(dates, have[requested]))] = x[
            torch.from_numpy(np.flatnonzero(requested))
        ]
        for text in far_from_climate(recipe.modalities[name], model.codec.statistics[name], whole, dates):
            warnings.warn(f"{text}.", DataWarning, stacklevel=2)
        values[name] = model.codec.anomaly(name, whole, phase)
    seen = {name: thinned(recipe, name, x.clone()) for name, x in values.items()}
    for name, stations in recipe.experiment.withhold.items():
        _withhold(model, seen, name, stations)
    if not any(bool(torch.isfinite(x).any()) for x in seen.values()):
        raise InvalidValueError(
            f"{', '.join(seen)} hold no value from {dates[0]} to {dates[-1]}, only missing ones; check "
            "the files and what is withheld."
        )
    return Record(dates, values, seen)


def _withhold(model: Model, seen: Mapping[str, Tensor], name: str, stations: Sequence[int]) -> None:
    if name not in seen:
        raise InvalidValueError(
            f"withhold.{name}: {name} is not among the observed modalities, {', '.join(seen)}."
        )
    layout = model.layouts[name]
    if layout.is_grid:
        raise InvalidValueError(f"withhold.{name}: {name} is on a grid; only stations can be withheld.")
    count = len(layout.coords["lat"])
    wrong = [s for s in stations if not 0 <= s < count]
    if wrong:
        raise InvalidValueError(
            f"withhold.{name} names station {wrong[0]}, but there are {count} (numbered from 0)."
        )
    seen[name][..., list(stations)] = torch.nan


def _span(dates: str | None) -> tuple[np.datetime64, np.datetime64] | None:
    if dates is None:
        return None
    first, _, last = dates.partition("..") if isinstance(dates, str) else (dates, "", "")
    try:
        span = np.datetime64(first, "D"), np.datetime64(last, "D")
    except ValueError as error:
        raise InvalidValueError(f"dates look like 1997-12-01..1998-02-28, got {dates!r}.") from error
    if np.isnat(span[0]) or np.isnat(span[1]) or span[1] < span[0]:
        raise InvalidValueError(
            f"dates are a first and a last day such as 1997-12-01..1998-02-28, got {dates!r}."
        )
    return span


def sources_of(
    recipe: Recipe, observations: Sequence[str], modalities: Sequence[str] | None = None
) -> dict[str, FileSource]:
    """Files of each observed modality.

    Args:
        recipe: Recipe of the run.
        observations: Files, as FILE or NAME=FILE.
        modalities: Names of the modalities to use; None for the observation modalities that the files hold.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a name is no modality, or a modality has no file.
    """
    known = recipe.modalities
    variables = {name: m.variable for name, m in known.items()}
    sought = [n for n, m in known.items() if m.role == "observation"]
    if modalities is not None:
        unknown = [name for name in modalities if name not in known]
        if unknown or not modalities:
            came = unknown[0] if unknown else "none"
            raise InvalidValueError(
                f"--modalities names {came!r}, which is no modality; there are {', '.join(known)}."
            )
        sought = [n for n in known if n in modalities]
    sources = match(observations, variables, sought)
    if modalities is not None:
        missing, extra = set(modalities) - set(sources), set(sources) - set(modalities)
        if missing:
            raise InvalidValueError(
                f"{', '.join(sorted(missing))} (--modalities) is in none of the files given."
            )
        if extra:
            raise InvalidValueError(
                f"{', '.join(sorted(extra))} has a file but is not in --modalities; leave out one of both."
            )
    return sources


def memory_of(recipe: Recipe) -> int:
    """Number of days up to its last observation that a filter's analysis or a forecast uses."""
    return max(recipe.assimilation.memory, recipe.prior.window)


def _longest(model: Model) -> int:
    """Largest number of days of a segment that fits in memory."""
    length = model.recipe.prior.window
    values = model.recipe.assimilation.members * length * torch.Size(model.prior.gaussian.event).numel()
    return max(10 * length, _VALUES // values)


def _analyse(
    model: Model, record: Record, segments: Sequence[Segment], seed: int, console: Console
) -> dict[str, Tensor]:
    """Physical members (N, T, *S) of the states and of the observed modalities."""
    count, days = model.recipe.assimilation.members, len(record.dates)
    phase, names = phase_of(record.dates), list(dict.fromkeys([*model.recipe.analysed, *record.seen]))
    found = {n: torch.empty(count, days, *model.layouts[n].shape) for n in names}
    residual = {n: fork(seed, "residual", n) for n in names}
    length, past = model.recipe.prior.window, model.recipe.assimilation.uses == "past"
    short = [s for s in segments if past or len(s.rows) == length]
    groups = [short[i : i + _BATCH] for i in range(0, len(short), _BATCH)]
    groups += [[s] for s in segments if not past and len(s.rows) != length]
    rng = fork(seed, "analysis")
    with console.bar("assimilating", len(groups) * model.recipe.assimilation.steps) as advance:
        for group in groups:
            seen = [seen_on(segment, record.seen) for segment in group]
            long = not past and len(group[0].rows) != length
            draws = posterior(model, seen, long, rng=rng, progress=lambda units: advance(units, ""))
            for segment, z, observed in zip(group, draws, seen, strict=True):
                own, when = {m: x[segment.keep] for m, x in observed.items()}, phase[segment.days]
                for n in names:
                    x = decoded(model, z, n, when, rng=residual[n], seen=own, days=segment.keep)
                    found[n][:, segment.days] = x
    return found


def _shown(model: Model, record: Record) -> dict[str, Tensor]:
    """Values observed cell by cell, (T, *S); all NaN for a modality observed through an operator."""
    return {n: torch.full_like(x, torch.nan) if n in model.operators else x for n, x in record.seen.items()}


def _baseline_groups(
    model: Model, fitted: Baselines, record: Record, segments: Sequence[Segment], seed: int, console: Console
) -> dict[str, dict[str, Tensor]]:
    """Groups of the analysis file: members of every baseline that has a fit for what was observed."""
    groups: dict[str, dict[str, Tensor]] = {}
    ignored = ClosedForm(model, fitted).unknown(record.seen)
    if ignored:
        console.say(f"baseline_gaussian: ignores {', '.join(ignored)}, which no set of the recipe has")
    with console.bar("baselines", len(segments) * model.recipe.assimilation.steps + 1) as advance:
        for baseline in sorted(BASELINES, key=lambda each: (each.observes, not each.pairs)):
            method = baseline.kept(model, fitted, record.seen)
            if method is not None:
                moments = method.of_record(record.seen, segments)
                members = members_of(model, method, moments, record.dates, seed)
                groups[f"baseline_{baseline.name}"] = members
            elif baseline.outlives:
                console.say(f"baseline_{baseline.name}: omitted, it has no fit for these observations")
        groups["baseline_prior"] = prior(
            model, segments, record.dates, seed, lambda units: advance(units, "")
        )
        again = reconstruction(model, record.values, record.dates)
        advance(1, "")
    return groups | ({"reconstruction": again} if again else {})
