"""Statistics, scores and spectra against closed forms, scipy, the `scores` package, and symmetries."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from slams.evaluation import (
    Scores,
    gaussian_window_statistics,
    power_spectrum,
    radial_spectrum,
    rank_flatness,
    window_statistics,
)
from slams.evaluation.intervals import interval, log_normal_limits
from slams.evaluation.metrics import ascending

ADDITIVE = (
    "weight",
    "error",
    "squared_error",
    "squared_error_of_infinite",
    "crps",
    "predictive_variance",
    "covered",
    "covered_fair",
    "ranks",
)
LEVELS = (850, 500, 250.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(samples: Tensor, truth: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Scores of one window, by metric, over all channels."""
    scores = Scores()
    weights = torch.ones(truth.shape[1:]) if weights is None else weights
    scores.add("m", "v", 0, window_statistics(samples, truth, weights))
    return {row["metric"]: row["value"] for row in scores.rows() if row["level"] == "all"}


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Members, truth, weights that depend on latitude; two channels on a grid, with a common signal."""
    signal = draw(3, 2, 4, 5, seed=1)
    weights = torch.cos(torch.deg2rad(torch.linspace(60, -45, 4, dtype=torch.float64)))[:, None]
    return signal + draw(9, 3, 2, 4, 5, seed=2), signal + draw(3, 2, 4, 5, seed=3), weights


def test_scores_agree_with_the_scores_package(case):
    xr = pytest.importorskip("xarray")
    scores = pytest.importorskip("scores")
    samples, truth, weights = case
    dims = ("member", "time", "c", "lat", "lon")
    forecast, observed = xr.DataArray(samples.numpy(), dims=dims), xr.DataArray(truth.numpy(), dims=dims[1:])
    area = xr.DataArray(weights[:, 0].numpy(), dims="lat")
    ours = score(samples, truth, weights)
    mean = forecast.mean("member")
    crps = scores.probability.crps_for_ensemble(forecast, observed, "member", method="fair", weights=area)
    assert ours["crps"] == pytest.approx(float(crps), rel=1e-12)
    rmse = scores.continuous.rmse(mean, observed, weights=area)
    assert ours["rmse"] == pytest.approx(float(rmse), rel=1e-12)
    bias = scores.continuous.additive_bias(mean, observed, weights=area)
    assert ours["bias"] == pytest.approx(float(bias), rel=1e-12)


def test_spread_and_coverage_are_those_of_numpy(case):
    samples, truth, weights = case
    x, y = samples.numpy(), truth.numpy()
    area = np.broadcast_to(weights.numpy(), y.shape)
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    low_fair, high_fair = np.quantile(x, [0.05, 0.95], axis=0, method="weibull")
    ours = score(*case)
    variance = np.average(x.var(0, ddof=1), weights=area) * 10 / 9
    assert ours["spread"] == pytest.approx(math.sqrt(variance), rel=1e-12)
    assert ours["spread_skill"] == pytest.approx(ours["spread"] / ours["rmse"], rel=1e-12)
    assert ours["coverage90"] == pytest.approx(np.average((low <= y) & (y <= high), weights=area), rel=1e-12)
    # of 9 members both quantiles lie beyond the outermost ones, by half a rank
    fair = np.average(np.where((low_fair <= y) & (y <= high_fair), 1.0, 0.5), weights=area)
    assert ours["coverage90_fair"] == pytest.approx(fair, rel=1e-12)


def test_fair_coverage_of_many_members_is_that_of_numpy():
    x, y = draw(29, 1, 1, 40, 50, seed=1), draw(1, 1, 40, 50, seed=2)
    low, high = np.quantile(x.numpy(), [0.05, 0.95], axis=0, method="weibull")
    expected = ((low <= y.numpy()) & (y.numpy() <= high)).mean()
    assert score(x, y)["coverage90_fair"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("law", [torch.Tensor.clone, torch.Tensor.exp])
@pytest.mark.parametrize(("members", "plain"), [(8, 0.72), (16, 0.81), (32, 0.85), (64, 0.87)])
def test_fair_coverage_of_a_right_ensemble_is_90_percent(members, plain, law):
    """Of any size and law; the interpolation between members adds up to .01 from 19 on.

    100000 independent cells: 5 standard errors of .0015, one false alarm in 2e5 tests.
    """
    samples, truth = (law(draw(n, 1, 1, 100000, seed=n + 7)) for n in (members, 1))
    ours = score(samples, truth[0])
    interpolation = 0.01 if members > 18 else 0.0
    assert 0.9 - 5 * 0.0015 < ours["coverage90_fair"] < 0.9 + 5 * 0.0015 + interpolation
    assert ours["coverage90"] == pytest.approx(plain, abs=0.015)
    narrow = score(0.5 * draw(members, 1, 1, 100000, seed=members + 7), draw(1, 1, 1, 100000, seed=8)[0])
    assert narrow["coverage90_fair"] < 0.88


@pytest.mark.parametrize("members", [2, 4, 16])
def test_rmse_of_infinite_members_is_that_of_the_exact_mean(members):
    """Draws around a known mean: rmse_inf is the error of that mean, rmse is larger by the noise of the draws.

    The truth lies 0.5 from the mean; rmse_inf^2 is an average of 100000 values of standard deviation
    2 * 0.5 / N^(1/2) + 2^(1/2) / N at most: 5 of its standard errors, one false alarm in 2e6 tests.
    """
    sigma = torch.linspace(0.1, 1.0, 100000, dtype=torch.float64)
    truth = torch.zeros(1, 1, 100000, dtype=torch.float64)
    samples = truth + 0.5 + sigma * draw(members, 1, 1, 100000, seed=members)
    ours = score(samples, truth)
    error = (1 / members**0.5 + 2**0.5 / members) / 100000**0.5
    assert ours["rmse_inf"] ** 2 == pytest.approx(0.25, abs=5 * error)
    noise = float((sigma**2).mean()) / members
    assert ours["rmse"] ** 2 == pytest.approx(0.25 + noise, abs=5 * error)
    assert ours["rmse_inf"] ** 2 == pytest.approx(
        ours["rmse"] ** 2 - ours["spread"] ** 2 / (members + 1), rel=1e-9
    )


def test_rmse_of_infinite_members_is_the_rmse_of_an_exact_mean():
    """A normal's mean has no sampling noise; neither has a single member, whose noise is unknown, a value."""
    mean, truth = draw(1, 2, 5, seed=1), draw(1, 2, 5, seed=2)
    scores = Scores()
    scores.add("m", "v", 0, gaussian_window_statistics(mean, torch.ones_like(mean), truth, torch.ones(5)))
    assert scores.value("m", "rmse_inf", variable="v") == scores.value("m", "rmse", variable="v")
    assert "rmse_inf" not in score(mean[None], truth)


