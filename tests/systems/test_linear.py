"""The exact filter and smoother against dense conditioning of the joint Gaussian of a whole trajectory."""

import math
from dataclasses import dataclass

import pytest
import torch

from slams.core.covariance import Dense, Diagonal
from slams.observation.observation import Observation, Observations
from slams.systems import LinearGaussian

F64 = torch.float64


@dataclass
class Noise:
    """A covariance matrix as the filter asks for it."""

    matrix: torch.Tensor

    def dense(self):
        return self.matrix


@dataclass
class Seen:
    """One step's observation."""

    value: torch.Tensor
    operator: object
    noise: Noise


class Series:
    """Observations of one operator matrix a step; `value` (*B, L, O) with NaN for missing; `gaps` saw nothing."""

    def __init__(self, value, matrices, noise, gaps=()):
        self.steps = value.shape[-2]
        self.value, self.matrices, self.noise, self.gaps = value, matrices, noise, gaps

    def step(self, k):
        matrix = self.matrices[k]
        if k in self.gaps:
            return None
        return Seen(self.value[..., k, :], lambda x: x @ matrix.mT, Noise(self.noise))


def covariance(size, rng):
    root = torch.randn(size, size, dtype=F64, generator=rng)
    return root @ root.T / size + 0.3 * torch.eye(size, dtype=F64)


LENGTH, SIZE, SEEN = 6, 3, 2


def example(rng, varying=True, noiseless=False):
    """A random system, stable and time-varying if asked, and a random operator at each step."""
    lead = (LENGTH - 1,) if varying else ()
    transition = 0.6 * torch.randn(*lead, SIZE, SIZE, dtype=F64, generator=rng)
    noise = (
        torch.stack([covariance(SIZE, rng) for _ in range(LENGTH - 1)]) if varying else covariance(SIZE, rng)
    )
    offset = torch.randn(*lead, SIZE, dtype=F64, generator=rng)
    mean0 = torch.randn(SIZE, dtype=F64, generator=rng)
    system = LinearGaussian(transition, noise * (not noiseless), mean0, covariance(SIZE, rng), offset=offset)
    matrices = torch.randn(LENGTH, SEEN, SIZE, dtype=F64, generator=rng)
    return system, matrices, covariance(SEEN, rng)


def joint(system, length):
    """Mean (L d) and covariance (L d, L d) of a trajectory, from its definition as a linear map of the noise."""
    d = system.size
    mean, cov = [system.start.mean], torch.zeros(length * d, length * d, dtype=F64)
    cov[:d, :d] = system.start.cov
    for k in range(length - 1):
        m, q, b = system.matrices(k)
        now, then = slice(k * d, (k + 1) * d), slice((k + 1) * d, (k + 2) * d)
        mean.append(m @ mean[-1] + b)
        cov[then, : (k + 1) * d] = m @ cov[now, : (k + 1) * d]
        cov[: (k + 1) * d, then] = cov[then, : (k + 1) * d].T
        cov[then, then] = m @ cov[now, now] @ m.T + q
    return torch.cat(mean), cov


def condition(system, matrices, noise, value, last):
    """Marginals of all steps given the values of steps 0 to `last`, and log p of these values."""
    length, d = value.shape[0], system.size
    mean, cov = joint(system, length)
    rows, errors = [], []
    index = []
    for k in range(last + 1):
        for o in range(value.shape[1]):
            if torch.isfinite(value[k, o]):
                row = torch.zeros(length * d, dtype=F64)
                row[k * d : (k + 1) * d] = matrices[k, o]
                rows.append(row)
                index.append((k, o))
    if not rows:
        return mean.reshape(length, d), blocks(cov, length), 0.0
    h = torch.stack(rows)
    errors = torch.tensor([[noise[o, p] * (k == j) for j, p in index] for k, o in index], dtype=F64)
    y = torch.stack([value[k, o] for k, o in index])
    spread = h @ cov @ h.T + errors
    gain = torch.linalg.solve(spread, h @ cov).T
    log_p = torch.distributions.MultivariateNormal(h @ mean, spread).log_prob(y)
    return (
        (mean + gain @ (y - h @ mean)).reshape(length, d),
        blocks(cov - gain @ h @ cov, length),
        float(log_p),
    )


def blocks(cov, length):
    """The covariance of each step."""
    d = len(cov) // length
    return torch.stack([cov[k * d : (k + 1) * d, k * d : (k + 1) * d] for k in range(length)])


