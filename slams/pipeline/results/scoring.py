"""Scores of a test: every method on every set of observations, over the same windows."""

from collections.abc import Mapping
from functools import cached_property, partial

import torch
from torch import Tensor

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.console import Advance, Console
from slams.core.random import fork
from slams.evaluation import Scores, gaussian_window_statistics, window_statistics
from slams.observation.operators import Interpolate
from slams.pipeline.baselines import fit as analyse
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.inputs.periods import Trajectories, cut
from slams.pipeline.model.model import Anomalies, Model, anomalies
from slams.pipeline.results.outcome import Finished, Interpolators, Outcome

_BLOCK = 15  # days of a continuous analysis that count as one window of the intervals


def test(
    model: Model, baselines: Baselines, fields: Fields, console: Console, finished: Finished | None = None
) -> Outcome:
    """Run every set of observations through every method.

    Args:
        model: Trained.
        baselines: Fitted.
        fields: All days.
        console: Where progress is shown.
        finished: Where each finished set is kept and found again; nothing is kept if None.

    Returns:
        The outcome; the method names are "analysis", "gaussian" and so on for the main (last) set, with ":SET"
        behind for the others.
    """
    recipe = model.recipe
    e = recipe.experiment
    pieces = cut(fields, recipe.data.test, recipe.prior.window, e.windows, e.spacing)
    runner = _Runner(
        model, baselines, fields, pieces, Outcome(Scores(seed=recipe.seed), fields.dates[pieces.days])
    )
    main = list(e.sets)[-1]
    parts = [runner.references]
    parts += [partial(runner.one, label, names, main=label == main) for label, names in e.sets.items()]
    if e.shuffled:
        parts.append(partial(runner.one, "shuffled dates", e.sets[main], shuffled=True))
    if e.withhold:
        parts.append(partial(runner.withheld, e.sets[main]))
    units = recipe.assimilation.steps * runner.rounds
    with console.bar("assimilating test windows", len(parts) * units) as advance:
        for number, part in enumerate(parts):
            known = finished and finished.load(number, runner.outcome.scores)
            if known:
                runner.take(*known)
                advance(units, "")
                continue
            whole, runner.outcome = runner.outcome, runner.blank()
            runner.advance = advance
            part()
            found, runner.outcome = runner.outcome, whole
            tuned = {place: baselines.interpolators[place] for place in runner.tuned}
            if finished:
                finished.save(number, found.scores, found.tensors(), tuned)
            runner.outcome.scores.unpack(*found.scores.pack())
            runner.take(found.tensors(), tuned)
    return runner.outcome


def _ignore(units: int = 1, message: str = "") -> None:
    """Progress that nobody watches."""


