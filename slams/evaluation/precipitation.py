"""Scores of amounts such as rain, which are often zero and never less: thresholds, neighbourhoods, variograms.

They are metrics of the scope "amounts": `amount_statistics` gives their sums, beside those of `window_statistics`, for
fields in the unit of their files. Neighbourhoods hold the scored cells only, weighted by area.
"""

from collections.abc import Callable
from dataclasses import dataclass

import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from slams.evaluation.metrics import Metric, fair_crps, register, register_change
from slams.evaluation.windows import Statistics

NEIGHBOURHOOD = 3  # cells along a side of the neighbourhoods of `fss1`
_STEPS = (
    (0, 1),
    (1, 0),
    (1, 1),
    (1, -1),
    (0, 3),
    (3, 0),
)  # rows and columns between the pairs of a variogram
_ORDER = 0.5  # of the variogram score
TROPICS = 20.0  # degrees of latitude to either side of the equator, of `crps_tropics`
THRESHOLDS = (1.0, 5.0)  # of the reliability, in the unit of the files
PROBABILITIES = 11  # bins of the reliability, centred on 0, 0.1, …, 1


@dataclass(frozen=True)
class Cells:
    """Weights of the scored cells of fields, and their neighbourhoods.

    Attributes:
        weight: Weights, 0 where a cell is not scored, (*B, H, W).
        periodic: Whether the columns close a circle.
    """

    weight: Tensor
    periodic: bool

    def mean(self, x: Tensor, size: int) -> Tensor:
        """Weighted mean of x (*A, *B, H, W) over the scored cells of the square of `size` cells around each cell."""
        x = torch.where(self.weight > 0, x, 0.0)
        return self._total(x * self.weight, size) / self._total(self.weight, size).clamp(min=1e-30)

    def moved(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x at the cell some rows below and columns to the right, (*A, H, W); NaN beyond an edge."""
        rolled = x.roll((-rows, -columns), (-2, -1)).clone()
        if rows:
            rolled[..., -rows:, :] = torch.nan
        if columns > 0 and not self.periodic:
            rolled[..., -columns:] = torch.nan
        if columns < 0 and not self.periodic:
            rolled[..., :-columns] = torch.nan
        return rolled

    def _total(self, x: Tensor, size: int) -> Tensor:
        half, flat = size // 2, x.reshape(-1, 1, *x.shape[-2:])
        around = min(half, x.shape[-1]) if self.periodic else 0
        wide = F.pad(flat, (around, around, 0, 0), mode="circular") if around else flat
        wide = F.pad(wide, (half - around, half - around, half, half))
        return (F.avg_pool2d(wide, size, 1) * size**2).reshape(x.shape)


def exceedance(samples: Tensor, threshold: float) -> Tensor:
    """Share of the members (N, *E) above a threshold, (*E)."""
    return (samples > threshold).to(samples.dtype).mean(0)


def brier(samples: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """(p - o)^2, p the share of the members above a threshold and o = 1 where the truth is: (N, *E), (*E) to (*E).

    Source:
        Brier (1950), doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.

    >>> brier(torch.tensor([0.0, 2.0]), torch.tensor(3.0), 1.0)
    tensor(0.2500)
    """
    return (exceedance(samples, threshold) - (truth > threshold).to(samples.dtype)).square()


def crps_of_logarithm(samples: Tensor, truth: Tensor) -> Tensor:
    """Fair CRPS of log(1 + x): (N, *E) and (*E), non-negative, to (*E)."""
    return fair_crps(samples.clamp(min=0).log1p(), truth.clamp(min=0).log1p())


def crps_of_means(samples: Tensor, truth: Tensor, cells: Cells, size: int) -> Tensor:
    """Fair CRPS of the mean over the square of `size` cells around each cell, (N, *E) and (*E) to (*E)."""
    return fair_crps(cells.mean(samples, size), cells.mean(truth, size))


def crps_of_belt(samples: Tensor, truth: Tensor, cells: Tensor) -> Tensor:
    """Fair CRPS of each day's mean over a belt of cells, at every cell: (N, L, C, ...) and (L, C, ...) to (L, C, ...).

    Args:
        samples: Members.
        truth: Truth.
        cells: Weights of the scored cells of the belt, 0 elsewhere, (L, C, ...).
    """
    total = cells.flatten(2).sum(-1).clamp(min=1e-30)
    means = ((x * cells).flatten(x.ndim - truth.ndim + 2).sum(-1) / total for x in (samples, truth))
    each = fair_crps(*means)
    return each.reshape(*each.shape, *[1] * (truth.ndim - 2)).expand_as(truth)


def reliability(samples: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Forecast probabilities of thresholds 1 and 5 in 11 bins, with what followed, (C, 2, 11, 3).

    In each bin: the weight of its cells, and its products with the forecast probability (the share of the members above
    the threshold) and with the event. A diagram has the third over the first against the second over the first.

    Args:
        samples: Members (N, L, C, ...).
        truth: Truth (L, C, ...).
        weight: Weights of the scored cells, 0 elsewhere, (L, C, ...).
    """
    channels = truth.shape[1]
    found = torch.zeros(channels, len(THRESHOLDS), PROBABILITIES, 3, dtype=torch.float64)
    for k, threshold in enumerate(THRESHOLDS):
        p, event = exceedance(samples, threshold), (truth > threshold).to(samples.dtype)
        each = torch.stack([weight, weight * p, weight * event], -1).double().transpose(0, 1)
        bins = (p * (PROBABILITIES - 1)).round().long().transpose(0, 1)
        for c in range(channels):
            found[c, k].index_add_(0, bins[c].flatten(), each[c].flatten(0, -2))
    return found


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation along the last axis, equal values sharing their mean rank: (*B, n) and (*B, n) to (*B).

    >>> rank_correlation(torch.tensor([0.0, 0.0, 3.0]), torch.tensor([-1.0, -1.0, 2.0]))
    tensor(1., dtype=torch.float64)
    """
    ranks = (torch.from_numpy(scipy.stats.rankdata(v.numpy(), axis=-1)).double() for v in (x, y))
    first, second = (v - v.mean(-1, keepdim=True) for v in ranks)
    size = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    return (first * second).sum(-1) / size


def joint_statistics(
    samples: Tensor, others: Tensor, truth: Tensor, other: Tensor, part: Tensor | None = None
) -> Statistics:
    """Rank correlation of an amount with another variable in members and truth, as statistics of one window.

    It is taken over all scored cells and days of the window; the members' is their mean.

    Args:
        samples: Members of the amount, (N, *E).
        others: Members of the other variable, (N, *E).
        truth: True amount, (*E), NaN where not scored.
        other: True other variable, (*E), NaN where not scored.
        part: Cells to score, (*E); all if None.
    """
    scored = torch.isfinite(truth) & torch.isfinite(other) & torch.isfinite(samples).all(0)
    scored &= torch.isfinite(others).all(0)
    scored = scored if part is None else scored & part
    members = rank_correlation(samples[:, scored], others[:, scored]).mean()
    own = rank_correlation(truth[scored], other[scored])
    known = torch.isfinite(members) & torch.isfinite(own)  # a window without rain has none
    return {
        "weight": known.double()[None],
        "ranks": torch.zeros(1, len(samples) + 1, dtype=torch.float64),
        "rank_correlation": members.nan_to_num()[None] * known,
        "rank_correlation_truth": own.nan_to_num()[None] * known,
    }


def fractions_error(samples: Tensor, truth: Tensor, cells: Cells) -> Tensor:
    """(f - o)^2, f and o the shares of a neighbourhood where members and truth exceed 1: to (*E)."""
    return (_fraction(samples, cells) - _fraction(truth[None], cells)).square()


def fractions_reference(samples: Tensor, truth: Tensor, cells: Cells) -> Tensor:
    """f^2 + o^2 of `fractions_error`."""
    return _fraction(samples, cells).square() + _fraction(truth[None], cells).square()


def variogram(samples: Tensor, truth: Tensor, cells: Cells) -> Tensor:
    """Mean over pairs of (|y_i - y_j|^p - mean |x_i - x_j|^p)^2 with p = 1/2: (N, *E) and (*E) to (*E).

    Cell j lies one or three cells to the east or south of i, or one to the south-east or south-west. A cell without a
    scored partner has 0.

    Source:
        Scheuerer & Hamill (2015), doi:10.1175/MWR-D-14-00269.1, eq. 7.
    """
    total, count = torch.zeros_like(truth), torch.zeros_like(truth)
    for step in _STEPS:
        both = (cells.weight > 0) & (cells.moved(cells.weight, *step) > 0)
        differences = (x - cells.moved(x, *step) for x in (truth, samples))
        own, members = (d.abs().pow(_ORDER) for d in differences)
        total += torch.where(both, (own - members.mean(0)).square(), 0.0)
        count += both
    return total / count.clamp(min=1)


def _fraction(samples: Tensor, cells: Cells) -> Tensor:
    return cells.mean(exceedance(samples, 1.0), NEIGHBOURHOOD)


# fmt: off
CRPS_LOG1P = register(Metric("crps_log1p", crps_of_logarithm, label="CRPS of log(1 + x)", scope="amounts",
                             law="log-normal"))
BRIER1 = register(Metric("brier1", lambda x, y: brier(x, y, 1.0), label="Brier score above 1", scope="amounts",
                         law="log-normal"))
BRIER5 = register(Metric("brier5", lambda x, y: brier(x, y, 5.0), label="Brier score above 5", scope="amounts",
                         law="log-normal"))
_FRACTIONS = (Metric("fractions_error", fractions_error), Metric("fractions_reference", fractions_reference))
FSS1 = register(Metric("fss1", None, lambda error, reference: 1 - error / reference, of=_FRACTIONS, better="higher",
                       label="fractions skill score above 1, 3 x 3 cells", scope="amounts", shown="report",
                       law="log-normal"))
CRPS_3X3 = register(Metric("crps_3x3", lambda x, y, cells: crps_of_means(x, y, cells, 3), dimensional=True,
                           label="CRPS of means of 3 x 3 cells", scope="amounts", shown="report", law="log-normal"))
CRPS_9X9 = register(Metric("crps_9x9", lambda x, y, cells: crps_of_means(x, y, cells, 9), dimensional=True,
                           label="CRPS of means of 9 x 9 cells", scope="amounts", shown="report", law="log-normal"))
VARIOGRAM = register(Metric("variogram", variogram, label="variogram score", scope="amounts", shown="report",
                            law="log-normal"))
CRPS_TROPICS = register(Metric("crps_tropics", crps_of_belt, dimensional=True, shown="report", scope="amounts",
                               label="CRPS of the mean within 20 degrees of the equator", law="log-normal"))
# defined by `joint_statistics` of pairs of variables
_CORRELATIONS = tuple(
    register(Metric(name, lambda x, y: x, label=label, better="higher", scope="amounts", shown="file"))
    for name, label in (("rank_correlation", "rank correlation"), ("rank_correlation_truth", "that of the truth")))
RANK_CORRELATION_ERROR = register(Metric("rank_correlation_error", None, lambda x, y: x - y, of=_CORRELATIONS, better=0.0,
                                         label="rank correlation less that of the truth", scope="amounts", shown="file"))
# fmt: on
for _score in (CRPS_LOG1P, BRIER1, BRIER5, CRPS_3X3, CRPS_9X9, CRPS_TROPICS, VARIOGRAM):
    register_change(_score)
_OF_POINTS: tuple[Metric, ...] = (CRPS_LOG1P, BRIER1, BRIER5)
_OF_FIELDS: tuple[Metric, ...] = (*_FRACTIONS, CRPS_3X3, CRPS_9X9, VARIOGRAM)


def amount_statistics(
    samples: Tensor,
    truth: Tensor,
    weights: Tensor,
    part: Tensor | None = None,
    *,
    periodic: bool = False,
    latitude: Tensor | None = None,
) -> Statistics:
    """Weighted sums of the statistics of amounts, beside those of `window_statistics` for the same cells.

    Args:
        samples: Ensemble (N, L, C, H, W) on a grid or (N, L, C, P) at points [unit of the files].
        truth: True values (L, C, ...), NaN where not scored.
        weights: Weights of the cells, (H, W) or (P).
        part: Cells to score, bool, broadcastable to (L, C, ...); everywhere if None.
        periodic: Whether the columns of the grid close a circle.
        latitude: Latitude of the cells [degrees], broadcastable to the weights; no belt is scored if None.

    Returns:
        Key to sums (C), float64; at points without those of neighbourhoods, where no cell lies in the tropics without
        "crps_tropics". "reliability" is (C, 2, 11, 3), see `reliability`.
    """
    weight = weights.expand_as(truth)
    scored = ~torch.isnan(truth) & ~torch.isnan(samples).any(0)
    weight = torch.where(scored if part is None else scored & part, weight, 0.0)
    samples, truth = torch.nan_to_num(samples), torch.nan_to_num(truth)
    found: Statistics = {}

    def add(metric: Metric, *context: Cells | Tensor) -> None:
        statistic: Callable[..., Tensor] | None = metric.statistic
        assert statistic is not None
        each = weight.double() * statistic(samples, truth, *context)
        found[metric.key] = each.sum(0).flatten(1).sum(1)

    for metric in _OF_POINTS:
        add(metric)
    if truth.ndim == 4:
        cells = Cells(weight, periodic)
        for metric in _OF_FIELDS:
            add(metric, cells)
    if latitude is not None and bool((latitude.abs() <= TROPICS).any()):
        add(CRPS_TROPICS, weight * (latitude.abs() <= TROPICS))
    found["reliability"] = reliability(samples, truth, weight)
    return found
