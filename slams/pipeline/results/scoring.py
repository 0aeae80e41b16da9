"""The test of a run: methods on every set of observations, scored over the same windows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from slams.core.console import Advance, Console
from slams.core.random import fork, normal
from slams.core.stages import Stage, Stages
from slams.evaluation import Scores
from slams.observation.interpolation import nearest_turn
from slams.observation.operators import Interpolate
from slams.pipeline.baselines.censored_gaussian import CensoredGaussian
from slams.pipeline.baselines.days_of_season import days_of_the_season
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.baselines.members import BASELINES, Baseline, Observed
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.periods import cut
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import WINDOWS, clipped, decoded, posterior
from slams.pipeline.results.joint import joint_scores, partners
from slams.pipeline.results.learning_days import LearningDays
from slams.pipeline.results.outcome import Outcome
from slams.pipeline.results.window_scores import Estimate, in_unit, score

BLOCK = 15  # days that count as one window of the intervals: errors of the weather last for days to a week


@dataclass(frozen=True)
class Part:
    """One set of observations and the methods run on it.

    Attributes:
        label: Label of the set.
        methods: Functions from the test, this part and the observations of each trajectory to estimates.
        names: Names of the observed modalities.
        main: Whether this is the set of the analysis file.
        shuffled: Whether the dates of observation-role modalities are shuffled.
        withhold: Withheld stations by modality.
    """

    label: str
    methods: Sequence[Callable[["Test", "Part", list[Observed]], Iterator[Estimate]]]
    names: tuple[str, ...] = ()
    main: bool = False
    shuffled: bool = False
    withhold: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def tail(self) -> str:
        """Suffix of a method's name; empty for the main set."""
        return "" if self.main else f":{self.label}"

    @property
    def rounds(self) -> int:
        """How often the sampler goes through all windows; once for the references."""
        return max(1, sum(method in (_analysis, _no_network, _withheld) for method in self.methods))


def test(
    model: Model,
    baselines: Baselines,
    fields: Fields,
    console: Console,
    stages: Stages | None = None,
    stage: Stage | None = None,
) -> Outcome:
    """Run every set of observations through every method.

    Args:
        model: Trained model.
        baselines: Fitted baselines; tuned interpolators are added.
        fields: Fields of all days.
        console: Console for the progress.
        stages: Stages that store finished parts; nothing is stored if None.
        stage: Stage of the test, whose key covers all inputs of the parts.

    Returns:
        The outcome; the method names are "analysis", "gaussian" and so on for the main (last) set, with ":SET"
        behind for the others.
    """
    runner = Test(model, baselines, fields)
    parts, whole = _parts(model), runner.blank()
    with console.bar(
        "assimilating test windows", sum(part.rounds for part in parts) * runner.units
    ) as advance:
        runner.advance = advance
        for number, part in enumerate(parts):
            own = Stage(f"resume_test_{number}", stage and stage.key)
            found = stages.load(own) if stages else None
            if found is None:
                found = runner.run(part).pack()
                if stages:
                    stages.save(own, *found)
            else:
                advance(part.rounds * runner.units, "")
            whole.unpack(*found)
            baselines.interpolators.update(whole.interpolators)
    return whole


def _parts(model: Model) -> list[Part]:
    """The references, every set, and the main set once more with dates shuffled and with stations withheld."""
    e = model.recipe.experiment
    main = list(e.sets)[-1]
    methods = [
        _analysis,
        _no_network,
        *(_scored(baseline) for baseline in BASELINES if baseline.observes),
        _censored,
    ]
    parts = [Part("references", [_references])]
    parts += [Part(label, methods, names, main=label == main) for label, names in e.sets.items()]
    if e.shuffled:
        paired = [_scored(baseline) for baseline in BASELINES if baseline.observes and not baseline.pairs]
        parts.append(Part("shuffled dates", [_analysis, *paired], e.sets[main], shuffled=True))
    if e.withhold:
        parts.append(Part("stations withheld", [_withheld], e.sets[main], withhold=e.withhold))
    return parts


def _ignore(units: int = 1, message: str = "") -> None:
    """Progress callback without effect."""


