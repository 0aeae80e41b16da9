"""`slams reproduce qu2024 --train`: climate, autoencoders, closed forms, networks and calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.codec import SeasonalStandardize
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.stages import Stage, Stages
from slams.core.tensorfile import flat, grouped, read_tensors, write_tensors
from slams.evaluation.metrics import fair_crps
from slams.papers.qu2024.archive import STATE, Climate, Truths, truths
from slams.papers.qu2024.observing import LocalGaussian, operator
from slams.papers.qu2024.plan import MODELS, Qu2024Plan, Setting
from slams.papers.qu2024.prior import ModelPrior, load_prior, save_prior, train_codec, train_prior
from slams.papers.qu2024.right import Analyst, calibrated, interpolated, observe
from slams.pipeline.inputs.fields import Fields

CLIMATE = "climate.safetensors"
HARMONICS = 2
_HELD = 2  # validation trajectories
_SPACED = 7  # days apart, of which errors are estimated
_NETWORK = Setting("sparse_4", "sparse", 4)  # from which lengths are estimated


@dataclass(frozen=True)
class Shared:
    """What all models share: the climate, and the rivals fitted to it.

    Attributes:
        climate: Seasonal means and spreads.
        local: The state's anomalies as fields with one correlation length.
        between: By kind of setting, error variance of the interpolation between frames as share of the climate's.
        levels: Names of the levels.
    """

    climate: Climate
    local: LocalGaussian
    between: dict[str, list[float]]
    levels: tuple[str, ...]


def train(plan: Qu2024Plan, fields: Fields, folder: Path, console: Console, *, half: bool = True) -> None:
    """Train all models of a plan into a folder; finished ones are reused.

    Args:
        plan: The plan.
        fields: Fields of training and validation.
        folder: Folder of the weights.
        console: Console for the progress.
        half: Whether weights have 16 bits on disk.
    """
    stages = Stages(folder, console.say)
    parts = {"train": plan.archive.train, "validation": plan.archive.validation}
    rows = {part: fields.part(span) for part, span in parts.items()}
    dates = {part: fields.dates[index] for part, index in rows.items()}
    inputs = [
        plan.archive.recipe,
        plan.archive.train,
        plan.archive.validation,
        plan.every,
        plan.length,
        plan.seed,
    ]
    climate = Climate.fit(fields, rows["train"], HARMONICS)
    days = {part: climate.anomalies(fields, torch.from_numpy(index)) for part, index in rows.items()}
    years = sorted({int(str(day)[:4]) for day in dates["validation"]})
    held = truths(plan, fields, climate, years).part(_HELD)
    kinds = _middle()
    shared = Stage("climate", inputs)
    if not stages.done(shared, (CLIMATE,)):
        _save_shared(folder / CLIMATE, _shared(plan, climate, days["validation"], held, kinds))
        stages.finish(shared, (CLIMATE,))
    for name in plan.models:
        stage, file = Stage(name, [inputs, plan.prior, plan.right.members]), f"{name}.safetensors"
        if stages.done(stage, (file,)):
            console.reused(name)
            continue
        codec = train_codec(plan.prior, name, days, seed=plan.seed, folder=folder, console=console)
        prior = train_prior(
            plan.prior, name, codec, days, dates, seed=plan.seed, folder=folder, console=console
        )
        residual = _residual(prior, days["validation"])
        h = operator(_NETWORK, held.weights)
        prior.facts["length"] = LocalGaussian.fit(residual, h, held.lat, held.lon).length
        with console.bar(f"calibrate {name}", 1) as advance:
            prior.facts["calibrated"] = calibrated(plan, prior, kinds, held)
            advance(1, str(prior.facts["calibrated"]))
        prior.facts["validation"] = settle(plan, prior, kinds, held)
        save_prior(folder / file, prior, plan.prior, half=half)
        load_prior(folder / file, plan.prior, name, plan.cells)
        stages.finish(stage, (file,))
        for leftover in folder.glob(f"resume_{name}_*.pt"):
            leftover.unlink()


def settle(plan: Qu2024Plan, prior: ModelPrior, kinds: list[Setting], held: Truths) -> dict[str, float]:
    """CRPS of validation trajectories [standard deviations] on all days, mean over settings, by network and closed form.

    A network that is not ahead of the exact posterior of the closed form is set to zero.
    """
    found = {"analysis": 0.0, "latent_gaussian": 0.0}
    for setting in kinds:
        seen, analyst = observe(plan, setting, held, prior.name), Analyst.of(prior, held, setting.kind)
        for name, steps in (("analysis", plan.right.steps), ("latent_gaussian", None)):
            draws = analyst.draws(
                seen, plan.right.members, seed=plan.seed, steps=steps, label=("validation",)
            )
            each = [
                float(fair_crps(x, exact).mean())
                for x, exact in zip(draws, held.anomalies[STATE], strict=True)
            ]
            found[name] += float(np.mean(each)) / len(kinds)
    if found["analysis"] >= found["latent_gaussian"]:
        prior.silence()
    return found


def _middle() -> list[Setting]:
    """One setting of each kind on which errors are calibrated, whatever settings are run."""
    return [Setting.of(name) for name in ("coarse_8", "noise_2", "sparse_8")]


def _residual(prior: Any, days: dict[str, Tensor]) -> Tensor:
    """What decoded patterns leave of the state on some days, (n, C, H, W)."""
    some = {m: x[::_SPACED] for m, x in days.items()}
    a = prior.encoded(some).flatten(1) @ prior.basis
    return some[STATE] - prior.decoded(a, STATE)


def _shared(
    plan: Qu2024Plan, climate: Climate, days: dict[str, Tensor], held: Truths, kinds: list[Setting]
) -> Shared:
    local = LocalGaussian.fit(days[STATE][::_SPACED], operator(_NETWORK, held.weights), held.lat, held.lon)
    reach = max(plan.every // 2, 1)
    between = {}
    for setting in kinds:
        seen, nothing = observe(plan, setting, held, "sda_0"), [1e-6] * reach
        x = interpolated(local, seen, 2, nothing, every=plan.every, seed=plan.seed)
        mean = torch.stack([members.mean(0) for members in x])
        error = (mean - held.anomalies[STATE]).square().mean((0, 2, 3, 4))
        scale = float(local.variance.mean())
        near = [min(day % plan.every, plan.every - day % plan.every) for day in range(plan.length)]
        between[setting.kind] = [
            float(np.mean([float(error[day]) for day in range(plan.length) if near[day] == k])) / scale
            if k in near
            else 1.0
            for k in range(1, reach + 1)
        ]
    return Shared(climate, local, between, held.levels)


def _save_shared(path: Path, shared: Shared) -> None:
    """Seasonal cycles in 16 bits, means in 32."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, one in shared.climate.statistics.items():
        groups[name] = {
            "mean": one.coefficients[0],
            "cycle": one.coefficients[1:].half(),
            "std": one.std,
            "present": one.present,
        }
    groups["published"] = {"mean": shared.climate.mean, "std": shared.climate.std}
    groups["local"] = {"variance": shared.local.variance}
    facts = {
        "length": shared.local.length, "between": shared.between, "lat": list(shared.local.lat),
        "lon": list(shared.local.lon), "levels": list(shared.levels),
    }  # fmt: skip
    write_tensors(path, flat(groups, "|"), facts)


def load_shared(path: Path, grid: tuple[int, int]) -> Shared:
    """Read the file of the climate.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another grid.
    """
    tensors, facts = read_tensors(path, remedy="train with --train, or check the path")
    if (len(facts["lat"]), len(facts["lon"])) != tuple(grid):
        raise InvalidValueError(
            f"{path} is of a grid of {len(facts['lat'])} x {len(facts['lon'])}, and {grid[0]} x {grid[1]} was asked "
            "for; name the size it was made for (size=planet or full), or train with --train."
        )
    groups = grouped(tensors, "|")
    statistics = {
        name: SeasonalStandardize(
            torch.cat([groups[name]["mean"][None], groups[name]["cycle"].float()]),
            groups[name]["std"],
            groups[name]["present"],
        )
        for name in MODELS["lsda_2"]
        if name in groups
    }
    climate = Climate(statistics, groups["published"]["mean"], groups["published"]["std"])
    local = LocalGaussian(
        tuple(facts["lat"]), tuple(facts["lon"]), facts["length"], groups["local"]["variance"]
    )
    return Shared(climate, local, facts["between"], tuple(facts["levels"]))
