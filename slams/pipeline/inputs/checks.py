"""What can be known to go wrong before a run reads data or trains: settings, headers of files, days."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slams import config
from slams.core.device import computing_device
from slams.core.errors import InvalidValueError
from slams.core.files import writable
from slams.data.files.read import days_of
from slams.data.windows import window_starts
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.inputs.periods import cut, windows_apart
from slams.pipeline.recipe import Recipe

Span = tuple[np.datetime64, np.datetime64]


def check_settings(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """Periods, device and folders, from the recipe alone.

    Args:
        recipe: Recipe of the run.
        out: Folder of the run.
        say: Called with each line for the user.

    Raises:
        ValueError: If periods are missing, reversed, shorter than a window or overlap, the test has too few days for its
            windows, or the device is not there.
        OSError: If the folder of the run or of its stores is read-only.
    """
    computing_device(recipe.device)
    for path in (out, Path(config.resolve(recipe.data.store))):
        writable(path / "file")
    spans = periods(recipe)
    names = list(spans)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            first, last = max(spans[one][0], spans[other][0]), min(spans[one][1], spans[other][1])
            if first <= last:
                raise InvalidValueError(
                    f"data.{one} and data.{other} share the days {first} to {last}, so that scores would be those of "
                    "days that were used before; make the periods separate."
                )
    if recipe.assimilation.uses == "past":
        raise InvalidValueError(
            "the test of a run uses all observations of its windows (assimilation.uses: all); train with that, then "
            "filter with `slams assimilate --filter`, or score filter and forecasts with `slams forecast RUN --score`."
        )
    e, length = recipe.experiment, recipe.prior.window
    if "test" in spans and e.windows:
        days = np.arange(spans["test"][0], spans["test"][1] + 1)
        windows_apart(days, length, e.windows, e.spacing)
    if not e.sets and recipe.until == "report":
        say("experiment.sets is empty: nothing is assimilated, scored or reported after the training")
    if e.sets and recipe.assimilation.members == 1:
        say("assimilation.members is 1: spread, CRPS and coverage stay empty")


def periods(recipe: Recipe) -> dict[str, Span]:
    """First and last day of each part that the run needs.

    Raises:
        ValueError: If one is missing, no pair of days, reversed, or shorter than a window.
    """
    needed = ["train", "validation"]
    if recipe.experiment.sets and recipe.until == "report":
        needed.append("test")
    found: dict[str, Span] = {}
    for name in needed:
        given = getattr(recipe.data, name)
        try:
            first, last = (np.datetime64(str(day), "D") for day in given)
        except ValueError as error:
            raise InvalidValueError(
                f"data.{name} is a first and a last day such as [1990-01-01, 2009-12-31], got {list(given)}."
            ) from error
        if np.isnat(first) or np.isnat(last) or last < first:
            raise InvalidValueError(
                f"data.{name} is a first and a later last day such as [1990-01-01, 2009-12-31], got {list(given)}."
            )
        days = int((last - first).astype(int)) + 1
        if days < recipe.prior.window:
            raise InvalidValueError(
                f"data.{name} has {days} days, fewer than prior.window, {recipe.prior.window}; give more days, or a "
                "shorter window."
            )
        found[name] = (first, last)
    return found


def check_headers(recipe: Recipe) -> None:
    """Files, their variables, and the days of each period, from headers alone.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file can't be opened or lacks its variable, or a modality has no day of a period.
    """
    for name, modality in recipe.modalities.items():
        days = days_of(modality)
        for part, (first, last) in periods(recipe).items():
            # a record may be of the day before or after its state's
            near = (days >= first - np.timedelta64(1)) & (days <= last + np.timedelta64(1))
            if not near.any():
                held = f"{days.min()} to {days.max()}" if days.size else "no day"
                raise InvalidValueError(
                    f"data.{part} is {first} to {last}, but the files of {name} hold {held}; change the period, or add "
                    "files."
                )


def check_fields(recipe: Recipe, fields: Fields, out: Path, say: Callable[[str], None]) -> None:
    """Windows of each period, operators, withheld stations and disk, once the days in common are known.

    Raises:
        ValueError: If a period has no window, the test too few, or a station to withhold does not exist.
        OSError: If the disk has no room for the results.
    """
    length, e = recipe.prior.window, recipe.experiment
    spans = periods(recipe)
    for part in spans:
        index = fields.part(getattr(recipe.data, part))
        if not len(window_starts(fields.dates[index], length)):
            raise InvalidValueError(
                f"data.{part} has {len(index)} days in common, but no {length} consecutive ones (prior.window); choose "
                "another period or a shorter window."
            )
        for key, fit in (("latent", recipe.latent.fit), ("prior", recipe.prior.fit)):
            if part == "train" and fit.batch > len(index):
                say(f"{key}.fit.batch is {fit.batch}, more than the {len(index)} training days")
    operators_of(recipe, fields.layouts)
    for name, stations in e.withhold.items():
        count = fields.layouts[name].shape[-1]
        wrong = [s for s in stations if not 0 <= s < count]
        if fields.layouts[name].is_grid or wrong:
            what = (
                "is on a grid" if fields.layouts[name].is_grid else f"has {count} stations (numbered from 0)"
            )
            raise InvalidValueError(
                f"experiment.withhold names {name} {list(stations)}, but {name} {what}; only stations can be withheld."
            )
    values = sum(fields.layouts[name].size for name in recipe.states)
    room = 0
    if "test" in spans:
        days = len(cut(fields, recipe.data.test, length, e.windows, e.spacing).days)
        room = 4 * values * days * recipe.assimilation.members
    free = shutil.disk_usage(out).free
    if room > free:
        raise InvalidValueError(
            f"the analysis of {days} days and {recipe.assimilation.members} members takes {room / 1e9:.1f} GB, but the "
            f"disk of {out} has {free / 1e9:.1f} GB free; free some space, give another out=, or fewer members."
        )
