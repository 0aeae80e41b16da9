"""Statistics of one window that add up over windows, power spectra, and flatness of rank histograms.

Everything returned by `window_statistics` and `gaussian_window_statistics` is a weighted sum over the cells
of one window, so sums over windows are the statistics of the whole test set; `slams.evaluation.scores` turns
them into RMSE, CRPS and the rest, with intervals.
"""

from collections.abc import Callable

import numpy as np
import scipy.fft
import scipy.stats
import torch
from torch import Tensor

Statistics = dict[str, Tensor]

PIT_BINS = 20
_LOWER, _UPPER = 0.05, 0.95
_NORMAL_QUANTILE = 1.6448536269514722  # of 0.95
_NORMAL_STRATA = 32  # equally likely values that stand for a normal in Wasserstein-1


def window_statistics(
    samples: Tensor, truth: Tensor, weights: Tensor, part: Tensor | None = None, *, channel_axis: int = 0
) -> Statistics:
    """Weighted sums, per channel, of what every score of an ensemble is made from.

    With weights w, members x_1..x_N of mean m, truth y, the sums over the scored cells of one window are
    weight Σw, error Σw(m - y), squared_error Σw(m - y)², crps Σw[mean|x_i - y| - Σ_{i<j}|x_i - x_j| /
    (N(N-1))], variance Σw (N+1)/N s² with s² of ddof 1 (what (m - y)² is on average if truth and members are
    exchangeable), hits Σw[q05 <= y <= q95] with the linear quantiles of NumPy, hits_fair the same with
    quantiles at position (N+1)p, which a calibrated ensemble of any size >= 19 hits nine times in ten (the
    linear ones: 79 % for N = 16), ranks, the weight at each rank of the truth (ties shared evenly), and w1,
    Σw times the Wasserstein-1 distance between the truths of the window, pooled, and the members, pooled. A
    cell is scored where its weight is positive, `part` is true, and neither the truth nor all of the members
    are NaN.

    Args:
        samples: Ensemble (N, L, *E) [unit]; N = 1 is a deterministic forecast, whose variance and hits are
            NaN.
        truth: True values (L, *E) [unit], NaN where not scored.
        weights: Weights of the cells (areas), non-negative, broadcastable to the event shape *E.
        part: Cells to score, bool, broadcastable to (L, *E); everywhere if None.
        channel_axis: The axis of *E that becomes the axis of the result.

    Returns:
        Name to sums of shape (C,), float64; `ranks` is (C, N + 1).

    Raises:
        ValueError: If shapes disagree, weights are negative, or a scored cell has some members missing.

    Source:
        Fair CRPS: Ferro (2014), doi:10.1002/qj.2270, eq. 7; spread: Fortin et al. (2014),
        doi:10.1175/JHM-D-14-0008.1, eq. 15; quantile positions: Hyndman & Fan (1996), types 7 and 6.

    >>> cell = torch.tensor([[1.0]])
    >>> window_statistics(torch.stack([cell, cell + 2]), cell, torch.ones(1))["crps"]
    tensor([0.], dtype=torch.float64)
    """
    if samples.dim() != truth.dim() + 1 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"samples {tuple(samples.shape)} must be (N, *truth), but the truth is {tuple(truth.shape)}; "
            "put the members first."
        )
    if samples.shape[0] == 0:
        raise ValueError("samples have no members; give at least one.")
    some = torch.isnan(samples).any(0)
    every = torch.isnan(samples).all(0)
    scored, weight = _scored(truth, weights, part)
    scored = scored & ~every
    if bool((some & scored).any()):
        raise ValueError(
            f"{int((some & scored).sum())} scored cells have some, not all, members missing; a diverged "
            "member must not be dropped silently: repair the ensemble, or exclude these cells with `part`."
        )
    return _by_channel(
        lambda x, y, w: _ensemble_sums(x[0], y, w), (samples,), truth, weight, scored, channel_axis
    )


