"""Forecasts of many starts of a test period, scored by lead beside persistence, climatology and both Gaussians."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.trajectory import ClosedFormTrajectory
from slams.core.console import Advance, Console
from slams.core.device import computing_device
from slams.core.errors import InvalidValueError
from slams.core.files import sha256_of
from slams.core.random import fork
from slams.core.random import normal as normal_numbers
from slams.core.stages import Stage, Stages
from slams.evaluation import Scores, gaussian_window_statistics, window_statistics
from slams.evaluation.metrics import shown
from slams.evaluation.tables import console_table, wide, write_metrics
from slams.pipeline.assimilate import configure, memory_of
from slams.pipeline.baselines.file import load_baselines
from slams.pipeline.baselines.fit import Baselines, split
from slams.pipeline.baselines.members import ClimatologicalNormal, LatentGaussian
from slams.pipeline.forecast import check_horizon, forecast_draws
from slams.pipeline.inputs.fields import Fields, load_fields, phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.periods import windows_apart
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import WINDOWS, decoded
from slams.pipeline.results.scoring import BLOCK
from slams.pipeline.results.window_scores import in_unit

FILE_NAME = "forecast.csv"
_VERSION = 1
_INPUTS = ("codec.safetensors", "denoiser.safetensors", "baselines.safetensors")
_FITTED = 48  # starts of the validation days, by which spreads and persistence are fitted

Normal = tuple[Tensor, Tensor]  # mean and standard deviation of the states' values by lead, (W, 1 + days, D)


def forecast_scores(
    run: str | Path,
    *,
    days: int = 5,
    starts: int = 40,
    members: int | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Score forecasts of a run by lead, from starts spread over its test period, into RUN/forecast.csv.

    Each start observes the main set on the `assimilation.memory` days up to it. Rows have the columns of metrics.csv; the
    part is "day 0" (the filter's analysis of the start) to "day N". Methods: forecast; gaussian and latent_gaussian, the
    exact conditional distributions of the closed forms of state and latent; persistence, the start's analysis by the
    latent's closed form damped to r_l of its anomaly; climatology. The Gaussians' spreads, persistence's r_l and its
    error, by latitude, are those of validation days, by lead. Finished batches of starts are kept, so that the command
    resumes.

    Args:
        run: Folder of a trained run whose data are in place.
        days: Number of forecast days.
        starts: Number of starts.
        members: Ensemble size; the recipe's if None.
        overrides: Settings of a trained run.
        console: Console for the progress.

    Returns:
        The path of the table.

    Raises:
        FileNotFoundError: If the run, its baselines or its data are not there.
        ValueError: If the test period has fewer starts, or the forecast exceeds the horizon.
    """
    console, folder = console or Console(), Path(run).expanduser()
    model = Model.load(folder)
    recipe = configure(model.recipe, overrides, members)
    model = Model(model.codec, model.prior, recipe).on(computing_device(recipe.device))
    check_horizon(recipe, days)
    fitted = load_baselines(model, folder / "baselines.safetensors")
    weights = [sha256_of(folder / name) for name in _INPUTS]
    inputs = [weights, recipe.assimilation, recipe.experiment, recipe.data, recipe.seed, days, starts]
    stages, stage = Stages(folder, console.say), Stage("forecast", inputs, _VERSION)
    if stages.done(stage, (FILE_NAME,)):
        console.reused("scores of forecasts")
        return folder / FILE_NAME
    scores = _scores(model, fitted, days, starts, stages, inputs, console)
    rows = [dict(row) for row in scores.rows()]
    write_metrics(folder / FILE_NAME, rows)
    stages.finish(stage, (FILE_NAME,))
    for leftover in folder.glob("resume_forecast_*"):
        leftover.unlink()
    for name in model.states:
        for lead in range(days + 1):
            metrics = shown((str(row["metric"]) for row in rows), "console")
            table = wide(rows, variable=name, part=f"day {lead}", metrics=metrics, interval=False)
            console.rich.print(
                console_table(table, title=f"{name} [{model.layouts[name].units}], day {lead}")
            )
    console.say(f"{starts} starts: {folder / FILE_NAME}")
    return folder / FILE_NAME


