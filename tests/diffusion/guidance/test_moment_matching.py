"""Laws of guidance by moment matching: exact where the prior is Gaussian and operators are linear."""

import pytest
import torch
from torch import nn

from slams.core.covariance import Dense, Diagonal, Isotropic
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.exact.mixture import MixtureDenoiser
from slams.diffusion.guidance.krylov import conjugate_gradients, gmres
from slams.diffusion.guidance.moment_matching import DiagonalMatching, MomentMatching, PseudoInverse
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import EnsembleLinear, Rectified, SubVP, VarianceExploding, VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity, Select
from tests.diffusion.gaussian import denoised, law, positive, posterior

L, D, W = 3, 4, 4
SCHEDULES = [VPCosine(), SubVP(), VarianceExploding(), Rectified(), EnsembleLinear(0.5, 0.025)]


class Matrix(nn.Module):
    """h(x) = H x."""

    def __init__(self, h):
        super().__init__()
        self.h = h

    def forward(self, x):
        return x @ self.h.mT


def randn(*shape, rng):
    return torch.randn(*shape, dtype=torch.float64, generator=rng)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


class Problem:
    """A full Gaussian over windows (L, D), two modalities, four windows that saw different values."""

    def __init__(self, rng, schedule=None, dense=True):
        self.schedule = schedule or VPCosine()
        self.mean, self.c = randn(L, D, rng=rng), positive(L * D, rng)
        self.prior = GaussianDenoiser(self.mean, Dense(self.c), self.schedule, event=2)
        self.h = {"a": randn(3, D, rng=rng), "b": randn(2, D, rng=rng)}
        full = 0.2 * positive(3, rng)
        self.r = {"a": full if dense else full.diagonal().diag(), "b": at([0.3, 0.05]).diag()}
        self.y = {name: randn(W, L, len(h), rng=rng) for name, h in self.h.items()}
        self.y["a"][1] = self.y["b"][1, 0, 0] = self.y["a"][2, 2, 1] = float("nan")
        self.y["a"][3] = self.y["b"][3] = float("nan")
        noise = {"a": Dense(full) if dense else Diagonal(full.diagonal()), "b": Diagonal(at([0.3, 0.05]))}
        self.observations = Observations(
            {name: Observation(self.y[name], Matrix(self.h[name]), noise[name]) for name in self.h}
        )

    def exact(self, w):
        """Mean and covariance over (L D) given window w's observations."""
        eye = torch.eye(L, dtype=torch.float64)
        h = torch.cat([torch.kron(eye, self.h[m]) for m in self.h])
        r = torch.block_diag(*[torch.kron(eye, self.r[m]) for m in self.h])
        y = torch.cat([self.y[m][w].flatten() for m in self.h])
        shift, c = posterior(self.c, h, r, y - h @ self.mean.flatten())
        return self.mean.flatten() + shift, c


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", ["cg", "gmres"])
def test_moment_matching_equals_the_joint_gaussian(t, schedule, solver, rng):
    """E[x | x_t, y], solver converged: condition on y first, then denoise, by dense algebra."""
    problem = Problem(rng, schedule)
    x_t = randn(5, W, L, D, rng=rng)
    guided = MomentMatching(iterations=60, tolerance=1e-14, solver=solver)(
        problem.prior, problem.observations
    )
    found = guided(x_t, at(t)).flatten(2)
    for w in range(W):
        mean, c = problem.exact(w)
        expected = denoised(c, mean, x_t[:, w].flatten(1), *schedule(at(t)))
        torch.testing.assert_close(found[:, w], expected, rtol=0, atol=1e-10)


def test_members_may_stand_behind_the_batch_of_the_observations(rng):
    problem, x_t = Problem(rng), randn(5, W, L, D, rng=rng)
    settings = {"iterations": 60, "tolerance": 1e-13}
    front = MomentMatching(**settings)(problem.prior, problem.observations)(x_t, at(0.4))
    behind = MomentMatching(**settings)(problem.prior, problem.observations, members=True)
    torch.testing.assert_close(behind(x_t.movedim(1, 0), at(0.4)), front.movedim(0, 1), rtol=0, atol=1e-11)


