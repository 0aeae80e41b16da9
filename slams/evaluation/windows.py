"""Statistics of one window that add up over windows, and flatness of rank histograms.

Everything returned by `window_statistics` and `gaussian_window_statistics` is a weighted sum over the cells of one
window, so sums over windows are the statistics of the whole test set; `slams.evaluation.scores` turns them into RMSE,
CRPS and the rest, with intervals.
"""

from collections.abc import Callable

import scipy.stats
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.evaluation.metrics import ascending, metrics_of

Statistics = dict[str, Tensor]

PIT_BINS = 20


def window_statistics(
    samples: Tensor, truth: Tensor, weights: Tensor, part: Tensor | None = None, *, channel_axis: int = 0
) -> Statistics:
    """Weighted sums, per channel, of the statistics of an ensemble that every metric of fields is made from.

    With weights w and the statistic s of a metric they are Σ w s over the scored cells of one window, under the key
    of the metric (of a pooled one Σ w times the statistic of all cells), besides "weight", Σ w, and "ranks", the
    weight at each rank of the truth (ties shared evenly). A cell is scored where its weight is positive, `part` is
    true, and neither the truth nor all of the members are NaN.

    Args:
        samples: Ensemble (N, L, *E) [unit]; N = 1 is a deterministic forecast, whose variance and coverage are
            NaN.
        truth: True values (L, *E) [unit], NaN where not scored.
        weights: Weights of the cells (areas), non-negative, broadcastable to the event shape *E.
        part: Cells to score, bool, broadcastable to (L, *E); everywhere if None.
        channel_axis: The axis of *E that becomes the axis of the result.

    Returns:
        Key to sums of shape (C,), float64; `ranks` is (C, N + 1).

    Raises:
        ValueError: If shapes disagree, weights are negative, or a scored cell has some members missing.

    >>> cell = torch.tensor([[1.0]])
    >>> window_statistics(torch.stack([cell, cell + 2]), cell, torch.ones(1))["crps"]
    tensor([0.], dtype=torch.float64)
    """
    if samples.dim() != truth.dim() + 1 or samples.shape[1:] != truth.shape:
        raise InvalidValueError(
            f"samples {tuple(samples.shape)} must be (N, *truth), but the truth is {tuple(truth.shape)}; "
            "put the members first."
        )
    if samples.shape[0] == 0:
        raise InvalidValueError("samples have no members; give at least one.")
    missing = torch.isnan(samples).any(0)
    every = torch.isnan(samples).all(0)
    scored, weight = _scored(truth, weights, part)
    scored = scored & ~every
    if bool((missing & scored).any()):
        raise InvalidValueError(
            f"{int((missing & scored).sum())} scored cells have some, not all, members missing; a diverged "
            "member must not be dropped silently: repair the ensemble, or exclude these cells with `part`."
        )

    def sums(forecast: tuple[Tensor, ...], y: Tensor, w: Tensor) -> Statistics:
        ordered = ascending(forecast[0])
        return _sums("statistic", (ordered,), y, w) | {"ranks": _ensemble_ranks(ordered, y, w)}

    return _by_channel(sums, (samples,), truth, weight, scored, channel_axis)


