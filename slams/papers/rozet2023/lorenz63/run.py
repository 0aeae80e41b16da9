"""`slams reproduce rozet2023_l63`: score priors of the noisy Lorenz-63 chain against particle smoothers."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from slams.evaluation.evaluate import median_interval
from slams.evaluation.tables import console_table
from slams.papers.reproduce import Verdict, write_rows
from slams.papers.rozet2023.lorenz63.archive import trajectories
from slams.papers.rozet2023.lorenz63.figures import quality_figure, trajectory_figure
from slams.papers.rozet2023.lorenz63.plan import Bar, Plan, Tree, cost_of, guidance_of, parts_of, read_plan
from slams.papers.rozet2023.lorenz63.problem import (
    Problem,
    climatology,
    ensemble_smoothed,
    interpolated,
    scores,
    smoothed,
    variational,
)
from slams.papers.rozet2023.prior import load_net, moments, save_net, train_net

WEIGHTS = Path(__file__).parents[3] / "weights"
SMOOTHER = "particle smoother"

# draws (R, N, L, 3), evaluations a draw, more numbers a truth
Drawn = tuple[Tensor, float, dict[str, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """Draws of one method, judged.

    Attributes:
        scores: One number a truth by name, (R); for smoothers also the distinct "ancestors" of their first states.
        example: Draws for the first truth, (N, L, 3).
        evaluations: Of the network for a draw, a backward pass counted as two; 0 without one.
        seconds: For all.
    """

    scores: Mapping[str, Tensor]
    example: Tensor
    evaluations: float = 0.0
    seconds: float = 0.0


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Data, weights, references, runs, tables and figures; the same call goes on where it stopped.

    Args:
        path: The plan.
        folder: Of the results.
        overrides: Such as "observations=64" or "grid=full".
        console: Where progress is shown.
        train: Whether to train anew, into the folder, instead of using shipped weights.

    Returns:
        A verdict for each bar whose run was made.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    data = trajectories(config.DATA_DIR / f"chain_{plan.archive.count}_{plan.archive.seed}", plan.archive)
    nets = {name: _net(plan, name, data, path.stem, folder, train, console) for name in _used(plan)}
    outcomes: dict[str, dict[str, Outcome]] = {}
    verdicts: list[Verdict] = []
    for label, process in plan.processes.items():
        problem = Problem.draw(process, data["test"], plan.observations, plan.seed, label)
        found = outcomes[label] = _rivals(plan, label, problem, data["train"], folder, console)
        reference = _reference(plan, label, problem, folder, console)
        for name in plan.chosen:
            found[name] = _run(plan, label, name, problem, reference, nets, data["train"], folder, console)
            _write_table(folder / "results.csv", outcomes)
        verdicts += judge(plan, label, found)
        write_rows(folder / "rows.csv", verdicts)
        with atomic(folder / f"draws_{label}.png") as temporary:
            trajectory_figure(problem, {n: o.example for n, o in found.items()}).savefig(temporary, dpi=120)
    with atomic(folder / "quality.png") as temporary:
        quality_figure(outcomes, SMOOTHER, title=plan.title).savefig(temporary, dpi=120)
    _show(outcomes, verdicts, console, folder)
    return verdicts


def judge(plan: Plan, label: str, found: Mapping[str, Outcome]) -> list[Verdict]:
    """The bars of one process, on medians over truths; differences and ratios are those of each truth.

    Rows of the status INFO say which share of draws left the attractor, and how many distinct first states the smoother's
    draws have.
    """
    verdicts = []
    for bar in plan.bars:
        if bar.process != label or bar.run not in found or (bar.against and bar.against not in found):
            continue
        value, lower, upper = median_interval(_measure(bar, found).tolist())
        status = "PASS" if bar.low <= value <= bar.high else "FAIL"
        row = f"{label} {bar.run}" + (f" against {bar.against}" if bar.against else "")
        verdicts.append(
            Verdict(row, bar.metric, bar.published, bar.low, bar.high, value, lower, upper, status)
        )
    nothing = (math.nan,) * 3
    for run in dict.fromkeys(bar.run for bar in plan.bars if bar.process == label and bar.run in found):
        share = float(found[run].scores["blown"].mean()) if "blown" in found[run].scores else math.nan
        verdicts.append(Verdict(f"{label} {run}", "blown", *nothing, share, math.nan, math.nan, "INFO"))
    ancestors = found[SMOOTHER].scores.get("ancestors")
    if ancestors is not None:
        value, lower, upper = median_interval(ancestors.tolist())
        verdicts.append(Verdict(f"{label} {SMOOTHER}", "ancestors", *nothing, value, lower, upper, "INFO"))
    return verdicts


def _measure(bar: Bar, found: Mapping[str, Outcome]) -> Tensor:
    own, floor = found[bar.run].scores, found[SMOOTHER].scores
    if bar.against:
        other = found[bar.against].scores
        if bar.metric == "saved":
            saved = found[bar.against].evaluations / found[bar.run].evaluations
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


def _used(plan: Plan) -> list[str]:
    return [name for name in plan.nets if any(parts_of(plan, run)[0] == name for run in plan.chosen)]


def _net(
    plan: Plan, name: str, data: dict[str, Tensor], paper: str, folder: Path, train: bool, console: Console
) -> Denoiser:
    """Trained weights: of the folder, else shipped, else made here."""
    net, own = plan.nets[name], folder / "weights" / f"{name}.safetensors"
    path = own if train or own.exists() else WEIGHTS / paper / f"{name}.safetensors"
    if path.exists():
        denoiser, meta = load_net(path)
        if meta["net"] == json.loads(json.dumps(dataclasses.asdict(net))):
            return denoiser
        if not train:
            raise ValueError(
                f"{path} was trained with other settings than those of {name} in the plan; train anew with --train, or "
                "take back the override."
            )
    start = time.process_time()
    recipe = json.dumps([dataclasses.asdict(net), dataclasses.asdict(plan.archive)])
    resume = folder / "weights" / f"{name}_{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.resume"
    denoiser, history = train_net(net, data, resume, name=name, console=console)
    facts = {"archive": repr(plan.archive), "best": history.best, "best_step": history.best_step}
    save_net(own, net, denoiser, cpu_seconds=round(time.process_time() - start), **facts)
    resume.unlink(missing_ok=True)
    return denoiser.eval()


def _fingerprint(denoiser: Denoiser) -> str:
    """Of its weights, so that draws of other weights are not taken for those of these."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _run(
    plan: Plan, label: str, name: str, problem: Problem, reference: Tensor, nets: Mapping[str, Denoiser],
    train: Tensor, folder: Path, console: Console,
) -> Outcome:  # fmt: skip
    """Draws of a net, or what is on disk of them."""
    net, sampler, guidance = parts_of(plan, name)
    settings = {
        "net": _fingerprint(nets[net]),
        "sampler": dataclasses.asdict(plan.samplers[sampler]),
        "guidance": plan.guidances[guidance],
    }

    def make() -> Drawn:
        _, covariance = moments(train, problem.process.length)
        drawn = plan.samplers[sampler]
        guide = guidance_of(plan.guidances[guidance], covariance.float())
        method = TrajectorySDA(nets[net], drawn, event=(3,), guidance=guide, rows=plan.rows)
        batches = -(-plan.observations * plan.samples // plan.rows)
        with console.bar(f"{label} {name}", batches * drawn.steps) as advance:
            posterior = method.assimilate(
                problem.observations,
                plan.samples,
                rng=fork(plan.seed, label, name),
                progress=lambda n: advance(n, ""),
            )
        assert posterior.samples is not None
        return posterior.samples, drawn.evaluations * cost_of(plan.guidances[guidance]), {}

    return _kept(plan, label, name, problem, reference, folder, settings, make)


def _rivals(
    plan: Plan, label: str, problem: Problem, train: Tensor, folder: Path, console: Console
) -> dict[str, Outcome]:
    """Methods that need no net; the second particle smoother is the floor."""
    reference = _reference(plan, label, problem, folder, console)
    climate = train[:, ::64].reshape(-1, 3)
    rng = partial(fork, plan.seed, label)
    size = plan.samples
    made: dict[str, Callable[[], Drawn]] = {
        SMOOTHER: lambda: _smoother(plan, label, problem, "second", True, console),
        "ancestral lines": lambda: _smoother(plan, label, problem, "lines", False, console),
        "EnKS": lambda: _netless(ensemble_smoothed(problem, size, climate, rng("EnKS"))),
        "4D-Var": lambda: _netless(variational(problem, size, climate, rng("4D-Var"))),
        "climatology": lambda: _netless(climatology(problem, size, train, rng("climatology"))),
        "interpolation": lambda: _netless(interpolated(problem, size, train)),
    }
    settings = {"particles": plan.particles}
    return {
        name: _kept(plan, label, name, problem, reference, folder, settings, make)
        for name, make in made.items()
    }


def _netless(samples: Tensor) -> Drawn:
    return samples.float(), 0.0, {}


def _smoother(
    plan: Plan, label: str, problem: Problem, which: str, backward: bool, console: Console
) -> Drawn:
    with console.bar(f"{label} {which} particle smoother", plan.observations) as advance:
        draws, extra = smoothed(
            problem, plan.samples, particles=plan.particles, backward=backward, label=f"{label} {which}",
            seed=plan.seed, progress=lambda n: advance(n, ""),
        )  # fmt: skip
        first = extra["ancestors"]
        advance(0, f"{int(first.min())} to {int(first.max())} distinct first states in {plan.samples}")
    return draws.float(), 0.0, extra


def _reference(plan: Plan, label: str, problem: Problem, folder: Path, console: Console) -> Tensor:
    """Draws of the first particle smoother, (R, N, L, 3), made once."""
    digest = json.dumps(_problem_settings(plan, label), sort_keys=True)
    path = folder / "runs" / f"{label}_reference.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata().get("settings") == digest:
                return file.get_tensor("draws")
    draws, _, _ = _smoother(plan, label, problem, "first", True, console)
    with atomic(path) as temporary:
        save_file({"draws": draws.contiguous()}, temporary, {"settings": digest})
    return draws


def _problem_settings(plan: Plan, label: str) -> Tree:
    names = ("seed", "observations", "samples", "particles")
    parts = {
        "archive": dataclasses.asdict(plan.archive),
        "process": dataclasses.asdict(plan.processes[label]),
    }
    return {**{name: getattr(plan, name) for name in names}, **parts}


def _kept(
    plan: Plan, label: str, name: str, problem: Problem, reference: Tensor, folder: Path, settings: Tree,
    make: Callable[[], Drawn],
) -> Outcome:  # fmt: skip
    """An outcome from disk where its settings are the same, else made and kept."""
    digest = json.dumps({**_problem_settings(plan, label), **settings}, sort_keys=True)
    stem = file_stem(f"{label} {name}")
    path = folder / "runs" / f"{stem}.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            meta = file.metadata()
            if meta.get("settings") == digest:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                example = tensors.pop("example")
                return Outcome(tensors, example, float(meta["evaluations"]), float(meta["seconds"]))
    start = time.monotonic()
    samples, evaluations, extra = make()
    seconds = time.monotonic() - start
    done = Outcome(scores(problem, samples, reference) | extra, samples[0].clone(), evaluations, seconds)
    meta = {"settings": digest, "evaluations": str(evaluations), "seconds": str(seconds)}
    with atomic(path) as temporary:
        save_file({**done.scores, "example": done.example.contiguous()}, temporary, meta)
    return done


def _write_table(path: Path, outcomes: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Medians of every method, whole or not at all."""
    lines = [line for label in outcomes for line in _lines(label, outcomes[label])]
    with atomic(path) as temporary:
        text = "\n".join(",".join(str(value) for value in line.values()) for line in lines)
        temporary.write_text(",".join(lines[0]) + "\n" + text + "\n", encoding="utf-8")


def _lines(label: str, found: Mapping[str, Outcome]) -> list[Tree]:
    floor = found[SMOOTHER].scores["w1"]
    lines = []
    for name, outcome in found.items():
        s = outcome.scores
        numbers = {
            "w1": s["w1"],
            "w1_ratio": s["w1"] / floor,
            "log_prior": s["log_prior"],
            "log_likelihood": s["log_likelihood"],
            "rmse": s["rmse"],
        }
        line: Tree = {"process": label, "method": name}
        line |= {key: f"{float(value.nanquantile(0.5)):.4g}" for key, value in numbers.items()}
        line["blown"] = f"{float(s['blown'].mean()):.3g}"
        line["ancestors"] = f"{float(s['ancestors'].quantile(0.5)):.0f}" if "ancestors" in s else ""
        line |= {"evaluations": f"{outcome.evaluations:g}", "seconds": f"{outcome.seconds:.0f}"}
        lines.append(line)
    return lines


def _show(
    outcomes: Mapping[str, Mapping[str, Outcome]], verdicts: Sequence[Verdict], console: Console, folder: Path
) -> None:
    for label, found in outcomes.items():
        console.rich.print(console_table(_lines(label, found), title=f"{label}: medians over truths"))
    lines = [
        {
            "row": verdict.row,
            "metric": verdict.metric,
            "published": "" if math.isnan(verdict.expected) else f"{verdict.expected:g}",
            "bar": f"{verdict.low:g} … {verdict.high:g}",
            "ours": f"{verdict.value:.3g}",
            "status": verdict.status,
        }
        for verdict in verdicts
        if verdict.status != "INFO"
    ]
    if lines:
        console.rich.print(console_table(lines, title="bars"))
    passed = sum(verdict.status == "PASS" for verdict in verdicts)
    console.say(f"{passed} of {len(lines)} rows within their band: {folder.resolve()}")
