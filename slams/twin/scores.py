"""Online scores of a run."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.filter import FilterState
from slams.core.errors import DIVERGED_FRACTION, diverged_fraction
from slams.core.renamed import RENAMED
from slams.evaluation.metrics import metrics_of
from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics

KERNEL = "one_gaussian"  # score: share of the analyses of `EnSF` that are the ETKF's
MOMENTS = {"squared_error", "predictive_variance"}  # statistics that mean and variance give


@dataclass
class Calls:
    """Counter of states advanced by one step of a model."""

    model: int = 0


class TwinScores:
    """Scores of every step of a filter against the truth, and its costs.

    Numbers of a step, each (*B): "squared_error" of the mean, "variance" of the members (unbiased) and
    "predictive_variance", (N + 1) / N times that (methods that carry a covariance: the same), means over the
    state; with `detail` also the statistics of the other metrics of twin experiments, "crps" (fair) and "covered"
    (share of the state within the 90 % interval) among them, and "rank" of the truth among the members in one variable,
    another at every step; where the state is one variable "wrong_sign", whether the mean's is not the truth's;
    "model_calls" and "cpu_seconds" since the step before, per replicate and without the scoring itself.

    "network_calls" are not counted here: a method with networks puts them into its `memory.diagnostics`, (*B), the
    number of its step. As a model call is one state of one replicate advanced by one step, a network call is one
    input of one replicate passed through a network: N members in K steps of a sampler are N K calls, twice as many
    with guidance that evaluates each input with and without a condition. A backward pass counts as two calls, so a
    gradient is three for every input of the batch, training within an analysis included; training before the run,
    on no truth of it, is not in it.

    Args:
        truth: Truth, (*B, L, *S).
        event: Number of axes of *S.
        calls: Counter of the model's calls.
        detail: Whether to score the members, too.
        model: The method's model; of one with parameters in its state (`AugmentedParameters`) the system's variables are
            scored, and the means of the parameters are numbers by their names.
    """

    def __init__(
        self,
        truth: Tensor,
        *,
        event: int,
        calls: Calls | None = None,
        detail: bool = True,
        model: Dynamics | None = None,
    ) -> None:
        self._parameters = model if isinstance(model, AugmentedParameters) else None
        self._truth = truth.movedim(truth.ndim - 1 - event, 0)  # (L, *B, *S)
        self._event, self._detail = event, detail
        self._calls = calls or Calls()
        self._counted = self._calls.model
        self._clock = time.process_time()

    def __call__(self, k: int, state: FilterState) -> dict[str, Tensor]:
        """Diagnostics of step k."""
        spent = time.process_time() - self._clock
        called, self._counted = self._calls.model - self._counted, self._calls.model
        mean, variance = state.moments()
        found = {} if self._parameters is None else self._parameters.parameters_of(mean)
        mean, variance = self._scored(mean), self._scored(variance)
        numbers = found | self._moments(k, mean, variance, state.x.shape[-1 - self._event])
        numbers |= wrong_sign(mean, self._truth[k])
        share = torch.full_like(numbers["variance"], 1 / max(numbers["variance"].numel(), 1))
        numbers |= {"model_calls": called * share, "cpu_seconds": spent * share}
        if self._detail:
            numbers |= self._compare(k, self._scored(state.members()))
        self._clock = time.process_time()
        return numbers

    def _scored(self, x: Tensor) -> Tensor:
        return x if self._parameters is None else self._parameters.state(x)

    def afterwards(self, samples: Tensor) -> dict[str, Tensor]:
        """Diagnostics of all steps, (*B, L) each, of a method without steps.

        Args:
            samples: Members, (*B, N, L, *S).
        """
        spent, called = time.process_time() - self._clock, self._calls.model - self._counted
        axis = samples.ndim - 1 - self._event
        rows = []
        for k in range(samples.shape[axis]):
            x = samples.select(axis, k)
            size = x.shape[-1 - self._event]
            mean, variance = x.mean(-1 - self._event), x.var(-1 - self._event, correction=min(size - 1, 1))
            rows.append(self._moments(k, mean, variance, size) | self._compare(k, x))
        numbers = {name: torch.stack([row[name] for row in rows], -1) for name in rows[0]}
        share = torch.full_like(numbers["variance"], 1 / max(numbers["variance"].numel(), 1))
        return numbers | {"model_calls": called * share, "cpu_seconds": spent * share}

    def _moments(self, k: int, mean: Tensor, variance: Tensor, size: int) -> dict[str, Tensor]:
        axes = tuple(range(-self._event, 0))
        variance = variance.mean(axes)
        return {
            "squared_error": (mean - self._truth[k]).square().mean(axes),
            "variance": variance,
            "predictive_variance": variance * ((size + 1) / size) if size > 1 else variance,
        }

    def _compare(self, k: int, ensemble: Tensor) -> dict[str, Tensor]:
        y, axes = self._truth[k], tuple(range(-self._event, 0))
        members = ensemble.movedim(-1 - self._event, 0)
        flat, at = members.flatten(-self._event), k % y.shape[-self._event :].numel()
        below = flat[..., at] < y.flatten(-self._event)[..., at]
        parts = {part.key: part for metric in metrics_of("twin") for part in metric.parts}
        numbers = {
            key: part.statistic(members, y).mean(axes)
            for key, part in parts.items()
            if key not in MOMENTS and part.statistic is not None and not part.pooled
        }
        return numbers | {"rank": below.sum(0).to(y.dtype)}


def wrong_sign(mean: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Whether the mean of a one-variable state has the wrong sign; empty for longer states.

    Args:
        mean: Mean, (*B, *S).
        truth: Truth, (*B, *S).

    Returns:
        "wrong_sign", 0 or 1, (*B).
    """
    return {"wrong_sign": (mean * truth < 0).to(truth).squeeze(-1)} if truth.shape[-1:] == (1,) else {}