def _scores(
    model: Model,
    fitted: Baselines,
    days: int,
    starts: int,
    stages: Stages,
    inputs: list[Any],
    console: Console,
) -> Scores:
    """Scores of all methods; finished parts are kept until all are."""
    fields, recipe = load_fields(model.recipe, console.say), model.recipe
    test = Launches.of(model, fields, recipe.data.test, days, starts)
    whole = Scores(apart=BLOCK)

    def kept(name: str, part: Callable[[Scores], None], units: int, advance: Advance) -> None:
        own = Stage(f"resume_forecast_{name}", inputs, _VERSION)
        found = stages.load(own)
        if found is None:
            scores = Scores(apart=BLOCK)
            part(scores)
            sums, index = scores.pack()
            found = sums, {"scores": index}
            stages.save(own, *found)
        else:
            advance(units, "")
        whole.unpack(found[0], found[1]["scores"])

    def closed(scores: Scores) -> None:
        validation = Launches.of(model, fields, recipe.data.validation, days, None)
        for method, normal in references(model, fitted, validation, test).items():
            _score_normal(scores, model, method, normal, test)

    with console.bar("references", 1) as advance:
        kept("references", closed, 1, advance)
    batches = [slice(at, at + WINDOWS) for at in range(0, starts, WINDOWS)]
    with console.bar("forecasts", len(batches) * recipe.assimilation.steps) as advance:
        for number, batch in enumerate(batches):

            def drawn(scores: Scores, batch: slice = batch, advance: Advance = advance) -> None:
                _score_draws(scores, model, test, batch, lambda units: advance(units, ""))

            kept(str(number), drawn, recipe.assimilation.steps, advance)
    return whole


@dataclass(frozen=True)
class Launches:
    """Starts of forecasts in one part of the data, with what they observe.

    Attributes:
        rows: Row of the fields' days of the start and of each forecast day, (W, 1 + days).
        dates: Date of each start.
        seen: Anomalies of the main set (W, memory + days, *S), NaN on forecast days.
        truth: Physical state variables, (W, 1 + days, *S).
        values: Their anomalies.
        phase: Phase of the year, (W, 1 + days).
    """

    rows: Tensor
    dates: np.ndarray
    seen: dict[str, Tensor]
    truth: dict[str, Tensor]
    values: dict[str, Tensor]
    phase: Tensor

    @classmethod
    def of(
        cls, model: Model, fields: Fields, span: tuple[str, str], days: int, starts: int | None
    ) -> "Launches":
        """Starts spread over a period, at least `days` apart; as many as fit up to 48 if None.

        Raises:
            ValueError: If there are fewer.
        """
        recipe, memory = model.recipe, memory_of(model.recipe)
        index = fields.part(span)
        firsts = _firsts(fields.dates[index], memory + days, max(days, 1), starts)
        rows = torch.from_numpy(index[firsts[:, None] + np.arange(memory + days)])
        used, where = rows.flatten().unique(return_inverse=True)
        own = anomalies(model.codec, fields, used.numpy())
        names, where = list(recipe.experiment.sets.values())[-1], where.reshape(rows.shape)
        std = {n: s.std for n, s in model.codec.statistics.items()}
        seen = observe(model.layouts, recipe, own, names, days=where, std=std)
        for value in seen.values():
            value[:, memory:] = torch.nan
        leads = rows[:, memory - 1 :]
        return cls(
            leads,
            fields.dates[leads[:, 0].numpy()],
            seen,
            {n: model.codec.masked(n, fields.values[n][leads]) for n in model.states},
            {n: own[n][where[:, memory - 1 :]] for n in model.states},
            phase_of(fields.dates[leads.flatten().numpy()]).reshape(leads.shape),
        )


