"""Metrics: a statistic of every point, a function of its mean, and the registry of all of them.

A metric added to `METRICS` (or by `register`) is computed and named wherever scores are: `evaluate`, the windows of
a run, the steps of a twin experiment, metrics.csv, tables, figures and reports.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.evaluation.intervals import Interval, Law, interval

Statistic = Callable[..., Tensor]

_LOWER, _UPPER = 0.05, 0.95
_NORMAL_QUANTILE = 1.6448536269514722  # of 0.95
_NORMAL_STRATA = 32  # equally likely values that stand for a normal in Wasserstein-1


def _as_it_is(mean: Tensor) -> Tensor:
    return mean


def _root(mean: Tensor) -> Tensor:
    """Square root of an estimate of a square that sampling can make negative; such a one counts as 0."""
    return mean.clamp(min=0).sqrt()


@dataclass(frozen=True)
class Metric:
    """A score as the function `finish` of the mean of a statistic, or of other metrics.

    Attributes:
        name: Name in tables and in metrics.csv.
        statistic: Members (N, *E) and truth (*E) to numbers of the shape of the truth, whatever the order of the
            members at each point; None for a metric `of` others, and for one that a twin experiment measures itself,
            such as its cost.
        finish: Function of the mean of the statistic over points and times, or of the values of the metrics in `of`.
        gaussian: The statistic of a normal: mean, standard deviation and truth, (*E) each, to (*E).
        of: Metrics that this one is a function of.
        key: Name of the statistic among sums of windows and diagnostics of steps; `name` if empty.
        label: Name on axes; `name` if empty.
        dimensional: Whether it has the unit of the variable.
        better: "lower", "higher", or the value of a perfect ensemble, such as 0.9 for a coverage.
        scope: Scope of the metric: "fields" verified in windows, "twin" experiments, or both ("all"); "amounts" for
            fields such as rain alone (see `slams.evaluation.precipitation`); "paired" for two methods.
        shown: Prominence: on the "console" and in the report, in the main table of the "report", among its
            "further" tables, or in the "file" alone.
        pooled: Whether the statistic compares samples: it takes the weights of the points (n) as third argument
            besides members (N, n) and truth (n), and returns one number.
        law: Law of the statistic, or of the score where there is none, in independent windows and replicates, from which
            its interval follows.
    """

    name: str
    statistic: Statistic | None = None
    finish: Callable[..., Tensor] = _as_it_is
    _: KW_ONLY
    gaussian: Statistic | None = None
    of: tuple["Metric", ...] = ()
    key: str = ""
    label: str = ""
    dimensional: bool = False
    better: Literal["lower", "higher"] | float = "lower"
    scope: Literal["all", "fields", "twin", "amounts", "paired"] = "all"
    shown: Literal["console", "report", "further", "file"] = "console"
    pooled: bool = False
    law: Law = "any"

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name)
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def parts(self) -> tuple["Metric", ...]:
        """The metrics whose statistics it is made from; none if it has no statistic."""
        own = (self,) if self.statistic is not None else ()
        return own + tuple(part for each in self.of for part in each.parts)

    def value(self, means: Any) -> Tensor:
        """The score, from the means of statistics by key."""
        if self.of:
            return self.finish(*(each.value(means) for each in self.of))
        return self.finish(means[self.key])

    def interval(self, values: Sequence[float]) -> Interval:
        """Mean of the scores of independent replicates and its 95 % interval."""
        return interval(values, self.law)

    def axis(self, units: str = "") -> str:
        """Label of an axis, with the units of the variable where the metric has them."""
        return f"{self.label} [{units}]" if units and self.dimensional else self.label


def error(samples: Tensor, truth: Tensor) -> Tensor:
    """mean over members - truth: (N, *E) and (*E) to (*E)."""
    return samples.mean(0) - truth


def squared_error(samples: Tensor, truth: Tensor) -> Tensor:
    """(mean over members - truth)^2: (N, *E) and (*E) to (*E)."""
    return (samples.mean(0) - truth).square()


def squared_error_of_infinite(samples: Tensor, truth: Tensor) -> Tensor:
    """Unbiased squared error of the mean of infinitely many members: (N, *E) and (*E) to (*E).

    (mean over members - truth)^2 less `predictive_variance` / (N + 1), which is the sampling variance of the mean of N
    independent members; NaN for a single one. A value can be negative.
    """
    return squared_error(samples, truth) - predictive_variance(samples, truth) / (len(samples) + 1)


def predictive_variance(samples: Tensor, truth: Tensor) -> Tensor:
    """(N + 1) / N times the unbiased variance of the members, NaN for a single one: (N, *E) to (*E).

    The factor makes it the squared error of the mean on average, if truth and members are exchangeable.

    Source:
        Fortin et al. (2014), doi:10.1175/JHM-D-14-0008.1, eq. 15.
    """
    size = samples.shape[0]
    if size == 1:
        return torch.full_like(truth, torch.nan)
    return samples.var(0) * ((size + 1) / size)


def fair_crps(samples: Tensor, truth: Tensor) -> Tensor:
    """mean |x_i - y| - sum_{i<j} |x_i - x_j| / (N (N - 1)); a single member has its absolute error.

    Args:
        samples: Members x, (N, *E).
        truth: Truth y, (*E).

    Returns:
        (*E).

    Source:
        Ferro (2014), doi:10.1002/qj.2270, eq. 7.

    >>> fair_crps(torch.tensor([0.0, 2.0]), torch.tensor(0.0))
    tensor(0.)
    """
    size = samples.shape[0]
    error = (samples - truth).abs().mean(0)
    if size == 1:
        return error
    # of sorted members, x_(i) stands above i - 1 others and below N - i
    turns = torch.arange(1 - size, size, 2, dtype=samples.dtype, device=samples.device)
    return error - torch.tensordot(turns, ascending(samples), 1) / (size * (size - 1))


def gaussian_crps(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """s [z (2 Φ(z) - 1) + 2 φ(z) - 1/√π] with z = (y - mean) / s, (*E) each.

    Source:
        Gneiting et al. (2005), doi:10.1175/MWR2904.1, eq. 5.
    """
    error = mean - truth
    z = -error / std.clamp(min=torch.finfo(std.dtype).tiny)
    density = torch.exp(-0.5 * z**2) / (2 * torch.pi) ** 0.5
    # z * std overflows for std = 0, so the first term is written with the error itself
    return -error * (2 * torch.special.ndtr(z) - 1) + std * (2 * density - torch.pi**-0.5)


def covered(samples: Tensor, truth: Tensor) -> Tensor:
    """1 where the truth lies between the 5 % and 95 % quantiles (linear) of the members, else 0.

    Args:
        samples: Members, (N, *E).
        truth: Truth, (*E).

    Returns:
        (*E); NaN for a single member, and where a member or the truth is not finite.

    Source:
        Hyndman & Fan (1996), type 7.
    """
    return _between(samples, truth, [(len(samples) - 1) * p for p in (_LOWER, _UPPER)])


def covered_fair(samples: Tensor, truth: Tensor) -> Tensor:
    """`covered` with quantiles at the 0-based position (N + 1) p - 1: a calibrated ensemble covers 9 times in 10.

    Of N < 19 members these quantiles lie beyond the outermost ones, at an unknown place. A truth beyond all members then
    counts as covered with the share 1 - (N + 1) / 20 of its rank's probability, so that members and truth of one law
    have .90 whatever the law: 1 (N - 1) / (N + 1) + 2 (1 - (N + 1) / 20) / (N + 1). For N >= 19 the interpolation between
    members adds up to .01 for a normal law.

    Source:
        Hyndman & Fan (1996), type 6.

    >>> covered_fair(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([3.0])), 1 - 4 / 20
    (tensor([0.8000]), 0.8)
    """
    inside = _between(samples, truth, [(len(samples) + 1) * p - 1 for p in (_LOWER, _UPPER)])
    return inside.clamp(min=max(0.0, 1 - _LOWER * (len(samples) + 1)))


def gaussian_covered(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """1 where |y - mean| <= 1.6449 s, else 0, (*E) each."""
    return ((mean - truth).abs() <= _NORMAL_QUANTILE * std).to(truth.dtype)


def wasserstein(members: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Wasserstein-1 distance of two weighted samples on the line, exact.

    W1 = ∫ |F(x) - G(x)| dx, F and G the distribution functions of the pooled members and of the truth.

    Args:
        members: Members (N, n) [unit], each with the weight of its cell.
        truth: Truth (n) [unit].
        weights: Weights of the cells (n), non-negative.

    Returns:
        Distance [unit], a scalar; 0 where there is no cell.

    >>> wasserstein(torch.tensor([[1.0, 3.0]]), torch.tensor([0.0, 2.0]), torch.ones(2))
    tensor(1.)
    """
    if truth.numel() == 0:
        return weights.sum()
    mass = weights / weights.sum()
    values = torch.cat([truth[None], members]).flatten()
    masses = torch.cat([mass, (-mass / len(members)).repeat(len(members))])
    # NumPy sorts in less than half the time of torch
    order = torch.from_numpy(np.argsort(values.detach().cpu().numpy())).to(values.device)
    return masses[order].cumsum(0)[:-1].abs() @ values[order].diff()


