"""Scores of trajectories, level by level, their rows and their bars."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slams.evaluation.intervals import jackknife_limits, log_normal_limits, without_each
from slams.evaluation.metrics import METRICS, Metric, ascending
from slams.papers.qu2024.archive import Truths
from slams.papers.qu2024.plan import MODELS, Qu2024Plan
from slams.papers.qu2024.right import VARIANTS
from slams.papers.table import Bar, Verdict, difference, judge, judge_truths

COLUMNS = (
    "mode", "model", "setting", "method", "level", "part", "metric", "value", "lower", "upper", "n",
)  # fmt: skip
RIGHT = tuple(METRICS[name] for name in ("rmse", "crps", "spread_skill", "coverage90_fair", "w1"))
FRAMES, ALL = "frames", "all days"
_GAIN = 0.01  # of the closed form in CRPS, from which a model must profit as well
_SLACK = 0.005  # by which it may be worse elsewhere

Values = Mapping[
    tuple[str, str, str], Tensor
]  # (method, part, metric): (R, 1 + C), all levels together first


@dataclass(frozen=True)
class Outcome:
    """Scores of a model under a setting in a mode.

    Attributes:
        mode, model, setting: What was run.
        values: Scores of each trajectory and level.
        example: Fields of the first trajectory, for figures.
    """

    mode: str
    model: str
    setting: str
    values: Values
    example: Mapping[str, Tensor]

    def lines(self, levels: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Rows of scores.csv, with 95 % intervals over trajectories."""
        for (method, part, name), x in self.values.items():
            for level, *found in zip(("all", *levels), *_intervals(x.double(), METRICS[name]), strict=True):
                numbers = dict(zip(("value", "lower", "upper"), map(float, found), strict=True))
                text = {k: "" if math.isnan(v) else f"{v:.6g}" for k, v in numbers.items()}
                yield {
                    "mode": self.mode, "model": self.model, "setting": self.setting, "method": method,
                    "level": level, "part": part, "metric": name, **text, "n": len(x),
                }  # fmt: skip


def _intervals(x: Tensor, metric: Metric) -> Tensor:
    """Means of values (R, L) and their 95 % limits, (3, L), those of `Metric.interval` for all levels at once."""
    if metric.law == "log-normal":
        limits = log_normal_limits(x)
    else:
        limits = jackknife_limits(x.mean(0), without_each(x), metric.law)
    return torch.cat([x.mean(0)[None], limits])