def values(rng, batch=()):
    """Random values with single ones, a whole step and the first step missing somewhere."""
    y = torch.randn(*batch, LENGTH, SEEN, dtype=F64, generator=rng)
    y[..., 2, 1] = math.nan
    y[..., 4, :] = math.nan
    return y


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("noiseless", [False, True])
def test_filter_and_smoother_equal_dense_conditioning(varying, noiseless, rng):
    """Also without system noise and with missing values; algebra in float64, so 1e-10."""
    system, matrices, noise = example(rng, varying, noiseless)
    y = values(rng)
    series = Series(y, matrices, noise, gaps=(4,))
    filtered, smoothed = system.filter(series), system.smoother(series)
    for k in range(LENGTH):
        mean, cov, _ = condition(system, matrices, noise, y, k)
        torch.testing.assert_close(filtered.mean[k], mean[k], rtol=0, atol=1e-10)
        torch.testing.assert_close(filtered.cov[k], cov[k], rtol=0, atol=1e-10)
    mean, cov, log_p = condition(system, matrices, noise, y, LENGTH - 1)
    torch.testing.assert_close(smoothed.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(smoothed.cov, cov, rtol=0, atol=1e-10)
    assert float(filtered.log_evidence) == pytest.approx(log_p, abs=1e-10)


def test_replicates_with_their_own_gaps_equal_separate_runs(rng):
    system, matrices, noise = example(rng)
    y = values(rng, (4, 2))
    y[0, 1, 0] = math.nan
    y[3, 0, 5, 1] = math.nan
    together = Series(y, matrices, noise)
    filtered, smoothed = system.filter(together), system.smoother(together)
    for b in [(0, 1), (1, 0), (3, 0)]:
        alone = Series(y[b], matrices, noise)
        for one, all_ in zip(system.filter(alone), filtered, strict=True):
            torch.testing.assert_close(all_[b], one, rtol=0, atol=1e-12)
        for one, all_ in zip(system.smoother(alone), smoothed, strict=True):
            torch.testing.assert_close(all_[b], one, rtol=0, atol=1e-12)


def first_two(x):
    return x[..., :2]


def sum_of_all(x):
    return x.sum(-1, keepdim=True)


def test_several_modalities_with_gaps_equal_one_stacked_series(rng):
    """The package's own observations, one modality missing now and then, against their stacked matrices."""
    system, _, noise = example(rng)
    y = values(rng, (3,))
    z = torch.randn(3, LENGTH, 1, dtype=F64, generator=rng)
    z[:, 1], z[2, 3] = math.nan, math.nan
    both = Observations(
        {
            "pair": Observation(y, first_two, Dense(noise)),
            "sum": Observation(z, sum_of_all, Diagonal(torch.tensor([0.4], dtype=F64))),
        }
    )
    matrix = torch.cat([torch.eye(3, dtype=F64)[:2], torch.ones(1, 3, dtype=F64)])
    errors = torch.block_diag(noise, torch.tensor([[0.4]], dtype=F64))
    stacked = Series(torch.cat([y, z], -1), matrix.expand(LENGTH, -1, -1), errors)
    for one, other in zip(system.filter(both), system.filter(stacked), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(system.smoother(both), system.smoother(stacked), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    nothing = Observations({"pair": Observation(math.nan * y, first_two, Dense(noise))})
    assert system.smoother(nothing).mean.shape == (3, LENGTH, SIZE)


def test_smoother_without_any_covariance_to_invert(rng):
    """A start known exactly, no noise: the trajectory is certain, and nothing divides by zero."""
    eye = torch.eye(SIZE, dtype=F64)
    system = LinearGaussian(0.9 * eye, 0 * eye, torch.ones(SIZE, dtype=F64), 0 * eye)
    smoothed = system.smoother(
        Series(values(rng), eye[None, :SEEN].expand(LENGTH, -1, -1), eye[:SEEN, :SEEN])
    )
    truth = 0.9 ** torch.arange(LENGTH, dtype=F64)[:, None].expand(-1, SIZE)
    torch.testing.assert_close(smoothed.mean, truth, rtol=1e-14, atol=0)
    assert torch.equal(smoothed.cov, torch.zeros(LENGTH, SIZE, SIZE, dtype=F64))


def test_random_walk_reaches_the_steady_variance_of_the_riccati_equation():
    """Scalar x' = x + N(0, 5), y = x + N(0, 0.2): P solves P = (P + 5) 0.2 / (P + 5.2)."""
    one = torch.ones(1, 1, dtype=F64)
    system = LinearGaussian(one, 5 * one, torch.zeros(1, dtype=F64), one)
    series = Series(torch.zeros(200, 1, dtype=F64), one.expand(200, 1, 1), 0.2 * one)
    steady = (-5 + math.sqrt(25 + 4 * 5 * 0.2)) / 2
    cov = system.filter(series).cov[:, 0, 0]
    assert float(cov[0]) == pytest.approx(0.2 / 1.2, rel=1e-14)
    assert float(cov[-1]) == pytest.approx(steady, rel=1e-12)


def test_covariances_stay_symmetric_and_positive_over_many_steps(rng):
    """2000 steps in float32 with precise observations, where the short form of the update turns negative."""
    transition = torch.tensor([[1.0, 0.1], [-0.1, 1.0]])
    system = LinearGaussian(transition, 1e-4 * torch.eye(2), torch.zeros(2), 100 * torch.eye(2))
    matrices = torch.tensor([[[1.0, 0.0]]]).expand(2000, 1, 2)
    cov = system.filter(Series(torch.zeros(2000, 1), matrices, torch.tensor([[1e-4]]))).cov
    assert torch.equal(cov, cov.mT)
    assert (torch.linalg.eigvalsh(cov.double()) > 0).all()


def test_trajectories_have_the_joint_moments(rng):
    """100000 draws of a time-varying system with a singular Q: mean and covariance within 6 standard errors."""
    system, _, _ = example(rng)
    singular = torch.zeros(LENGTH - 1, SIZE, SIZE, dtype=F64)
    singular[:, 0, 0], singular[2:, 1, 1] = 0.5, 0.3
    system = LinearGaussian(
        system.transition, singular, system.start.mean, system.start.cov, offset=system.offset
    )
    n = 100_000
    path = system.trajectory(system.initial(n, rng=rng), LENGTH - 1, rng=rng).reshape(n, -1)
    mean, cov = joint(system, LENGTH)
    scale = cov.diagonal().sqrt()
    assert ((path.mean(0) - mean).abs() < 6 * scale / math.sqrt(n)).all()
    assert ((path.T.cov() - cov).abs() < 6 * math.sqrt(2 / n) * scale[:, None] * scale).all()


def test_members_of_one_step_share_the_matrices_but_not_the_noise(rng):
    """A batch (B, N) moves as its rows do, up to the noise, which has covariance Q_k."""
    system, _, _ = example(rng)
    x = torch.randn(2, 50_000, SIZE, dtype=F64, generator=rng)
    m, q, b = system.matrices(3)
    error = (system(x, rng=rng, step=3) - x @ m.T - b).reshape(-1, SIZE)
    scale = q.diagonal().sqrt()
    assert ((error.T.cov() - q).abs() < 6 * math.sqrt(2 / 100_000) * scale[:, None] * scale).all()


def test_no_data_is_the_prior(rng):
    system, matrices, noise = example(rng)
    series = Series(values(rng), matrices, noise, gaps=range(LENGTH))
    mean, cov = joint(system, LENGTH)
    for result in (system.filter(series), system.smoother(series)):
        torch.testing.assert_close(result.mean, mean.reshape(LENGTH, SIZE), rtol=0, atol=1e-12)
        torch.testing.assert_close(result.cov, blocks(cov, LENGTH), rtol=0, atol=1e-12)
    assert float(system.filter(series).log_evidence) == 0


@pytest.mark.parametrize("operator", [lambda x: x + 1, lambda x: x**3, torch.atan, lambda x: x.abs()])
def test_operators_that_are_not_linear_are_refused(operator, rng):
    """Cube and abs fit the unit vectors; the probe tells."""
    system, _, _ = example(rng)

    class Bent(Series):
        def step(self, k):
            return Seen(torch.zeros(SIZE, dtype=F64), operator, Noise(torch.eye(SIZE, dtype=F64)))

    with pytest.raises(ValueError, match="needs a linear operator"):
        system.filter(Bent(torch.zeros(LENGTH, SIZE), None, None))


def test_more_values_than_variables(rng):
    """Legal: three values of a scalar weigh as their mean with a third of the variance."""
    one = torch.ones(1, 1, dtype=F64)
    system = LinearGaussian(one, one, torch.zeros(1, dtype=F64), one)
    y = torch.tensor([[0.3, 1.1, -0.2]], dtype=F64)
    filtered = system.filter(Series(y, torch.ones(1, 3, 1, dtype=F64), torch.eye(3, dtype=F64)))
    assert float(filtered.cov) == pytest.approx(1 / 4, rel=1e-13)
    assert float(filtered.mean) == pytest.approx(float(y.sum()) / 4, rel=1e-13)


EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearGaussian(EYE, EYE[:1], torch.zeros(2), EYE), "noise_cov has shape"),
        (lambda: LinearGaussian(EYE, EYE, torch.zeros(3), EYE), "mean0 and cov0"),
        (lambda: LinearGaussian(EYE, -EYE, torch.zeros(2), EYE), "negative eigenvalues"),
        (lambda: LinearGaussian(EYE, EYE, torch.zeros(2), EYE, dt=0), "dt must be positive"),
        (
            lambda: LinearGaussian(EYE.expand(3, 2, 2), EYE.expand(4, 2, 2), torch.zeros(2), EYE),
            "common number of steps",
        ),
        (lambda: LinearGaussian(EYE.expand(3, 2, 2), EYE, torch.zeros(2), EYE)(torch.zeros(2)), "step=k"),
        (
            lambda: LinearGaussian(EYE.expand(3, 2, 2), EYE, torch.zeros(2), EYE).trajectory(
                torch.zeros(2), 4
            ),
            "over 3 steps",
        ),
        (
            lambda: LinearGaussian(EYE, EYE, torch.zeros(2), EYE).filter(
                Series(torch.zeros(3, 2), torch.ones(3, 1, 2), EYE)
            ),
            "operator gives 1 values, but 2",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