def _firsts(dates: np.ndarray, length: int, apart: int, starts: int | None) -> np.ndarray:
    """Positions of the first days of stretches of so many days."""
    if starts is not None:
        try:
            return windows_apart(dates, length, starts, apart)
        except InvalidValueError as error:
            raise InvalidValueError(
                f"the test, {dates[0]} to {dates[-1]}, has fewer than {starts} stretches of {length} days that start "
                f"{apart} days apart; lower --starts or --days."
            ) from error
    for count in range(_FITTED, 7, -8):
        try:
            return windows_apart(dates, length, count, 1)
        except InvalidValueError:
            continue
    raise InvalidValueError(
        f"the validation days, {dates[0]} to {dates[-1]}, have fewer than 8 stretches of {length} days, by which the "
        "references are fitted; lower --days or assimilation.memory."
    )


def references(
    model: Model, fitted: Baselines, validation: Launches, test: Launches
) -> dict[str, dict[str, Normal]]:
    """Normal forecasts of the references on the test's starts, by method and state variable, standardized."""
    found: dict[str, dict[str, Normal]] = {"climatology": _climatology(model, fitted, test)}
    for name, closed in closed_forms(model, fitted).items():
        before, now = closed.moments(validation), closed.moments(test)
        if name == "latent_gaussian":
            found["persistence"] = {
                n: persistence(before[n][0], validation.values[n], now[n][0]) for n in now
            }
        found[name] = {
            n: (mean, std * _spread(*before[n], validation.values[n])) for n, (mean, std) in now.items()
        }
    return found


def _climatology(model: Model, fitted: Baselines, test: Launches) -> dict[str, Normal]:
    blank = {n: torch.zeros(test.rows.numel(), *model.layouts[n].shape) for n in model.states}
    moments = ClimatologicalNormal(model, fitted).moments(blank)
    return {n: tuple(x.reshape(test.values[n].shape) for x in pair) for n, pair in moments.items()}  # type: ignore[misc]