class Test(LearningDays):
    """Shared inputs of the methods of one test.

    Args:
        model: Trained model.
        baselines: Fitted baselines.
        fields: Fields of all days.

    Attributes:
        rows: Rows of the fields' days of each trajectory.
        composed: Whether trajectories are composed of windows.
        slices: Slice of each trajectory in the days of all.
        values: Anomalies on the days of all trajectories, by modality.
        truth: Analysed variables on those days, physical.
        units: Number of sampler steps of one round through all windows.
        advance: Progress callback.
    """

    def __init__(self, model: Model, baselines: Baselines, fields: Fields) -> None:
        super().__init__(model, fields)
        self.baselines = baselines
        e = self.recipe.experiment
        cuts = cut(fields, self.recipe.data.test, self.recipe.prior.window, e.windows, e.spacing)
        self.rows, self.days, self.composed = cuts.index, cuts.days, cuts.compose_windows
        self.dates = fields.dates[self.days]
        rounds = len(self.rows) if self.composed else -(-len(self.rows) // WINDOWS)
        self.units = self.recipe.assimilation.steps * rounds
        self.advance: Advance = _ignore
        self.values = anomalies(model.codec, fields, self.days.numpy())
        ends = torch.tensor([0, *map(len, self.rows)]).cumsum(0).tolist()
        self.slices = [slice(first, last) for first, last in zip(ends[:-1], ends[1:], strict=True)]
        # as read: by way of anomalies a dry day may end a rounding error below zero
        self._rivals: dict[str, CensoredGaussian] = {}
        self.truth = {n: model.codec.masked(n, fields.values[n][self.days]) for n in self.recipe.analysed}

    def rival(self, name: str) -> CensoredGaussian:
        """The censored Gaussian of an amount, fitted once."""
        if name not in self._rivals:
            self._rivals[name] = CensoredGaussian(self.model, self.fields, name)
        return self._rivals[name]

    def blank(self) -> Outcome:
        """An empty outcome."""
        return Outcome(Scores(apart=BLOCK), self.dates, self.truth)

    def run(self, part: Part) -> Outcome:
        """Outcome of the methods of one part."""
        outcome, members = self.blank(), dict[str, list[Tensor]]()
        seen = self.observed_in(part) if part.names else []
        if part.main:
            outcome.observed = self._observed(seen)
        for method in part.methods:
            if method is _no_network and self.model.idle:
                own, other = (f"{name}{part.tail}" for name in ("analysis", "no_network"))
                outcome.scores.repeat(own, other, self.recipe.analysed)
                self.advance(self.units, part.label)
                continue
            for estimate in method(self, part, seen):
                if estimate.kept:
                    members.setdefault(estimate.variable, []).append(estimate.value)  # type: ignore[arg-type]
                name = estimate.variable
                verifies = name in self.truth and (name in self.model.states or name not in part.names)
                if estimate.masks is not None or verifies:
                    self.add(outcome.scores, estimate, seen)
        outcome.members = {name: torch.cat(each, 1) for name, each in members.items()}
        fits = self.baselines.interpolators.items()
        outcome.interpolators = {where: fitted for where, fitted in fits if where[0] == part.label}
        return outcome

    def phase(self, trajectory: int) -> Tensor:
        """Phase of the year on the days of a trajectory."""
        return phase_of(self.dates[self.slices[trajectory]])

    def observed_in(self, part: Part) -> list[Observed]:
        """Observed anomalies of each trajectory (T, *S) by name, NaN where unobserved."""
        rows = [torch.arange(s.start, s.stop) for s in self.slices]
        days = torch.cat(rows) if self.composed else torch.stack(rows)
        std = {n: s.std for n, s in self.model.codec.statistics.items()}
        whole = observe(
            self.model.layouts, self.recipe, self.values, part.names,
            days=days, std=std, shuffled=part.shuffled, withhold=part.withhold,
        )  # fmt: skip
        flat = {n: v if self.composed else v.flatten(0, 1) for n, v in whole.items()}
        return [{n: v[s] for n, v in flat.items()} for s in self.slices]

    def _observed(self, seen: Sequence[Observed]) -> dict[str, Tensor]:
        """Physical observed values; without modalities that were observed through an operator."""
        phase, found = phase_of(self.dates), {}
        for name in seen[0]:
            value = torch.cat([s[name] for s in seen])
            if name in self.model.operators:
                value = torch.full_like(value, torch.nan)
            found[name] = self.model.codec.physical(name, value, phase)
        return found

    def add(
        self,
        scores: Scores,
        estimate: Estimate,
        seen: Sequence[Observed],
        days: slice = slice(None),
    ) -> None:
        """Add the scores of an estimate.

        Args:
            scores: Scores to extend.
            estimate: Estimate of some days of a trajectory.
            seen: Observations as of `observed_in`.
            days: Those days of the trajectory; whole blocks.
        """
        name, i, value = estimate.variable, estimate.trajectory, estimate.value
        layout, masks = self.model.layouts[name], estimate.masks
        truth = self.truth[name] if name in self.truth else self.fields.values[name][self.days]
        truth = truth[self.slices[i]]
        if masks is None:
            whole = not seen or name not in seen[i] or name in self.model.operators
            observed = None if whole else torch.isfinite(seen[i][name])
            masks = {} if observed is None else {"observed": observed, "withheld": ~observed}
        if isinstance(value, tuple):
            centre = self.model.codec.physical(name, value[0], self.phase(i))
            width = value[1] * self.model.codec.statistics[name].std
            truth = torch.where(torch.isfinite(centre), truth, torch.nan)
            value = torch.nan_to_num(centre), torch.nan_to_num(width, nan=1.0)
        lower, truth = self.recipe.modalities[name].transformed.lower, truth[days]
        if lower is not None:  # amounts are scored in their unit, where a normal is one only above its bound
            if isinstance(value, tuple):
                rng = fork(self.recipe.seed, "members", estimate.method, name, i)
                noise = normal((self.recipe.assimilation.members, *value[0].shape), like=value[0], rng=rng)
                value = (value[0] + value[1] * noise).clamp(min=lower)
            value, truth = in_unit(self.model, name, value), in_unit(self.model, name, truth)
        masks = {part: mask[days] if mask.ndim == truth.ndim else mask for part, mask in masks.items()}
        blocks, amount = self._blocks(i, days), lower is not None
        score(scores, estimate.method, name, layout, value, truth, blocks, masks, amount=amount)
        if estimate.beside and isinstance(value, Tensor):
            others = {n: (x, self.fields.values[n][self.rows[i]]) for n, x in estimate.beside.items()}
            joint = joint_scores(self.model, name, (value, truth), others, self.phase(i), blocks)
            for block, where, statistics in joint:
                scores.add(estimate.method, name, block, statistics, part=where)

    def _blocks(self, i: int, part: slice) -> list[tuple[str, slice]]:
        """Windows of the intervals: the trajectory itself, or blocks of a continuous analysis."""
        days = self.dates[self.slices[i]][part]
        step = BLOCK if self.composed else len(days)
        return [(str(days[at]), slice(at, min(at + step, len(days)))) for at in range(0, len(days), step)]


def _references(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
    """References without observations: climatology, the autoencoder's reconstruction and the unconditional prior."""
    model = test.model
    rng = fork(test.recipe.seed, "prior")
    drawn = model.sda().prior(test.recipe.assimilation.members, rng=rng)
    middle = drawn[:, drawn.shape[1] // 2, None]
    alone = [baseline(model, test.baselines) for baseline in BASELINES if not baseline.observes]
    for i, days in enumerate(test.slices):
        phase, given = test.phase(i), {m: test.values[m][days] for m in model.codec.autoencoder.names}
        z = model.codec.encode(given)
        moments = {baseline.name: baseline.moments(given) for baseline in alone}
        for name in model.states:
            for method, found in moments.items():
                yield Estimate(method, name, i, found[name])
            again = decoded(model, z[None], name, phase, rng=rng, residual=False)
            yield Estimate("reconstruction", name, i, again)
            if i % max(1, len(test.slices) // 16) == 0:
                each = [decoded(model, middle, name, phase[k : k + 1], rng=rng) for k in range(len(phase))]
                yield Estimate("prior", name, i, torch.cat(each, 1))
        for name in test.recipe.analysed[len(model.states) :]:
            yield Estimate("climatology", name, i, days_of_the_season(model, test.fields, name, phase))
    test.advance(test.units, "")


def _analysis(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
    """Draws of the posterior; those of the main set are stored, also at the observation points."""
    return _drawn(test, part, seen, test.model, "analysis")


def _no_network(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
    """The analysis without the prior's network, from the same noise."""
    drawn = _drawn(test, part, seen, test.model.without_network(), "no_network")
    return (replace(each, kept=False) for each in drawn if each.variable in test.recipe.analysed)


def _drawn(test: Test, part: Part, seen: list[Observed], model: Model, method: str) -> Iterator[Estimate]:
    """Draws of a model's posterior; equal noise for every model."""
    rng = fork(test.recipe.seed, "analysis", part.label)
    draws = posterior(model, seen, test.composed, rng=rng, progress=lambda n: test.advance(n, part.label))
    analysed = test.recipe.analysed
    observed = [name for name in part.names if part.main and name not in analysed]
    for i, z in enumerate(draws):
        found: dict[str, Tensor] = {}
        for name in (*analysed, *observed):
            found[name] = decoded(model, z, name, test.phase(i), rng=rng, seen=seen[i])
            beside = {}
            if name in model.prior.amounts and name not in part.names:
                own = fork(test.recipe.seed, "beside", name, i)
                beside = partners(model, name, z, test.phase(i), seen[i], found, rng=own)
            yield Estimate(f"{method}{part.tail}", name, i, found[name], kept=part.main, beside=beside)
        for name in (
            model.prior.amounts if method == "analysis" else ()
        ):  # the same latents without the decoder
            off = clipped(model, z, name, test.phase(i), rng=fork(test.recipe.seed, "clipped", name, i))
            yield Estimate(f"clipped{part.tail}", name, i, off)


def _censored(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
    """The Gaussian rival of the stochastic decoders, where a set does not observe the amount."""
    for name in test.recipe.amounts.variables:
        if name in part.names:
            continue
        method = test.rival(name)
        setting = method.tuned(part.names)
        for i, (own, rows) in enumerate(zip(seen, test.rows, strict=True)):
            rng = fork(test.recipe.seed, "censored", part.label, i)
            members = method.along(own, rows, setting, rng=rng)
            yield Estimate(f"censored_gaussian{part.tail}", name, i, members)


def _scored(baseline: type[Baseline]) -> Callable[[Test, Part, list[Observed]], Iterator[Estimate]]:
    """A baseline as a method of the test."""

    def method(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
        tuned = baseline.tuned(test.model, test.baselines, test, part.label, part.names)
        for i, moments in enumerate(tuned.each(seen, test.composed) if tuned else ()):
            for name, pair in moments.items():
                yield Estimate(f"{baseline.name}{part.tail}", name, i, pair)

    return method


def _withheld(test: Test, part: Part, seen: list[Observed]) -> Iterator[Estimate]:
    """Scores at the withheld stations, beside fields interpolated to them."""
    model, rng = test.model, fork(test.recipe.seed, "withheld")
    draws = posterior(model, seen, test.composed, rng=rng, progress=lambda n: test.advance(n, part.label))
    for name, stations in part.withhold.items():
        mask = torch.zeros(model.layouts[name].shape, dtype=torch.bool)
        mask[..., list(stations)] = True
        for i, z in enumerate(draws):
            members = decoded(model, z, name, test.phase(i), rng=rng)
            yield Estimate("analysis", name, i, members, {"withheld": mask, "observed": ~mask})
        for direct in test.recipe.data.direct.values():
            for grid in direct:
                if name in direct and model.layouts[grid].is_grid:
                    yield from _at_stations(test, name, grid, {"withheld": mask})


def _at_stations(test: Test, station: str, grid: str, masks: Mapping[str, Tensor]) -> Iterator[Estimate]:
    """A gridded modality of the same quantity interpolated to the stations, without its mean bias."""
    layout = test.model.layouts[grid]
    lat, lon = torch.tensor(layout.coords["lat"]), torch.tensor(layout.coords["lon"])
    points = test.model.layouts[station].points()
    points[:, 1] = nearest_turn(points[:, 1], lon)
    # a station just outside a coarse grid takes the value at its edge
    inside = [
        p.clamp(float(axis.min()), float(axis.max())) for p, axis in zip(points.T, (lat, lon), strict=True)
    ]
    at = Interpolate(lat, lon, torch.stack(inside, 1))
    train = torch.from_numpy(test.fields.part(test.recipe.data.train))
    value, truth = test.fields.values[grid], test.fields.values[station]
    bias = torch.nanmean(at(value[train]) - truth[train], 0)
    estimate = at(value[test.days]) - bias
    for i, days in enumerate(test.slices):
        yield Estimate(f"interpolated {grid}", station, i, estimate[None, days], masks)
