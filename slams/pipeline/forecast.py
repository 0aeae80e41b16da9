"""Forecasts of a trained run, behind the last observation: `slams forecast`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from slams.core.console import Console
from slams.core.device import computing_device
from slams.core.errors import InvalidValueError
from slams.core.files import writable
from slams.core.random import fork
from slams.diffusion.trajectory_gaussian import forecast_mean
from slams.pipeline.assimilate import Record, configure, memory_of, read_record, sources_of
from slams.pipeline.inputs.fields import phase_of
from slams.pipeline.inputs.named_files import FileSource
from slams.pipeline.inputs.segments import Segment, rows_of, seen_on
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded, posterior, spread_of
from slams.pipeline.recipe import Recipe
from slams.pipeline.results.analysis_file import (
    analysis_tree,
    attributes_of,
    refuse_to_replace,
    write_tree,
)


def forecast(
    run: str | Path,
    observations: Sequence[str],
    out: str | Path | None = None,
    *,
    days: int = 5,
    start: str | None = None,
    members: int | None = None,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Forecast the days behind the last observation, and write them as an analysis file.

    Args:
        run: Folder of a trained run; nothing outside it is needed.
        observations: Files, as FILE or NAME=FILE.
        out: Forecast to write, .nc or .zarr; forecast_DATE.nc in the working folder if None, DATE the day of lead 0.
        days: Number of forecast days.
        start: Day of lead 0, the last whose observations are used; the last day with an observation if None.
        members: Ensemble size; the recipe's if None.
        modalities: Names of the modalities to use.
        seed: Seed of all random draws.
        overrides: Settings of a trained run, as of `slams.pipeline.assimilate.assimilate`.
        overwrite: Whether to replace any file at `out`. One of the same run and settings is always replaced.
        console: Console for the progress.

    Returns:
        The path of the forecast.

    Raises:
        FileNotFoundError: If the run or a file isn't there.
        ValueError: If a setting, a file, a variable or the start is invalid, the forecast exceeds the horizon, there
            is no observation in its memory, or `out` holds something else.
    """
    console, folder = console or Console(), Path(run).expanduser()
    if out is not None and Path(out).suffix not in (".nc", ".zarr"):
        raise InvalidValueError(f"a forecast is written as .nc or .zarr, got {str(out)!r}.")
    _day(start)  # an invalid one raises before the weights are read
    model = Model.load(folder)
    model = Model(model.codec, model.prior, configure(model.recipe, overrides, members))
    model.on(computing_device(model.recipe.device))
    check_horizon(model.recipe, days)
    if out is not None:
        writable(Path(out).expanduser())  # before the draws
    sources = sources_of(model.recipe, observations, modalities)
    tree = forecast_tree(model, folder, sources, days=days, start=start, seed=seed, console=console)
    target = Path(out if out is not None else f"forecast_{tree.attrs['start']}.nc").expanduser()
    if target.resolve() in {Path(f).resolve() for source in sources.values() for f in source.files}:
        raise InvalidValueError(f"{target} is one of the observation files; write the forecast elsewhere.")
    if not overwrite:
        refuse_to_replace(target, {str(name): str(value) for name, value in tree.attrs.items()})
    writable(target)
    write_tree(tree, target)
    console.say(f"forecast from {tree.attrs['start']}: {target}")
    return target