def gaussian_window_statistics(
    mean: Tensor,
    std: Tensor,
    truth: Tensor,
    weights: Tensor,
    part: Tensor | None = None,
    *,
    channel_axis: int = 0,
) -> Statistics:
    """The sums of `window_statistics` for a normal predictive distribution, in closed form.

    CRPS = s[z(2Φ(z) - 1) + 2φ(z) - 1/√π] with z = (y - mean)/s; a hit is |z| <= 1.6449; variance is s², which
    must therefore be the predictive variance. `ranks` counts Φ(z) in 20 bins; w1 takes each normal by 32
    equally likely values.

    Args:
        mean: Predictive mean (L, *E) [unit].
        std: Predictive standard deviation (L, *E) [unit], non-negative; 0 is a certain value.
        truth: True values (L, *E) [unit], NaN where not scored.
        weights: Weights of the cells, non-negative, broadcastable to *E.
        part: Cells to score, bool, broadcastable to (L, *E); everywhere if None.
        channel_axis: The axis of *E that becomes the axis of the result.

    Returns:
        Name to sums of shape (C,), float64; `ranks` is (C, 20).

    Raises:
        ValueError: If shapes disagree, or weights or standard deviations are negative.

    Source:
        Gneiting et al. (2005), doi:10.1175/MWR2904.1, eq. 5.
    """
    if mean.shape != truth.shape or std.shape != truth.shape:
        raise ValueError(
            f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must have the shape of the truth, "
            f"{tuple(truth.shape)}; expand them first."
        )
    scored, weight = _scored(truth, weights, part)
    scored = scored & ~torch.isnan(mean) & ~torch.isnan(std)
    if bool((std[scored] < 0).any()):
        raise ValueError(
            "std has negative entries where it is scored; pass standard deviations, not residuals."
        )
    return _by_channel(
        lambda x, y, w: _gaussian_sums(x[0], x[1], y, w), (mean, std), truth, weight, scored, channel_axis
    )


