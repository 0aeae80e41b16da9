"""Scores of a run, taken while it goes on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.filter import Belief
from slams.evaluation.evaluate import fair_crps, inside90

LOST_SHARE = 0.1  # of the scored steps
SETTLED = 100  # analyses until the running mean of innovations has forgotten a poor first guess


@dataclass
class Calls:
    """How many states a model has advanced by one step."""

    model: int = 0


class TwinScores:
    """Compares every step of a filter with the truth, and keeps its costs.

    Numbers of a step, each (*B): "squared_error" of the mean, "variance" of the members (unbiased) and
    "predictive_variance", (N + 1) / N times that (methods that carry a covariance: the same), means over the
    state; with `detail` also "crps" (fair), "hits" (share of the state within the 90 % interval) and "rank" of the
    truth among the members in one variable, another at every step; where the state is one variable "wrong_sign", whether
    the mean's is not the truth's; "model_calls" and "cpu_seconds" since the step
    before, per replicate and without the scoring itself.

    "network_calls" are not counted here: a method with networks puts them into its `memory.diagnostics`, (*B), the
    number of its step. As a model call is one state of one replicate advanced by one step, a network call is one
    input of one replicate passed through a network: N members in K steps of a sampler are N K calls, twice as many
    with guidance that evaluates each input with and without a condition. A backward pass counts as two calls, so a
    gradient is three for every input of the batch, training within an analysis included; training before the run,
    on no truth of it, is not in it.

    Args:
        truth: (*B, L, *S).
        event: Number of axes of *S.
        calls: Counter of the model's calls.
        detail: Whether members are compared, too.
    """

    def __init__(self, truth: Tensor, *, event: int, calls: Calls | None = None, detail: bool = True) -> None:
        self._truth = truth.movedim(truth.ndim - 1 - event, 0)  # (L, *B, *S)
        self._event, self._detail = event, detail
        self._calls = calls or Calls()
        self._counted = self._calls.model
        self._clock = time.process_time()

    def __call__(self, k: int, belief: Belief) -> dict[str, Tensor]:
        """The numbers of step k."""
        spent = time.process_time() - self._clock
        called, self._counted = self._calls.model - self._counted, self._calls.model
        mean, variance = belief.moments()
        numbers = self._moments(k, mean, variance, belief.x.shape[-1 - self._event])
        numbers |= wrong_sign(mean, self._truth[k])
        share = torch.full_like(numbers["variance"], 1 / max(numbers["variance"].numel(), 1))
        numbers |= {"model_calls": called * share, "cpu_seconds": spent * share}
        if self._detail:
            numbers |= self._compare(k, belief.members())
        self._clock = time.process_time()
        return numbers

    def afterwards(self, samples: Tensor) -> dict[str, Tensor]:
        """The numbers of all steps, (*B, L) each, of a method that has no steps.

        Args:
            samples: (*B, N, L, *S).
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
        return {
            "crps": fair_crps(members, y).mean(axes),
            "hits": inside90(members, y).mean(axes),
            "rank": below.sum(0).to(y.dtype),
        }


def wrong_sign(mean: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Whether the mean of a state of one variable is on the other side of 0 than the truth; nothing of longer states.

    Args:
        mean: (*B, *S).
        truth: The same.

    Returns:
        "wrong_sign", 0 or 1, (*B).
    """
    return {"wrong_sign": (mean * truth < 0).to(truth).squeeze(-1)} if truth.shape[-1:] == (1,) else {}


def recovery(wrong: Tensor, jumps: Sequence[int]) -> dict[str, Tensor]:
    """How long a mean stays on the wrong side after each jump of the truth.

    The steps from a jump to the first at which the sign is right: 0 where the analysis at the jump has it; the steps to
    the next jump, or the end, where none has.

    Args:
        wrong: (*B, L), 0 or 1.
        jumps: Steps at which the truth is on another side than before.

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


def summary(diagnostics: Mapping[str, Tensor], scored: Sequence[int], burn_in: int = 0) -> dict[str, Tensor]:
    """Scores of each replicate from the numbers of its steps.

    Args:
        diagnostics: From `TwinScores` and the filter, (*B, L) each.
        scored: Steps that count.
        burn_in: Analyses before them.

    Returns:
        (*B) each: "rmse" and "spread", square roots of means over time and space; "rmse_a" and "spread_a", the
        means over time of spatial root mean squares, as the literature of these systems has them ("spread_a"
        from the unbiased variance itself); "spread_skill", "crps", "coverage90"; "lost_share", the share of
        steps at which the method was off the track or not finite, of those from the 100th analysis on (of a
        shorter run the last);
        "divergence_rate", 1 where that is more than `LOST_SHARE` (a passing excursion on Lorenz-63 is no loss)
        or an error is not finite; "model_calls", "network_calls" (0 if no step reports any) and "cpu_seconds" per
        step of the whole run.
    """
    steps = torch.as_tensor(list(scored))
    here = {name: value[..., steps] for name, value in diagnostics.items()}
    error = here["squared_error"]
    lost = ~torch.isfinite(error)
    if "lost" in here:
        lost = lost | (here["lost"] > 0.5)
    settled = min(max(SETTLED - burn_in, 0), len(steps) - 1)
    out = {
        "rmse": error.mean(-1).sqrt(),
        "rmse_a": error.sqrt().mean(-1),
        "spread": here["predictive_variance"].mean(-1).sqrt(),
        "spread_a": here["variance"].sqrt().mean(-1),
        "lost_share": lost[..., settled:].to(error.dtype).mean(-1),
    }
    out["divergence_rate"] = (~torch.isfinite(out["rmse"]) | (out["lost_share"] > LOST_SHARE)).to(error.dtype)
    out["spread_skill"] = out["spread"] / out["rmse"]
    for name, source in (("crps", "crps"), ("coverage90", "hits")):
        if source in here:
            out[name] = here[source].mean(-1)
    for name in ("model_calls", "cpu_seconds"):
        out[name] = diagnostics[name].nansum(-1) / diagnostics[name].shape[-1]
    networks = diagnostics.get("network_calls", torch.zeros_like(diagnostics["model_calls"]))
    out["network_calls"] = networks.nansum(-1) / networks.shape[-1]
    return out