def forecast_tree(
    model: Model,
    folder: Path,
    sources: Mapping[str, FileSource],
    *,
    days: int,
    start: str | None,
    seed: int,
    console: Console,
) -> xr.DataTree:
    """The forecast as labelled arrays, laid out as an analysis file of the forecast days.

    One trajectory of the `assimilation.memory` days up to the start and of the forecast days behind it, on which nothing
    is observed, is drawn as a whole, so that members are continuous in time. `lead` is the number of days from the start.

    Args:
        model: Model of the run, with the settings of this forecast.
        folder: Folder of the run.
        sources: Files of each modality.
        days: Number of forecast days.
        start: Day of lead 0; the last day with an observation if None.
        seed: Seed of all random draws.
        console: Console for the progress.

    Raises:
        ValueError: As of `forecast`.
    """
    recipe, day = model.recipe, _day(start)
    check_horizon(recipe, days)
    console.say(f"observed: {', '.join(sources)}")
    span = None if day is None else (np.datetime64("0001-01-01"), day)
    record = read_record(model, sources, span)
    seen, first, last = _memory(recipe, record, day)
    check_horizon(recipe, days + int((first - last).astype(int)))
    dates = first + np.arange(1, days + 1)
    segment = Segment(
        rows_of(
            record.dates.astype(int), int(first.astype(int)) - memory_of(recipe) + 1, memory_of(recipe) + days
        ),
        slice(memory_of(recipe), None),
    )
    rng, names = fork(seed, "forecast"), list(dict.fromkeys([*model.recipe.analysed, *seen]))
    with console.bar("forecasting", recipe.assimilation.steps) as advance:
        (kept,) = forecast_draws(
            model, [seen_on(segment, seen)], days, rng=rng, progress=lambda units: advance(units, "")
        )
    phase, leads = (
        phase_of(dates),
        slice(1, None),
    )  # behind the last observed day, which is a neighbour of the first
    found = {n: decoded(model, kept, n, phase, rng=fork(seed, "residual", n), days=leads) for n in names}
    empty = {n: torch.full((days, *model.layouts[n].shape), torch.nan) for n in seen}
    attributes = attributes_of(model, folder, sources, dates=None, seed=seed, baselines=False)
    settings = json.loads(attributes["settings"]) | {"forecast": {"start": str(first), "days": days}}
    tree = analysis_tree(
        model,
        dates,
        {n: found[n] for n in model.recipe.analysed},
        {n: (found[n], torch.isfinite(x)) for n, x in empty.items()},
        attributes
        | {
            "title": "Ensemble forecast by a latent score model",
            "settings": json.dumps(settings, sort_keys=True),
            "start": str(first),
        },
        observations=empty,
    )
    lead = (
        "time",
        np.arange(1, days + 1, dtype="timedelta64[D]").astype(int),
        {"units": "days", "long_name": "lead"},
    )
    tree.dataset = tree.to_dataset().assign_coords(lead=lead)
    return tree


def forecast_draws(
    model: Model,
    seen: Sequence[Mapping[str, Tensor]],
    days: int,
    *,
    rng: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Latent draws of the start and of the forecast days of some trajectories.

    The calibrated factor f on the spread is that of analyses. A forecast has it to the extent that deviations of the
    analysis last: to each forecast (f - 1) times the closed form's forecast of its member's deviation is added.

    Args:
        model: Trained model.
        seen: Observed anomalies of each trajectory (T, *S), NaN on its last days.
        days: Number of these.
        rng: Generator of the draws.
        progress: Callback with 1 after each step of the sampler.

    Returns:
        Draws (N, 1 + days, *Z) of each trajectory, on the CPU.
    """
    gaussian, factor, found = model.prior.gaussian, spread_of(model, seen), []
    for z in posterior(model, seen, False, rng=rng, progress=progress):
        start, mean = z.shape[1] - days, z.mean(0)
        deviation = (z - mean) / factor  # as drawn
        recent = deviation[:, max(0, start - gaussian.length + 1) : start].to(gaussian.basis)
        lasting = forecast_mean(gaussian, recent, days).cpu()
        ahead = mean[start:] + deviation[:, start:] + (factor - 1) * lasting
        found.append(torch.cat([z[:, start - 1 : start], ahead], 1))
    return found


def check_horizon(recipe: Recipe, days: int) -> None:
    """Check that a forecast reaches no further than the recipe's horizon.

    Raises:
        ValueError: If it does, or there is no day to forecast.
    """
    horizon = recipe.assimilation.horizon
    if days < 1:
        raise InvalidValueError(f"a forecast has at least 1 day, got {days}; change --days.")
    if days > horizon:
        raise InvalidValueError(
            f"the forecast reaches {days} days beyond the last observation, but those of this run are limited to "
            f"{horizon} (assimilation.horizon); lower --days, give later observations, or set "
            f"assimilation.horizon={days}, knowing that nothing was scored there."
        )


def _day(start: str | None) -> np.datetime64 | None:
    if start is None:
        return None
    try:
        day = np.datetime64(start, "D")
    except ValueError as error:
        raise InvalidValueError(
            f"a forecast starts from a day such as 1998-02-20, got {start!r} (--from)."
        ) from error
    if np.isnat(day):
        raise InvalidValueError(f"a forecast starts from a day such as 1998-02-20, got {start!r} (--from).")
    return day


def _memory(
    recipe: Recipe, record: Record, start: np.datetime64 | None
) -> tuple[dict[str, Tensor], np.datetime64, np.datetime64]:
    """Observations, the day of lead 0, and the last day in the forecast's memory that has an observation."""
    some = torch.stack([torch.isfinite(x).flatten(1).any(1) for x in record.seen.values()]).any(0)
    last = record.dates[int(some.nonzero()[-1])].astype("datetime64[D]")
    first = last if start is None else start
    memory = memory_of(recipe)
    if (first - last).astype(int) >= memory:
        raise InvalidValueError(
            f"the last observation is of {last}, but a forecast from {first} uses the {memory} days up to it, which have "
            "none; give later observations, or an earlier --from, or a longer assimilation.memory."
        )
    return record.seen, first, last
