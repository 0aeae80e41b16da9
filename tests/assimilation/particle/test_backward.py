"""Laws of backward simulation, against the exact smoother of a linear system."""

import pytest
import torch

from slams.assimilation.particle.backward import BackwardSimulation
from slams.core.covariance import Isotropic
from slams.core.random import normal
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select

L, N, P = 20, 2000, 2**14


class Rotation:
    """x_{k+1} = a Q x_k + N(0, s^2 dt I), x_0 ~ N(0, I)."""

    dt, noise = 0.25, 1.0

    def __init__(self, dtype=torch.float64):
        angle = torch.tensor(0.4, dtype=dtype)
        c, s = angle.cos(), angle.sin()
        self.matrix = 0.95 * torch.stack([torch.stack([c, -s]), torch.stack([s, c])])

    def initial(self, *shape, rng=None):
        return normal((*shape, 2), like=self.matrix, rng=rng)

    def mean(self, x):
        return x @ self.matrix.mT


def exact(system: Rotation, value: torch.Tensor, std: float):
    """Mean (L, 2) and covariance (2 L, 2 L) of the whole trajectory given its first coordinate, NaN unseen."""
    eye = torch.eye(2, dtype=torch.float64)
    big = torch.eye(2 * L, dtype=torch.float64)
    for k in range(1, L):
        big[2 * k : 2 * k + 2] += system.matrix @ big[2 * k - 2 : 2 * k]
    source = torch.block_diag(eye, *[system.noise**2 * system.dt * eye] * (L - 1))
    prior = big @ source @ big.mT
    seen = torch.isfinite(value).nonzero().squeeze(-1)
    H = torch.eye(2 * L, dtype=torch.float64)[2 * seen]
    gain = prior @ H.mT @ torch.linalg.inv(H @ prior @ H.mT + std**2 * torch.eye(len(seen)))
    return (gain @ value[seen]).reshape(L, 2), prior - gain @ H @ prior


@pytest.fixture(scope="module")
def case():
    rng = torch.Generator().manual_seed(1)
    value = torch.full((L,), torch.nan, dtype=torch.float64)
    seen = [0, *range(1, L, 3)]  # the first and the last step with them
    value[seen] = 1.5 * torch.randn(len(seen), generator=rng, dtype=torch.float64)
    observation = Observation(value[:, None], Select(torch.tensor([0]), event=1), Isotropic(0.3**2))
    return Rotation(), Observations({"a": observation}), exact(Rotation(), value, 0.3)


@pytest.fixture(scope="module")
def drawn(case):
    system, observations, _ = case
    method = BackwardSimulation(system, particles=P, threshold=1.0)
    return method.assimilate(observations, N, rng=torch.Generator().manual_seed(2))


def test_draws_have_the_smoother_s_moments(case, drawn):
    """Means and all lag covariances within 6 standard errors of N draws and 2 % for the P particles: a false alarm in
    a million for each of 40 + 1600 numbers, which are strongly correlated."""
    mean, covariance = case[2]
    x = drawn.samples.flatten(1)
    std = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean.flatten()) / std).abs().max() < 6 / N**0.5 + 0.05
    correlation = torch.cov(x.mT) / (std[:, None] * std)
    expected = covariance / (std[:, None] * std)
    assert (correlation - expected).abs().max() < 6 * 2**0.5 / N**0.5 + 0.02


def test_early_states_are_no_copies(case, drawn):
    """Ancestral lines of the same filter meet in few ancestors; draws backward do not."""
    system, observations, _ = case
    lines = BackwardSimulation(system, particles=512, threshold=1.0, backward=False)
    fresh = BackwardSimulation(system, particles=512, threshold=1.0)
    few = lines.assimilate(observations, 512, rng=torch.Generator().manual_seed(3)).diagnostics["ancestors"]
    many = fresh.assimilate(observations, 512, rng=torch.Generator().manual_seed(3)).diagnostics["ancestors"]
    assert few[0] < 40 < 100 < many[0]
    assert (drawn.samples[:, 0, 0].unique().numel()) > N // 4


def test_ancestral_lines_are_paths_of_the_filter(case):
    """Every step of a line follows from the one before by the model's noise alone."""
    system, observations, (mean, covariance) = case
    method = BackwardSimulation(system, particles=P, backward=False)
    x = method.assimilate(observations, N, rng=torch.Generator().manual_seed(4)).samples
    kick = x[:, 1:] - system.mean(x[:, :-1])
    assert kick.abs().max() < 6.5 * system.noise * system.dt**0.5
    last = (x[:, -1].mean(0) - mean[-1]) / covariance.diagonal()[-2:].sqrt()
    assert last.abs().max() < 6 / N**0.5 + 0.05


def test_groups_change_nothing_but_the_memory(case):
    system, observations, _ = case
    draws = [
        BackwardSimulation(system, particles=256, rows=rows).assimilate(
            observations, 64, rng=torch.Generator().manual_seed(5)
        )
        for rows in (7, 64)
    ]
    torch.testing.assert_close(draws[0].samples, draws[1].samples)


def test_what_cannot_be_is_told(case):
    system, observations, _ = case
    silent = Rotation()
    silent.noise = 0.0
    with pytest.raises(ValueError, match="noise"):
        BackwardSimulation(silent)
    with pytest.raises(ValueError, match="particles"):
        BackwardSimulation(system, particles=0)
    with pytest.raises(ValueError, match="at least one"):
        BackwardSimulation(system).assimilate(observations, 0)