def gaussian_wasserstein(mean: Tensor, std: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """`wasserstein` with every normal replaced by 32 equally likely values."""
    strata = (torch.arange(_NORMAL_STRATA, dtype=truth.dtype, device=truth.device) + 0.5) / _NORMAL_STRATA
    return wasserstein(mean + std * torch.special.ndtri(strata)[:, None], truth, weights)


def ascending(samples: Tensor) -> Tensor:
    """Members (N, *E) in ascending order at each point, NaN last; those that are so already are not sorted again."""
    if bool((samples[1:] >= samples[:-1]).all()):
        return samples
    if samples.requires_grad or samples.device.type != "cpu":
        return samples.sort(0).values
    return torch.from_numpy(np.sort(samples.numpy(), 0))  # torch also finds the order, in five times the time


def _between(samples: Tensor, truth: Tensor, positions: Sequence[float]) -> Tensor:
    """1 where the truth lies between two order statistics at fractional, 0-based positions; NaN for one member."""
    size = len(samples)
    if size == 1:
        return torch.full_like(truth, torch.nan)
    ordered = ascending(samples)
    bounds = []
    for position in positions:
        position = min(max(position, 0.0), size - 1.0)
        below = min(int(position), size - 2)
        bounds.append(torch.lerp(ordered[below], ordered[below + 1], position - below))
    inside = ((truth >= bounds[0]) & (truth <= bounds[1])).to(truth.dtype)
    # the sum is NaN or infinite where a member is; it costs no memory of the size of the ensemble
    return torch.where(torch.isfinite(samples.sum(0) + truth), inside, torch.nan)


# fmt: off
# One entry a metric; their order is that of metrics.csv and of tables.
RMSE = Metric("rmse", squared_error, torch.sqrt, gaussian=lambda m, s, y: (m - y).square(), key="squared_error",
              label="RMSE", dimensional=True, law="log-normal")
RMSE_INF = Metric("rmse_inf", squared_error_of_infinite, _root, gaussian=lambda m, s, y: (m - y).square(),
                  key="squared_error_of_infinite", label="RMSE of infinitely many members", dimensional=True,
                  scope="fields", law="log-normal")
BIAS = Metric("bias", error, gaussian=lambda m, s, y: m - y, key="error", dimensional=True, better=0.0, scope="fields")
CRPS = Metric("crps", fair_crps, gaussian=gaussian_crps, label="CRPS", dimensional=True, law="log-normal")
SPREAD = Metric("spread", predictive_variance, torch.sqrt, gaussian=lambda m, s, y: s**2, key="predictive_variance",
                dimensional=True, shown="report", law="log-normal")
SPREAD_SKILL = Metric("spread_skill", None, torch.div, of=(SPREAD, RMSE), label="spread / skill", better=1.0,
                      law="log-normal")
COVERAGE90 = Metric("coverage90", covered, gaussian=gaussian_covered, key="covered", better=0.9,
                    label="coverage of the 90 % interval", law="share")
COVERAGE90_FAIR = Metric("coverage90_fair", covered_fair, gaussian=gaussian_covered, key="covered_fair", better=0.9,
                         label="coverage by fair quantiles", scope="fields", law="share")
W1 = Metric("w1", wasserstein, gaussian=gaussian_wasserstein, label="Wasserstein-1", dimensional=True, pooled=True,
            scope="fields", shown="report", law="log-normal")
_OF_TWINS = (  # measured by twin experiments themselves
    Metric("rmse_time_mean", label="time mean of the RMSE", dimensional=True, scope="twin", shown="further",
           law="log-normal"),
    Metric("spread_time_mean", label="time mean of the spread", dimensional=True, scope="twin", shown="further",
           law="log-normal"),
    Metric("divergence_rate", label="diverged replicates", scope="twin", law="rate"),
    Metric("diverged_fraction", label="diverged steps", scope="twin", shown="further", law="share"),
    Metric("recovery", label="steps to the right sign", scope="twin", shown="further", law="log-normal"),
    Metric("recovered_in_2", label="recovered within 2 steps", scope="twin", shown="further", better="higher",
           law="share"),
    Metric("model_calls", label="model calls per step", scope="twin", law="log-normal"),
    Metric("network_calls", label="network calls per step", scope="twin", shown="further", law="log-normal"),
    Metric("cpu_seconds", label="CPU seconds per step", scope="twin", law="log-normal"),
)
_ALL = (RMSE, RMSE_INF, BIAS, CRPS, SPREAD, SPREAD_SKILL, COVERAGE90, COVERAGE90_FAIR, W1, *_OF_TWINS)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
CHANGES: dict[str, str] = {}  # score that each metric of a change is of
# fmt: on


def register(metric: Metric) -> Metric:
    """Add a metric to `METRICS`, so that every table, file and figure has it.

    Args:
        metric: Metric with a new name and key.

    Returns:
        The metric.

    Raises:
        ValueError: If a metric of that name or key exists.
    """
    taken = {each.name for each in METRICS.values()} | {each.key for each in METRICS.values()}
    if {metric.name, metric.key} & taken:
        raise InvalidValueError(
            f"a metric {metric.name!r} (key {metric.key!r}) exists already; choose another name."
        )
    METRICS[metric.name] = metric
    return metric


def named(metric: str | Metric) -> Metric:
    """A metric by its name.

    Raises:
        ValueError: If the name is unknown, with the nearest known one.
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise InvalidValueError(unknown("metric", metric, METRICS))
    return METRICS[metric]


def metrics_of(*scopes: Literal["fields", "twin", "amounts"]) -> list[Metric]:
    """The metrics of some scopes, in order."""
    return [metric for metric in METRICS.values() if metric.scope in ("all", *scopes)]


def shown(names: Iterable[str], *places: str) -> list[str]:
    """Names shown in one of the places, without duplicates; unknown ones are in every report."""
    return [
        name
        for name in dict.fromkeys(names)
        if (METRICS[name].shown if name in METRICS else "report") in places
    ]


def errors_shown(names: Iterable[str]) -> list[Metric]:
    """The metrics to draw bars of: shown on the console, with the unit of the variable, better when lower."""
    chosen = [METRICS[name] for name in shown(names, "console") if name in METRICS]
    return [metric for metric in chosen if metric.parts and metric.better == "lower"]


def register_change(score: Metric) -> Metric:
    """Add the change of a score: that of one method over that of another in the same windows, minus 1.

    Args:
        score: A positive score of one statistic (see `slams.evaluation.Scores.paired_change`).

    Returns:
        The metric, named "SCORE_change".
    """
    label = f"change of the {score.label}"
    change = register(Metric(f"{score.name}_change", label=label, scope="paired", shown="file"))
    CHANGES[change.name] = score.name
    return change


for _score in (RMSE_INF, CRPS):
    register_change(_score)
