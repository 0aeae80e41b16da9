"""The posterior of the ensemble's mixture of kernels against Bayes' rule in the state's own coordinates."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from slams.assimilation import EnSF
from slams.assimilation.score.ensemble_mixture import Conditioning, EachConditioning, coordinates
from slams.core.covariance import Dense
from slams.diffusion.exact.kernel_mixture import KernelMixture
from slams.observation import Observation, operators
from slams.systems import LinearGaussian

DOUBLE = torch.float64
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@dataclass
class Case:
    """An ensemble in two groups of members, a linear operator H and dense errors R."""

    E: Tensor
    H: Tensor
    R: Tensor
    y: Tensor

    @classmethod
    def of(cls, size: int, count: int, error: float, members: int = 40) -> "Case":
        skewed = torch.eye(size, dtype=DOUBLE) + 0.4 * normal(size, size, seed=1)
        E = normal(members, size) @ skewed
        E[: members // 3] += 3.0
        root = error * (torch.eye(count, dtype=DOUBLE) + 0.3 * normal(count, count, seed=2).tril(-1))
        H = normal(count, size, seed=3)
        return cls(E, H, root @ root.mT, H @ E[0] + root @ normal(count, seed=4))

    def bayes(self, b: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and the common covariance of p(x | y), component by component with Kalman's gain."""
        mean, P = self.E.mean(0), b**2 * torch.atleast_2d(torch.cov(self.E.mT))
        centres = mean + (1 - b**2) ** 0.5 * (self.E - mean)
        S = self.H @ P @ self.H.mT + self.R
        K = P @ self.H.mT @ torch.linalg.inv(S)
        weights = MultivariateNormal(centres @ self.H.mT, S).log_prob(self.y).softmax(-1)
        return weights, centres + (self.y - centres @ self.H.mT) @ K.mT, P - K @ self.H @ P

    def whitened(self) -> tuple[Tensor, Tensor, Tensor]:
        """Anomalies, predictions and innovation, the last two in units of the errors."""
        A = self.E - self.E.mean(0)
        root = torch.linalg.cholesky(self.R)
        Y, d = A @ self.H.mT, self.y - self.H @ self.E.mean(0)
        return A[None], torch.linalg.solve(root, Y.mT).mT[None], torch.linalg.solve(root, d)[None]


def moments(weights: Tensor, means: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    mean = weights @ means
    return mean, covariance + ((means - mean).mT * weights) @ (means - mean)


def assert_is_the_posterior(found: KernelMixture, z: Tensor, Q: Tensor, case: Case, b: float) -> None:
    """Weights, means and covariance of `found`, which is in the basis Q of the coordinates z, in those of the state."""
    A = case.E - case.E.mean(0)
    back = Q.mT @ z[0].mT @ A / (len(A) - 1)
    weights, means, covariance = case.bayes(b)
    torch.testing.assert_close(found.logits.softmax(-1)[0], weights, **CLOSE)
    torch.testing.assert_close(case.E.mean(0) + found.means[0] @ back, means, **CLOSE)
    torch.testing.assert_close(back.mT @ found.variances[0, 0].diag() @ back, covariance, **CLOSE)


@pytest.mark.parametrize("b", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("error", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("size, count", [(1, 1), (3, 2), (3, 5), (8, 8)])
def test_a_mixture_with_ensemble_slopes_is_conditioned_by_bayes_rule(size, count, error, b):
    """Every component's weight, mean and covariance, R with correlations, by Kalman's formulas in the state's units."""
    case = Case.of(size, count, error)
    A, Y, d = case.whitened()
    z = coordinates(A)
    given = Conditioning.of(z, Y, d)
    found = given.posterior(torch.full((1, 1, 1), b, dtype=DOUBLE))
    assert_is_the_posterior(found, z, given.Q[0], case, b)


@pytest.mark.parametrize("b", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("error", [0.05, 3.0])
@pytest.mark.parametrize("count", [1, 3])
def test_slopes_of_each_member_are_those_of_the_ensemble_where_the_operator_is_linear(count, error, b):
    case = Case.of(1, count, error)
    A, Y, d = case.whitened()
    z = coordinates(A)
    given = EachConditioning(z, Y, d)
    found = given.posterior(torch.full((1, 1, 1), b, dtype=DOUBLE))
    shared = KernelMixture(found.means, found.variances[:, :1], found.logits)
    torch.testing.assert_close(found.variances, shared.variances.expand_as(found.variances), **CLOSE)
    assert_is_the_posterior(shared, z, given.Q, case, b)


@pytest.mark.parametrize("b", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("error", [0.2, 2.0])
@pytest.mark.parametrize("count", [2, 60])
def test_what_the_coordinates_do_not_explain_is_conditioned_with_them(count, error, b):
    """Bayes' rule for the whole state of 6 variables; the mixture is of the first two, fewer than H depends on."""
    kept = 2
    case = Case.of(6, count, error)
    A, Y, d = case.whitened()
    z = coordinates(A[..., :kept])
    width = torch.full((1, 1, 1), b, dtype=DOUBLE)
    given = Conditioning.joint(z, Y, d, width)
    mean, variance = given.posterior(width).moments()
    back = given.Q[0].mT @ z[0].mT @ A[0, :, :kept] / (len(case.E) - 1)
    expected, covariance = moments(*case.bayes(b))
    inverse = torch.linalg.inv(back)
    torch.testing.assert_close(case.E[:, :kept].mean(0) + mean[0] @ back, expected[:kept], **CLOSE)
    turned = inverse.mT @ covariance[:kept, :kept] @ inverse
    torch.testing.assert_close(variance[0], turned.diagonal(), **CLOSE)


@pytest.mark.parametrize("slopes", ["ensemble", "member"])
@pytest.mark.parametrize("error", [0.3, 1.0])
@pytest.mark.parametrize("b", [0.15, 0.5, 0.9])
def test_members_keep_their_quantile_from_the_prior_mixture_to_its_posterior(b, error, slopes):
    """In one dimension flows are monotone: x -> F_posterior^-1(F_prior(x)), within 1 % of a posterior deviation."""
    case = Case.of(1, 1, error, members=60)
    case.H, case.R = torch.ones(1, 1, dtype=DOUBLE), torch.full((1, 1), error**2, dtype=DOUBLE)
    case.y = case.E.mean(0) + 0.4
    eye = torch.eye(1, dtype=DOUBLE)
    method = EnSF(LinearGaussian(eye, eye, 0 * eye[0], eye), kernel=b, slopes=slopes, steps=60)
    observation = Observation(case.y[None], operators.Identity(event=1), Dense(case.R))
    after = method.analyse(case.E[None], observation)[0]

    def law(x: Tensor) -> Tensor:
        return torch.special.ndtr((x - means.mT) / covariance.sqrt()) @ weights

    weights, means, covariance = case.bayes(b)
    reached, deviation = law(after), moments(weights, means, covariance)[1].sqrt()[0]
    below, above = law(after - 0.01 * deviation), law(after + 0.01 * deviation)
    case.R = torch.full((1, 1), 1e12, dtype=DOUBLE)
    weights, means, covariance = case.bayes(b)
    expected = law(case.E)
    assert ((below <= expected) & (expected <= above)).all(), (reached - expected).abs().max()
