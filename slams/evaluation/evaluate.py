"""Scores of an ensemble of trajectories, or of its moments, against the truth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slams.core.errors import InvalidTypeError, InvalidValueError, warn_diverged
from slams.evaluation.metrics import Metric, metrics_of, named
from slams.evaluation.tables import as_text, text


class Forecast(Protocol):
    """Protocol of a posterior for `evaluate`: members, or mean and variance where members were not kept."""

    samples: Tensor | None
    mean: Tensor | None
    variance: Tensor | None


@dataclass(frozen=True)
class MetricResult:
    """A score with its 95 % interval over replicates (NaN with fewer than two), and that of each replicate."""

    metric: str
    value: float
    lower: float
    upper: float
    replicates: tuple[float, ...]

    def __float__(self) -> float:
        """The score."""
        return self.value


class ScoreTable(Mapping[str, MetricResult]):
    """Scores by name, in a table that prints itself.

    Args:
        results: Results by name of the metric.
    """

    def __init__(self, results: Mapping[str, MetricResult]) -> None:
        self._results = dict(results)

    def __getitem__(self, name: str) -> MetricResult:
        """A score by its name; a `KeyError` lists those of the table."""
        if name not in self._results:
            raise KeyError(f"no {name!r} in this table; it has {', '.join(self._results)}.")
        return self._results[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the metrics."""
        return iter(self._results)

    def __len__(self) -> int:
        """Number of metrics."""
        return len(self._results)

    def rows(self) -> list[dict[str, str]]:
        """A row of text for each metric; the interval only where there are several replicates."""
        several = any(len(each.replicates) > 1 for each in self.values())
        return [
            {"metric": name, "mean" if several else "value": text(each.value)}
            | ({"95 % interval": f"[{text(each.lower)}, {text(each.upper)}]"} if several else {})
            for name, each in self.items()
        ]

    def __str__(self) -> str:
        """The table as text."""
        return as_text(self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return str(self.to_dataframe()._repr_html_())

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame`: a line for each metric; value, bounds of the interval, number of replicates."""
        import pandas as pd

        lines = [(each.value, each.lower, each.upper, len(each.replicates)) for each in self.values()]
        index = pd.Index(list(self), name="metric")
        return pd.DataFrame(lines, index=index, columns=["value", "lower", "upper", "replicates"])


def evaluate(
    posterior: Forecast | Tensor,
    truth: Tensor,
    *,
    metrics: Sequence[Metric | str] | None = None,
    burn_in: int = 0,
    batch: int | None = None,
    weights: Tensor | None = None,
) -> ScoreTable:
    """Score an ensemble of trajectories against the truth.

    A posterior without members is scored by its mean and variance as a normal distribution; metrics that have no
    Gaussian form are then left out. A posterior that had diverged, by the criterion of the tables of `bench`, is a
    `DivergenceWarning` with the step.

    Args:
        posterior: Posterior of `assimilate`, or its members (*B, N, L, *S).
        truth: Truth, (*B, L, *S).
        metrics: Metrics or their names; all of `METRICS` that twin experiments have, if None.
        burn_in: Number of unscored steps at the beginning.
        batch: Number of axes *B of replicates; inferred from a posterior if None, 0 for members.
        weights: Weights of the points (areas), broadcasting to *S; equal if None.

    Returns:
        Scores by name, each the mean of those of the replicates.

    Raises:
        ValueError: If shapes disagree, the truth is not finite, the burn-in covers all steps, nothing was kept of the
            posterior, or a metric's name is unknown.
        TypeError: If `posterior` is neither a tensor nor has samples or mean.

    >>> members = torch.tensor([[[0.0], [0.0]], [[2.0], [2.0]]])
    >>> evaluate(members, torch.zeros(2, 1), metrics=["rmse"])["rmse"].value
    1.0
    """
    samples, moments = _kept(posterior)
    batch = _replicate_axes(posterior, samples, truth) if batch is None else batch
    _check(samples, moments, truth, burn_in, batch)
    y = _flat(truth, batch)[:, burn_in:]
    share = torch.ones_like(y[0, 0]) if weights is None else weights.to(y).expand(y.shape[2:])
    share = share / share.sum()
    forecast: tuple[Tensor, ...]
    if samples is not None:  # members before the replicates
        x = samples.movedim(batch, 0).flatten(1, batch) if batch else samples.unsqueeze(1)
        form, forecast = "statistic", (x[:, :, burn_in:],)
    else:
        mean, variance = (_flat(each, batch)[:, burn_in:] for each in moments)
        form, forecast = "gaussian", (mean, variance.sqrt())
    lost = ~torch.isfinite(forecast[0])
    lost = lost.any(0) if samples is not None else lost
    _warn(posterior, lost.reshape(*y.shape[:2], -1).any(-1), burn_in)
    results = {}
    for metric in metrics_of("twin") if metrics is None else map(named, metrics):
        if metric.parts and all(getattr(part, form) for part in metric.parts):
            each = metric.value({p.key: _mean(p, form, forecast, y, share) for p in metric.parts}).tolist()
            results[metric.name] = MetricResult(metric.name, *metric.interval(each), tuple(each))
        elif metrics is not None:
            known = "members" if samples is not None else "mean and variance"
            raise InvalidValueError(
                f"{metric.name} can't be computed from {known} and the truth; leave it out"
                + ("." if samples is not None else ', or assimilate with keep="members".')
            )
    return ScoreTable(results)


def _kept(posterior: Forecast | Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """The members of a posterior, or None and its mean and variance (NaN if unknown)."""
    if isinstance(posterior, Tensor):
        return posterior, ()
    samples: Tensor | None = getattr(posterior, "samples", None)
    mean: Tensor | None = getattr(posterior, "mean", None)
    if not (hasattr(posterior, "samples") or isinstance(mean, Tensor)):
        raise InvalidTypeError(
            f"evaluate takes a posterior or its members (*B, N, L, *S) as a tensor, got {type(posterior).__name__}."
        )
    if samples is not None:
        return samples, ()
    if mean is None:
        raise InvalidValueError(
            'the posterior kept neither members nor moments; assimilate with keep="members" or keep="moments".'
        )
    variance = getattr(posterior, "variance", None)
    return None, (mean, torch.full_like(mean, math.nan) if variance is None else variance)


def _replicate_axes(posterior: Forecast | Tensor, samples: Tensor | None, truth: Tensor) -> int:
    """Number of axes *B, from the diagnostics (*B, L) of a posterior, else from the shapes of its members."""
    if isinstance(posterior, Tensor):
        return 0
    diagnostics = getattr(posterior, "diagnostics", {})
    if diagnostics:
        return next(iter(diagnostics.values())).ndim - 1
    if samples is None:
        return 0
    fits = [b for b in range(truth.ndim) if (*samples.shape[:b], *samples.shape[b + 1 :]) == truth.shape]
    if len(fits) > 1:
        raise InvalidValueError(
            f"which axis of {tuple(samples.shape)} holds the members is ambiguous; pass `batch`, the number of axes "
            "of replicates before it."
        )
    return fits[0] if fits else 0


def _warn(posterior: Forecast | Tensor, lost: Tensor, burn_in: int) -> None:
    """Warns if the posterior had diverged, by its diagnostics or where it is not finite, (B, L - burn_in)."""
    labels = getattr(posterior, "labels", None)
    if not getattr(labels, "follows", True):
        return
    flags = torch.nn.functional.pad(lost.double(), (burn_in, 0))
    diverged: Tensor | None = getattr(posterior, "diagnostics", {}).get("diverged")
    if diverged is not None and diverged.numel() == flags.numel():
        flags = torch.where(flags > 0, flags, diverged.reshape(flags.shape).to(flags))
    warn_diverged(flags, getattr(labels, "method", "") or "the posterior", first=burn_in, stacklevel=3)


def _flat(x: Tensor, batch: int) -> Tensor:
    """One axis of replicates: (*B, L, *S) to (B, L, *S)."""
    return x.flatten(0, batch - 1) if batch else x.unsqueeze(0)


def _mean(metric: Metric, form: str, forecast: tuple[Tensor, ...], y: Tensor, share: Tensor) -> Tensor:
    """Mean of a statistic over steps and weighted points, (B), from forecast (..., B, L, *S) and truth (B, L, *S)."""
    statistic = getattr(metric, form)
    if not metric.pooled:
        values: Tensor = statistic(*forecast, y)
        return (values if values.ndim == 2 else (values * share).flatten(2).sum(-1)).mean(1)
    weights = share.expand(y.shape[1:]).flatten()
    lead = y.ndim
    return torch.stack(
        [
            statistic(
                *(x.select(x.ndim - lead, r).flatten(1 - lead) for x in forecast), y[r].flatten(), weights
            )
            for r in range(len(y))
        ]
    )


def _check(
    samples: Tensor | None, moments: tuple[Tensor, ...], truth: Tensor, burn_in: int, batch: int
) -> None:
    if samples is not None and (*samples.shape[:batch], *samples.shape[batch + 1 :]) != tuple(truth.shape):
        raise InvalidValueError(
            f"members of shape {tuple(samples.shape)} do not fit a truth of shape {tuple(truth.shape)}: "
            f"expected the members' axis after {batch} axes of replicates, then those of the truth; "
            "pass the number of axes of replicates as `batch`."
        )
    if any(each.shape != truth.shape for each in moments):
        raise InvalidValueError(
            f"moments of shape {tuple(moments[0].shape)} do not fit a truth of shape {tuple(truth.shape)}."
        )
    if not bool(torch.isfinite(truth).all()):
        raise InvalidValueError("the truth is not finite everywhere; leave out what is not known.")
    if not 0 <= burn_in < truth.shape[batch]:
        raise InvalidValueError(
            f"a burn-in of {burn_in} leaves nothing of {truth.shape[batch]} steps; shorten it."
        )
