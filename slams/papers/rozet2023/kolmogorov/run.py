"""`slams reproduce rozet2023_kolmogorov`: a score prior of the Kolmogorov flow under eleven kinds of sensors."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

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
from slams.diffusion.lattice import LatticeSystem
from slams.diffusion.solenoidal import FlowCovariance
from slams.diffusion.trajectory import MarkovBlanket
from slams.papers.flows.archive import trajectories
from slams.papers.flows.prior import (
    FlowNet,
    build,
    load_covariance,
    load_prior,
    moments_of,
    save_prior,
    train_prior,
)
from slams.papers.rozet2023.guidance import guidance_of
from slams.papers.rozet2023.kolmogorov.baselines import (
    FlowGaussian,
    gaussian_posterior,
    interpolated,
    persistent,
)
from slams.papers.rozet2023.kolmogorov.plan import FlowPlan, read_plan
from slams.papers.rozet2023.kolmogorov.problem import EVENT, FlowProblem, FlowProcess, scores, spectrum
from slams.papers.rozet2023.kolmogorov.report import judge_process, lines, show_results, write_pages
from slams.papers.rozet2023.kolmogorov.variational import FlowFourDVar
from slams.papers.rozet2023.outcome import SDAOutcome
from slams.papers.study import WEIGHTS, draw_pieces, weights_file
from slams.papers.table import Verdict, write_lines, write_rows

_SHAPE = (
    "order",
    "size",
    "hidden",
    "blocks",
    "patch",
    "embedding",
    "published",
    "lags",
)  # of a net's weights
_SHOWN = 3  # draws kept of the first truth, for figures
_TOGETHER = 4  # truths that 4D-Var fits at once

Draws = tuple[Tensor, Tensor | None]  # (R, N, L, 2, n, n), and a better mean than theirs


@dataclass(frozen=True)
class FlowPrior:
    """Prior of trajectories of the flow.

    Attributes:
        denoiser: Denoiser of trajectories.
        mean: Mean flow, (2, N, N).
        covariance: Function from a length to the covariance of trajectories.
        fingerprint: Digest of all attributes.
    """

    denoiser: Denoiser
    mean: Tensor
    covariance: Callable[[int], FlowCovariance]
    fingerprint: str
    systems: dict[str, LatticeSystem] = field(default_factory=dict)

    def system(self, process: FlowProcess) -> LatticeSystem:
        """Innovation system of lattice values, its matrices kept from truth to truth; one process at a time."""
        key = repr(process)
        if key not in self.systems:
            self.systems.clear()
            self.systems[key] = process.system(self.covariance(process.length))
        return self.systems[key]

    def gaussian(self, length: int) -> FlowGaussian:
        """The Gaussian of trajectories of a length."""
        return FlowGaussian(self.mean, self.covariance(length))


class _Method(NamedTuple):
    """A method: function of the problem, its inputs, number of truths at once, and network evaluations."""

    make: Callable[..., Draws]
    inputs: Mapping[str, Any]
    together: int = 1
    cost: float = 0.0


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Make trajectories, weights, runs, tables and figures; the same call resumes an interrupted run.

    Args:
        path: File of the plan.
        folder: Folder of the results.
        overrides: Overrides such as "size=reduced" or "members=16".
        console: Console for the progress.
        train: Whether to train anew, into the folder, instead of using shipped weights.

    Returns:
        A verdict for each bar; INFO where there are too few truths.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    data = config.DATA_DIR / f"flow_{plan.archive.count}_{plan.archive.seed}"
    names = dict.fromkeys(plan.parts(name)[0] for name in (plan.main, *plan.runs))
    priors = {name: _prior(plan, name, path.stem, data, folder, train, console) for name in names}
    truths = trajectories(data, plan.archive, plan.split, plan.replicates, console)
    other = "valid" if plan.split == "test" else "test"
    climate = trajectories(data, plan.archive, other, plan.climate, console)
    outcomes: dict[str, dict[str, SDAOutcome]] = {}
    verdicts: list[Verdict] = []
    stages = Stages(folder / "runs", console.say)
    for label in plan.labels:
        problem = FlowProblem.draw(plan.processes[label], truths, plan.seed, label)
        found = outcomes[label] = {}
        for name, method in _methods(plan, problem.process, priors, climate).items():
            found[name] = _kept(plan, label, name, problem, method, stages, console)
            rows = [row for of, made in outcomes.items() for row in lines(plan, of, made)]
            write_lines(folder / "results.csv", rows)
        verdicts += judge_process(plan, label, found)
        write_rows(folder / "rows.csv", verdicts)
    show_results(plan, outcomes, verdicts, console, folder)
    write_pages(folder, plan, outcomes, verdicts)
    return verdicts


def _prior(
    plan: FlowPlan, name: str, paper: str, data: Path, folder: Path, train: bool, console: Console
) -> FlowPrior:
    """A trained prior."""
    net, own = plan.nets[name], folder / "weights" / f"{name}.safetensors"

    def make() -> None:
        _train(plan, net, data, own, console)

    def same(meta: Mapping[str, Any], keys: Sequence[str] = ()) -> bool:
        wanted = plain(net)
        return all(meta["net"].get(key) == wanted[key] for key in keys or wanted)

    path, fingerprint = weights_file(own, WEIGHTS / paper / own.name, train, same, make)
    denoiser, meta = load_prior(path)
    if not same(meta, _SHAPE):
        raise InvalidValueError(
            f"{path} holds weights of another architecture than {name} has in the plan; train anew with --train, or "
            "take back the override."
        )
    assert isinstance(denoiser, MarkovBlanket)
    denoiser.chunk = plan.chunk
    made = lru_cache(2)(partial(load_covariance, path))  # 150 MB for the longest
    return FlowPrior(denoiser, _mean_flow(denoiser), made, fingerprint)


def _train(plan: FlowPlan, net: FlowNet, data: Path, own: Path, console: Console) -> None:
    start = time.process_time()
    simulated = {
        split: trajectories(data, plan.archive, split, console=console) for split in ("train", "valid")
    }
    if not net.hidden and not net.published:  # the Gaussian alone has nothing to train
        moments = moments_of(simulated["train"], net.lags)
        save_prior(own, net, build(net, moments), moments, archive=repr(plan.archive))
        return
    resume = own.with_name(f"{own.stem}_{digest(net, plan.archive)}.resume")
    denoiser, moments, history = train_prior(net, simulated, resume, name=own.stem, console=console)
    facts = {"archive": repr(plan.archive), "best": history.best, "best_step": history.best_step}
    save_prior(own, net, denoiser, moments, cpu_seconds=round(time.process_time() - start), **facts)
    resume.unlink(missing_ok=True)


def _mean_flow(denoiser: Denoiser) -> Tensor:
    """Mean of a denoiser's Gaussian, (2, N, N); 0 if it has none."""
    for module in denoiser.modules():
        mean = getattr(module, "mean", None)
        if isinstance(mean, Tensor) and mean.shape == EVENT:
            return mean
    return torch.zeros(EVENT)


