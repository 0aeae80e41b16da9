"""`slams reproduce rozet2023_kolmogorov`: a score prior of the Kolmogorov flow under eleven kinds of sensors."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slams import config
from slams.assimilation.score.sda import TrajectorySDA
from slams.core.console import Console
from slams.core.files import atomic
from slams.core.random import fork
from slams.core.stages import file_stem
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.lattice import LatticeSystem
from slams.diffusion.solenoidal import FlowCovariance
from slams.diffusion.trajectory import MarkovBlanket
from slams.papers.flows.archive import FlowArchive, archive, simulate
from slams.papers.flows.prior import (
    FlowNet,
    build,
    load_covariance,
    load_prior,
    moments_of,
    save_prior,
    train_prior,
)
from slams.papers.reproduce import Verdict, write_rows
from slams.papers.rozet2023.kolmogorov.baselines import (
    FlowGaussian,
    climatology,
    gaussian_posterior,
    interpolated,
    persistent,
)
from slams.papers.rozet2023.kolmogorov.plan import FlowPlan, evaluations, guide, read_plan
from slams.papers.rozet2023.kolmogorov.problem import EVENT, Problem, Process, scores, spectrum
from slams.papers.rozet2023.kolmogorov.report import judge, show, write_pages, write_table
from slams.papers.rozet2023.kolmogorov.variational import FlowFourDVar
from slams.papers.rozet2023.lorenz63.plan import parts_of

WEIGHTS = Path(__file__).parents[3] / "weights"
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
class Prior:
    """What is known before anything is seen.

    Attributes:
        denoiser: Of trajectories.
        mean: Flow, (2, N, N).
        covariance: Of trajectories of a length.
        fingerprint: Of all of it.
    """

    denoiser: Denoiser
    mean: Tensor
    covariance: Callable[[int], FlowCovariance]
    fingerprint: str
    systems: dict[str, LatticeSystem] = field(default_factory=dict)

    def system(self, process: Process) -> LatticeSystem:
        """What solves for values on a lattice, its matrices kept from truth to truth; one process at a time."""
        key = repr(process)
        if key not in self.systems:
            self.systems.clear()
            self.systems[key] = process.system(self.covariance(process.length))
        return self.systems[key]


@dataclass(frozen=True)
class Outcome:
    """Draws of one method, judged.

    Attributes:
        scores: One number a truth by name, (R).
        example: Of the first truth: "truth", "mean" and "std" (L, 2, N, N), "draws" (n, L, 2, N, N), and "energy" by
            wavenumber of draws and truth, (2, N / 2 + 1), over all truths.
        evaluations: Of the network for a draw, a backward pass counted as two; 0 without one.
        seconds: Of processor time, for all truths.
    """

    scores: Mapping[str, Tensor]
    example: Mapping[str, Tensor]
    evaluations: float = 0.0
    seconds: float = 0.0


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Trajectories, weights, runs, tables and figures; the same call goes on where it stopped.

    Args:
        path: The plan.
        folder: Of the results.
        overrides: Such as "grid=reduced" or "samples=16".
        console: Where progress is shown.
        train: Whether to train anew, into the folder, instead of using shipped weights.

    Returns:
        A verdict for each bar; without judgement where there are too few truths.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    data = config.DATA_DIR / f"flow_{plan.archive.count}_{plan.archive.seed}"
    names = dict.fromkeys(parts_of(plan, name)[0] for name in (plan.main, *plan.work.runs))
    priors = {name: _prior(plan, name, path.stem, data, folder, train, console) for name in names}
    truths = trajectories(data, plan.archive, plan.split, plan.work.truths, console)
    other = "valid" if plan.split == "test" else "test"
    climate = trajectories(data, plan.archive, other, plan.climate, console)
    outcomes: dict[str, dict[str, Outcome]] = {}
    verdicts: list[Verdict] = []
    for label in plan.work.processes:
        problem = Problem.draw(plan.processes[label], truths, plan.seed, label)
        found = outcomes[label] = {}
        for name, make, together, cost in _methods(plan, label, problem, priors, climate):
            found[name] = _kept(plan, label, name, problem, folder, make, together, cost, priors, console)
            write_table(folder / "results.csv", plan, outcomes)
        verdicts += judge(plan, label, found)
        write_rows(folder / "rows.csv", verdicts)
    show(plan, outcomes, verdicts, console, folder)
    write_pages(folder, plan, outcomes, verdicts)
    return verdicts


def trajectories(folder: Path, settings: FlowArchive, split: str, count: int, console: Console) -> Tensor:
    """The first trajectories of a part, (count, T, 2, N, N); only these are simulated where there is no archive.

    Raises:
        ValueError: If the part has fewer.
    """
    rows = settings.rows(split)
    if count > len(rows):
        raise ValueError(
            f"{split} has {len(rows)} trajectories, {count} were asked for; make a larger archive (archive.count=...)."
        )
    whole, pieces_read = folder / f"{split}.safetensors", []
    if _belongs(whole, settings):
        with safe_open(whole, "pt") as file:
            return file.get_slice("x")[:count]
    pieces = [rows[i : i + settings.batch] for i in range(0, count, settings.batch)]
    with console.bar(f"simulate the flow, {split}", len(pieces)) as advance:
        for piece in pieces:
            path = folder / f"{split}_{piece.start:05d}.safetensors"
            if not _belongs(path, settings):
                with atomic(path) as temporary:
                    save_file({"x": simulate(settings, piece)}, temporary, {"archive": repr(settings)})
            with safe_open(path, "pt") as file:
                pieces_read.append(file.get_tensor("x"))
            advance(1, "")
    return torch.cat(pieces_read)[:count]


def _belongs(path: Path, settings: FlowArchive) -> bool:
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("archive") == repr(settings)


def _prior(
    plan: FlowPlan, name: str, paper: str, data: Path, folder: Path, train: bool, console: Console
) -> Prior:
    """Trained weights: of the folder, else shipped, else made here."""
    net, own = plan.nets[name], folder / "weights" / f"{name}.safetensors"
    path = own if train or own.exists() else WEIGHTS / paper / f"{name}.safetensors"
    if not path.exists() or (train and not _same(load_prior(path)[1], net, trained=True)):
        _train(plan, name, net, data, own, folder, console)
        path = own
    denoiser, meta = load_prior(path)
    if not _same(meta, net):
        raise ValueError(
            f"{path} holds weights of another architecture than {name} has in the plan; train anew with --train, or "
            "take back the override."
        )
    assert isinstance(denoiser, MarkovBlanket)
    denoiser.chunk = plan.chunk
    made = lru_cache(2)(partial(load_covariance, path))  # 150 MB for the longest
    return Prior(denoiser, _mean_flow(denoiser), made, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def _train(
    plan: FlowPlan, name: str, net: FlowNet, data: Path, own: Path, folder: Path, console: Console
) -> None:
    start, simulated = time.process_time(), archive(data, plan.archive, console)
    if not net.hidden and not net.published:  # the Gaussian alone has nothing to train
        moments = moments_of(simulated["train"], net.lags)
        save_prior(own, net, build(net, moments), moments, archive=repr(plan.archive))
        return
    recipe = json.dumps([dataclasses.asdict(net), dataclasses.asdict(plan.archive)])
    resume = folder / "weights" / f"{name}_{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.resume"
    denoiser, moments, history = train_prior(net, simulated, resume, name=name, console=console)
    facts = {"archive": repr(plan.archive), "best": history.best, "best_step": history.best_step}
    save_prior(own, net, denoiser, moments, cpu_seconds=round(time.process_time() - start), **facts)
    resume.unlink(missing_ok=True)


def _same(meta: Mapping[str, Any], net: FlowNet, *, trained: bool = False) -> bool:
    """Whether weights are those of a net, and with `trained`, trained as it says."""
    wanted = json.loads(json.dumps(dataclasses.asdict(net)))
    return all(meta["net"].get(key) == wanted[key] for key in (wanted if trained else _SHAPE))


def _mean_flow(denoiser: Denoiser) -> Tensor:
    """The mean that a denoiser was built around, (2, N, N); 0 of one that has none."""
    for module in denoiser.modules():
        mean = getattr(module, "mean", None)
        if isinstance(mean, Tensor) and mean.shape == EVENT:
            return mean
    return torch.zeros(EVENT)


def _methods(
    plan: FlowPlan, label: str, problem: Problem, priors: Mapping[str, Prior], climate: Tensor
) -> list[tuple[str, Callable[..., Draws], int, float]]:
    """Name, how draws are made of part of the truths, how many at once, and network evaluations of a draw."""
    process, size = problem.process, plan.work.samples
    prior = priors[parts_of(plan, plan.main)[0]]
    event = process.value is not None
    made: dict[str, Callable[..., Draws]] = {
        "climatology": lambda part, rng: (
            climatology(part, climate, size, rng),
            prior.mean.expand(part.truth.shape),
        ),
        "persistence": lambda part, rng: (persistent(part, prior.mean)[:, None], None),
        "interpolation": lambda part, rng: (interpolated(part, prior.mean)[:, None], None),
        "gaussian": lambda part, rng: gaussian_posterior(
            part, FlowGaussian(prior.mean, prior.covariance(process.length)), size, rng
        ),
        "4D-Var": partial(_variational, plan, prior, climate),
    }
    chosen = [name for name in plan.work.baselines if not event or name == "gaussian"]
    if process.length > climate.shape[1]:
        chosen = []
    methods = [(name, made[name], _TOGETHER if name == "4D-Var" else 1, 0.0) for name in chosen]
    for name in plan.work.runs:
        draw = partial(_sda, plan, name, priors[parts_of(plan, name)[0]])
        methods.append((name, draw, 1, evaluations(plan, label, name)))
    return methods


def _sda(
    plan: FlowPlan, name: str, prior: Prior, part: Problem, rng: torch.Generator,
    advance: Callable[[int], None] | None = None,
) -> Draws:  # fmt: skip
    _, sampler, guidance = parts_of(plan, name)
    settings = dict(plan.guidances[guidance])
    part = part.told(settings.pop("error", 1.0))
    covariance = prior.covariance(part.process.length)
    system = prior.system(part.process) if part.process.lattice else None
    method = TrajectorySDA(
        prior.denoiser,
        plan.samplers[sampler],
        event=EVENT,
        guidance=guide(settings, covariance, system),
        rows=plan.rows,
    )
    samples = method.assimilate(part.observations, plan.work.samples, rng=rng, progress=advance).samples
    assert samples is not None
    return samples, None


def _variational(plan: FlowPlan, prior: Prior, climate: Tensor, part: Problem, rng: torch.Generator) -> Draws:
    settings = dict(plan.variational)
    members = settings.pop("members", 0)
    gaussian = FlowGaussian(prior.mean, prior.covariance(part.process.length))
    start = gaussian_posterior(part, gaussian, 1, rng)[1][:, 0]
    best, drawn = FlowFourDVar(climate, **settings).assimilate(part, start, members=members, rng=rng)
    return (best[:, None], None) if drawn is None else (drawn, best)


def _kept(
    plan: FlowPlan, label: str, name: str, problem: Problem, folder: Path, make: Callable[..., Draws],
    together: int, cost: float, priors: Mapping[str, Prior], console: Console,
) -> Outcome:  # fmt: skip
    """Truth after truth, each kept on disk, so that a killed run loses one."""
    digest = json.dumps(_settings(plan, label, name, priors), sort_keys=True)
    stem = file_stem(f"{label} {name}")
    path = folder / "runs" / f"{stem}.safetensors"
    kept, seconds = _read(path, digest)
    done, count = len(kept.get("scores.misfit", ())), len(problem.truth)
    with console.bar(f"{label} {name}", count) as advance:
        advance(min(done, count), "")
        while done < count:
            part = problem.part(slice(done, done + together))
            start = time.process_time()
            samples, mean = make(part, rng=fork(plan.seed, label, name, done))
            seconds += time.process_time() - start
            kept = _joined(kept, part, samples, mean)
            done = len(kept["scores.misfit"])
            with atomic(path) as temporary:
                save_file(kept, temporary, {"settings": digest, "seconds": str(seconds)})
            advance(len(part.truth), "")
    found = {key[7:]: value[:count] for key, value in kept.items() if key.startswith("scores.")}
    example = {key: value for key, value in kept.items() if not key.startswith("scores.")}
    return Outcome(found, example, cost, seconds * count / done)


def _joined(
    kept: Mapping[str, Tensor], part: Problem, samples: Tensor, mean: Tensor | None
) -> dict[str, Tensor]:
    """What is kept, with the scores of some more truths."""
    new = {f"scores.{key}": value for key, value in scores(part, samples, mean).items()}
    energy = torch.stack([spectrum(samples), spectrum(part.truth)]) * len(part.truth)
    if not kept:
        first = samples[0]
        spare = torch.full_like(first[0], math.nan)
        return {
            **new,
            "truth": part.truth[0].contiguous(),
            "mean": (first.mean(0) if mean is None else mean[0]).contiguous(),
            "std": first.std(0) if len(first) > 1 else spare,
            "draws": first[:_SHOWN].contiguous(),
            "seen": part.seen.value[0].contiguous(),
            "energy": energy,
        }
    joined = {key: torch.cat([kept[key], value]) for key, value in new.items()}
    return {**kept, **joined, "energy": kept["energy"] + energy}


def _settings(plan: FlowPlan, label: str, name: str, priors: Mapping[str, Prior]) -> dict[str, Any]:
    """What an outcome depends on; not how many truths there are, which come one after the other."""
    found: dict[str, Any] = {
        "seed": plan.seed,
        "archive": dataclasses.asdict(plan.archive),
        "split": plan.split,
        "process": dataclasses.asdict(plan.processes[label]),
        "samples": plan.work.samples,
    }
    if "/" in name:
        net, sampler, guidance = parts_of(plan, name)
        found |= {
            "net": priors[net].fingerprint,
            "sampler": dataclasses.asdict(plan.samplers[sampler]),
            "guidance": plan.guidances[guidance],
        }
    else:
        # baselines take the mean flow and the covariance, which come from the data alone
        mean = priors[parts_of(plan, plan.main)[0]].mean.numpy().tobytes()
        found |= {"mean": hashlib.sha256(mean).hexdigest()[:16], "climate": plan.climate}
        found |= {"variational": dict(plan.variational)} if name == "4D-Var" else {}
    return found


def _read(path: Path, digest: str) -> tuple[dict[str, Tensor], float]:
    if path.exists():
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("settings") == digest:
                return {key: file.get_tensor(key) for key in file.keys()}, float(meta["seconds"])  # noqa: SIM118
    return {}, 0.0