def test_a_negative_square_counts_as_no_error():
    """The mean of the members is the truth, nearer than their spread can explain: 0, in the table and its interval."""
    scores, truth = Scores(), torch.zeros(1, 1, 4)
    for window in range(3):
        members = torch.stack([truth - 1 - window, truth + 1 + window])
        scores.add("m", "v", window, window_statistics(members, truth, torch.ones(4)))
    (row,) = [row for row in scores.rows() if row["metric"] == "rmse_inf"]
    assert (row["value"], row["lower"]) == (0.0, 0.0)


def test_wasserstein_agrees_with_scipy(case):
    samples, truth, weights = case
    statistics = window_statistics(samples, truth, weights)
    area = np.broadcast_to(weights.numpy(), truth[:, 0].shape).ravel()
    for c in range(2):
        x, y = samples[:, :, c].numpy(), truth[:, c].numpy().ravel()
        expected = scipy.stats.wasserstein_distance(x.ravel(), y, np.tile(area, 9), area)
        assert float(statistics["w1"][c] / statistics["weight"][c]) == pytest.approx(expected, rel=1e-10)


def test_order_of_the_members_does_not_matter(case):
    samples, truth, weights = case
    first = window_statistics(samples, truth, weights)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    second = window_statistics(samples[order], truth, weights)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-12, atol=1e-12)


def test_doubled_weight_is_a_duplicated_cell(case):
    samples, truth, _ = case
    weights = torch.ones(1, 4, 5)
    weights[..., 2] = 2
    twice = torch.tensor([0, 1, 2, 2, 3, 4])
    first = window_statistics(samples, truth, weights)
    second = window_statistics(samples[..., twice], truth[..., twice], torch.ones(1, 4, 6))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-12, atol=1e-12)