def _scored(truth: Tensor, weights: Tensor, part: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where to score and with what weight, both of the shape of the truth."""
    try:
        weight = torch.broadcast_to(weights.to(truth.device), truth.shape)
        part = (
            torch.ones_like(truth, dtype=torch.bool)
            if part is None
            else torch.broadcast_to(part, truth.shape)
        )
    except RuntimeError as error:
        raise ValueError(
            f"weights and part must broadcast to the truth, {tuple(truth.shape)}: {error}"
        ) from error
    if part.dtype != torch.bool:
        raise ValueError(f"part must be bool, got {part.dtype}; compare the mask with something first.")
    if bool((weight < 0).any()):
        raise ValueError(
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
    """Applies `sums` to the scored cells of each channel, in float64 so that windows add exactly."""
    axis = channel_axis - truth.dim() + 1 if channel_axis >= 0 else channel_axis
    if not 1 - truth.dim() <= axis < 0:
        raise ValueError(
            f"channel_axis {channel_axis} is not an axis of the event shape {tuple(truth.shape[1:])}."
        )
    columns = []
    for c in range(truth.shape[axis]):
        here = scored.select(axis, c)
        cells = tuple(f.select(axis, c)[..., here].double() for f in forecasts)
        columns.append(
            sums(cells, truth.select(axis, c)[here].double(), weight.select(axis, c)[here].double())
        )
    return {name: torch.stack([column[name] for column in columns]) for name in columns[0]}


def _ensemble_sums(x: Tensor, y: Tensor, w: Tensor) -> Statistics:
    """Sums of one channel from members x (N, n), truth y (n), weights w (n)."""
    size = x.shape[0]
    x = x.sort(0).values
    error = x.mean(0) - y
    crps = (x - y).abs().mean(0)
    below, equal = (x < y).sum(0), (x == y).sum(0)
    # Each of the `equal + 1` possible ranks gets its share: a ramp of differences, summed up afterwards.
    steps = torch.zeros(size + 2, dtype=w.dtype, device=w.device)
    share = w / (equal + 1)
    steps.index_add_(0, below, share).index_add_(0, below + equal + 1, -share)
    if size > 1:
        order = 2 * torch.arange(1, size + 1, device=x.device, dtype=x.dtype) - size - 1
        crps = crps - order @ (x - x.mean(0)) / (size * (size - 1))
        variance = (1 + 1 / size) * x.var(0)
        hits = _between(x, y, [(size - 1) * p for p in (_LOWER, _UPPER)])
        hits_fair = _between(x, y, [(size + 1) * p - 1 for p in (_LOWER, _UPPER)])
    else:
        variance = hits = hits_fair = torch.full_like(y, torch.nan)
    return {
        "weight": w.sum(),
        "error": w @ error,
        "squared_error": w @ error**2,
        "crps": w @ crps,
        "variance": w @ variance,
        "hits": w @ hits,
        "hits_fair": w @ hits_fair,
        "w1": w.sum() * wasserstein(x, y, w),
        "ranks": steps.cumsum(0)[:-1].clamp(min=0),
    }


def _between(ordered: Tensor, y: Tensor, positions: list[float]) -> Tensor:
    """1 where y lies between two order statistics at fractional, 0-based positions of ordered (N, n)."""
    bounds = []
    for position in positions:
        position = min(max(position, 0.0), ordered.shape[0] - 1.0)
        low = min(int(position), ordered.shape[0] - 2)
        bounds.append(torch.lerp(ordered[low], ordered[low + 1], position - low))
    return ((bounds[0] <= y) & (y <= bounds[1])).to(y.dtype)


def _gaussian_sums(mean: Tensor, std: Tensor, y: Tensor, w: Tensor) -> Statistics:
    """Sums of one channel from mean, std, truth and weights, each (n)."""
    error = mean - y
    z = -error / std.clamp(min=torch.finfo(std.dtype).tiny)
    chance = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z**2) / (2 * torch.pi) ** 0.5
    # z * std overflows for std = 0, so the first term is written with the error itself.
    crps = -error * (2 * chance - 1) + std * (2 * density - torch.pi**-0.5)
    strata = (torch.arange(_NORMAL_STRATA, dtype=y.dtype, device=y.device) + 0.5) / _NORMAL_STRATA
    members = mean + std * torch.special.ndtri(strata)[:, None]
    bins = (chance * PIT_BINS).long().clamp(max=PIT_BINS - 1)
    hits = w @ (error.abs() <= _NORMAL_QUANTILE * std).to(y.dtype)
    return {
        "weight": w.sum(),
        "error": w @ error,
        "squared_error": w @ error**2,
        "crps": w @ crps,
        "variance": w @ std**2,
        "hits": hits,
        "hits_fair": hits.clone(),
        "w1": w.sum() * wasserstein(members, y, w),
        "ranks": torch.zeros(PIT_BINS, dtype=w.dtype, device=w.device).index_add_(0, bins, w),
    }


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
    values, order = torch.cat([truth[None], members]).flatten().sort()
    masses = torch.cat([mass, (-mass / len(members)).repeat(len(members))])
    return masses[order].cumsum(0)[:-1].abs() @ values.diff()


def power_spectrum(field: Tensor, lat: Tensor) -> tuple[Tensor, Tensor]:
    """Power per zonal wavenumber of a field on latitude circles, averaged over area.

    P_m = Σ_lat cos(lat) (2 - δ_{m0} - δ_{m,W/2}) |a_m|² / Σ cos(lat), a_m the Fourier coefficients along
    longitude; the sum over m is the area-weighted mean square of the field (Parseval).

    Args:
        field: Field without missing values (..., H, W) [unit].
        lat: Latitudes (H) [degree].

    Returns:
        Zonal wavenumbers (W // 2 + 1) and power (..., W // 2 + 1) [unit²].

    Raises:
        ValueError: If `lat` has not H entries or the field has missing values.
    """
    height, width = field.shape[-2:]
    if lat.shape != (height,):
        raise ValueError(f"lat has shape {tuple(lat.shape)}, but the field has {height} latitudes.")
    if bool(torch.isnan(field).any()):
        raise ValueError("field has missing values, which have no zonal spectrum; use radial_spectrum.")
    power = (torch.fft.rfft(field.double(), dim=-1).abs() / width) ** 2
    power[..., 1 : (width + 1) // 2] *= 2
    area = torch.cos(torch.deg2rad(lat.double())).clamp(min=0).to(power.device)
    power = torch.einsum("...hm,h->...m", power, area / area.sum())
    return torch.arange(width // 2 + 1, device=power.device), power


def radial_spectrum(field: Tensor) -> tuple[Tensor, Tensor]:
    """Isotropic power of a regional or masked field, by the two-dimensional cosine transform.

    The mean over valid cells is removed and missing cells get the anomaly 0; the variances of the orthonormal
    DCT-II are summed over rings of k = min(H, W) sqrt((i/H)² + (j/W)²), whose wavelength is 2 min(H, W) cells
    / k. The cosine transform needs no periodic domain. The sum over k is the mean square of the filled
    anomaly.

    Args:
        field: Field (..., H, W) [unit], NaN where missing.

    Returns:
        Integer radii k = 1 .. ⌊√2 min(H, W)⌋ (K) and power (..., K) [unit²]; rings beyond min(H, W) are
        incomplete.

    Source:
        Denis, Côté & Laprise (2002), doi:10.1175/1520-0493(2002)130<1812:SDOTDA>2.0.CO;2, section 2.
    """
    values = field.double()
    anomaly = torch.nan_to_num(values - values.nanmean((-2, -1), keepdim=True))
    height, width = values.shape[-2:]
    variance = scipy.fft.dctn(anomaly.cpu().numpy(), axes=(-2, -1), norm="ortho") ** 2 / (height * width)
    side = min(height, width)
    radius = side * np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    # Down to the integer, but the near-constant waves below 1 of an oblong domain belong to the first ring.
    ring = torch.from_numpy(np.maximum(np.floor(radius + 1e-9).astype(int), 1)).flatten() - 1
    rings = int(np.floor(2**0.5 * side))
    power = torch.zeros(*values.shape[:-2], rings, dtype=torch.float64)
    power.index_add_(-1, ring, torch.from_numpy(variance).flatten(-2))
    return torch.arange(1, rings + 1), power.to(field.device)


def effective_count(ranks: Tensor) -> float:
    """How many independent truths a rank histogram is worth, from how much it varies between windows.

    With n windows of weight w_i, p the pooled shares of the ranks and r_i the rank's sums in window i,

        n_eff = Σ_r p_r (1 - p_r) / Σ_r V_r,   V_r = n / (n - 1) Σ_i (r_ir - w_i p_r)² / (Σ_i w_i)²,

    the size of a sample of independent truths whose shares would vary as much as these do. Cells of one field, and
    days of one window, share their errors, so that it is far below their number.

    Args:
        ranks: Weight at each rank in each window (n, R); windows far enough apart to be independent.

    Returns:
        n_eff; n where the windows cannot tell, because there is one, or because they all agree.

    Raises:
        ValueError: If the shape is another or there is no weight.

    Source:
        Rao & Scott (1981), doi:10.1080/01621459.1981.10477633, the mean design effect; the variance of a ratio between
        clusters after Cochran (1977), Sampling techniques, eq. 9.30.

    >>> effective_count(torch.eye(4).repeat(5, 1))  # every window is one truth
    19.0
    """
    if ranks.dim() != 2 or float(ranks.sum()) <= 0:
        raise ValueError(f"ranks must be (windows, R) with some weight; got {tuple(ranks.shape)}.")
    ranks = ranks.double()
    weight = ranks.sum(1, keepdim=True)
    ranks, weight = ranks[weight[:, 0] > 0], weight[weight[:, 0] > 0]
    count, share = len(ranks), ranks.sum(0) / weight.sum()
    variance = (ranks - weight * share).square().sum() / weight.sum() ** 2 * count / max(count - 1, 1)
    return (
        float((share * (1 - share)).sum() / variance) if count > 1 and float(variance) > 0 else float(count)
    )


def rank_flatness(counts: Tensor, independent: float | None = None) -> tuple[float, float]:
    """Chi-square distance of a rank histogram from a flat one, and how probable a larger one is by chance.

    χ² = Σ_r (c_r - e)² / e with e the mean count; under calibration it has as many degrees of freedom as
    members.

    Args:
        counts: Counts or weights per rank (R).
        independent: How many independent truths the counts stand for; cells of one field are not independent,
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
        raise ValueError(f"counts must be (R), R >= 2, and not all zero; got {counts}.")
    observed = counts.double() * ((independent or float(counts.sum())) / float(counts.sum()))
    expected = observed.mean()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return statistic, float(scipy.stats.chi2.sf(statistic, len(counts) - 1))