def gaussian_window_statistics(
    mean: Tensor,
    std: Tensor,
    truth: Tensor,
    weights: Tensor,
    part: Tensor | None = None,
    *,
    channel_axis: int = 0,
) -> Statistics:
    """The sums of `window_statistics` for a normal predictive distribution, from the metrics' Gaussian forms.

    The variance is that of the predictive distribution. "ranks" counts Φ((y - mean) / std) in 20 bins. Metrics
    without a Gaussian form are left out.

    Args:
        mean: Predictive mean (L, *E) [unit].
        std: Predictive standard deviation (L, *E) [unit], non-negative; 0 is a certain value.
        truth: True values (L, *E) [unit], NaN where not scored.
        weights: Weights of the cells, non-negative, broadcastable to *E.
        part: Cells to score, bool, broadcastable to (L, *E); everywhere if None.
        channel_axis: The axis of *E that becomes the axis of the result.

    Returns:
        Key to sums of shape (C,), float64; `ranks` is (C, 20).

    Raises:
        ValueError: If shapes disagree, or weights or standard deviations are negative.
    """
    if mean.shape != truth.shape or std.shape != truth.shape:
        raise InvalidValueError(
            f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must have the shape of the truth, "
            f"{tuple(truth.shape)}; expand them first."
        )
    scored, weight = _scored(truth, weights, part)
    scored = scored & ~torch.isnan(mean) & ~torch.isnan(std)
    if bool((std[scored] < 0).any()):
        raise InvalidValueError(
            "std has negative entries where it is scored; pass standard deviations, not residuals."
        )

    def sums(forecast: tuple[Tensor, ...], y: Tensor, w: Tensor) -> Statistics:
        ranks = _gaussian_ranks(forecast[0], forecast[1], y, w)
        return _sums("gaussian", forecast, y, w) | {"ranks": ranks}

    return _by_channel(sums, (mean, std), truth, weight, scored, channel_axis)


def _sums(form: str, forecast: tuple[Tensor, ...], y: Tensor, w: Tensor) -> Statistics:
    """Σ w s of one channel for every metric that has this form, from forecast (..., n), truth and weights (n)."""
    found = {"weight": w.sum()}
    for metric in metrics_of("fields"):
        statistic = getattr(metric, form)
        if statistic is not None:
            if metric.pooled:
                found[metric.key] = w.sum() * statistic(*forecast, y, w)
            else:
                found[metric.key] = w @ statistic(*forecast, y).to(w)
    return found