def recovery(wrong: Tensor, jumps: Sequence[int]) -> dict[str, Tensor]:
    """Recovery time of the sign of a mean after each jump of the truth.

    The steps from a jump to the first at which the sign is right: 0 where the analysis at the jump has it; the steps to
    the next jump, or the end, where none has.

    Args:
        wrong: Wrong signs, 0 or 1, (*B, L).
        jumps: Steps at which the truth changes its sign.

    Returns:
        "recovery", the mean over jumps, and "recovered_in_2", the share within two steps, (*B) each; nothing if the
        truth never jumps.
    """
    if not jumps:
        return {}
    ends = [*jumps[1:], wrong.shape[-1]]
    steps = torch.stack(
        [wrong[..., k:end].cumprod(-1).sum(-1) for k, end in zip(jumps, ends, strict=True)], -1
    )
    return {"recovery": steps.mean(-1), "recovered_in_2": (steps <= 2).to(wrong).mean(-1)}


def summary(
    diagnostics: Mapping[str, Tensor], scored: Sequence[int], burn_in: int = 0, jumps: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Scores of each replicate from the numbers of its steps.

    Args:
        diagnostics: Diagnostics of `TwinScores` and the filter, (*B, L) each.
        scored: Scored steps.
        burn_in: Number of analyses before them.
        jumps: Steps at which the truth jumps, for `recovery`.

    Returns:
        Scores (*B) in the order of metrics.csv: the metrics of twin experiments, of means over time and space;
        "rmse_time_mean" and "spread_time_mean", the means over time of spatial root mean squares, as the literature of
        these systems has them (the latter from the unbiased variance itself); "divergence_rate", 1 where
        "diverged_fraction" is more than `DIVERGED_FRACTION` (a passing excursion on Lorenz-63 is no divergence) or an
        error is not finite; "diverged_fraction", the share of steps at which innovations were too large or the mean
        not finite, of those from the 100th analysis on (of a shorter run the last); "one_gaussian", of `EnSF` the
        share of analyses that are the ETKF's; `recovery`; "model_calls", "network_calls" (0 if no step
        reports any) and "cpu_seconds" per step of the whole run.
    """
    diagnostics = _with_new_names(diagnostics)
    steps = torch.as_tensor(list(scored))
    selected = {name: value[..., steps] for name, value in diagnostics.items()}
    error = selected["squared_error"]
    diverged = ~torch.isfinite(error)
    if "diverged" in selected:
        diverged = diverged | (selected["diverged"] > 0.5)
    fraction = diverged_fraction(diverged, burn_in).to(error.dtype)
    means = {name: value.mean(-1) for name, value in selected.items()}
    metrics = [m for m in metrics_of("twin") if m.parts and all(part.key in means for part in m.parts)]
    # first those that follow from mean and variance
    metrics.sort(key=lambda metric: not {part.key for part in metric.parts} <= MOMENTS)
    out = {metric.name: metric.value(means) for metric in metrics}
    out["rmse_time_mean"] = error.sqrt().mean(-1)
    out["spread_time_mean"] = selected["variance"].sqrt().mean(-1)
    out["divergence_rate"] = (~torch.isfinite(out["rmse"]) | (fraction > DIVERGED_FRACTION)).to(error.dtype)
    out["diverged_fraction"] = fraction
    if "one_gaussian" in selected:  # of which the tempered ones have the operator's own likelihood
        out[KERNEL] = (selected["one_gaussian"] * (1 - selected["tempered"])).nanmean(-1)
    if "wrong_sign" in diagnostics:
        out |= recovery(diagnostics["wrong_sign"], jumps)
    per_step = diagnostics["model_calls"]
    for name in ("model_calls", "network_calls", "cpu_seconds"):
        numbers = diagnostics.get(name, torch.zeros_like(per_step))
        out[name] = numbers.nansum(-1) / numbers.shape[-1]
    return out


def _with_new_names(diagnostics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diagnostics of earlier versions by their new names; a run that was resumed may have both."""
    found = dict(diagnostics)
    for old, new in RENAMED["step diagnostic"].items():
        if old in found:
            value = found.pop(old)
            found[new] = torch.where(torch.isnan(found[new]), value, found[new]) if new in found else value
    return found
