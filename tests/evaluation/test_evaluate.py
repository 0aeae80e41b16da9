"""Laws of scores: closed forms, another implementation, intervals that cover."""

import math
from types import SimpleNamespace

import pytest
import torch

from slams.core.random import fork, normal
from slams.evaluation import COVERAGE90, CRPS, RMSE, SPREAD, Metric, evaluate
from slams.evaluation.figures.twin_plots import error_and_spread, rank_grid
from slams.evaluation.intervals import interval, mean_interval, median_interval, share_interval
from slams.evaluation.metrics import covered, covered_fair, fair_crps, squared_error
from slams.evaluation.windows import window_statistics


def ensemble(*shape: int, seed: int = 0) -> torch.Tensor:
    return normal(shape, dtype=torch.float64, rng=fork(seed, "members"))


@pytest.mark.parametrize("size", [2, 7, 40])
def test_scores_equal_those_of_the_window_statistics(size):
    """Two implementations of one definition, on weighted cells."""
    samples, truth, weights = (
        ensemble(size, 30, 4),
        ensemble(30, 4, seed=1),
        torch.tensor([1.0, 2.0, 3.0, 0.5]),
    )
    sums = window_statistics(samples, truth, weights.double())
    total = {name: value.sum() for name, value in sums.items() if name != "ranks"}
    got = evaluate(samples, truth, weights=weights)
    assert got["rmse"].value == pytest.approx(
        float((total["squared_error"] / total["weight"]).sqrt()), abs=1e-12
    )
    assert got["spread"].value == pytest.approx(
        float((total["predictive_variance"] / total["weight"]).sqrt()), abs=1e-12
    )
    assert got["crps"].value == pytest.approx(float(total["crps"] / total["weight"]), abs=1e-12)
    assert got["coverage90"].value == pytest.approx(float(total["covered"] / total["weight"]), abs=1e-12)


def test_moments_without_diagnostics_are_of_one_series():
    """The axes of truth and mean are time and state; the first step is left out."""
    mean, truth = ensemble(5, 4), ensemble(5, 4, seed=1)
    posterior = SimpleNamespace(samples=None, mean=mean, variance=torch.ones(5, 4, dtype=torch.float64))
    expected = (mean - truth)[1:].square().mean().sqrt()
    assert evaluate(posterior, truth, burn_in=1)["rmse"].value == pytest.approx(float(expected))


@pytest.mark.parametrize("size", [2, 5, 40])
def test_fair_crps_of_normal_members_is_that_of_the_normal(size):
    """Whatever their number: E = 1/sqrt(pi) for truth and members of N(0, 1); 6 sigma, one false alarm in 5e8."""
    values = fair_crps(ensemble(size, 40_000), ensemble(40_000, seed=1))
    error = 6 * float(values.std()) / len(values) ** 0.5
    assert float(values.mean()) == pytest.approx(1 / math.sqrt(math.pi), abs=error)


def test_fair_crps_is_the_mean_over_pairs():
    samples, truth = ensemble(6, 11), ensemble(11, seed=1)
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 6 * 5)
    direct = (samples - truth).abs().mean(0) - pairs
    torch.testing.assert_close(fair_crps(samples, truth), direct, rtol=0, atol=1e-12)


def test_error_and_spread_of_exchangeable_members_agree():
    """The factor (N + 1) / N does it even for 3 members; 6 sigma of the difference."""
    samples, truth = ensemble(3, 60_000, 1), ensemble(60_000, 1, seed=1)
    difference = squared_error(samples, truth) - SPREAD.statistic(samples, truth)
    assert abs(float(difference.mean())) < 6 * float(difference.std()) / 60_000**0.5


def test_coverage_takes_the_linear_quantiles():
    """Members 0, 1, ..., 20: the 5 % and 95 % quantiles are 1 and 19."""
    samples = torch.arange(21.0)[:, None].expand(21, 4)
    inside = covered(samples, torch.tensor([0.99, 1.0, 19.0, 19.01]))
    assert inside.tolist() == [0, 1, 1, 0]