def test_parts_add_up_to_the_whole(case):
    """Every sum is over cells, so a mask and its complement share it out; only w1 is not a sum over cells."""
    samples, truth, weights = case
    part = draw(3, 1, 4, 5, seed=9) > 0.3
    whole = window_statistics(samples, truth, weights)
    first, second = (window_statistics(samples, truth, weights, p) for p in (part, ~part))
    for name in ADDITIVE:
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-12, atol=1e-12)


def test_missing_truth_and_missing_forecast_are_not_scored(case):
    samples, truth, weights = case
    part = torch.ones_like(truth, dtype=torch.bool)
    part[:, :, 0], part[:, :, 1, 0] = False, False
    expected = window_statistics(samples, truth, weights, part)
    truth, samples = truth.clone(), samples.clone()
    truth[:, :, 0], samples[..., 1, 0] = torch.nan, torch.nan
    for name, value in window_statistics(samples, truth, weights).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_shift_of_all_leaves_fair_scores_and_float32_is_enough(case):
    """Temperatures near 280 K in float32 resolve 3e-5 K; sums in float64 must not lose more than that."""
    samples, truth, weights = case
    plain = score(samples, truth, weights)
    shifted = score((samples + 280).float(), (truth + 280).float(), weights)
    for metric in ("rmse", "crps", "spread", "w1"):
        assert shifted[metric] == pytest.approx(plain[metric], abs=3e-5)


def test_one_member_is_a_deterministic_forecast(case):
    samples, truth, weights = case
    ours = score(samples[:1], truth, weights)
    area = np.broadcast_to(weights.numpy(), truth.shape)
    error = np.average((samples[0] - truth).abs().numpy(), weights=area)
    assert ours["crps"] == pytest.approx(error, rel=1e-12)
    assert not {"spread", "spread_skill", "coverage90"} & ours.keys()


def test_exchangeable_members_and_truth_are_calibrated():
    """Truth and members of one law: spread = RMSE, flat ranks, fair coverage 9/10.

    40000 independent cells; each 6 sigma, one false alarm in 5e8: sd of spread/RMSE 1/sqrt(2n) = 0.0035, of
    coverage at most sqrt(.88 .12 / n) = 0.0016. A linear 5-95 % interval of 16 members holds about 0.80 only.
    """
    signal = 3 * draw(1, 1, 200, 200, seed=4)
    samples, truth = signal + draw(16, 1, 1, 200, 200, seed=5), signal + draw(1, 1, 200, 200, seed=6)
    ours = score(samples, truth)
    assert ours["spread_skill"] == pytest.approx(1, abs=6 * 0.0037)
    assert ours["coverage90_fair"] == pytest.approx(0.9, abs=6 * 0.0016)
    assert 0.77 < ours["coverage90"] < 0.83
    ranks = window_statistics(samples, truth, torch.ones(200, 200))["ranks"][0]
    assert ranks.sum() == pytest.approx(40000)
    assert rank_flatness(ranks)[1] > 2e-9
    assert rank_flatness(window_statistics(0.8 * samples, truth, torch.ones(1))["ranks"][0])[1] < 2e-9


def test_ties_share_their_ranks_evenly():
    """Two of three members equal the truth (rain: zeros): ranks 0, 1, 2 are equally likely."""
    samples = torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1)
    ranks = window_statistics(samples, torch.zeros(1, 1), torch.ones(1))["ranks"][0]
    torch.testing.assert_close(ranks, torch.tensor([1, 1, 1, 0], dtype=torch.float64) / 3)


def test_gaussian_closed_form_is_the_limit_of_many_members():
    """Fair CRPS is unbiased: its mean over 400 cells lies within 6 standard errors (1 in 5e8)."""
    n, size = 400, 300
    mean, std = draw(1, 1, n, seed=7), draw(1, 1, n, seed=8).abs() + 0.3
    truth = mean + 1.4 * std * draw(1, 1, n, seed=9)
    samples = mean + std * draw(size, 1, 1, n, seed=10)
    weights = torch.ones(n)
    cells = [slice(k, k + 1) for k in range(n)]
    exact = [gaussian_window_statistics(mean[..., k], std[..., k], truth[..., k], weights[k]) for k in cells]
    sampled = [window_statistics(samples[..., k], truth[..., k], weights[k]) for k in cells]
    # The factor (N + 1) / N belongs to members, not to a predictive variance.
    for name, factor in (("crps", 1.0), ("predictive_variance", 1 + 1 / size)):
        difference = torch.cat([s[name] - factor * e[name] for s, e in zip(sampled, exact, strict=True)])
        assert abs(float(difference.mean())) < 6 * float(difference.std()) / n**0.5
    whole = gaussian_window_statistics(mean, std, truth, weights)
    members = window_statistics(samples, truth, weights)
    # Both discretize: 32 strata here, sampling error about std / sqrt(400 * 300) there.
    assert float(whole["w1"]) / n == pytest.approx(float(members["w1"]) / n, abs=0.02)