def _methods(
    plan: FlowPlan, process: FlowProcess, priors: Mapping[str, FlowPrior], climate: Tensor
) -> dict[str, _Method]:
    """Methods by name; those with a network have the names of their runs."""
    size, length, prior = plan.members, process.length, priors[plan.parts(plan.main)[0]]

    def climatology(part: FlowProblem, rng: torch.Generator) -> Draws:
        return draw_pieces(climate, (len(part.truth), size), length, rng), prior.mean.expand(part.truth.shape)

    made: dict[str, Callable[..., Draws]] = {
        "climatology": climatology,
        "persistence": lambda part, rng: (persistent(part, prior.mean)[:, None], None),
        "interpolation": lambda part, rng: (interpolated(part, prior.mean)[:, None], None),
        "gaussian": lambda part, rng: gaussian_posterior(part, prior.gaussian(length), size, rng),
        "4D-Var": partial(_variational, plan, prior, climate),
    }
    # baselines take the mean flow and the covariance, which come from the data alone
    mean = hashlib.sha256(prior.mean.numpy().tobytes()).hexdigest()[:16]
    inputs = {"mean": mean, "climate": plan.climate}
    methods = {name: _Method(make, inputs) for name, make in made.items()}
    variational = {**inputs, "variational": plan.variational}
    methods["4D-Var"] = _Method(made["4D-Var"], variational, _TOGETHER)
    chosen = [name for name in plan.baselines if process.value is None or name == "gaussian"]
    found = {name: methods[name] for name in chosen if length <= climate.shape[1]}
    for name in plan.runs:
        net, sampler, guidance = plan.parts(name)
        cost = plan.evaluations(name, lattice=process.lattice)
        inputs = {"net": priors[net].fingerprint, "sampler": sampler, "guidance": guidance}
        found[name] = _Method(partial(_sda, plan, name, priors[net]), inputs, cost=cost)
    return found