def test_replicates_are_scored_one_by_one_and_averaged():
    samples, truth = ensemble(5, 8, 20, 3), ensemble(5, 20, 3, seed=1)
    whole = evaluate(samples, truth, batch=1, burn_in=4)
    for r in range(5):
        alone = evaluate(samples[r], truth[r], burn_in=4)
        for name, score in alone.items():
            assert whole[name].replicates[r] == pytest.approx(score.value, abs=1e-12)
    score = whole["rmse"]
    assert (score.value, score.lower, score.upper) == interval(score.replicates, "log-normal")


def test_a_metric_of_ones_own_needs_a_statistic_only():
    bias = Metric("bias", lambda samples, truth: samples.mean(0) - truth)
    samples, truth = torch.ones(4, 6, 2), torch.zeros(6, 2)
    assert evaluate(samples, truth, metrics=[bias])["bias"].value == 1.0


def test_intervals_cover_as_often_as_they_say():
    """95 % of 400 intervals of 16 values: 6 binomial sigma are 6.5 %."""
    draws = ensemble(400, 16)
    for made in (mean_interval, median_interval):
        hits = sum(low <= 0 <= high for _, low, high in (made(row.tolist()) for row in draws))
        assert hits / 400 > 0.95 - 0.065
    assert share_interval(0, 20)[1:] == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert share_interval(20, 20)[1:] == (pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_one_member_has_no_spread_and_its_absolute_error_as_crps():
    samples, truth = torch.full((1, 3, 2), 2.0), torch.zeros(3, 2)
    got = evaluate(samples, truth)
    assert (
        got["crps"].value == 2.0 and math.isnan(got["spread"].value) and math.isnan(got["coverage90"].value)
    )


@pytest.mark.parametrize(
    "samples, truth, settings, message",
    [
        ((4, 6, 2), (5, 2), {}, "do not fit"),
        ((3, 4, 6, 2), (3, 6, 2), {}, "batch"),
        ((4, 6, 2), (6, 2), {"burn_in": 6}, "leaves nothing"),
    ],
)
def test_what_does_not_fit_is_refused(samples, truth, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(torch.zeros(samples), torch.zeros(truth), metrics=[RMSE, CRPS, COVERAGE90], **settings)


def test_a_truth_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="truth is not finite"):
        evaluate(torch.zeros(4, 6, 2), torch.full((6, 2), torch.nan))


@pytest.mark.parametrize("size", [7, 40, 800])
def test_uniform_ranks_are_drawn_flat_whatever_the_bins(size):
    """Ranks that each occur once: every bar at 1, also where 41 ranks share 20 bins."""
    figure = rank_grid({"a": (torch.arange(size + 1.0), size)})
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([1.0] * len(heights))


@pytest.mark.parametrize("best", [0.5, 0.01])
def test_all_panels_show_their_curves_on_one_scale(best):
    """A panel's curve must not leave the axes because another method is ten or a thousand times worse."""
    levels = {"climate": 9.0, "filter": best, "lost": math.nan}
    curves = {name: (torch.full((3, 50), x**2), torch.full((3, 50), x**2)) for name, x in levels.items()}
    axes = error_and_spread(curves, dt=0.1).axes
    assert len({axis.get_ylim() for axis in axes[:3]}) == 1
    low, high = axes[0].get_ylim()
    assert low < best < 9.0 < high


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_member_that_is_not_finite_is_in_no_score_a_hit_or_a_miss(value):
    """Every score of the affected point is not finite; the others are unchanged."""
    rng = torch.Generator().manual_seed(0)
    members, truth = torch.randn(10, 5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    broken = members.clone()
    broken[3, 2, 1] = value
    for statistic in (covered, covered_fair, fair_crps, squared_error):
        before, after = statistic(members, truth), statistic(broken, truth)
        assert not torch.isfinite(after[2, 1])
        after[2, 1] = before[2, 1]
        torch.testing.assert_close(after, before)
