"""`slams reproduce rozet2023_l63`: score priors of noisy Lorenz-63 against particle smoothers."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams import config
from slams.assimilation.score.sda import SDA
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.core.settings import plain
from slams.core.stages import Stage, Stages, digest
from slams.diffusion.denoiser import Denoiser
from slams.evaluation.figures.style import save_figure
from slams.evaluation.intervals import median_interval
from slams.evaluation.tables import console_table
from slams.papers.rozet2023.guidance import guidance_of
from slams.papers.rozet2023.lorenz63.archive import trajectories
from slams.papers.rozet2023.lorenz63.figures import quality_figure, trajectory_figure
from slams.papers.rozet2023.lorenz63.plan import Lorenz63Plan, read_plan
from slams.papers.rozet2023.lorenz63.problem import (
    Lorenz63Problem,
    climatology,
    ensemble_smoothed,
    interpolated,
    scores,
    smoothed,
    variational,
)
from slams.papers.rozet2023.outcome import SDAOutcome
from slams.papers.rozet2023.prior import load_net, moments, save_net, train_net
from slams.papers.study import WEIGHTS, weights_file
from slams.papers.table import LOST, Bar, Verdict, info, judge_truths, lost_by, show, write_lines, write_rows

SMOOTHER = "particle smoother"

Found = Mapping[str, SDAOutcome]
# draws (R, N, L, 3), evaluations a draw, more numbers a truth
Drawn = tuple[Tensor, float, dict[str, Tensor]]
Make = Callable[[], Drawn]


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Make data, weights, references, runs, tables and figures; the same call resumes an interrupted run.

    Args:
        path: File of the plan.
        folder: Folder of the results.
        overrides: Overrides such as "replicates=64" or "size=full".
        console: Console for the progress.
        train: Whether to train anew, into the folder, instead of using shipped weights.

    Returns:
        A verdict for each bar on these runs.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    archive = plan.archive
    data = trajectories(config.DATA_DIR / f"lorenz63_{archive.count}_{archive.seed}", archive, console)
    used = {plan.parts(name)[0] for name in plan.chosen}
    nets = {
        name: _net(plan, name, data, path.stem, folder, train, console) for name in plan.nets if name in used
    }
    outcomes: dict[str, dict[str, SDAOutcome]] = {}
    verdicts: list[Verdict] = []
    for label, process in plan.processes.items():
        problem = Lorenz63Problem.draw(process, data["test"], plan.replicates, plan.seed, label)
        case = _Case(plan, label, problem, data["train"], Stages(folder / "runs", console.say), console)
        found = outcomes[label] = case.rivals()
        for name in plan.chosen:
            found[name] = case.guided(name, *nets[plan.parts(name)[0]])
            write_lines(
                folder / "results.csv", [line for of, f in outcomes.items() for line in _lines(of, f)]
            )
        verdicts += judge_process(plan, label, found)
        write_rows(folder / "rows.csv", verdicts)
        draws = {name: outcome.example["draws"] for name, outcome in found.items()}
        save_figure(trajectory_figure(problem, draws), folder / f"draws_{label}.png")
    save_figure(quality_figure(outcomes, SMOOTHER, title=plan.title), folder / "quality.png")
    for label, found in outcomes.items():
        console.rich.print(console_table(_lines(label, found), title=f"{label}: medians over truths"))
    show(console, verdicts, folder)
    return verdicts


def judge_process(plan: Lorenz63Plan, label: str, found: Found) -> list[Verdict]:
    """Verdicts on the bars of one process, on medians over truths; differences and ratios are paired by truth.

    A truth is lost where more than a tenth of a method's draws left the attractor.

    Rows of the status INFO: the fraction of draws that left the attractor, and the number of distinct first states in the
    smoother's draws.
    """
    bars = [bar for bar in plan.bars if bar.case == label and {bar.row, bar.against or bar.row} <= set(found)]
    verdicts = []
    for bar in bars:
        row = f"{label} {bar.row}" + (f" against {bar.against}" if bar.against else "")
        runs = [found[run].scores for run in (bar.row, bar.against) if run]
        blown = [{"divergence_rate": (own["blown"] > LOST).double()} for own in runs if "blown" in own]
        measured = _measure(bar, found)
        bar = dataclasses.replace(bar, row=row)
        verdicts.append(judge_truths(bar, measured, lost_by(*blown), median=True))
    for run in dict.fromkeys(bar.row for bar in plan.bars if bar.case == label and bar.row in found):
        share = float(found[run].scores["blown"].mean()) if "blown" in found[run].scores else math.nan
        verdicts.append(info(f"{label} {run}", "blown", share))
    ancestors = found[SMOOTHER].scores.get("ancestors")
    if ancestors is not None:
        verdicts.append(info(f"{label} {SMOOTHER}", "ancestors", *median_interval(ancestors.tolist())))
    return verdicts


def _measure(bar: Bar, found: Found) -> Tensor:
    own, floor = found[bar.row].scores, found[SMOOTHER].scores
    if bar.against:
        other = found[bar.against].scores
        if bar.metric == "saved":
            saved = found[bar.against].evaluations / found[bar.row].evaluations
            return torch.full_like(own["w1"], saved)
        if bar.metric == "log_prior_gap":
            ours, theirs = own["log_prior"] - floor["log_prior"], other["log_prior"] - floor["log_prior"]
            return ours.abs() - theirs.abs()
        return own["w1"] / other["w1"]
    if bar.metric == "w1_ratio":
        return own["w1"] / floor["w1"]
    if bar.metric == "absolute_log_prior":
        return own["log_prior"]
    return own[bar.metric] - floor[bar.metric]


def _net(
    plan: Lorenz63Plan,
    name: str,
    data: dict[str, Tensor],
    paper: str,
    folder: Path,
    train: bool,
    console: Console,
) -> tuple[Denoiser, str]:
    """A trained denoiser and the fingerprint of its weights."""
    net, own = plan.nets[name], folder / "weights" / f"{name}.safetensors"

    def make() -> None:
        start = time.process_time()
        resume = own.with_name(f"{name}_{digest(net, plan.archive)}.resume")
        denoiser, history = train_net(net, data, resume, name=name, console=console)
        facts = {"archive": repr(plan.archive), "best": history.best, "best_step": history.best_step}
        save_net(own, net, denoiser, cpu_seconds=round(time.process_time() - start), **facts)
        resume.unlink(missing_ok=True)

    def same(meta: Mapping[str, Any]) -> bool:
        return bool(meta["net"] == plain(net))

    path, fingerprint = weights_file(own, WEIGHTS / paper / own.name, train, same, make)
    denoiser, meta = load_net(path)
    if not same(meta):
        raise InvalidValueError(
            f"{path} was trained with other settings than those of {name} in the plan; train anew with --train, or "
            "take back the override."
        )
    return denoiser, fingerprint


@dataclasses.dataclass(frozen=True)
class _Case:
    """One process: its problem and its stored results."""

    plan: Lorenz63Plan
    label: str
    problem: Lorenz63Problem
    train: Tensor
    stages: Stages
    console: Console

    def guided(self, name: str, denoiser: Denoiser, fingerprint: str) -> SDAOutcome:
        """Draws of a network."""
        plan = self.plan
        _, sampler, settings = plan.parts(name)

        def make() -> Drawn:
            _, covariance = moments(self.train, self.problem.process.length)
            guide = guidance_of(settings, covariance.float())
            method = SDA(denoiser, sampler, event=(3,), guidance=guide, rows=plan.rows)
            batches = -(-plan.replicates * plan.members // plan.rows)
            with self.console.bar(f"{self.label} {name}", batches * sampler.steps) as advance:
                posterior = method.assimilate(
                    self.problem.observations,
                    plan.members,
                    rng=fork(plan.seed, self.label, name),
                    progress=lambda n: advance(n, ""),
                )
            assert posterior.samples is not None
            return posterior.samples, plan.evaluations(name), {}

        return self._kept(name, {"net": fingerprint, "sampler": sampler, "guidance": settings}, make)

    def rivals(self) -> dict[str, SDAOutcome]:
        """Methods without a network; the second particle smoother is the floor."""
        problem, size = self.problem, self.plan.members
        climate, rng = self.train[:, ::64].reshape(-1, 3), partial(fork, self.plan.seed, self.label)
        drawn: dict[str, Callable[[], Tensor]] = {
            "EnKS": lambda: ensemble_smoothed(problem, size, climate, rng("EnKS")),
            "4D-Var": lambda: variational(problem, size, climate, rng("4D-Var")),
            "climatology": lambda: climatology(problem, size, self.train, rng("climatology")),
            "interpolation": lambda: interpolated(problem, size, self.train),
        }
        made: dict[str, Make] = {
            SMOOTHER: lambda: self._smoothed("second", True),
            "ancestral lines": lambda: self._smoothed("lines", False),
            **{name: partial(_netless, draw) for name, draw in drawn.items()},
        }
        return {name: self._kept(name, {}, make) for name, make in made.items()}

    def reference(self) -> Tensor:
        """Draws of the first particle smoother, (R, N, L, 3), computed once."""
        stage = Stage(f"{self.label} reference", self.plan.inputs(self.label))
        kept, _ = self.stages.keep(stage, lambda: ({"draws": self._smoothed("first", True)[0]}, {}))
        return kept["draws"]

    def _smoothed(self, which: str, backward: bool) -> Drawn:
        plan, label = self.plan, f"{self.label} {which}"
        with self.console.bar(f"{label} particle smoother", plan.replicates) as advance:
            draws, extra = smoothed(
                self.problem, plan.members, particles=plan.particles, backward=backward, label=label,
                seed=plan.seed, progress=lambda n: advance(n, ""),
            )  # fmt: skip
            first = extra["ancestors"]
            advance(0, f"{int(first.min())} to {int(first.max())} distinct first states in {plan.members}")
        return draws.float(), 0.0, extra

    def _kept(self, name: str, inputs: Mapping[str, Any], make: Make) -> SDAOutcome:
        """An outcome from disk if its inputs are the same, else computed and stored."""

        def outcome() -> SDAOutcome:
            start = time.monotonic()
            samples, cost, extra = make()
            seconds = time.monotonic() - start
            found = scores(self.problem, samples, self.reference()) | extra
            return SDAOutcome(found, {"draws": samples[0]}, cost, seconds)

        stage = Stage(f"{self.label} {name}", {**self.plan.inputs(self.label), **inputs})
        return SDAOutcome.of(self.stages.keep(stage, lambda: outcome().kept()))


def _netless(draw: Callable[[], Tensor]) -> Drawn:
    return draw().float(), 0.0, {}


def _lines(label: str, found: Found) -> list[dict[str, Any]]:
    """Medians of every method, as lines of results.csv."""
    floor = found[SMOOTHER].scores["w1"]
    lines = []
    for name, outcome in found.items():
        s = {**outcome.scores, "w1_ratio": outcome.scores["w1"] / floor}
        names = ("w1", "w1_ratio", "log_prior", "log_likelihood", "rmse")
        line = {"process": label, "method": name}
        line |= {key: f"{float(s[key].nanquantile(0.5)):.4g}" for key in names}
        line["blown"] = f"{float(s['blown'].mean()):.3g}"
        line["ancestors"] = f"{float(s['ancestors'].quantile(0.5)):.0f}" if "ancestors" in s else ""
        line |= {"evaluations": f"{outcome.evaluations:g}", "seconds": f"{outcome.seconds:.0f}"}
        lines.append(line)
    return lines
