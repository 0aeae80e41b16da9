"""Observations of the rivals: those of a run's test, and of the days before each of its trajectories."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import DataWarning, InvalidValueError
from slams.core.random import fork, normal
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import columns
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe
from slams.pipeline.rivals.cycle import Instrument

QUANTITIES = {"t": "temperature", "precip": "rain", "olr": "radiation"}  # by variable of the archive's files
Preceding = Callable[[int, int], Sequence[Tensor]]  # of a year and a count of days, as `preceding_days`
_SAME = 1e-2  # K, by which days simulated again may differ from the archive


def check_rivals(recipe: Recipe) -> None:
    """Check that rivals can run with a recipe: before any work, from its settings alone.

    Raises:
        ValueError: If the data is not the synthetic planet's, or a modality has no instrument or settings there.
    """
    e = recipe.experiment
    if not e.rivals:
        return
    if not recipe.planet.years:
        raise InvalidValueError(
            f"experiment.rivals ({', '.join(e.rivals)}) know the equations of the synthetic planet, and this recipe has "
            "no planet.years; leave them out."
        )
    if e.every > 1:
        raise InvalidValueError(
            f"rivals observe every day, not every {e.every} (experiment.every); leave them out."
        )
    for label in e.rival.sets or e.sets:
        for name in e.sets[label]:
            modality = recipe.modalities[name]
            if modality.variable not in QUANTITIES or name in recipe.assimilation.operators:
                raise InvalidValueError(
                    f"a rival observes {', '.join(QUANTITIES)} of the planet's files cell by cell, not {name} (variable "
                    f"{modality.variable}{', through an operator' if name in recipe.assimilation.operators else ''})."
                )
            missing = [key for key in ("errors", "half_widths") if name not in getattr(e.rival, key)]
            if missing:
                raise InvalidValueError(f"experiment.rival.{missing[0]} has no value for {name!r}; give one.")
    if [recipe.modalities[name].variable for name in recipe.states] != ["t"]:
        raise InvalidValueError(
            f"rivals estimate the variable t, but the states are {', '.join(recipe.states)}."
        )


def std_of(recipe: Recipe, name: str) -> float:
    """Standard deviation of a modality's error: of the instrument, where stated, and of representativeness."""
    stated = recipe.modalities[name].error_std or 0.0
    return float(np.hypot(stated, recipe.experiment.rival.errors[name]))


@dataclass(frozen=True)
class History:
    """The days before a trajectory.

    Attributes:
        first: First of them; the trajectory's own first day if there are none.
        values: Observed values (n, *S) by modality, after the transform, NaN where unobserved.
    """

    first: np.datetime64
    values: Mapping[str, Tensor]


def history(
    model: Model, fields: Fields, row: int, preceding: Preceding, names: Sequence[str], wanted: int
) -> History:
    """Observations of consecutive days before a day.

    Instruments have the errors and cells of the test; those of a state variable have draws of their own for each date.
    Days of an archive's chain before its first 1 January are simulated again, and left out where that fails.

    Args:
        model: Trained model.
        fields: Fields of all days.
        row: Row of the day.
        preceding: Source of the days before a year of the archive.
        names: Observed modalities.
        wanted: Largest number of days.
    """
    recipe = model.recipe
    one, count = np.timedelta64(1, "D"), 0
    while count < min(wanted, row) and fields.dates[row - count - 1] == fields.dates[row] - (count + 1) * one:
        count += 1
    rows = torch.arange(row - count, row)
    values = {name: fields.values[name][rows] for name in names}
    begin = fields.dates[row] - count * one
    more = wanted - count
    if more and begin == begin.astype("datetime64[Y]"):
        year = int(str(begin)[:4])
        *found, first = preceding(year, more)
        kinds = dict(zip(QUANTITIES.values(), found, strict=True))
        apart = first - fields.values[recipe.states[0]][row - count]
        if not float(torch.nan_to_num(apart).abs().max()) < _SAME:
            warnings.warn(
                f"the days before {begin} can't be simulated again on this machine; rivals start without them.",
                DataWarning,
                stacklevel=2,
            )
        else:
            begin = begin - more * one
            for name in names:
                value = kinds[QUANTITIES[recipe.modalities[name].variable]]
                value = value if value.ndim == 4 else value.unsqueeze(1)
                value = torch.from_numpy(recipe.modalities[name].transformed.forward(value.numpy()))
                values[name] = torch.cat([value, values[name]])
    dates = begin + np.arange(len(next(iter(values.values())))) * one
    return History(begin, {name: _reported(model, name, value, dates) for name, value in values.items()})


def _reported(model: Model, name: str, value: Tensor, dates: np.ndarray) -> Tensor:
    """Values on some dates as the test observes them: a state's in columns and with the instrument's noise."""
    recipe, value = model.recipe, model.codec.masked(name, value)
    if name not in recipe.states:
        return value
    layout, std = model.layouts[name], recipe.modalities[name].error_std or 0.0
    noise = [
        normal(value.shape[1:], like=value, rng=fork(recipe.seed, "rival noise", name, str(date)))
        for date in dates
    ]
    value = value + std * torch.stack(noise) if noise else value
    hidden = torch.ones(layout.weights().numel(), dtype=torch.bool)
    hidden[columns(layout, recipe.experiment.share, recipe.seed)] = False
    return value.masked_fill(hidden.reshape(layout.weights().shape), torch.nan)


def instruments(
    model: Model, before: History, seen: Mapping[str, Tensor], dates: np.ndarray
) -> dict[str, Instrument]:
    """Instruments of a trajectory with the days before it.

    Args:
        model: Trained model.
        before: Those days.
        seen: Observed anomalies of the trajectory (T, *S) by name, as the run's own method has them.
        dates: Dates of the trajectory, (T).
    """
    recipe, found, phase = model.recipe, {}, phase_of(dates)
    for name, anomaly in seen.items():
        values = torch.cat([before.values[name], model.codec.physical(name, anomaly, phase)])
        quantity = QUANTITIES[recipe.modalities[name].variable]
        half_width = recipe.experiment.rival.half_widths[name]
        found[name] = Instrument(quantity, values, std_of(recipe, name), half_width)
    return found