def test_gaussian_crps_is_its_integral():
    """CRPS = ∫ (F(x) - 1[x >= y])² dx, integrated with 1e-4 steps: error below 1e-6."""
    mean, std, y = 0.3, 1.7, -1.1
    x = np.arange(-20, 20, 1e-4) + 0.5e-4
    expected = float(((scipy.stats.norm.cdf(x, mean, std) - (x >= y)) ** 2).sum() * 1e-4)
    values = (torch.full((1, 1), v, dtype=torch.float64) for v in (mean, std, y))
    ours = gaussian_window_statistics(*values, torch.ones(1))
    assert float(ours["crps"]) == pytest.approx(expected, abs=1e-6)


def test_a_certain_gaussian_is_a_deterministic_forecast():
    truth = draw(2, 3, 7)
    ours = gaussian_window_statistics(torch.zeros_like(truth), torch.zeros_like(truth), truth, torch.ones(7))
    torch.testing.assert_close(ours["crps"], truth.abs().sum((0, 2)))


def test_calibrated_gaussian_covers_nine_of_ten():
    """Truths at 10000 equally likely quantiles: exactly 9000 of them inside, and exactly flat ranks."""
    truth = torch.special.ndtri((torch.arange(10000, dtype=torch.float64) + 0.5) / 10000)[:, None, None]
    ours = gaussian_window_statistics(0 * truth, torch.ones_like(truth), truth, torch.ones(1))
    assert int(ours["covered"]) == 9000
    assert set(ours["ranks"][0].tolist()) == {500.0}


def test_channel_axis_may_be_any(case):
    samples, truth, weights = case
    first = window_statistics(samples, truth, weights)
    samples, truth = samples.movedim(2, -1), truth.movedim(1, -1)
    second = window_statistics(samples, truth, weights[..., None], channel_axis=2)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-12, atol=1e-12)


def test_bad_input_is_refused(case):
    samples, truth, weights = case
    broken = samples.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="some, not all, members missing"):
        window_statistics(broken, truth, weights)
    with pytest.raises(ValueError, match="put the members first"):
        window_statistics(samples[0], truth, weights)
    with pytest.raises(ValueError, match="at least one"):
        window_statistics(samples[:0], truth, weights)
    with pytest.raises(ValueError, match="negative"):
        window_statistics(samples, truth, -weights)
    with pytest.raises(ValueError, match="broadcast"):
        window_statistics(samples, truth, torch.ones(7))
    with pytest.raises(ValueError, match="bool"):
        window_statistics(samples, truth, weights, torch.ones(4, 5))
    with pytest.raises(ValueError, match="channel_axis"):
        window_statistics(samples, truth, weights, channel_axis=3)
    with pytest.raises(ValueError, match="negative entries"):
        gaussian_window_statistics(truth, -torch.ones_like(truth), truth, weights)


def windows(scores: Scores, method: str, sd: float, count: int = 40) -> Scores:
    for k in range(count):
        truth = draw(2, 3, 30, seed=100 + k)
        samples = truth + sd * (draw(1, 2, 3, 30, seed=500 + k) + draw(8, 2, 3, 30, seed=900 + k))
        scores.add(method, "t", k, window_statistics(samples, truth, torch.ones(30)), levels=LEVELS)
    return scores


def test_rows_are_those_of_metrics_csv():
    rows = windows(Scores(), "analysis", 1.0).rows()
    assert {tuple(row) for row in rows} == {
        ("method", "variable", "level", "part", "metric", "value", "lower", "upper", "n")
    }
    assert {row["level"] for row in rows} == {"all", "850", "500", "250"}
    assert all(row["lower"] <= row["value"] <= row["upper"] and row["n"] == 40 for row in rows)
    rmse = {row["level"]: row["value"] for row in rows if row["metric"] == "rmse"}
    mean_square = np.mean([rmse[level] ** 2 for level in ("850", "500", "250")])
    assert rmse["all"] ** 2 == pytest.approx(mean_square, rel=1e-12)


