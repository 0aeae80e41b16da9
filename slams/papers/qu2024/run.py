"""`slams reproduce qu2024`: coarse, noisy and sparse observations in pixels and in three latent spaces."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import NonFiniteError
from slams.core.files import sha256_of
from slams.core.stages import Stage, Stages
from slams.papers.qu2024.archive import (
    DAYS,
    SHIPPED,
    STATE,
    Truths,
    save_truths,
    shipped_truths,
    test_fields,
    training_fields,
    truths,
)
from slams.papers.qu2024.observing import on_grid
from slams.papers.qu2024.plan import MODELS, Qu2024Plan, Setting, read_plan
from slams.papers.qu2024.prior import ModelPrior, load_prior
from slams.papers.qu2024.published import distances, elsewhere, normalised, sampled
from slams.papers.qu2024.report import show_outcomes, write_pages, write_published
from slams.papers.qu2024.right import VARIANTS, Analyst, climatological, interpolated, observe
from slams.papers.qu2024.scores import COLUMNS, FRAMES, Outcome, scored, variant_name, verdicts
from slams.papers.qu2024.training import CLIMATE, Shared, load_shared
from slams.papers.qu2024.training import train as train_models
from slams.papers.study import WEIGHTS
from slams.papers.table import Verdict, show, write_lines, write_rows

_SEPARATOR = "|"


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Archive, weights, both modes, tables and figures; the same call resumes an interrupted run.

    Args:
        path: File of the plan.
        folder: Folder of the results: scores.csv, MODEL/wasserstein_KIND.csv, rows.csv, report.html and figures.
        overrides: Overrides such as "mode=right", "models=lsda_2", "settings=coarse_4,noise_1" or "size=full".
        console: Console for the progress.
        train: Whether to train the models, into the folder, instead of using the shipped ones of the planet.

    Returns:
        A verdict for each bar.

    Raises:
        ValueError: If a model, setting or size is unknown (the nearest is named), or archive or weights are of
            another size.
    """
    study = prepare(path, folder, overrides, console, train=train)
    plan, shared, truth = study.plan, study.shared, study.truth
    outcomes: list[Outcome] = []
    lines: list[dict[str, Any]] = []
    for mode in plan.modes:
        with console.bar(f"{mode} mode", len(plan.models) * len(plan.settings)) as advance:
            for model in plan.models:
                for setting in plan.chosen:
                    outcomes.append(study.outcome(mode, model, setting))
                    lines += outcomes[-1].lines(shared.levels)  # their intervals take longest: once each
                    write_lines(folder / "scores.csv", lines, COLUMNS)
                    advance(1, f"{model} {setting.name}")
    found = verdicts(plan, outcomes)
    write_rows(folder / "rows.csv", found)
    write_published(plan, outcomes, truth.levels, folder)
    write_pages(plan, outcomes, found, truth, folder)
    show_outcomes(outcomes, console)
    show(console, found, folder)
    return found


