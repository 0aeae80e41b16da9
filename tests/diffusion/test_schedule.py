"""Laws of noise schedules."""

import pytest
import torch

from slams.diffusion.schedule import (
    EnsembleLinear,
    Rectified,
    SubSubVP,
    SubVP,
    VarianceExploding,
    VPCosine,
    VPExponential,
    VPLinear,
)

SCHEDULES = {
    "vp cos": VPCosine(),
    "vp lin": VPLinear(),
    "vp exp": VPExponential(),
    "sub-vp": SubVP(),
    "sub-vp exp": SubVP(VPExponential()),
    "sub-sub-vp": SubSubVP(),
    "sub-sub-vp lin": SubSubVP(VPLinear()),
    "ve": VarianceExploding(),
    "rectified": Rectified(),
    "ensf": EnsembleLinear(),
    "ensf tuned": EnsembleLinear(0.5, 0.025),
}
T = torch.linspace(0, 1, 201, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_signal_falls_against_noise(schedule):
    """Strictly, so that the log-SNR names the time; 4001 points."""
    fine = torch.linspace(0, 1, 4001, dtype=torch.float64)
    log_snr = schedule.log_snr(fine)
    assert bool((log_snr.diff() < 0).all())
    alpha, sigma = schedule(fine)
    assert bool((alpha > 0).all()) and bool((alpha.diff() <= 0).all()) and bool((sigma.diff() > 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_time_is_the_inverse_of_the_ratio_and_of_the_log_snr(schedule):
    """1e-9: at the clean end of a cosine the time is a root of 1 - alpha and loses half of the digits (4e-10)."""
    alpha, sigma = schedule(T[1:])
    torch.testing.assert_close(schedule.time(alpha / sigma), T[1:], rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.from_log_snr(schedule.log_snr(T[1:])), T[1:], rtol=0, atol=1e-9)
    out = schedule.time(torch.tensor([0.0, 1e-30, 1e30], dtype=torch.float64))
    torch.testing.assert_close(out[1:], torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_cosine_has_the_values_of_sda():
    """The published table, to its four digits."""
    alpha, sigma = VPCosine()(torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64))
    assert alpha.tolist() == pytest.approx([1, 0.8591, 0.5158, 0.1636, 0.001], abs=5e-5)
    assert sigma.tolist() == pytest.approx([0.001, 0.5118, 0.8567, 0.9865, 1], abs=5e-5)


@pytest.mark.parametrize("kind", [VPCosine, VPLinear, VPExponential])
@pytest.mark.parametrize("eta", [1e-3, 0.1])
def test_schedule_goes_from_data_to_noise_and_keeps_unit_variance(kind, eta):
    """alpha^2 + sigma^2 = 1 + eta^2 at every time, with eta of noise left at 0 and of signal left at 1."""
    alpha, sigma = kind(eta)(T)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.full_like(T, 1 + eta**2), rtol=0, atol=1e-14)
    assert float(alpha[0]) == 1 and float(sigma[0]) == pytest.approx(eta, rel=1e-9)
    assert float(alpha[-1]) == pytest.approx(eta, rel=1e-9)


def test_signals_of_the_linear_and_exponential_schedules():
    alpha, _ = VPLinear()(T)
    torch.testing.assert_close(alpha, 1 - 0.999 * T, rtol=0, atol=1e-15)
    alpha, _ = VPExponential()(T)
    torch.testing.assert_close(alpha, torch.tensor(1e-3, dtype=torch.float64) ** (T**2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("signal", [VPCosine(), VPLinear(), VPExponential()])
def test_sub_vp_is_the_square_of_vp_and_both_hold_less_noise(signal):
    """1 - alpha^2 (the square of VP's sigma), and 1 - alpha, each plus eta."""
    alpha, sigma = signal(T)
    sub, least = SubVP(signal)(T), SubSubVP(signal)(T)
    assert torch.equal(sub[0], alpha) and torch.equal(least[0], alpha)
    torch.testing.assert_close(sub[1], sigma**2 + 1e-3 - 1e-6, rtol=0, atol=1e-14)
    torch.testing.assert_close(least[1], 1 - alpha + 1e-3, rtol=0, atol=1e-14)
    assert bool((sub[1] <= sigma + 1e-3).all()) and bool((least[1] <= sub[1]).all())


def test_the_noise_of_ve_grows_geometrically_and_paths_are_straight_when_rectified():
    alpha, sigma = VarianceExploding(0.01, 50.0)(T)
    assert bool((alpha == 1).all()) and sigma[[0, -1]].tolist() == pytest.approx([0.01, 50.0])
    torch.testing.assert_close(sigma[1:] / sigma[:-1], torch.full_like(T[1:], 5000 ** (1 / 200)))
    alpha, sigma = Rectified(1e-3)(T)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(T), rtol=0, atol=1e-15)
    assert [float(sigma[0]), float(alpha[-1])] == pytest.approx([1e-3, 1e-3])
    assert float(sigma.diff().diff().abs().max()) < 1e-14


def test_the_schedule_of_the_ensemble_score_filter():
    alpha, sigma = EnsembleLinear(0.5, 0.025)(T)
    torch.testing.assert_close(alpha, 1 - 0.5 * T, rtol=0, atol=1e-15)
    torch.testing.assert_close(sigma**2, 0.025 + 0.975 * T, rtol=0, atol=1e-15)
    assert float(EnsembleLinear()(T)[1][0]) == 0


@pytest.mark.parametrize("eta", [0.0, 1.0, -0.1])
@pytest.mark.parametrize("kind", [VPCosine, Rectified])
def test_an_eta_that_is_none_is_refused(kind, eta):
    with pytest.raises(ValueError, match="eta must be in"):
        kind(eta)


def test_noise_that_does_not_grow_is_refused():
    with pytest.raises(ValueError, match="got 1.0 and 0.5"):
        VarianceExploding(1.0, 0.5)
    with pytest.raises(ValueError, match="got 0.0 and 0"):
        EnsembleLinear(0.0, 0)