def test_rows_have_the_interval_of_their_law():
    """Of pooled errors log-normal in the mean squares, of a bias Student's t, of a coverage that of the logit."""
    scores = windows(Scores(), "analysis", 1.0)
    sums = [scores.per_window("analysis", m, variable="t") for m in ("rmse", "bias", "coverage90", "spread")]
    error, bias, cover, spread = (torch.tensor(list(each.values()), dtype=torch.float64) for each in sums)
    rows = {r["metric"]: r for r in scores.rows() if r["level"] == "all"}

    def got(metric: str) -> list[float]:
        return [rows[metric][bound] for bound in ("lower", "upper")]

    square = error.square()
    assert got("rmse") == pytest.approx(log_normal_limits(square).sqrt().tolist(), rel=1e-9)
    assert got("spread_skill") == pytest.approx(
        log_normal_limits(spread.square(), square).sqrt().tolist(), rel=1e-9
    )
    assert got("bias") == pytest.approx(interval(bias.tolist())[1:], rel=1e-9)
    assert got("coverage90") == pytest.approx(interval(cover.tolist(), "share")[1:], rel=1e-9)


def dated(days: list[int], values: list[float], apart: int = 0) -> Scores:
    """Windows of one cell at these days of a year, in another order, with errors of these sizes."""
    scores = Scores(apart=apart)
    for k in torch.randperm(len(days), generator=torch.Generator().manual_seed(0)).tolist():
        name = str(np.datetime64("2001-01-01") + days[k])
        error = torch.full((1, 1, 1), values[k], dtype=torch.float64)
        scores.add("a", "t", name, window_statistics(error[None], error * 0, torch.ones(1)))
        scores.add("b", "t", name, window_statistics(error[None] * 2, error * 0, torch.ones(1)))
    return scores


def test_windows_closer_than_the_decorrelation_time_count_once():
    """The stated rule: three pairs of windows three days apart, the second of each without news."""
    days, values = [0, 3, 20, 23, 40, 43], [1.0, 1.0, 2.0, 2.0, 1.5, 1.5]
    close = next(r for r in dated(days, values, apart=15).rows() if r["metric"] == "rmse")
    single = next(r for r in dated(days[::2], values[::2]).rows() if r["metric"] == "rmse")
    assert close["n"] == 3 and [close[k] for k in ("value", "lower", "upper")] == pytest.approx(
        [single[k] for k in ("value", "lower", "upper")]
    )
    assert dated(days, values, apart=15).paired_gain("a", "b", variable="t").n == 3
    one = next(r for r in dated([0, 5, 9], [1.0, 2.0, 3.0], apart=15).rows() if r["metric"] == "rmse")
    assert one["n"] == 1 and math.isnan(one["lower"])


def test_correlated_windows_are_joined_in_order_of_time():
    """Errors that rise through a year, however they came in; windows without dates have no order and stay apart."""
    values = [1.1**k for k in range(16)]
    rows = [r for r in dated(list(range(0, 320, 20)), values, apart=15).rows() if r["metric"] == "rmse"]
    assert [r["n"] for r in rows] == [2, 2]
    scores = Scores()
    for k, value in enumerate(values):
        error = torch.full((1, 1, 1), value, dtype=torch.float64)
        scores.add("a", "t", k, window_statistics(error[None], error * 0, torch.ones(1)))
    assert {r["n"] for r in scores.rows()} == {16}


def test_settings_of_the_resampling_are_accepted_with_a_warning():
    with pytest.warns(FutureWarning, match="no longer resampled"):
        Scores(resamples=400)


def test_rows_are_reproducible_and_one_window_has_no_interval():
    assert windows(Scores(), "a", 1.0).rows() == windows(Scores(), "a", 1.0).rows()
    assert all(math.isnan(row["lower"]) for row in windows(Scores(), "a", 1.0, count=1).rows())