def statistics(x: Tensor, truth: Tensor, weights: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """Statistics of one trajectory: means over area and days by level, W1 of its pooled values.

    Args:
        x: Members (N, T, C, H, W).
        truth: Truth (T, C, H, W).
        weights: Area weights (H, W).
        unit: Standard deviation of an anomaly, (C).

    Returns:
        (T, C) by key; of pooled metrics (C).
    """
    scale = unit[:, None, None]
    x, truth = x * scale, truth * scale
    area = weights / weights.sum()
    found = {}
    for metric in {part.key: part for each in RIGHT for part in each.parts}.values():
        assert metric.statistic is not None
        if not metric.pooled:
            found[metric.key] = (metric.statistic(x, truth) * area).sum((-1, -2))
    return found


def scored(
    x: Tensor, truth: Tensor, truths: Truths, unit: Tensor, frames: Sequence[int]
) -> dict[tuple[str, str], Tensor]:
    """Scores of one trajectory by part and metric, (1 + C), as for `statistics`; pooled ones on frames alone.

    W1 of all 29 days takes as long as everything else, and the published one is that of the frames.
    """
    x = ascending(x)  # no metric depends on the order of members, and several need them sorted
    daily = statistics(x, truth, truths.weights, unit)
    found = {}
    for part, days in ((FRAMES, list(frames)), (ALL, list(range(len(truth))))):
        means = {key: value[days].mean(0) for key, value in daily.items()}
        for metric in RIGHT:
            if not metric.pooled:
                both = {key: torch.cat([value.mean()[None], value]) for key, value in means.items()}
                found[part, metric.name] = metric.value(both)
            elif part == FRAMES:
                each = _pooled(
                    metric, x[:, days] * unit[:, None, None], truth[days] * unit[:, None, None], truths
                )
                found[part, metric.name] = torch.cat([each.mean()[None], each])
    return found


def _pooled(metric: Metric, x: Tensor, truth: Tensor, truths: Truths) -> Tensor:
    """A metric of pooled samples by level, (C)."""
    weights = truths.weights.expand(len(truth), *truths.weights.shape).flatten()
    pairs = zip(x.movedim(2, 0).flatten(2), truth.movedim(1, 0).flatten(1), strict=True)
    statistic: Any = metric.statistic
    return torch.stack([statistic(one, exact, weights) for one, exact in pairs])


_DIVERGED = 1.0  # standard deviations; a field of zeros has less


def verdicts(plan: Qu2024Plan, outcomes: Sequence[Outcome]) -> list[Verdict]:
    """Bars of both modes on what was run.

    Right mode: the error on frames grows with blocks, errors and distances; a latent model stays above its own
    reconstruction; observing auxiliary modalities lowers the CRPS where it does so in closed form by more than 1 %, and
    costs at most 0.5 % elsewhere; those of other days are worse. Published mode: W1 of samples, which diverged above one
    standard deviation, and of the others that turning them half round the globe leaves it unchanged.
    """
    found: list[Verdict] = []
    right = {(o.model, o.setting): o.values for o in outcomes if o.mode == "right"}
    for model in dict.fromkeys(model for model, _ in right):
        found += _growth(plan, model, right) + _floors(model, right)
        if len(MODELS[model]) > 1:
            for setting in [s for m, s in right if m == model]:
                found += _gains(model, setting, right[model, setting])
    for outcome in (o for o in outcomes if o.mode == "published"):
        name, values = f"{outcome.model} {outcome.setting}", outcome.values
        w1 = values["sample", FRAMES, "w1"][:, 0]
        sound = judge(Bar(f"published {name}", "w1", high=_DIVERGED), (float(w1.mean()), math.nan, math.nan))
        found.append(sound)
        if sound.status == "FAIL":  # of a diverged sample the next row says nothing
            continue
        gap = (values["sample elsewhere", FRAMES, "w1"] - values["sample", FRAMES, "w1"]).abs().max()
        number = float(gap / w1.mean())
        bar = Bar(f"published {name}: half round the globe", "w1 change", high=1e-3)
        found.append(judge(bar, (number, math.nan, math.nan)))
    return found


def _growth(plan: Qu2024Plan, model: str, right: Mapping[tuple[str, str], Values]) -> list[Verdict]:
    chain: dict[str, list[Any]] = {"coarse": [], "noise": [], "sparse": []}
    for setting in sorted(plan.chosen, key=lambda s: s.value):
        if (model, setting.name) in right:
            chain[setting.kind].append(setting)
    key = ("analysis", FRAMES, "rmse")
    found = []
    for settings in chain.values():
        for one, other in zip(settings, settings[1:], strict=False):
            values = [right[model, s.name][key][:, 0] for s in (other, one)]
            bar = Bar(f"right {model}: {other.name} less {one.name}", "rmse", low=0.0)
            found.append(judge_truths(bar, difference(values[0], values[1])))
    return found


def _floors(model: str, right: Mapping[tuple[str, str], Values]) -> list[Verdict]:
    if model == "sda_0":
        return []
    found = []
    for (name, setting), values in right.items():
        if name == model:
            ours, floor = (values[m, FRAMES, "rmse"][:, 0] for m in ("analysis", "reconstruction"))
            bar = Bar(f"right {model} {setting}: less its reconstruction", "rmse", low=0.0)
            found.append(judge_truths(bar, difference(ours, floor)))
    return found


def _gains(model: str, setting: str, values: Values) -> list[Verdict]:
    """Auxiliary modalities observed, against dropped; those of other days, against observed."""
    found = []

    def mean(method: str, variant: str, part: str) -> Tensor:
        return values[variant_name(method, variant), part, "crps"][:, 0]

    for variant in ("observed", "every day"):
        for part in (FRAMES, ALL):
            exact = [mean("latent_gaussian", v, part).mean() for v in (variant, "dropped")]
            ours, dropped = mean("analysis", variant, part), mean("analysis", "dropped", part)
            helps = float(1 - exact[0] / exact[1]) > _GAIN
            bar = Bar(
                f"right {model} {setting}: {variant} / dropped, {part}", "log crps",
                high=0.0 if helps else math.log1p(_SLACK),
            )  # fmt: skip
            found.append(judge_truths(bar, (ours / dropped).log()))
    shuffled, observed = (mean("analysis", v, FRAMES) for v in ("shuffled", "observed"))
    bar = Bar(f"right {model} {setting}: shuffled / observed", "log crps", low=0.0)
    found.append(judge_truths(bar, (shuffled / observed).log()))
    return found


def variant_name(method: str, variant: str) -> str:
    """Name of a method under one of `VARIANTS`; the first has none."""
    return method if variant == VARIANTS[0] else f"{method}:{variant}"