def _scored(truth: Tensor, weights: Tensor, part: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mask and weights of the scored cells, both of the shape of the truth."""
    try:
        weight = torch.broadcast_to(weights.to(truth.device), truth.shape)
        part = (
            torch.ones_like(truth, dtype=torch.bool)
            if part is None
            else torch.broadcast_to(part, truth.shape)
        )
    except RuntimeError as error:
        raise InvalidValueError(
            f"weights and part must broadcast to the truth, {tuple(truth.shape)}: {error}"
        ) from error
    if part.dtype != torch.bool:
        raise InvalidValueError(
            f"part must be bool, got {part.dtype}; compare the mask with something first."
        )
    if bool((weight < 0).any()):
        raise InvalidValueError(
            "weights have negative entries; areas are non-negative (cos of a latitude in degrees?)."
        )
    return part.to(truth.device) & ~torch.isnan(truth) & (weight > 0), weight


def _by_channel(
    sums: Callable[[tuple[Tensor, ...], Tensor, Tensor], Statistics],
    forecasts: tuple[Tensor, ...],
    truth: Tensor,
    weight: Tensor,
    scored: Tensor,
    channel_axis: int,
) -> Statistics:
    """Apply `sums` to the scored cells of each channel, in float64 so that windows add exactly."""
    axis = channel_axis - truth.dim() + 1 if channel_axis >= 0 else channel_axis
    if not 1 - truth.dim() <= axis < 0:
        raise InvalidValueError(
            f"channel_axis {channel_axis} is not an axis of the event shape {tuple(truth.shape[1:])}."
        )
    columns = []
    for c in range(truth.shape[axis]):
        selected = scored.select(axis, c)
        cells = tuple(f.select(axis, c)[..., selected].double() for f in forecasts)
        columns.append(
            sums(cells, truth.select(axis, c)[selected].double(), weight.select(axis, c)[selected].double())
        )
    return {name: torch.stack([column[name] for column in columns]) for name in columns[0]}


def _ensemble_ranks(ordered: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Weight at each rank of the truth among ascending members (N, n), (N + 1); ties share their ranks evenly."""
    below, equal = (ordered < truth).sum(0), (ordered == truth).sum(0)
    # each of the `equal + 1` possible ranks gets its share: a ramp of differences, summed up afterwards
    steps = torch.zeros(len(ordered) + 2, dtype=weights.dtype, device=weights.device)
    share = weights / (equal + 1)
    steps.index_add_(0, below, share).index_add_(0, below + equal + 1, -share)
    return steps.cumsum(0)[:-1].clamp(min=0)


def _gaussian_ranks(mean: Tensor, std: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Weight of the truth's probability Φ((truth - mean) / std) in each of 20 equal bins, (20)."""
    probability = torch.special.ndtr((truth - mean) / std.clamp(min=torch.finfo(std.dtype).tiny))
    bins = (probability * PIT_BINS).long().clamp(max=PIT_BINS - 1)
    return torch.zeros(PIT_BINS, dtype=weights.dtype, device=weights.device).index_add_(0, bins, weights)


def effective_count(ranks: Tensor) -> float:
    """Effective number of independent truths of a rank histogram, from its variance between windows.

    With n windows of weight w_i, p the pooled shares of the ranks and r_i the rank's sums in window i,

        n_eff = Σ_r p_r (1 - p_r) / Σ_r V_r,   V_r = n / (n - 1) Σ_i (r_ir - w_i p_r)² / (Σ_i w_i)²,

    the size of a sample of independent truths whose shares would vary as much as these do. Cells of one field, and
    days of one window, share their errors, so that it is far below their number.

    Args:
        ranks: Weight at each rank in each window (n, R); windows far enough apart to be independent.

    Returns:
        n_eff; n for a single window or equal histograms in all windows.

    Raises:
        ValueError: If the shape is another or there is no weight.

    Source:
        Rao & Scott (1981), doi:10.1080/01621459.1981.10477633, the mean design effect; the variance of a ratio between
        clusters after Cochran (1977), Sampling techniques, eq. 9.30.

    >>> effective_count(torch.eye(4).repeat(5, 1))  # every window is one truth
    19.0
    """
    if ranks.dim() != 2 or float(ranks.sum()) <= 0:
        raise InvalidValueError(f"ranks must be (windows, R) with some weight; got {tuple(ranks.shape)}.")
    ranks = ranks.double()
    weight = ranks.sum(1, keepdim=True)
    ranks, weight = ranks[weight[:, 0] > 0], weight[weight[:, 0] > 0]
    count, share = len(ranks), ranks.sum(0) / weight.sum()
    variance = (ranks - weight * share).square().sum() / weight.sum() ** 2 * count / max(count - 1, 1)
    return (
        float((share * (1 - share)).sum() / variance) if count > 1 and float(variance) > 0 else float(count)
    )


def rank_flatness(counts: Tensor, independent: float | None = None) -> tuple[float, float]:
    """Chi-square statistic of a rank histogram against a flat one, and its p-value.

    χ² = Σ_r (c_r - e)² / e with e the mean count; under calibration it has as many degrees of freedom as
    members.

    Args:
        counts: Counts or weights per rank (R).
        independent: Number of independent truths behind the counts; cells of one field are not independent,
            so their number overstates the evidence (see `effective_count`). The sum of the counts if None.

    Returns:
        χ² and its p-value.

    Raises:
        ValueError: If there are fewer than two ranks or no counts.

    Source:
        Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.

    >>> rank_flatness(torch.tensor([5.0, 5.0]))
    (0.0, 1.0)
    """
    if counts.dim() != 1 or len(counts) < 2 or float(counts.sum()) <= 0:
        raise InvalidValueError(f"counts must be (R), R >= 2, and not all zero; got {counts}.")
    observed = counts.double() * ((independent or float(counts.sum())) / float(counts.sum()))
    expected = observed.mean()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic, float(scipy.stats.chi2.sf(statistic, len(counts) - 1))
