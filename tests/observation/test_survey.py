"""Laws of surveys: what they see, when, and with which errors."""

import pytest
import torch

from slams.core.covariance import Dense, Diagonal, Isotropic
from slams.observation import Observations, Survey, operators

D = 6


@pytest.mark.parametrize("kind", ["float", "isotropic", "diagonal", "dense"])
def test_errors_have_the_stated_covariance(kind, rng):
    """Mean and 6 entries a location within 6 standard errors over 24000 draws: false alarm below 1e-7."""
    root = torch.randn(3, 3, dtype=torch.float64, generator=rng)
    matrix = root @ root.mT + torch.eye(3, dtype=torch.float64)
    noise, expected = {
        "float": (0.7, 0.7 * torch.eye(3, dtype=torch.float64)),
        "isotropic": (Isotropic(0.7), 0.7 * torch.eye(3, dtype=torch.float64)),
        "diagonal": (Diagonal(matrix.diagonal()), matrix.diagonal().diag()),
        "dense": (Dense(matrix), matrix),
    }[kind]
    truth = torch.randn(60, 400, D, dtype=torch.float64, generator=rng)
    seen = Survey(operators.Stride(2), noise).observe(truth, rng=rng)
    error = (seen["observation"].value - truth[..., ::2]).reshape(-1, 3)
    n = len(error)
    assert bool((error.mean(0).abs() < 6 * (expected.diagonal() / n).sqrt()).all())
    scale = ((expected.diagonal()[:, None] * expected.diagonal() + expected**2) / n).sqrt()
    assert bool(((error.mT @ error / n - expected).abs() < 6 * scale).all())
    lagged = (error[1:] * error[:-1]).mean(0).abs()  # errors of two steps are independent
    assert bool((lagged < 6 * expected.diagonal() / n**0.5).all())


def test_only_the_stated_steps_are_seen(rng):
    truth = torch.zeros(2, 11, D)
    for survey, steps in [
        (Survey(operators.Identity(), 1.0, every=4, start=1), [1, 5, 9]),
        (Survey(operators.Identity(), 1.0, times=[7, 0, 2]), [0, 2, 7]),
    ]:
        seen = survey.observe(truth, rng=rng)
        assert seen.seen_steps == steps and seen.steps == 11
        assert all(seen.step(k).all_seen for k in steps)


def test_each_value_is_missing_with_the_stated_chance(rng):
    """48000 draws, 6 standard errors: false alarm 2e-9; anew at each step and in each replicate."""
    seen = Survey(operators.Identity(), 1.0, missing=0.3).observe(torch.zeros(20, 400, D), rng=rng)
    gone = ~seen["observation"].seen
    assert abs(float(gone.float().mean()) - 0.3) < 6 * (0.21 / gone.numel()) ** 0.5
    both = (gone[1:] & gone[:-1]).float().mean(), (gone[:, 1:] & gone[:, :-1]).float().mean()
    assert all(abs(float(share) - 0.09) < 6 * (0.09 * 0.91 / gone[1:].numel()) ** 0.5 for share in both)


def test_joined_surveys_keep_their_own_times_and_operators(rng):
    truth = torch.randn(9, D, dtype=torch.float64, generator=rng)
    wind = Survey(
        {"u": operators.Stride(3), "v": operators.Pointwise("cube")}, {"u": 1e-20, "v": 1e-20}, every=3
    )
    seen = Survey.join({"wind": wind, "t": Survey(operators.Identity(), 1e-20, start=1, every=2)}).observe(
        truth, rng=rng
    )
    assert list(seen) == ["wind.u", "wind.v", "t"] and isinstance(seen, Observations)
    torch.testing.assert_close(
        seen.step(0).value, torch.cat([truth[0, ::3], truth[0] ** 3]), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(seen.step(1).value, truth[1], rtol=0, atol=1e-8)
    both = torch.cat([truth[3, ::3], truth[3] ** 3, truth[3]])
    torch.testing.assert_close(seen.step(3).value, both, rtol=0, atol=1e-8)
    assert seen.step(2) is None


def test_fields_keep_their_axes(rng):
    """Vorticity has an axis less than the velocity; the likelihood of the truth is that of its errors."""
    truth = torch.randn(2, 4, 2, 6, 5, dtype=torch.float64, generator=rng)
    seen = Survey(operators.Vorticity(), 0.01).observe(truth, event=3, rng=rng)["observation"]
    assert seen.event == 2 and seen.value.shape == (2, 4, 6, 5)
    exact = operators.Vorticity()(truth)
    expected = -0.5 * ((seen.value - exact) ** 2 / 0.01).sum((-1, -2))
    torch.testing.assert_close(seen.log_likelihood(truth), expected, rtol=1e-12, atol=0)


def test_the_generator_settles_the_draw():
    survey = Survey(operators.Identity(), 1.0, missing=0.2)
    first, second = (
        survey.observe(torch.zeros(5, D), rng=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.step(0).value.nan_to_num(), second.step(0).value.nan_to_num())


def test_a_truth_or_setting_that_cannot_be_is_refused():
    survey = Survey(operators.Identity(), 1.0)
    truth = torch.zeros(4, D)
    truth[2, 1] = float("inf")
    with pytest.raises(ValueError, match="not finite from step 2 on"):
        survey.observe(truth)
    with pytest.raises(ValueError, match="a truth has axes"):
        survey.observe(torch.zeros(4, D), event=2)
    with pytest.raises(ValueError, match="not finite everywhere"):
        Survey(operators.Pointwise("exp"), 1.0).observe(torch.full((2, D), 1e4))
    with pytest.raises(ValueError, match="a truth of 4 steps would be observed"):
        Survey(operators.Identity(), 1.0, start=4).observe(torch.zeros(4, D))
    with pytest.raises(ValueError, match="6 values but its noise covariance 2"):
        Survey(operators.Identity(), Diagonal(torch.ones(2))).observe(torch.zeros(4, D))
    with pytest.raises(ValueError, match="need every >= 1"):
        Survey(operators.Identity(), 1.0, every=0)
    with pytest.raises(ValueError, match="name the same ones"):
        Survey({"a": operators.Identity()}, {"b": 1.0})
    with pytest.raises(ValueError, match="positive and finite"):
        Survey(operators.Identity(), 0.0)
