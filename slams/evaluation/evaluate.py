"""How well an ensemble knows the truth: a statistic of every point and time, and a function of its mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor


def _as_it_is(mean: Tensor) -> Tensor:
    return mean


@dataclass(frozen=True)
class Metric:
    """A score as the function `finish` of the mean of a statistic.

    Attributes:
        name: What the score is called in tables.
        statistic: Members (N, *truth) and truth to numbers of the shape of the truth.
        finish: Applied to their mean over points and times.
    """

    name: str
    statistic: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor] = _as_it_is


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval over replicates (NaN with fewer than two), and that of each replicate."""

    metric: str
    value: float
    lower: float
    upper: float
    replicates: tuple[float, ...]


def squared_error(samples: Tensor, truth: Tensor) -> Tensor:
    """(mean over members - truth)^2: (N, *E) and (*E) to (*E)."""
    return (samples.mean(0) - truth).square()


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
        truth: y, (*E).

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
    ordered = samples.sort(0).values
    return error - torch.tensordot(turns, ordered, 1) / (size * (size - 1))


def inside90(samples: Tensor, truth: Tensor) -> Tensor:
    """1 where the truth lies between the 5 % and 95 % quantiles (linear) of the members, else 0.

    Args:
        samples: (N, *E).
        truth: (*E).

    Returns:
        (*E); NaN for a single member.
    """
    size = samples.shape[0]
    if size == 1:
        return torch.full_like(truth, torch.nan)
    ordered = samples.sort(0).values
    bounds = []
    for share in (0.05, 0.95):
        place = share * (size - 1)
        below = min(int(place), size - 2)
        bounds.append(torch.lerp(ordered[below], ordered[below + 1], place - below))
    return ((truth >= bounds[0]) & (truth <= bounds[1])).to(truth.dtype)


RMSE = Metric("rmse", squared_error, torch.sqrt)
SPREAD = Metric("spread", predictive_variance, torch.sqrt)
CRPS = Metric("crps", fair_crps)
COVERAGE90 = Metric("coverage90", inside90)


def evaluate(
    samples: Tensor,
    truth: Tensor,
    *,
    metrics: Sequence[Metric] = (RMSE, SPREAD, CRPS, COVERAGE90),
    burn_in: int = 0,
    batch: int = 0,
    weights: Tensor | None = None,
) -> dict[str, Score]:
    """Score an ensemble of trajectories against the truth.

    Args:
        samples: Members, (*B, N, L, *S).
        truth: (*B, L, *S).
        metrics: What to compute.
        burn_in: Steps left out at the beginning.
        batch: Number of axes *B of replicates.
        weights: Of the points (areas), broadcasting to *S; equal if None.

    Returns:
        Scores by name, each the mean of those of the replicates.

    Raises:
        ValueError: If shapes disagree, the truth is not finite, or the burn-in leaves nothing.

    >>> members = torch.tensor([[[0.0], [0.0]], [[2.0], [2.0]]])
    >>> evaluate(members, torch.zeros(2, 1), metrics=[RMSE])["rmse"].value
    1.0
    """
    _check(samples, truth, burn_in, batch)
    # replicates first for the truth, members before them for the samples
    given = samples.movedim(batch, 0).flatten(1, batch) if batch else samples.unsqueeze(1)
    y = truth.flatten(0, batch - 1) if batch else truth.unsqueeze(0)
    given, y = given[:, :, burn_in:], y[:, burn_in:]
    share = torch.ones_like(y[0, 0]) if weights is None else weights.to(y).expand(y.shape[2:])
    share = share / share.sum()
    scores = {}
    for metric in metrics:
        values = metric.statistic(given, y)
        mean = (values * share).flatten(2).sum(-1).mean(1)
        each = metric.finish(mean).tolist()
        scores[metric.name] = Score(metric.name, *mean_interval(each), tuple(each))
    return scores


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % interval by Student's t; NaN bounds for fewer than two.

    >>> mean_interval([1.0])
    (1.0, nan, nan)
    """
    x = torch.tensor(list(values), dtype=torch.float64)
    count, mean = len(x), float(x.mean())
    if count < 2:
        return mean, float("nan"), float("nan")
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * float(x.std()) / count**0.5
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and an interval of order statistics of at least 95 %; NaN bounds for fewer than six values."""
    x = sorted(values)
    count = len(x)
    median = float(torch.tensor(x, dtype=torch.float64).quantile(0.5))
    below = int(scipy.stats.binom.ppf(0.025, count, 0.5))
    if count < 6 or below < 1:
        return median, float("nan"), float("nan")
    return median, x[below - 1], x[count - below]


def share_interval(hits: int, count: int) -> tuple[float, float, float]:
    """A share and its exact 95 % interval.

    Source:
        Clopper & Pearson (1934), doi:10.1093/biomet/26.4.404.

    >>> [round(x, 3) for x in share_interval(0, 16)]
    [0.0, 0.0, 0.206]
    """
    beta = scipy.stats.beta.ppf
    low = 0.0 if hits == 0 else float(beta(0.025, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta(0.975, hits + 1, count - hits))
    return hits / count, low, high


def _check(samples: Tensor, truth: Tensor, burn_in: int, batch: int) -> None:
    shape = (*samples.shape[:batch], *samples.shape[batch + 1 :])
    if samples.dim() != truth.dim() + 1 or shape != tuple(truth.shape):
        raise ValueError(
            f"members of shape {tuple(samples.shape)} do not fit a truth of shape {tuple(truth.shape)}: "
            f"expected the members' axis after {batch} axes of replicates, then those of the truth; "
            "say with `batch` how many there are."
        )
    if not bool(torch.isfinite(truth).all()):
        raise ValueError("the truth is not finite everywhere; leave out what is not known.")
    if not 0 <= burn_in < truth.shape[batch]:
        raise ValueError(f"a burn-in of {burn_in} leaves nothing of {truth.shape[batch]} steps; shorten it.")
