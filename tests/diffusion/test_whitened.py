"""Laws of the denoiser that sees windows in the directions of their covariance."""

import pytest
import torch
from torch import nn

from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.whitened import WhitenedDenoiser
from tests.diffusion.gaussian import positive

L, C = 3, 2


class Spy(nn.Module):
    """Returns a constant, and remembers what it was shown."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = value

    def forward(self, u: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        self.u, self.s = u, s
        return torch.full_like(u, self.value)


@pytest.fixture
def case():
    rng = torch.Generator().manual_seed(0)
    covariance = positive(L * C, rng).double()
    mean = torch.randn(L, C, generator=rng, dtype=torch.float64)
    return mean, covariance, rng


@pytest.mark.parametrize("t", [0.02, 0.5, 0.99])
def test_without_a_correction_it_is_the_gaussian(case, t):
    """E[x | x_t] = mu + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mu)."""
    mean, covariance, rng = case
    denoiser = WhitenedDenoiser(Spy(), mean, covariance, VPCosine())
    x_t = torch.randn(5, L, C, generator=rng, dtype=torch.float64)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = denoiser.schedule(time)
    gain = (
        alpha
        * covariance
        @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(L * C, dtype=torch.float64))
    )
    expected = mean.flatten() + (x_t.flatten(1) - alpha * mean.flatten()) @ gain.mT
    torch.testing.assert_close(denoiser(x_t, time).flatten(1), expected, rtol=1e-10, atol=1e-10)


def test_the_network_sees_and_answers_in_units_of_what_is_known(case):
    """Input of unit covariance; an answer of 1 moves each direction by its standard deviation given x_t."""
    mean, covariance, rng = case
    spy = Spy(1.0)
    denoiser = WhitenedDenoiser(spy, mean, covariance, VPCosine())
    time = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = denoiser.schedule(time)
    draw = torch.randn(40_000, L * C, generator=rng, dtype=torch.float64)
    root = torch.linalg.cholesky(alpha**2 * covariance + sigma**2 * torch.eye(L * C, dtype=torch.float64))
    x_t = (alpha * mean.flatten() + draw @ root.mT).reshape(-1, L, C)
    moved = denoiser(x_t, time)
    # entries of a sample covariance deviate by 1 / sqrt(n) or sqrt(2 / n): 6 of these, a false alarm in 1e7
    torch.testing.assert_close(
        spy.u.mT @ spy.u / len(spy.u), torch.eye(L * C, dtype=torch.float64), rtol=0, atol=0.043
    )
    spy.value = 0.0
    shift = ((moved - denoiser(x_t, time)).flatten(1) @ denoiser.vectors)[0]
    posterior = torch.linalg.inv(
        torch.linalg.inv(covariance) + (alpha / sigma) ** 2 * torch.eye(L * C, dtype=torch.float64)
    )
    torch.testing.assert_close(shift**2, torch.linalg.eigvalsh(posterior).double(), rtol=1e-9, atol=1e-12)


def test_times_of_samples_and_composition(case):
    """A time for each sample is the same as one after the other, also in trajectories of windows."""
    mean, covariance, rng = case
    denoiser = MarkovBlanket(WhitenedDenoiser(Spy(0.3), mean, covariance, VPCosine()), L)
    x_t = torch.randn(2, 6, C, generator=rng, dtype=torch.float64)
    times = torch.tensor([0.1, 0.8], dtype=torch.float64)
    together = denoiser(x_t, times[:, None, None])
    for i, time in enumerate(times):
        torch.testing.assert_close(together[i], denoiser(x_t[i : i + 1], time)[0])


def test_a_window_of_another_shape_is_told(case):
    mean, covariance, _ = case
    with pytest.raises(ValueError, match="windows"):
        WhitenedDenoiser(Spy(), mean, covariance, VPCosine())(torch.zeros(1, L + 1, C), torch.tensor(0.5))
    with pytest.raises(ValueError, match="covariance"):
        WhitenedDenoiser(Spy(), mean, covariance[1:, 1:], VPCosine())


def test_far_from_its_data_the_network_is_bounded(case):
    """What it is shown and what it answers stay within the bound, and times within those it was trained on."""
    mean, covariance, _ = case
    spy = Spy(1e9)
    denoiser = WhitenedDenoiser(spy, mean, covariance, VPCosine(), bound=5.0, trained=(0.01, 10.0))
    far = 1e3 * torch.ones(1, L, C, dtype=torch.float64)
    for t, place in ((0.0, 1 / 6), (1.0, 2 / 3)):
        time = torch.tensor(t, dtype=torch.float64)
        spy.value = 1e9
        guess = denoiser(far, time)
        assert spy.u.abs().max() <= 5 and float(spy.s) == pytest.approx(place)
        spy.value = 0.0
        moved = (guess - denoiser(far, time)).flatten() @ denoiser.vectors
        assert (moved.abs() <= 5 * denoiser.values.sqrt() + 1e-6).all()