def test_one_time_and_one_observation_will_do(rng):
    """A filter's analysis: members (*B, N, D), values (*B, O), the time of each row its own."""
    mean, c, y = randn(D, rng=rng), positive(D, rng), randn(3, 2, rng=rng)
    y[1, 0] = float("nan")
    prior = GaussianDenoiser(mean, Dense(c), VPCosine())
    seen = Observation(y, Select(torch.tensor([0, 2]), 1), Isotropic(0.1))
    x_t, t = randn(3, 6, D, rng=rng), torch.rand(3, 6, 1, generator=rng, dtype=torch.float64)
    found = MomentMatching(iterations=9, tolerance=1e-13)(prior, seen, members=True)(x_t, t)
    h, r = torch.eye(D, dtype=torch.float64)[[0, 2]], 0.1 * torch.eye(2, dtype=torch.float64)
    for b in range(3):
        shift, after = posterior(c, h, r, y[b] - h @ mean)
        for n in range(6):
            expected = denoised(after, mean + shift, x_t[b, n], *VPCosine()(t[b, n]))
            torch.testing.assert_close(found[b, n], expected, rtol=0, atol=1e-10)


def test_sampling_gives_the_posterior(rng):
    """No chance: mean within 0.5 % of a deviation (of which 1e-3 is left at t = 1), covariance within 1 % of the
    products of deviations, for 128 steps of order 2 whose grid reaches the schedule's ends."""
    problem = Problem(rng)
    guided = MomentMatching(iterations=40, tolerance=1e-10)(problem.prior, problem.observations)
    sampler = Sampler(128, order=2, time_grid="snr", ends=(1e-9, 1e9))
    mean, covariance = law(sampler, guided, (W, L, D))
    covariance = covariance.reshape(W, L * D, W, L * D)
    for w in range(W):
        exact, c = problem.exact(w)
        std = c.diagonal().sqrt()
        assert float(((mean[w].flatten() - exact) / std).abs().max()) < 0.02
        assert float(((covariance[w, :, w] - c) / (std[:, None] * std)).abs().max()) < 0.01


def test_diagonal_matching_is_exact_where_all_is_diagonal(rng):
    variance, mean = torch.rand(D, generator=rng, dtype=torch.float64) + 0.1, randn(D, rng=rng)
    prior = GaussianDenoiser(mean, Diagonal(variance), VPCosine())
    y, r = randn(D, rng=rng), torch.rand(D, generator=rng, dtype=torch.float64) + 0.05
    y[1] = float("nan")
    x_t = randn(5, D, rng=rng)
    found = DiagonalMatching()(prior, Observation(y, Identity(), Diagonal(r)))(x_t, at(0.4))
    shift, c = posterior(variance.diag(), torch.eye(D).double(), r.diag(), y - mean)
    torch.testing.assert_close(
        found, denoised(c, mean + shift, x_t, *VPCosine()(at(0.4))), rtol=0, atol=1e-11
    )


def test_diagonal_matching_sums_rows_of_the_unwhitened_matrix(rng):
    """(R + diag(H V H^T 1))^-1 with unequal errors, against dense matrices."""
    problem = Problem(rng, dense=False)
    x_t, t = randn(1, W, L, D, rng=rng), at(0.5)
    alpha, sigma = VPCosine()(t)
    found = DiagonalMatching()(problem.prior, problem.observations)(x_t, t)[0, 0].flatten()
    m = problem.prior(x_t, t)[0, 0].flatten()
    v = torch.linalg.inv(torch.linalg.inv(problem.c) + (alpha / sigma) ** 2 * torch.eye(L * D).double())
    eye = torch.eye(L, dtype=torch.float64)
    h = torch.cat([torch.kron(eye, problem.h[name]) for name in problem.h])
    r = torch.cat([problem.r[name].diagonal().repeat(L) for name in problem.h])
    y = torch.cat([problem.y[name][0].flatten() for name in problem.h])
    sums = (h @ v @ h.mT).sum(1).clamp(min=0)
    torch.testing.assert_close(found, m + v @ h.mT @ ((y - h @ m) / (r + sums)), rtol=0, atol=1e-10)