def _sda(plan: FlowPlan, name: str, prior: FlowPrior, part: FlowProblem, rng: torch.Generator) -> Draws:
    _, sampler, settings = plan.parts(name)
    part = part.with_error(settings.pop("error", 1.0))
    system = prior.system(part.process) if part.process.lattice else None
    guide = guidance_of(settings, prior.covariance(part.process.length), system)
    method = SDA(prior.denoiser, sampler, event=EVENT, guidance=guide, rows=plan.rows)
    samples = method.assimilate(part.observations, plan.members, rng=rng).samples
    assert samples is not None
    return samples, None


def _variational(
    plan: FlowPlan, prior: FlowPrior, climate: Tensor, part: FlowProblem, rng: torch.Generator
) -> Draws:
    settings = dict(plan.variational)
    members = settings.pop("members", 0)
    start = gaussian_posterior(part, prior.gaussian(part.process.length), 1, rng)[1][:, 0]
    best, drawn = FlowFourDVar(climate, **settings).assimilate(part, start, members=members, rng=rng)
    return (best[:, None], None) if drawn is None else (drawn, best)


def _kept(
    plan: FlowPlan,
    label: str,
    name: str,
    problem: FlowProblem,
    method: _Method,
    stages: Stages,
    console: Console,
) -> SDAOutcome:
    """Outcomes truth by truth, each stored on disk, so that an interrupted run loses at most one.

    The outcome does not depend on how many truths there are, which come one after the other.
    """
    numbers = {key: getattr(plan, key) for key in ("seed", "archive", "split", "members")}
    stage = Stage(f"{label} {name}", {**numbers, "process": problem.process, **method.inputs})
    kept = stages.load(stage)
    outcome = SDAOutcome({}, {}, method.cost) if kept is None else SDAOutcome.of(kept)
    done, count = len(outcome.scores.get("misfit", ())), len(problem.truth)
    with console.bar(f"{label} {name}", count) as advance:
        advance(min(done, count), "")
        while done < count:
            part = problem.part(slice(done, done + method.together))
            start = time.process_time()
            samples, mean = method.make(part, rng=fork(plan.seed, label, name, done))
            outcome = _joined(outcome, part, samples, mean, time.process_time() - start)
            stages.save(stage, *outcome.kept())
            done = len(outcome.scores["misfit"])
            advance(len(part.truth), "")
    first = {key: value[:count] for key, value in outcome.scores.items()}
    return SDAOutcome(first, outcome.example, outcome.evaluations, outcome.seconds * count / done)


def _joined(
    kept: SDAOutcome, part: FlowProblem, samples: Tensor, mean: Tensor | None, seconds: float
) -> SDAOutcome:
    """An outcome with the scores of further truths; its example is of the first truth, except for the energy."""
    new = scores(part, samples, mean)
    energy = torch.stack([spectrum(samples), spectrum(part.truth)]) * len(part.truth)
    if kept.scores:
        new = {key: torch.cat([kept.scores[key], value]) for key, value in new.items()}
        example = {**kept.example, "energy": kept.example["energy"] + energy}
    else:
        first = samples[0]
        example = {
            "truth": part.truth[0],
            "mean": first.mean(0) if mean is None else mean[0],
            "std": first.std(0) if len(first) > 1 else torch.full_like(first[0], math.nan),
            "draws": first[:_SHOWN],
            "seen": part.seen.value[0],
            "energy": energy,
        }
    return SDAOutcome(new, example, kept.evaluations, kept.seconds + seconds)
