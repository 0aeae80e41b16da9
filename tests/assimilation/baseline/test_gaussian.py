"""Laws of the closed-form Gaussian and of its parts, against dense algebra in float64."""

import numpy as np
import pytest
import torch

from slams.assimilation.baseline.gaussian import (
    ClosedFormGaussian,
    Evidence,
    normal_crps,
    residual_covariance,
    ridge,
)
from slams.core.covariance import Dense, Diagonal
from slams.core.errors import NonFiniteError
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from tests.diffusion.gaussian import orthonormal, positive, posterior

L, D, K, WINDOWS = 3, 6, 4, 5
NAN = float("nan")


class Problem:
    """Two modalities, full and diagonal errors; windows that saw all, one modality, parts, a day, nothing."""

    def __init__(self, rng: torch.Generator):
        self.c = positive(L * K, rng)
        self.decode = torch.randn(D, K, dtype=torch.float64, generator=rng)
        self.rest = torch.rand(D, dtype=torch.float64, generator=rng) + 0.1
        self.g = {
            m: torch.randn(p, K, dtype=torch.float64, generator=rng)
            for m, p in (("dense", 3), ("diagonal", 2))
        }
        self.r = {
            "dense": 0.2 * positive(3, rng) + 0.05 * torch.eye(3, dtype=torch.float64),
            "diagonal": torch.tensor([0.3, 0.05], dtype=torch.float64).diag(),
        }
        self.y = {
            m: torch.randn(WINDOWS, L, len(g), dtype=torch.float64, generator=rng) for m, g in self.g.items()
        }
        self.y["dense"][1] = NAN
        self.y["dense"][2, 0, 1] = self.y["dense"][2, 2, :2] = self.y["diagonal"][2, 1, 0] = NAN
        self.y["dense"][3, 1] = self.y["diagonal"][3, 1] = NAN
        self.y["dense"][4] = self.y["diagonal"][4] = NAN

    def found(self, inflation: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        basis = torch.eye(D, K)  # the state's own patterns do not enter
        prior = WindowGaussian(basis, self.c.float(), 0.1, (D,), VPCosine())
        closed = ClosedFormGaussian(prior, self.decode.float(), self.rest.float(), inflation)
        noise = {
            "dense": Dense(self.r["dense"].float()),
            "diagonal": Diagonal(self.r["diagonal"].diagonal().float()),
        }
        seen = {m: Observation(self.y[m].float(), Flatten(1), noise[m]) for m in self.y}
        return closed.windows(Observations(seen), {m: g.float() for m, g in self.g.items()})

    def exact(self, window: int, inflation: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        eye = torch.eye(L, dtype=torch.float64)
        h = torch.cat([torch.kron(eye, g) for g in self.g.values()])
        r = torch.block_diag(*[torch.kron(eye, self.r[m]) for m in self.g])
        y = torch.cat([self.y[m][window].flatten() for m in self.g])
        mean, covariance = posterior(inflation * self.c, h, r, y)
        every = torch.kron(eye, self.decode)
        variance = (every @ covariance @ every.mT).diagonal() + self.rest.repeat(L)
        return (every @ mean).reshape(L, D), variance.sqrt().reshape(L, D)


@pytest.mark.parametrize("inflation", [0.5, 1.0, 1.7])
def test_the_closed_form_is_the_conditional_of_the_joint_gaussian(inflation, rng):
    """The gain form in float64 against the information form; 1e-4 is float32 at a condition of 1e3."""
    problem = Problem(rng)
    mean, std = problem.found(inflation)
    for w in range(WINDOWS):
        exact_mean, exact_std = problem.exact(w, inflation)
        torch.testing.assert_close(mean[w].double(), exact_mean, rtol=0, atol=1e-4)
        torch.testing.assert_close(std[w].double(), exact_std, rtol=0, atol=1e-4)


def test_a_window_that_saw_nothing_has_the_mean_and_the_spread_of_the_climate(rng):
    problem = Problem(rng)
    mean, std = problem.found()
    blocks = problem.c.reshape(L, K, L, K)
    for k in range(L):
        climate = (problem.decode @ blocks[k, :, k] @ problem.decode.mT).diagonal() + problem.rest
        torch.testing.assert_close(std[4, k].double() ** 2, climate, rtol=1e-5, atol=0)
    assert bool((mean[4] == 0).all())


@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_ridge_is_the_penalized_least_squares_of_each_columns_own_days(penalty, rng):
    """Least squares of the rows stacked on sqrt(penalty) 1, by numpy; a column never seen is told as zero."""
    a = torch.randn(40, 5, dtype=torch.float64, generator=rng)
    y = torch.randn(40, 4, dtype=torch.float64, generator=rng)
    y[::3, 1] = NAN
    y[5:, 2] = NAN  # fewer days than coefficients and penalty together would need without it
    y[:, 3] = NAN
    found = ridge(a, y, penalty)
    for column in range(3):
        rows = torch.isfinite(y[:, column])
        stacked = np.vstack([a[rows].numpy(), penalty**0.5 * np.eye(5)])
        expected = np.linalg.lstsq(stacked, np.r_[y[rows, column].numpy(), np.zeros(5)], rcond=None)[0]
        np.testing.assert_allclose(found[column].numpy(), expected, rtol=0, atol=1e-12)
    assert bool((found[3] == 0).all())


def test_residual_covariance_is_the_second_moment_of_days_seen_by_both_plus_the_floor(rng):
    root = torch.randn(3, 3, dtype=torch.float64, generator=rng)
    residual = torch.randn(400, 3, dtype=torch.float64, generator=rng) @ root
    residual[::5, 0] = residual[::7, 2] = NAN
    found = residual_covariance(residual, floor=0.01)
    expected = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            expected[i, j] = np.nanmean(residual[:, i].numpy() * residual[:, j].numpy())
    assert np.linalg.eigvalsh(expected)[0] > 0  # so that nothing is clipped
    expected += 0.01 * np.trace(expected) / 3 * np.eye(3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_residual_covariance_stays_positive_where_the_moments_are_not():
    """Pairs that agree, agree and disagree on their common days: eigenvalues 2, 2, -1; no variance is negative."""
    one, two = torch.tensor([1.0, -1.0]), torch.full((2,), NAN)
    rows = [(one, one, two), (two, one, one), (one, two, -one)]
    residual = torch.cat([torch.stack(row, 1) for row in rows])
    found = residual_covariance(residual, floor=0.01)
    value = torch.linalg.eigvalsh(found)
    torch.testing.assert_close(value, torch.tensor([0.01, 2.01, 2.01]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("error", [-3.0, -0.4, 0.0, 0.7, 2.5])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_normal_crps_is_the_integral_of_the_squared_distance_of_distributions(error, std):
    """Both sides of the step by the trapezoid rule, whose error is below 1e-7 at these steps."""
    total = 0.0
    for low, high, step in ((-30.0, error, 0.0), (error, 30.0, 1.0)):
        x = torch.linspace(low, high, 200_001, dtype=torch.float64)
        total += float(torch.trapezoid((torch.special.ndtr(x / std) - step) ** 2, x))
    found = float(
        normal_crps(torch.tensor(error, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    )
    assert abs(found - total) < 1e-7


def test_an_orthonormal_basis_makes_no_difference(rng):
    """Coefficients in another basis of the same space give the same analysis."""
    problem, turned = Problem(rng), Problem(torch.Generator().manual_seed(0))
    q = orthonormal(K, K, rng)
    every = torch.kron(torch.eye(L, dtype=torch.float64), q)
    turned.c = every.mT @ turned.c @ every
    turned.decode = turned.decode @ q
    turned.g = {m: g @ q for m, g in turned.g.items()}
    for a, b in zip(problem.found(), turned.found(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_evidence_of_errors_some_times_as_large_is_scaled(rng):
    """Against the evidence of the larger errors itself; 1e-5 is float32. Rows that no window saw are not touched."""
    problem = Problem(rng)
    for name, r in problem.r.items():
        value, g = problem.y[name].float(), problem.g[name].float()
        kinds = [
            Dense((f * r).float()) if name == "dense" else Diagonal(f * r.diagonal().float()) for f in (1, 4)
        ]
        one, four = (Evidence.of(Observation(value, Flatten(1), noise), g) for noise in kinds)
        torch.testing.assert_close(one.scaled(4.0).pulled, four.pulled, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.scaled(4.0).matrices, four.matrices, rtol=1e-5, atol=1e-6)
        assert len(one.matrices) == len(one.pattern.unique())
    value[..., 0], g[0] = NAN, 7.0
    seen = Observation(value, Flatten(1), kinds[0])
    found, other = Evidence.of(seen, g), Evidence.of(seen, torch.cat([torch.full_like(g[:1], -3.0), g[1:]]))
    assert torch.equal(found.pulled, other.pulled) and torch.equal(found.matrices, other.matrices)


def test_a_closed_form_that_is_not_finite_is_refused(rng):
    problem = Problem(rng)
    problem.g["diagonal"][1, 2] = NAN
    with pytest.raises(NonFiniteError, match="1 of 2 rows"):
        problem.found()
    problem = Problem(rng)
    problem.decode[0, 0] = NAN
    with pytest.raises(NonFiniteError, match="mean or spread"):
        problem.found()


def test_a_full_precision_is_computed_once_for_each_pattern_of_values(monkeypatch):
    """Never one of every step: those of a hundred forecasts from 2,048 gauges would take 20 GB."""
    problem, rng = Problem(torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    y = torch.randn(40, L, 3, generator=rng)
    y[::2, 1] = NAN
    y[:, 2, 0] = NAN
    asked, precision = [], Dense.precision
    monkeypatch.setattr(
        Dense, "precision", lambda self, seen: asked.append(seen.shape) or precision(self, seen)
    )
    g, r = problem.g["dense"].float(), problem.r["dense"]
    found = Evidence.of(Observation(y, Flatten(1), Dense(r.float())), g)
    assert asked == 3 * [torch.Size([3])]
    for w, step in ((0, 0), (1, 1), (7, 2)):
        seen = torch.isfinite(y[w, step])
        expected = y[w, step, seen].double() @ torch.linalg.inv(r[seen][:, seen]) @ g[seen].double()
        assert torch.allclose(found.pulled[w, step].double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.pulled[0, 1], torch.zeros(K))