def test_single_channel_is_reported_as_all_only():
    scores = Scores()
    statistics = window_statistics(draw(4, 1, 1, 5), draw(1, 1, 5), torch.ones(5))
    scores.add("m", "v", 0, statistics, levels=("surface",))
    assert {row["level"] for row in scores.rows()} == {"all"}
    assert scores.value("m", "rmse", variable="v", level="surface") == scores.value("m", "rmse", variable="v")


def test_paired_gain_of_a_scaled_error_is_exact():
    """Errors halved in every window: the gain is one half, without uncertainty, and the reverse a loss."""
    scores = windows(windows(Scores(), "half", 0.5), "full", 1.0)
    gain = scores.paired_gain("half", "full", variable="t")
    assert (gain.mean, gain.lower, gain.upper) == pytest.approx((0.5, 0.5, 0.5), rel=1e-9)
    assert gain.significant and gain.n == 40
    assert scores.paired_gain("full", "half", "crps", variable="t", level=500).mean == pytest.approx(-1)


def test_paired_gain_agrees_with_student():
    scores = windows(Scores(), "a", 1.0)
    for k in range(40):
        truth = draw(2, 3, 30, seed=100 + k)
        members = truth + draw(8, 2, 3, 30, seed=3000 + k)
        scores.add("b", "t", k, window_statistics(members, truth, torch.ones(30)), levels=LEVELS)
    a, b = (np.array(list(scores.per_window(m, "rmse", variable="t").values())) for m in "ab")
    gain = scores.paired_gain("a", "b", variable="t")
    low, high = scipy.stats.ttest_1samp(np.log(a / b), 0).confidence_interval(0.95)
    expected = (1 - np.exp(np.log(a / b).mean()), 1 - np.exp(high), 1 - np.exp(low))
    assert (gain.mean, gain.lower, gain.upper) == pytest.approx(expected, rel=1e-9)
    assert not gain.significant


def test_a_window_without_error_counts_as_a_hundredth_in_a_gain():
    """Both exact in one window of four: no gain there. No error at all has no logarithm, and no gain."""
    days = [0, 20, 40, 60]
    gain = dated(days, [0.0, 1.0, 2.0, 1.0]).paired_gain("a", "b", variable="t")
    assert gain.mean == pytest.approx(0.5) and gain.lower == pytest.approx(0.5)
    assert math.isnan(dated(days, [0.0] * 4).paired_gain("a", "b", variable="t").mean)


def test_comparison_on_different_cells_is_refused():
    scores = windows(Scores(), "a", 1.0, count=2)
    for k in range(2):
        truth = draw(2, 3, 30, seed=k)
        part = torch.arange(30) > 3
        statistics = window_statistics(truth[None] + 1, truth, torch.ones(30), part)
        scores.add("b", "t", k, statistics, levels=LEVELS)
    with pytest.raises(ValueError, match="different cells"):
        scores.paired_gain("a", "b", variable="t")
    windows(scores, "c", 1.0, count=3)
    with pytest.raises(ValueError, match="share not all windows"):
        scores.paired_gain("a", "c", variable="t")


def test_a_window_counts_once_and_levels_agree():
    scores = windows(Scores(), "a", 1.0, count=1)
    with pytest.raises(ValueError, match="added before"):
        windows(scores, "a", 1.0, count=1)
    truth = draw(2, 3, 30)
    with pytest.raises(ValueError, match="ranks"):
        scores.add("a", "t", 7, window_statistics(truth[None], truth, torch.ones(30)), levels=LEVELS)
    with pytest.raises(ValueError, match="levels"):
        scores.add("a", "t", 8, window_statistics(truth[None], truth, torch.ones(30)), levels=(850, 500))
    with pytest.raises(ValueError, match="no level 300"):
        scores.value("a", "rmse", variable="t", level=300)


def test_zonal_spectrum_of_a_wave_and_parseval():
    lat = torch.linspace(80, -80, 9, dtype=torch.float64)
    lon = 2 * torch.pi * torch.arange(16, dtype=torch.float64) / 16
    number, power = power_spectrum((3 * torch.cos(5 * lon)).expand(9, 16), lat)
    expected = torch.zeros(9, dtype=torch.float64)
    expected[5] = 4.5
    torch.testing.assert_close(power, expected, rtol=0, atol=1e-12)
    assert number.tolist() == list(range(9))
    for width in (16, 15):
        field = draw(4, 9, width)
        area = torch.cos(torch.deg2rad(lat))
        mean_square = ((field**2).mean(-1) * area).sum(-1) / area.sum()
        torch.testing.assert_close(power_spectrum(field, lat)[1].sum(-1), mean_square)
    with pytest.raises(ValueError, match="radial_spectrum"):
        power_spectrum(torch.full((9, 16), torch.nan), lat)