def prepare(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> "Study":
    """Archive, weights and test trajectories of a plan; see `run`."""
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    weights = _weights(plan, path.stem, folder, train, console)
    shared = load_shared(weights / CLIMATE, plan.cells)
    needed = dict.fromkeys([*plan.models, *(["sda_0"] if "right" in plan.modes else [])])
    priors = {
        name: load_prior(weights / f"{name}.safetensors", plan.prior, name, plan.cells) for name in needed
    }
    for name, prior in priors.items():
        prior.fingerprint = sha256_of(weights / f"{name}.safetensors")[:16]
    if plan.archive.shipped:
        truth = shipped_truths(weights / DAYS, plan)
    else:
        truth = truths(plan, test_fields(plan, console), shared.climate, plan.archive.test)
        if train:
            save_truths(weights / DAYS, truth.part(*SHIPPED))
    return Study(plan, shared, priors, truth, Stages(folder / "runs", console.say))


def _weights(plan: Qu2024Plan, paper: str, folder: Path, train: bool, console: Console) -> Path:
    """The folder of weights: trained into the results' folder, or shipped."""
    own = folder / "weights"
    shipped = WEIGHTS / (paper + ("_full" if plan.size == "full" else "_planet"))
    if train:
        train_models(replace(plan, models=tuple(MODELS)), training_fields(plan, console), own, console)
    return own if (own / CLIMATE).exists() else shipped


class Study:
    """Outcomes of models under settings, kept on disk.

    Args:
        plan: The plan.
        shared: Climate and rivals.
        priors: Models by name.
        truth: Test trajectories.
        stages: Folder of the results.
    """

    def __init__(
        self,
        plan: Qu2024Plan,
        shared: Shared,
        priors: Mapping[str, ModelPrior],
        truth: Truths,
        stages: Stages,
    ) -> None:
        self.plan, self.shared, self.priors, self.truth, self.stages = plan, shared, priors, truth, stages
        self.unit = shared.climate.statistics[STATE].std.flatten()
        content = hashlib.sha256(truth.anomalies[STATE].numpy().tobytes()).hexdigest()[:16]
        self.inputs = [content, plan.every, plan.seed, plan.cells]

    def outcome(self, mode: str, model: str, setting: Setting) -> Outcome:
        """Scores of a model under a setting in a mode, from disk or made."""
        prior = self.priors[model]
        if mode == "published":
            tensors = self._kept(f"{mode} {model}", setting, [prior.fingerprint], self._published, prior)
        else:
            pixels = self.priors["sda_0"]
            tensors = self._kept(f"{mode} {model}", setting, [prior.fingerprint], self._right, prior)
            tensors |= self._kept(f"{mode} rivals", setting, [pixels.fingerprint], self._rivals, pixels)
        values, example = {}, {}
        for key, x in tensors.items():
            kind, *names = key.split(_SEPARATOR)
            if kind == "score":
                values[names[0], names[1], names[2]] = x
            else:
                example[names[0]] = x
        return Outcome(mode, model, setting.name, values, example)

    def _kept(
        self, name: str, setting: Setting, inputs: list[str],
        make: Callable[[ModelPrior, Setting], dict[str, Tensor]], prior: ModelPrior,
    ) -> dict[str, Tensor]:  # fmt: skip
        part = self.plan.published if name.startswith("published") else self.plan.right
        stage = Stage(f"{name} {setting.name}", [*self.inputs, *inputs, setting, part])
        tensors, _ = self.stages.keep(stage, lambda: (make(prior, setting), {}))
        return dict(tensors)

    def _published(self, prior: ModelPrior, setting: Setting) -> dict[str, Tensor]:
        plan, climate = self.plan, self.shared.climate
        truth = self.truth.part(plan.published.trajectories)
        exact = truth.anomalies[STATE]
        try:
            sample = sampled(plan, prior, setting, truth)
        except NonFiniteError:  # the published guidance can do so; the row is empty then, and says so
            sample = torch.full_like(exact, torch.nan)
        count = len(exact)
        fields = {
            "sample": sample,
            "sample elsewhere": elsewhere(sample),
            "climatology": torch.cat([*climatological(self.shared.local, truth, 1, seed=plan.seed)]),
            "reconstruction": prior.codec.decode(
                prior.encoded(truth.anomalies).flatten(0, 1), STATE
            ).unflatten(0, exact.shape[:2]),
        }
        found: dict[str, Tensor] = {}
        frames = plan.frames
        target = normalised(climate, exact, truth.phase)
        for name, x in fields.items():
            if name == "sample elsewhere":  # all of it at the wrong longitude, the seasonal mean included
                physical = elsewhere(normalised(climate, sample, truth.phase))
            else:
                physical = normalised(climate, x, truth.phase)
            each = [distances(physical[r, frames], target[r, frames]) for r in range(count)]
            for metric in ("w1", "rmse"):
                rows = torch.stack([one[metric] for one in each])
                mean = rows.mean(1, keepdim=True)
                found[_SEPARATOR.join(("score", name, FRAMES, metric))] = torch.cat([mean, rows], 1)
        few = frames[: 3 * max(1, len(frames) // 3) : max(1, len(frames) // 3)][:3]
        found[f"example{_SEPARATOR}truth"] = target[0, few].half()
        found[f"example{_SEPARATOR}observed"] = on_grid(setting, target[0, few]).half()
        found[f"example{_SEPARATOR}sample"] = normalised(climate, sample, truth.phase)[0, few].half()
        return found

    @torch.no_grad()
    def _right(self, prior: ModelPrior, setting: Setting) -> dict[str, Tensor]:
        """Scores of a model's analyses, with what is observed of other modalities varied, and of its reconstruction."""
        plan, truth = self.plan, self.truth
        analyst = Analyst.of(prior, truth, setting.kind)
        methods: dict[str, Iterable[Tensor]] = {}
        for variant in VARIANTS if len(MODELS[prior.name]) > 1 else VARIANTS[:1]:
            seen = observe(plan, setting, truth, prior.name, variant)
            for method, steps in (("latent_gaussian", None), ("analysis", plan.right.steps)):
                if method == "analysis" and prior.idle:
                    continue  # the same draws
                methods[variant_name(method, variant)] = analyst.draws(
                    seen, plan.right.members, seed=plan.seed, steps=steps, label=("test",)
                )
        methods["reconstruction"] = (
            prior.codec.decode(prior.encoded({m: x[row] for m, x in truth.anomalies.items()}), STATE)[None]
            for row in range(len(truth.phase))
        )
        found = self._scores(methods)
        if prior.idle:
            exact = f"score{_SEPARATOR}latent_gaussian"
            found |= {
                key.replace("latent_gaussian", "analysis"): x
                for key, x in found.items()
                if key.startswith(exact)
            }
        return found

    @torch.no_grad()
    def _rivals(self, pixels: ModelPrior, setting: Setting) -> dict[str, Tensor]:
        """Scores of what no model takes part in: Gaussian of pixels, interpolation, climatology."""
        plan, local, members = self.plan, self.shared.local, self.plan.right.members
        seen = observe(plan, setting, self.truth, "sda_0")
        gaussian = Analyst.of(pixels, self.truth, setting.kind)
        between = self.shared.between[setting.kind]
        return self._scores(
            {
                "gaussian": gaussian.draws(seen, members, seed=plan.seed, label=("test",)),
                "interpolation": interpolated(
                    local, seen, members, between, every=plan.every, seed=plan.seed
                ),
                "climatology": climatological(local, self.truth, members, seed=plan.seed),
            }
        )

    def _scores(self, methods: Mapping[str, Iterable[Tensor]]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for name, draws in methods.items():
            for exact, x in zip(self.truth.anomalies[STATE], draws, strict=True):
                for (part, metric), each in scored(x, exact, self.truth, self.unit, self.plan.frames).items():
                    found.setdefault(_SEPARATOR.join(("score", name, part, metric)), []).append(each)
        return {key: torch.stack(rows) for key, rows in found.items()}