def _spread(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """Factor on the standard deviation by lead, (1 + days, 1, ...): error over prediction on validation days."""
    axes = [0, *range(2, truth.ndim)]
    scored = torch.isfinite(truth) & torch.isfinite(mean)
    error = torch.where(scored, (truth - mean).square(), 0.0).sum(axes)
    predicted = torch.where(scored, std.square(), 0.0).sum(axes)
    return (error / predicted).sqrt().reshape(-1, *[1] * (truth.ndim - 2))


def persistence(analysis: Tensor, truth: Tensor, now: Tensor) -> Normal:
    """Damped persistence, x_l = r_l a + e, with r_l and the deviation of e by lead, channel and latitude.

    Args:
        analysis: Analysis anomalies of validation starts (W, 1 + days, *S), of which lead 0 is used.
        truth: True anomalies, (W, 1 + days, *S).
        now: Analysis anomalies of the starts to forecast from, (V, 1 + days, *S).

    Returns:
        Mean and standard deviation, (V, 1 + days, *S).
    """
    start = analysis[:, :1].expand_as(truth)
    scored = torch.isfinite(truth) & torch.isfinite(start)
    a, x = torch.where(scored, start, 0.0), torch.where(scored, truth, 0.0)

    def total(value: Tensor) -> Tensor:
        return value.sum((0, -1), keepdim=True)[0]

    ratio = total(a * x) / total(a * a).clamp(min=1e-12)
    error = torch.where(scored, x - ratio * a, 0.0)
    std = (total(error.square()) / total(scored.float()).clamp(min=1)).sqrt()
    mean = ratio * now[:, :1]
    return mean, std.expand_as(mean[0]).expand_as(mean)


class ClosedFormForecast:
    """Forecasts of a closed-form Gaussian: the exact conditional distribution of the days behind the observations.

    Args:
        model: Trained model.
        closed: Gaussian of the present values of the states.
        present: Mask of these among all values.
        operators: Linear operators by modality.
        errors: Error covariances or variances by modality.
    """

    def __init__(
        self,
        model: Model,
        closed: ClosedFormTrajectory,
        present: Tensor,
        operators: Mapping[str, Tensor],
        errors: Mapping[str, Tensor],
    ) -> None:
        self.model, self.closed, self.present = model, closed, present
        self.operators, self.errors = operators, errors

    def moments(self, launches: Launches) -> dict[str, Normal]:
        """Mean and standard deviation by state variable, (W, 1 + days, *S), NaN where training had no data."""
        seen = self.model.seen(launches.seen, self.errors)
        pair = self.closed.trajectories(seen, self.operators, last=launches.rows.shape[1])
        found = {}
        for name, (own, rows) in split(self.model, self.present).items():
            shape, parts = self.model.layouts[name].shape, []
            for part in pair:
                full = torch.full((*part.shape[:-1], len(own)), torch.nan)
                full[..., own] = part[..., rows]
                parts.append(full.reshape(*part.shape[:-1], *shape))
            found[name] = (parts[0], parts[1])
        return found


def closed_forms(model: Model, fitted: Baselines) -> dict[str, ClosedFormForecast]:
    """The closed forms of the state's own patterns and of the latent prior, by name."""
    pixel = fitted.gaussian
    operators, errors = fitted.linear(model)
    method = LatentGaussian(model, fitted)
    latent = ClosedFormTrajectory(method.closed.prior, method.closed.decode, method.closed.rest)
    return {
        "gaussian": ClosedFormForecast(
            model,
            ClosedFormTrajectory(pixel.prior, pixel.decode, pixel.rest, pixel.inflation),
            fitted.present,
            operators,
            errors,
        ),
        "latent_gaussian": ClosedFormForecast(model, latent, method.present, method.operators, method.errors),
    }


def _score_normal(
    scores: Scores, model: Model, method: str, normal: Mapping[str, Normal], test: Launches
) -> None:
    for name, (mean, std) in normal.items():
        layout, scale = model.layouts[name], model.codec.statistics[name].std
        for w, day in enumerate(test.dates):
            centre = model.codec.physical(name, mean[w], test.phase[w])
            truth = torch.where(torch.isfinite(centre), test.truth[name][w], torch.nan)
            centre, width = torch.nan_to_num(centre), torch.nan_to_num(std[w] * scale, nan=1.0)
            lower, members = model.recipe.modalities[name].transformed.lower, None
            if lower is not None:  # in its unit a bounded variable is no normal
                rng = fork(model.recipe.seed, "members", method, name, str(day))
                count = max(2, model.recipe.assimilation.members)
                noise = normal_numbers((count, *centre.shape), like=centre, rng=rng)
                members = in_unit(model, name, (centre + width * noise).clamp(min=lower))
                truth = in_unit(model, name, truth)
            for lead in range(len(truth)):
                at = slice(lead, lead + 1)
                if members is None:
                    statistics = gaussian_window_statistics(
                        centre[at], width[at], truth[at], layout.weights()
                    )
                else:
                    statistics = window_statistics(members[:, at], truth[at], layout.weights())
                scores.add(
                    method, name, str(day), statistics, part=f"day {lead}", levels=layout.levels() or None
                )


def _score_draws(
    scores: Scores, model: Model, test: Launches, batch: slice, advance: Callable[[int], None]
) -> None:
    rng = fork(model.recipe.seed, "forecast", str(batch.start))
    for w, z in _drawn(model, test, batch, rng, advance):
        for name in model.states:
            layout, truth = model.layouts[name], test.truth[name][w]
            members, truth = (
                in_unit(model, name, x) for x in (decoded(model, z, name, test.phase[w], rng=rng), truth)
            )
            for lead in range(len(truth)):
                at = slice(lead, lead + 1)
                statistics = window_statistics(members[:, at], truth[at], layout.weights())
                day, levels = str(test.dates[w]), layout.levels() or None
                scores.add("forecast", name, day, statistics, part=f"day {lead}", levels=levels)


def _drawn(
    model: Model, test: Launches, batch: slice, rng: torch.Generator, advance: Callable[[int], None]
) -> Iterator[tuple[int, Tensor]]:
    """Number of each start of a batch and the draws of its leads, (N, 1 + days, *Z)."""
    wanted = range(len(test.rows))[batch]
    seen = [{n: x[w] for n, x in test.seen.items()} for w in wanted]
    days = test.rows.shape[1] - 1
    yield from zip(wanted, forecast_draws(model, seen, days, rng=rng, progress=advance), strict=True)