def test_radial_spectrum_of_a_cosine_and_parseval():
    """cos(π k (i + 1/2) / H) is one basis function, of power 1/2 at radius k; all power is the variance."""
    i = torch.arange(12, dtype=torch.float64)
    wave = torch.cos(torch.pi * 4 * (i + 0.5) / 12)[:, None].expand(12, 20)
    number, power = radial_spectrum(wave + 7)
    assert float(power[number == 4]) == pytest.approx(0.5)
    assert float(power.sum()) == pytest.approx(0.5)
    field = draw(3, 12, 20)
    torch.testing.assert_close(radial_spectrum(field)[1].sum(-1), field.var((-2, -1), correction=0))
    field[:, 3:5] = torch.nan
    filled = torch.nan_to_num(field - field.nanmean((-2, -1), keepdim=True))
    torch.testing.assert_close(radial_spectrum(field)[1].sum(-1), (filled**2).mean((-2, -1)))


def paired(count: int, ratio: float, seed: int) -> Scores:
    """Windows whose squared errors scatter by a factor of 3, those of "a" by 2 % around ratio^2 times those of "b"."""
    scores, size = Scores(), torch.exp(draw(count, seed=seed))
    for window in range(count):
        for name, factor in (
            ("a", ratio * float(torch.exp(0.01 * draw(1, seed=seed + window + 1)))),
            ("b", 1.0),
        ):
            error = (factor * size[window].sqrt()).expand(1, 1, 6)
            statistics = gaussian_window_statistics(error, error, torch.zeros_like(error), torch.ones(6))
            scores.add(name, "v", window, statistics)
    return scores


@pytest.mark.parametrize("metric", ["rmse", "rmse_inf", "crps"])
def test_a_change_is_that_of_the_printed_scores_and_its_interval_is_of_pairs(metric):
    """Windows differ by far more than the methods: a few per cent are resolved only by pairing."""
    scores = paired(24, 0.97, seed=3)
    change = scores.paired_change("a", "b", metric, variable="v")
    expected = scores.value("a", metric, variable="v") / scores.value("b", metric, variable="v") - 1
    assert change.value == pytest.approx(expected, rel=1e-9) and change.n == 24
    assert change.lower < change.value < change.upper < 0 and change.upper - change.lower < 0.03
    (row,) = [row for row in scores.rows() if (row["method"], row["metric"]) == ("b", metric)]
    assert row["upper"] / row["lower"] > 1.2
    same = scores.paired_change("b", "b", metric, variable="v")
    assert (same.value, same.lower, same.upper) == (0.0, 0.0, 0.0)


def test_intervals_of_changes_cover_the_true_one():
    """The mean of the ratio of 200 series of 12 windows: of 95 % intervals 179 to 198 hold it, with 1 - 1e-4."""
    true = 0.97
    found = [paired(12, true, seed=100 * k).paired_change("a", "b", "rmse", variable="v") for k in range(200)]
    # E x / E y of log-normal pairs: the scatter of a adds half its variance, of 0.02 for squares
    expected = true * math.exp(0.02**2 / 4) - 1
    assert 179 <= sum(each.lower <= expected <= each.upper for each in found) <= 198


def test_changes_of_other_scores_or_cells_are_refused():
    scores = paired(3, 0.9, seed=0)
    with pytest.raises(ValueError, match="positive score"):
        scores.paired_change("a", "b", "coverage90", variable="v")
    scores.add("c", "v", 0, window_statistics(draw(3, 1, 1, 6), draw(1, 1, 6), torch.ones(6)))
    with pytest.raises(ValueError, match="share not all windows"):
        scores.paired_change("a", "c", variable="v")


def test_members_are_sorted_at_each_point_with_missing_ones_last(rng):
    """As by torch, in either precision."""
    for dtype in (torch.float32, torch.float64):
        samples = torch.randn(9, 4, 5, generator=rng).to(dtype)
        samples[2, 1, 3] = torch.nan
        expected = samples.sort(0).values
        torch.testing.assert_close(ascending(samples), expected, rtol=0, atol=0, equal_nan=True)