class _Runner:
    """State shared by the methods of one test."""

    def __init__(
        self, model: Model, baselines: Baselines, fields: Fields, pieces: Trajectories, outcome: Outcome
    ) -> None:
        self.model, self.baselines, self.fields, self.pieces, self.outcome = (
            model,
            baselines,
            fields,
            pieces,
            outcome,
        )
        self.recipe = model.recipe
        self.rounds = len(pieces.index) if pieces.blanket else -(-len(pieces.index) // 8)
        self.unplaced = set(operators_of(model.recipe, model.places))
        self.advance: Advance = _ignore
        self.states = analyse.state_names(model)
        self.fitted: dict[tuple[str, tuple[str, ...]], AnomalyInterp] = {}
        self.tuned: list[tuple[str, str]] = []
        self.std = {n: s.std for n, s in model.codec.statistics.items()}
        self.test = anomalies(model.codec, fields, pieces.days.numpy())
        held = fields.part(self.recipe.data.validation)
        self.held: Anomalies = anomalies(model.codec, fields, held)
        used = {m for group in self.recipe.data.direct.values() for m in group} | set(self.states)
        train = fields.part(self.recipe.data.train)
        given = anomalies(model.codec, fields, train[:: max(1, len(train) // 700)])
        self.networks = {m: analyse.network_of(model, m, given[m]) for m in used}
        self.climate = {n: torch.stack([network.std for network in self.networks[n]]) for n in self.states}
        sizes = [len(rows) for rows in pieces.index]
        self.slices = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
        for name in self.states:  # as read: by way of anomalies a dry day may end a rounding error below zero
            truth = fields.values[name][pieces.days]
            outcome.truth[name] = torch.where(model.codec.statistics[name].present, truth, torch.nan)

    def blank(self) -> Outcome:
        """The outcome of a part before it begins."""
        self.tuned = []
        return Outcome(Scores(seed=self.recipe.seed), self.outcome.dates, self.outcome.truth)

    def take(self, tensors: Mapping[str, Mapping[str, Tensor]], interpolators: Interpolators) -> None:
        """Join what a part found to the outcome."""
        self.outcome.members.update(tensors.get("members", {}))
        self.outcome.observed.update(tensors.get("observed", {}))
        self.baselines.interpolators.update(interpolators)
        for (_, name), fitted in interpolators.items():
            self.fitted[name, tuple(fitted.ratios)] = fitted

    @cached_property
    def given(self) -> Anomalies:
        """Training anomalies, which only the retrained regression needs."""
        return anomalies(self.model.codec, self.fields, self.fields.part(self.recipe.data.train))

    def references(self) -> None:
        """Climatology, the unconditional prior and the autoencoder's own reconstruction."""
        model = self.model
        rng = fork(self.recipe.seed, "prior")
        count = max(64, self.recipe.assimilation.members)
        drawn = model.sda().prior(count, rng=rng)
        for i, rows in enumerate(self.pieces.index):
            phase = phase_of(self.fields.dates[rows.numpy()])
            z = model.codec.encode({m: self.test[m][self.slices[i]] for m in model.codec.autoencoder.names})
            middle = drawn[:, drawn.shape[1] // 2, None]
            for name in self.states:
                shape = model.places[name].shape
                zero = torch.zeros(len(rows), *shape)
                self._gaussian(
                    "climatology", name, i, zero, self.climate[name].reshape(shape).expand_as(zero)
                )
                again = analyse.decoded(model, z[None], name, phase, rng=rng, residual=False)
                self._ensemble("reconstruction", name, i, again)
                if i % max(1, len(self.pieces.index) // 16) == 0:
                    prior = torch.cat(
                        [
                            analyse.decoded(model, middle, name, phase[k : k + 1], rng=rng)
                            for k in range(len(rows))
                        ],
                        1,
                    )
                    self._ensemble("prior", name, i, prior)
        self.advance(self.recipe.assimilation.steps * self.rounds, "")

    def one(self, label: str, names: tuple[str, ...], *, main: bool = False, shuffled: bool = False) -> None:
        """One set of observations through ours and the closed forms."""
        model, recipe = self.model, self.recipe
        tail = "" if main else f":{label}"
        seen = self._seen(names, shuffled)
        rng = fork(recipe.seed, "analysis", label)
        draws = analyse.posterior(
            model, seen, self.pieces.blanket, rng=rng, progress=lambda n: self.advance(n, label)
        )
        if main:
            self._keep_observed(seen)
        for i, z in enumerate(draws):
            phase = phase_of(self.fields.dates[self.pieces.index[i].numpy()])
            for name in self.states:
                members = analyse.decoded(model, z, name, phase, rng=rng)
                self._ensemble(f"analysis{tail}", name, i, members, seen[i])
                if main:
                    self._keep(name, members)
            if main:
                for name in names:
                    if name not in self.states:
                        self._keep(name, analyse.decoded(model, z, name, phase, rng=rng))
        for i, closed in enumerate(self._closed_form(seen)):
            for name, (mean, std) in closed.items():
                self._gaussian(f"gaussian{tail}", name, i, mean, std, seen[i])
        if not shuffled:
            self._interpolate(label, names, tail, seen)
            if self.recipe.latent.kind == "vector":
                self._regress(names, tail, seen)

    def _regress(self, names: tuple[str, ...], tail: str, seen: list[dict[str, Tensor]]) -> None:
        """The regression retrained for this set alone: what giving up one model for all sets would buy."""
        fitted = analyse.retrained_ridge(self.model, self.given, self.held, names)
        for i, each in enumerate(seen):
            y = analyse.regressors(self.model, each, names)
            for name, (operator, std) in fitted.items():
                present = self.model.codec.statistics[name].present
                mean = (y @ operator.mT).reshape(-1, *present.shape)
                width = std.reshape(present.shape).expand_as(mean)
                self._gaussian(f"ridge{tail}", name, i, torch.where(present, mean, torch.nan), width, each)

    def _closed_form(self, seen: list[dict[str, Tensor]]) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """The closed-form Gaussian of every trajectory; windows go together, which share one factorization."""
        if self.pieces.blanket:
            return [analyse.gaussian_posterior(self.model, self.baselines, each, True) for each in seen]
        stacked = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
        joint = analyse.gaussian_posterior(self.model, self.baselines, stacked, False)
        return [{n: (mean[i], std[i]) for n, (mean, std) in joint.items()} for i in range(len(seen))]

    def _keep(self, name: str, members: Tensor) -> None:
        kept = self.outcome.members.get(name)
        self.outcome.members[name] = members if kept is None else torch.cat([kept, members], 1)

    def withheld(self, names: tuple[str, ...]) -> None:
        """The main set once more without the stations kept back, scored at them beside interpolated fields."""
        model, recipe = self.model, self.recipe
        keep = recipe.experiment.withhold
        seen = self._seen(names, False, withhold=keep)
        rng = fork(recipe.seed, "withheld")
        draws = analyse.posterior(
            model, seen, self.pieces.blanket, rng=rng, progress=lambda n: self.advance(n, "stations withheld")
        )
        for name, stations in keep.items():
            part = torch.zeros(model.places[name].shape, dtype=torch.bool)
            part[..., list(stations)] = True
            for i, z in enumerate(draws):
                phase = phase_of(self.fields.dates[self.pieces.index[i].numpy()])
                members = analyse.decoded(model, z, name, phase, rng=rng)
                self._ensemble("analysis", name, i, members, None, {"withheld": part, "observed": ~part})
            self._nearest(name, part)

    def _nearest(self, station: str, part: Tensor) -> None:
        """Gridded modalities of the same quantity interpolated to the stations, without their mean bias."""
        for direct in self.recipe.data.direct.values():
            for grid in direct:
                if station in direct and self.model.places[grid].is_grid:
                    self._interpolated(station, grid, part)

    def _interpolated(self, station: str, grid: str, part: Tensor) -> None:
        place = self.model.places[grid]
        lat, lon = torch.tensor(place.coords["lat"]), torch.tensor(place.coords["lon"])
        points = self.model.places[station].points()
        # a station just outside a coarse grid takes the value at its edge
        inside = [
            p.clamp(float(axis.min()), float(axis.max()))
            for p, axis in zip(points.T, (lat, lon), strict=True)
        ]
        at = Interpolate(lat, lon, torch.stack(inside, 1))
        train = torch.from_numpy(self.fields.part(self.recipe.data.train))
        value, truth = self.fields.values[grid], self.fields.values[station]
        bias = torch.nanmean(at(value[train]) - truth[train], 0)
        days = self.pieces.days
        estimate = at(value[days]) - bias
        for i, piece in enumerate(self.slices):
            self._add(
                f"interpolated {grid}",
                station,
                i,
                estimate[None, piece],
                truth[days][piece],
                {"withheld": part},
            )

    def _seen(
        self, names: tuple[str, ...], shuffled: bool, withhold: Mapping[str, tuple[int, ...]] | None = None
    ) -> list[dict[str, Tensor]]:
        rows = [torch.arange(s.start, s.stop) for s in self.slices]
        days = torch.cat(rows) if self.pieces.blanket else torch.stack(rows)
        whole = observe(
            self.model.places,
            self.recipe,
            self.test,
            names,
            days=days,
            std=self.std,
            shuffled=shuffled,
            withhold=withhold,
        )
        flat = {n: v if self.pieces.blanket else v.flatten(0, 1) for n, v in whole.items()}
        return [{n: v[s] for n, v in flat.items()} for s in self.slices]

    def _keep_observed(self, seen: list[dict[str, Tensor]]) -> None:
        phase = phase_of(self.outcome.dates)
        for name in seen[0]:
            value = torch.cat([s[name] for s in seen])
            if name in self.unplaced:  # not a single cell was seen as it is
                value = torch.full_like(value, torch.nan)
            self.outcome.observed[name] = self.model.codec.physical(name, value, phase)

    def _interpolate(
        self, label: str, names: tuple[str, ...], tail: str, seen: list[dict[str, Tensor]]
    ) -> None:
        """Optimal interpolation of what is measured directly; tuned on validation days."""
        for name in self.states:
            direct = tuple(
                m for m in self.recipe.data.direct.get(name, ()) if m in names and m not in self.unplaced
            )
            if not direct:
                continue
            fitted = self._interpolator(name, direct)
            self.baselines.interpolators[label, name] = fitted
            self.tuned.append((label, name))
            for i, each in enumerate(seen):
                some = {m: each[m] for m in direct}
                mean, std = analyse.interpolation(self.model, self.networks, fitted, name, some)
                self._gaussian(f"interpolation{tail}", name, i, mean, std, each)

    def _interpolator(self, name: str, direct: tuple[str, ...]) -> AnomalyInterp:
        """Fitted once for all sets that measure a variable by the same modalities."""
        if (name, direct) not in self.fitted:
            days = torch.arange(0, len(self.held[name]), max(1, len(self.held[name]) // 60))
            tuned = observe(self.model.places, self.recipe, self.held, direct, days=days, std=self.std)
            truth = self.held[name][days]
            self.fitted[name, direct] = analyse.fit_interpolation(
                self.model, self.networks, name, tuned, truth
            )
        return self.fitted[name, direct]

    def _parts(self, name: str, seen: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if seen is None or name not in seen or name in self.unplaced:
            return {}
        observed = torch.isfinite(seen[name])
        return {"observed": observed, "withheld": ~observed}

    def _ensemble(
        self,
        method: str,
        name: str,
        i: int,
        members: Tensor,
        seen: Mapping[str, Tensor] | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> None:
        if name in self.outcome.truth:
            truth = self.outcome.truth[name][self.slices[i]]
        else:
            truth = self.fields.values[name][self.pieces.days][self.slices[i]]
        self._add(method, name, i, members, truth, parts or self._parts(name, seen))

    def _add(
        self, method: str, name: str, i: int, members: Tensor, truth: Tensor, parts: Mapping[str, Tensor]
    ) -> None:
        place = self.model.places[name]
        weights = place.weights()
        for block, days in self._blocks(i):
            for part, mask in {"all": None, **parts}.items():
                if mask is not None and mask.shape[0] == truth.shape[0] and mask.ndim == truth.ndim:
                    mask = mask[days]
                statistics = window_statistics(members[:, days], truth[days], weights, mask)
                self.outcome.scores.add(
                    method, name, block, statistics, part=part, levels=place.levels() or None
                )

    def _gaussian(
        self,
        method: str,
        name: str,
        i: int,
        mean: Tensor,
        std: Tensor,
        seen: Mapping[str, Tensor] | None = None,
    ) -> None:
        model, place = self.model, self.model.places[name]
        phase = phase_of(self.fields.dates[self.pieces.index[i].numpy()])
        centre = model.codec.physical(name, mean, phase)
        width = std * model.codec.statistics[name].std
        truth = self.outcome.truth[name][self.slices[i]]
        truth = torch.where(torch.isfinite(centre), truth, torch.nan)
        centre, width = torch.nan_to_num(centre), torch.nan_to_num(width, nan=1.0)
        for block, days in self._blocks(i):
            for part, mask in {"all": None, **self._parts(name, seen)}.items():
                statistics = gaussian_window_statistics(
                    centre[days],
                    width[days],
                    truth[days],
                    place.weights(),
                    mask if mask is None else mask[days],
                )
                self.outcome.scores.add(
                    method, name, block, statistics, part=part, levels=place.levels() or None
                )

    def _blocks(self, i: int) -> list[tuple[str, slice]]:
        """Windows of the intervals: the trajectory itself, or blocks of a continuous analysis."""
        days = self.outcome.dates[self.slices[i]]
        step = _BLOCK if self.pieces.blanket else len(days)
        return [(str(days[at]), slice(at, min(at + step, len(days)))) for at in range(0, len(days), step)]