def test_pseudo_inverse_is_exact_for_white_data(rng):
    """x ~ N(m, 0.7 1) and any linear operator; for other data it is not, by a measured amount."""
    mean, h, y = randn(D, rng=rng), randn(2, D, rng=rng), randn(2, rng=rng)
    prior = GaussianDenoiser(mean, Isotropic(0.7), VPCosine())
    x_t, r = randn(5, D, rng=rng), 0.1 * positive(2, rng)
    found = PseudoInverse(variance=0.7, tolerance=1e-13)(prior, Observation(y, Matrix(h), Dense(r)))
    shift, c = posterior(0.7 * torch.eye(D).double(), h, r, y - h @ mean)
    expected = denoised(c, mean + shift, x_t, *VPCosine()(at(0.4)))
    torch.testing.assert_close(found(x_t, at(0.4)), expected, rtol=0, atol=1e-11)


def test_moment_matching_of_a_mixture_has_the_moments_of_its_posterior(rng):
    """At a given x_t a mixture is no Gaussian; the guided mean is m + V (y - m) / (V + r) with mean and variance of
    p(x | x_t) by integration."""
    parts = [GaussianDenoiser(at([m]), Isotropic(0.04), VPCosine()) for m in (-1.0, 0.8)]
    prior = MixtureDenoiser(parts, at([0.4, 0.6]))
    guided = MomentMatching(tolerance=1e-12)(prior, Observation(at([0.3]), Identity(), Isotropic(0.1)))
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    alpha, sigma = VPCosine()(at(0.6))
    for value in (-0.5, 0.0, 0.4):
        density = sum(w * (-0.5 * (x - m) ** 2 / 0.04).exp() for w, m in ((0.4, -1.0), (0.6, 0.8)))
        density = density * (-0.5 * ((value - alpha * x) / sigma) ** 2).exp()
        density = density / torch.trapezoid(density, x)
        mean = torch.trapezoid(x * density, x)
        v = torch.trapezoid((x - mean) ** 2 * density, x)
        expected = mean + v * (0.3 - mean) / (v + 0.1)
        assert float(guided(at([[value]]), at(0.6))) == pytest.approx(float(expected), abs=1e-8)


def batch_of_systems(rng, symmetric):
    a = torch.stack([positive(8, rng) for _ in range(5)])
    if not symmetric:
        a = a + 0.3 * randn(5, 8, 8, rng=rng) + torch.eye(8).double()
    b = randn(5, 8, rng=rng)
    b[2] = 0
    a[3] = torch.eye(8)  # its sample is done after one product
    return a, b


@pytest.mark.parametrize(
    ("solver", "symmetric"), [(conjugate_gradients, True), (gmres, True), (gmres, False)]
)
def test_solvers_solve_and_each_sample_on_its_own(solver, symmetric, rng):
    a, b = batch_of_systems(rng, symmetric)
    settings = {"iterations": 30, "tolerance": 1e-12}
    found = solver(lambda u: (a @ u[..., None]).squeeze(-1), b, **settings)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=0, atol=1e-9)
    for i in range(5):
        alone = solver(lambda u, i=i: u @ a[i].mT, b[i : i + 1], **settings)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-11)


def test_gmres_leaves_the_smallest_residual(rng):
    """Three steps: against least squares over the Krylov space, spelled out."""
    a, b = batch_of_systems(rng, symmetric=False)
    found = gmres(lambda u: (a @ u[..., None]).squeeze(-1), b, iterations=3, tolerance=1e-12)
    for i in (0, 1, 4):
        krylov = torch.stack([b[i], a[i] @ b[i], a[i] @ a[i] @ b[i]], -1)
        best = torch.linalg.lstsq(a[i] @ krylov, b[i][:, None]).solution
        torch.testing.assert_close(found[i], (krylov @ best).squeeze(-1), rtol=0, atol=1e-9)


def test_settings_that_are_none_are_refused(rng):
    prior = GaussianDenoiser(at([0.0]), Isotropic(1.0), VPCosine())
    seen = Observation(at([0.0]), Identity(), Isotropic(1.0))
    with pytest.raises(ValueError, match="got 0, 0.0001 and 'cg'"):
        MomentMatching(iterations=0)(prior, seen)
    with pytest.raises(ValueError, match="'lu'"):
        MomentMatching(solver="lu")(prior, seen)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        PseudoInverse(variance=0)(prior, seen)
    with pytest.raises(TypeError, match="independent errors, got a Dense"):
        DiagonalMatching()(prior, Observation(at([0.0]), Identity(), Dense(torch.eye(1).double())))
