"""Laws of biases estimated together with the state, against one joint Gaussian in float64."""

import pytest
import torch

from slams.assimilation.baseline.bias import Bias
from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from tests.diffusion.gaussian import positive, posterior

L, K, D, WINDOWS = 3, 4, 5, 6
SIZES, NAN = {"grid": 4, "stations": 3}, float("nan")


class Joint:
    """States of independent windows, a bias of the whole grid and one of each station, as one vector (a, beta)."""

    def __init__(self, rng: torch.Generator):
        self.c = positive(L * K, rng)
        self.g = {n: torch.randn(p, K, dtype=torch.float64, generator=rng) for n, p in SIZES.items()}
        self.r = {n: 0.2 + torch.rand(p, dtype=torch.float64, generator=rng) for n, p in SIZES.items()}
        self.u = {"grid": torch.ones(4, 1).double(), "stations": torch.eye(3).double()}
        self.t = {"grid": torch.full((1, 1), 2.0).double(), "stations": 0.5 + torch.eye(3).double()}
        self.decode = torch.randn(D, K, dtype=torch.float64, generator=rng)
        self.sigma = torch.block_diag(*[self.c] * WINDOWS, *self.t.values())
        rows = []
        for w in range(WINDOWS):
            for n, g in self.g.items():
                state = torch.zeros(L * SIZES[n], WINDOWS * L * K).double()
                state[:, w * L * K : (w + 1) * L * K] = torch.kron(torch.eye(L).double(), g)
                biases = [
                    self.u[m] if m == n else torch.zeros(SIZES[n], len(t)).double() for m, t in self.t.items()
                ]
                rows.append(torch.cat([state, torch.cat(biases, 1).repeat(L, 1)], 1))
        self.h = torch.cat(rows)
        self.errors = torch.cat([r.repeat(L) for _ in range(WINDOWS) for r in self.r.values()])

    def values(self, y: torch.Tensor) -> Observations:
        """Observations from values of all windows in the order of the rows of h."""
        found: dict[str, list[torch.Tensor]] = {n: [] for n in SIZES}
        parts = y.split([L * p for _ in range(WINDOWS) for p in SIZES.values()])
        for i, part in enumerate(parts):
            found[list(SIZES)[i % 2]].append(part.reshape(L, -1))
        return Observations(
            {
                n: Observation(torch.stack(v).float(), Flatten(1), Diagonal(self.r[n].float()))
                for n, v in found.items()
            }
        )

    def closed(self) -> ClosedFormGaussian:
        prior = WindowGaussian(torch.eye(D, K), self.c.float(), 0.1, (D,), VPCosine())
        return ClosedFormGaussian(prior, self.decode.float(), torch.full((D,), 0.1))

    def priors(self, share: float = 1.0) -> dict[str, Bias]:
        return {n: Bias(u.float(), self.t[n].float(), share) for n, u in self.u.items()}

    def operators(self) -> dict[str, torch.Tensor]:
        return {n: g.float() for n, g in self.g.items()}


def test_bias_and_state_are_the_conditional_of_the_joint_gaussian(rng):
    """Biases and states of all windows, with values missing; 2e-4 is float32 at a condition of 1e3."""
    joint = Joint(rng)
    y = joint.h @ torch.randn(len(joint.sigma), dtype=torch.float64, generator=rng)
    y[::5] = NAN
    mean, covariance = posterior(joint.sigma, joint.h, joint.errors.diag(), y)
    seen, closed = joint.values(y), joint.closed()
    bias = closed.biases(seen, joint.operators(), joint.priors())
    torch.testing.assert_close(bias.mean.double(), mean[-4:], rtol=0, atol=2e-4)
    torch.testing.assert_close(bias.covariance.double(), covariance[-4:, -4:], rtol=0, atol=2e-4)
    found, std = closed.windows(seen, joint.operators(), bias)
    every = torch.kron(torch.eye(WINDOWS * L).double(), joint.decode)
    states = slice(0, WINDOWS * L * K)
    expected = (every @ mean[states]).reshape(WINDOWS, L, D)
    variance = (every @ covariance[states, states] @ every.mT).diagonal().reshape(WINDOWS, L, D) + 0.1
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(std.double(), variance.sqrt(), rtol=0, atol=1e-3)


def test_planted_biases_lie_in_their_ninety_percent_intervals(rng):
    """400 records of biases, states and errors from the joint law: each of four coverages is binomial of mean .9 and
    deviation .015; five of them, one false alarm in 4e5. Ignoring the bias covers less than .8."""
    joint = Joint(rng)
    root = torch.linalg.cholesky(joint.sigma)
    closed, priors, z = joint.closed(), joint.priors(), 1.6449
    inside, plain, count = torch.zeros(4), 0.0, 400
    for _ in range(count):
        truth = root @ torch.randn(len(root), dtype=torch.float64, generator=rng)
        noise = joint.errors.sqrt() * torch.randn(len(joint.errors), dtype=torch.float64, generator=rng)
        seen = joint.values(joint.h @ truth + noise)
        bias = closed.biases(seen, joint.operators(), priors)
        inside += (bias.mean - truth[-4:]).abs() < z * bias.covariance.diagonal().sqrt()
        mean, std = closed.windows(seen, joint.operators())
        states = (truth[:-4].reshape(WINDOWS, L, K) @ joint.decode.mT).float()
        plain += float(((mean - states).abs() < z * (std**2 - 0.1).sqrt()).float().mean())
    assert bool(((inside / count - 0.9).abs() < 0.075).all())
    assert plain / count < 0.8


def test_a_draw_has_the_mean_and_the_covariance_of_the_biases(rng):
    """4000 draws: means within 6 standard errors, variances within 6 of theirs, 14 %."""
    joint = Joint(rng)
    y = joint.h @ torch.randn(len(joint.sigma), dtype=torch.float64, generator=rng)
    bias = joint.closed().biases(joint.values(y), joint.operators(), joint.priors())
    draws = torch.cat([d for d in bias.draw(4000, rng=rng).values()], 1)
    u = torch.block_diag(*[u.float() for u in joint.u.values()])
    expected = u @ bias.covariance @ u.mT
    std = expected.diagonal().sqrt()
    assert bool(((draws.mean(0) - u @ bias.mean).abs() < 6 * std / 4000**0.5).all())
    assert bool(((draws.var(0) / expected.diagonal() - 1).abs() < 0.14).all())


@pytest.mark.parametrize("share", [0.5, 1e-6])
def test_a_share_of_the_windows_counts_as_that_many(share, rng):
    """Half of the information in the mean of the precision; with none of it the bias is its prior."""
    joint = Joint(rng)
    y = joint.h @ torch.randn(len(joint.sigma), dtype=torch.float64, generator=rng)
    whole = joint.closed().biases(joint.values(y), joint.operators(), joint.priors())
    part = joint.closed().biases(joint.values(y), joint.operators(), joint.priors(share))
    prior = torch.linalg.inv(torch.block_diag(*joint.t.values()))
    added = [torch.linalg.inv(b.covariance.double()) - prior for b in (whole, part)]
    torch.testing.assert_close(added[1], share * added[0], rtol=0, atol=2e-3 * float(added[0].abs().max()))
