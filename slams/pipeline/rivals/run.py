"""Rivals on the test of a run: cycled chunk by chunk, and scored over the run's own windows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.console import Advance, Console
from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.core.stages import Result, Stage, Stages
from slams.data.planet.archive import preceding_days
from slams.evaluation import Scores
from slams.pipeline.baselines.members import Observed
from slams.pipeline.recipe_rivals import RIVALS
from slams.pipeline.results.scoring import BLOCK, Part, Test
from slams.pipeline.results.window_scores import Estimate
from slams.pipeline.rivals.cycle import cycle
from slams.pipeline.rivals.observed import QUANTITIES, history, instruments
from slams.pipeline.rivals.planet import DAILY, MODELS, PlanetDays, climatology, members_of_season
from slams.systems.flows.quasigeostrophic import MoistQG

CHUNK = 2 * BLOCK  # days of a long trajectory that are cycled and stored together


@dataclass(frozen=True)
class Cost:
    """Computing time of a model on a set: CPU seconds, days cycled, and those of them analysed for the test."""

    model: str
    label: str
    seconds: float
    cycled: int
    analysed: int


@dataclass(frozen=True)
class _Chunk:
    """Some days of a trajectory, from `first` on."""

    trajectory: int
    first: int
    last: int


class Rivals:
    """The rivals of one test; each model's filter and smoother come from one cycle.

    A chunk of days of one model and set is a stage: its scores, and the members at its end, from which the next chunk
    goes on and forecasts start.

    Args:
        test: Test of the run, with its windows and the fields of all days.
        stages: Stages of the rivals.
        system: The planet of the archive; `MoistQG()` if None.

    Raises:
        ValueError: If the state variable is not on the planet's grid.
    """

    def __init__(self, test: Test, stages: Stages, system: MoistQG | None = None) -> None:
        self.test, self.stages, self.recipe = test, stages, test.recipe
        self.system = system or MoistQG()
        self.settings = self.recipe.experiment.rival
        self.chunks = [
            _Chunk(i, first, min(first + CHUNK, len(rows)))
            for i, rows in enumerate(test.rows)
            for first in range(0, len(rows), CHUNK)
        ]
        coords, sphere = test.model.layouts[self.recipe.states[0]].coords, self.system.harmonics
        for name, axis in (("lat", sphere.latitude), ("lon", sphere.longitude)):
            if len(coords[name]) != len(axis) or not np.allclose(coords[name], axis.double(), atol=1e-3):
                raise InvalidValueError(
                    f"{self.recipe.states[0]} has {len(coords[name])} values of {name}, the planet's grid {len(axis)} "
                    "others; rivals need the archive that `slams train` simulates."
                )

    def run(self, models: Sequence[str], console: Console) -> None:
        """Cycle models on every set; what is stored is not computed again."""
        days = sum(len(rows) + self.settings.spinup for rows in self.test.rows)
        for model in models:
            for label in self.settings.sets or self.recipe.experiment.sets:
                with console.bar(f"LETKF, {model.replace('_', ' ')}, {label}", days) as advance:
                    self._run(model, label, advance, console)

    def finished(self) -> tuple[Scores, list[Cost]]:
        """Scores of all models and sets whose chunks are all stored, with their cost."""
        scores, costs = Scores(apart=BLOCK), list[Cost]()
        for model in MODELS:
            for label in self.recipe.experiment.sets:
                parts = [self.stages.load(self._stage(model, label, chunk)) for chunk in self.chunks]
                found = [part for part in parts if part is not None]
                if len(found) < len(parts):
                    continue
                for tensors, facts in found:
                    statistics = {k[7:]: v for k, v in tensors.items() if k.startswith("scores.")}
                    scores.unpack(statistics, facts["scores"])
                sums = [sum(facts[key] for _, facts in found) for key in ("seconds", "cycled", "analysed")]
                costs.append(Cost(model, label, *sums))
        return scores, costs

    def after(self, model: str, label: str) -> dict[str, Tensor]:
        """Members at the end of each stored chunk, from which `forecast` starts, by the date of its last day."""
        found = {}
        for chunk in self.chunks:
            part = self.stages.load(self._stage(model, label, chunk))
            if part is not None:
                found[str(self._dates(chunk)[-1])] = part[0]["after"]
        return found

    def days(self, model: str, names: Sequence[str]) -> PlanetDays:
        """A model's days, with the channels of these modalities."""
        modalities = {
            QUANTITIES[self.recipe.modalities[n].variable]: self.recipe.modalities[n] for n in names
        }
        return PlanetDays(
            MODELS[model](self.system),
            daily=[quantity for quantity in DAILY if quantity in modalities],
            logarithmic=[quantity for quantity, one in modalities.items() if one.transform == "log1p"],
            levels=self.test.model.layouts[self.recipe.states[0]].coords["level"],
            lag=self.settings.lag,
        )

    def _run(self, model: str, label: str, advance: Advance, console: Console) -> None:
        sets = self.recipe.experiment.sets
        part = Part(label, [], sets[label], main=label == list(sets)[-1])
        seen, after = self.test.observed_in(part), None
        for chunk in self.chunks:
            stage = self._stage(model, label, chunk)
            found = self.stages.load(stage)
            if found is None:
                start = after if chunk.first else None
                self.stages.save(stage, *self._chunk(model, part, seen, chunk, start, advance, console))
                found = self.stages.load(stage)
                assert found is not None
            else:
                advance(found[1]["cycled"], "")
            after = found[0]["after"]

    def _chunk(
        self,
        model: str,
        part: Part,
        seen: list[Observed],
        chunk: _Chunk,
        planet: Tensor | None,
        advance: Advance,
        console: Console,
    ) -> Result:
        """Cycle a chunk, from members at its beginning or, without, from climatological ones before it."""
        test, i, days = self.test, chunk.trajectory, self.days(model, part.names)
        ahead = min(chunk.last + self.settings.lag, len(test.rows[i]))
        own = {name: value[chunk.first : ahead] for name, value in seen[i].items()}
        dates = test.dates[test.slices[i]]
        wanted = self.settings.spinup if planet is None else 0
        before = history(
            test.model, test.fields, int(test.rows[i][chunk.first]), self._preceding, part.names, wanted
        )
        observed = instruments(test.model, before, own, dates[chunk.first : ahead])
        if planet is None:
            climate = self._climate(model, console)
            year = before.first.astype("datetime64[Y]")
            planet = members_of_season(
                climate, float((before.first - year).astype(int)), self.settings.members
            )
        spun = len(next(iter(before.values.values())))
        kept = slice(spun, spun + chunk.last - chunk.first)
        start = time.process_time()
        found = cycle(
            days, planet, observed, self.settings, keep=kept,
            rng=fork(self.recipe.seed, "rival", model, part.label, str(dates[chunk.first])),
            progress=lambda n: advance(n, str(dates[0])),
        )  # fmt: skip
        seconds = time.process_time() - start
        scores = self._scores(model, part, seen, chunk, {False: found.filtered, True: found.smoothed})
        tensors, index = scores.pack()
        facts: dict[str, Any] = {"scores": index, "seconds": seconds}
        facts |= {"cycled": spun + ahead - chunk.first, "analysed": chunk.last - chunk.first}
        return {f"scores.{k}": v for k, v in tensors.items()} | {"after": found.after}, facts

    def _scores(
        self, model: str, part: Part, seen: list[Observed], chunk: _Chunk, estimates: dict[bool, Tensor]
    ) -> Scores:
        """Scores of the filter and of the smoother on the days of a chunk."""
        scores, name = Scores(apart=BLOCK), self.recipe.states[0]
        for row, (own, smooths) in RIVALS.items():
            if own == model:
                members = estimates[smooths]
                estimate = Estimate(f"{row}{part.tail}", name, chunk.trajectory, members)
                self.test.add(scores, estimate, seen, slice(chunk.first, chunk.last))
        return scores

    def _climate(self, model: str, console: Console) -> Tensor:
        """Climatological states of a model, made once."""
        stage = Stage(f"climate_{model}", [str(MODELS[model](self.system)), self.recipe.seed])

        def make() -> Result:
            with console.bar(f"climate of the {model.replace('_', ' ')} model", 425) as advance:
                system = MODELS[model](self.system)
                states = climatology(system, seed=self.recipe.seed, progress=lambda n: advance(n, ""))
            return {"states": states}, {}

        return self.stages.keep(stage, make)[0]["states"]

    def _preceding(self, year: int, count: int) -> list[Tensor]:
        """The days before a year of the archive, simulated once (see `preceding_days`)."""
        years, names = list(self.recipe.planet.years), ("temperature", "rain", "radiation", "first")
        stage = Stage(f"before_{year}", [str(self.system), years, self.recipe.seed, count], 2)

        def make() -> Result:
            levels = self.test.model.layouts[self.recipe.states[0]].coords["level"]
            found = preceding_days(self.system, years, year, count, seed=self.recipe.seed, levels=levels)
            return dict(zip(names, found, strict=True)), {}

        tensors = self.stages.keep(stage, make)[0]
        return [tensors[name] for name in names]

    def _dates(self, chunk: _Chunk) -> np.ndarray:
        return self.test.dates[self.test.slices[chunk.trajectory]][chunk.first : chunk.last]

    def _stage(self, model: str, label: str, chunk: _Chunk) -> Stage:
        """The stage of a chunk: what its numbers depend on, which is nothing that was trained."""
        recipe, names = self.recipe, self.recipe.experiment.sets[label]
        rows = self.test.rows[chunk.trajectory]
        content = [
            f"{float(torch.nan_to_num(self.test.fields.values[n][rows]).double().sum()):.6g}" for n in names
        ]
        main = label == list(recipe.experiment.sets)[-1]
        dates = self.test.dates[self.test.slices[chunk.trajectory]]
        settings = replace(self.settings, sets=(), trials=0)
        inputs = [
            str(MODELS[model](self.system)), settings, list(names), recipe.experiment.share, recipe.seed, content,
            [str(dates[k]) for k in (0, chunk.first, -1)],
            [recipe.modalities[n].error_std for n in names], "" if main else label,
        ]  # fmt: skip
        return Stage(f"{model} {label} {dates[chunk.first]}", inputs)
