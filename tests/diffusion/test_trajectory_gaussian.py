"""Composed trajectories of Gaussian windows against the joint Gaussian and the Kalman filter of a Markov state."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slams.assimilation.score.sda import SDA
from slams.core.covariance import Diagonal
from slams.core.random import normal
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser, NoCorrection, WindowGaussian
from slams.diffusion.exact.window_posterior import WindowPosterior
from slams.diffusion.guidance.conditional import ConditionalGuidance
from slams.diffusion.guidance.sda import CovarianceGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser, TrajectoryGaussian, forecast_mean
from slams.observation.observation import Observation, Observations

K, T, VARIANCE = 4, 15, 0.2
H = torch.eye(K, dtype=torch.float64)[[0, 2]]


def propagator() -> Tensor:
    """A damped rotation that couples all components: autocorrelation of about .9 after a day."""
    generator = torch.Generator().manual_seed(1)
    turn = torch.randn(K, K, generator=generator, dtype=torch.float64)
    f = torch.matrix_exp(0.15 * (turn - turn.mT)) @ torch.diag(torch.linspace(0.6, 0.95, K).double())
    return 0.92 * f / torch.linalg.eigvals(f).abs().max()


def joint(steps: int) -> Tensor:
    """Covariance (T K, T K) of the stationary Markov state x_k = F x_{k-1} + w."""
    f, noise = propagator(), torch.diag(torch.linspace(1.0, 0.3, K).double() ** 2)
    size = K * K
    stationary = torch.linalg.solve(
        torch.eye(size, dtype=torch.float64) - torch.kron(f, f), noise.flatten()
    ).reshape(K, K)
    stationary = (stationary + stationary.mT) / 2
    stationary = stationary * (K / stationary.diagonal().sum())
    whole = torch.empty(steps, K, steps, K, dtype=torch.float64)
    for i in range(steps):
        for k in range(i + 1):
            whole[i, :, k, :] = torch.linalg.matrix_power(f, i - k) @ stationary
            whole[k, :, i, :] = (torch.linalg.matrix_power(f, i - k) @ stationary).mT
    return whole.reshape(steps * K, steps * K)


def window_gaussian(length: int = 3) -> WindowGaussian:
    return WindowGaussian(torch.eye(K, dtype=torch.float64), joint(length), 1e-6, (K,), VPCosine())


def observed(days: list[int], steps: int = T) -> Observations:
    """Two of the components on some days of a trajectory of the state."""
    generator = torch.Generator().manual_seed(3)
    root = torch.linalg.cholesky(joint(steps))
    x = (root @ torch.randn(steps * K, generator=generator, dtype=torch.float64)).reshape(steps, K)
    y = x @ H.mT + VARIANCE**0.5 * torch.randn(steps, 2, generator=generator, dtype=torch.float64)
    missing = torch.ones(steps, 1, dtype=torch.bool)
    missing[days] = False
    noise = Diagonal(torch.full((2,), VARIANCE, dtype=torch.float64))
    return Observations({"y": Observation(y.masked_fill(missing, torch.nan), lambda x: x @ H.mT, noise)})


def posterior(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T, K) and covariance of the joint Gaussian given the values that are there."""
    steps = len(y)
    operator = torch.block_diag(*[H] * steps)[torch.isfinite(y).flatten()]
    covariance = joint(steps)
    gram = operator @ covariance @ operator.mT + VARIANCE * torch.eye(len(operator), dtype=torch.float64)
    gain = torch.linalg.solve(gram, operator @ covariance).mT
    mean = gain @ y[torch.isfinite(y)]
    return mean.reshape(steps, K), covariance - gain @ operator @ covariance


def drawn(denoiser: Denoiser, steps: int) -> tuple[Tensor, Tensor]:
    """Mean (T, K) and covariance of the draws, without chance: draws of a Gaussian are affine in their noise."""
    size = steps * K
    noise = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, steps, K)
    draws = Sampler(24, order=2, time_grid="snr")(denoiser, noise).flatten(1)
    columns = draws[1:] - draws[0]
    return draws[0].reshape(steps, K), columns.mT @ columns


@pytest.mark.parametrize("length", [2, 3, 5])
def test_windows_of_a_markov_state_extend_to_its_joint_covariance(length):
    """Covariances of all steps, from the recursion of selected inversion; 1e-9: rounding of eigenvectors."""
    gaussian = TrajectoryGaussian(window_gaussian(length), T)
    factor, whole = gaussian.factor(), joint(T)
    unit = torch.eye(T * K, dtype=torch.float64).reshape(T, K, -1)
    torch.testing.assert_close(factor.solve(unit).reshape(T * K, -1), whole, rtol=0, atol=1e-9)
    blocks = torch.stack([whole[k : k + K, k : k + K] for k in range(0, T * K, K)])
    torch.testing.assert_close(factor.inverse_blocks(), blocks, rtol=0, atol=1e-9)
    root = factor.coloured(unit).reshape(T * K, -1)
    torch.testing.assert_close(root @ root.mT, whole, rtol=0, atol=1e-9)


def test_denoiser_is_the_posterior_mean_of_the_joint_gaussian(rng):
    """E[x | x_t] = alpha C (alpha^2 C + sigma^2)^-1 x_t for any batch axes; of one window that of the window."""
    gaussian, covariance = window_gaussian(), joint(T)
    x_t, t = normal((2, 3, T, K), rng=rng, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = gaussian.schedule(t)
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(T * K, dtype=torch.float64)
    expected = torch.linalg.solve(noisy, x_t.flatten(2).mT).mT @ (alpha * covariance)
    torch.testing.assert_close(
        TrajectoryGaussian(gaussian, T)(x_t, t).flatten(2), expected, rtol=0, atol=1e-9
    )
    short = x_t[..., :3, :]
    torch.testing.assert_close(
        TrajectoryGaussian(gaussian, 3)(short, t), gaussian(short, t), rtol=0, atol=1e-9
    )


def test_posterior_is_that_of_the_joint_gaussian():
    observations = observed([0, 1, 4, 8])
    mean, covariance = posterior(observations["y"].value)
    information = observations.windows(T).information({"y": H}, 0)
    pulled = torch.nan_to_num(observations["y"].value) @ H / VARIANCE
    found, blocks = TrajectoryGaussian(window_gaussian(), T).posterior(information, pulled)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-8)
    expected = torch.stack([covariance[k : k + K, k : k + K] for k in range(0, T * K, K)])
    torch.testing.assert_close(blocks, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "days",
    [list(range(T)), list(range(0, T, 3)), list(range(T - 5)), [0]],
    ids=["all", "every third", "forecast of 5 days", "forecast of 14 days"],
)
def test_composed_draws_are_those_of_the_joint_gaussian(days):
    """Means within .01 posterior deviations, variances within 8 %: the sampler's steps. Clipped windows: .2 to 1.1."""
    observations, gaussian = observed(days), window_gaussian()
    mean, covariance = posterior(observations["y"].value)
    guided = CovarianceGuidance(gaussian, {"y": H})(TrajectoryDenoiser(gaussian, T), observations)
    found, spread = drawn(guided, T)
    std = covariance.diagonal().sqrt().reshape(T, K)
    assert ((found - mean) / std).square().mean(1).sqrt().max() < 0.01
    torch.testing.assert_close(spread.diagonal(), covariance.diagonal(), rtol=0.08, atol=0)
    windows = CovarianceGuidance(gaussian, {"y": H})(gaussian, observations.windows(3))
    clipped, _ = drawn(MarkovBlanket(windows, 3), T)
    assert ((clipped - mean) / std).square().mean(1).sqrt().max() > 0.15  # what the closed form is for


def test_sda_composes_long_records_and_batches_of_them_exactly(rng):
    """Means of 2000 members within 6 standard errors: a false alarm in 4e6 runs. Replicates and `windows` alike."""
    first, second = observed(list(range(T - 5))), observed([2, 3])
    both = torch.stack([first["y"].value, second["y"].value])
    record = Observations({"y": Observation(both, first["y"].operator, first["y"].noise)})
    sda = SDA(
        window_gaussian(), Sampler(24, order=2, time_grid="snr"), guidance=CovarianceGuidance(None, {"y": H})
    )
    alone = sda.assimilate(first, 2000, rng=rng).samples
    replicates = sda.assimilate(record, 2000, rng=rng).samples
    windows = sda.windows(record, 2000, rng=rng)
    assert alone is not None and replicates is not None
    draws = [(alone, first), (replicates[0], first), (replicates[1], second)]
    for members, given in [*draws, (windows[:, 0], first), (windows[:, 1], second)]:
        mean, covariance = posterior(given["y"].value)
        bound = 6 * (covariance.diagonal().reshape(T, K) / 2000).sqrt()
        assert ((members.mean(0) - mean).abs() <= 1.05 * bound).all()


def test_filter_of_some_days_is_the_kalman_filter():
    """The last of 8 days given these days alone: within .1 posterior deviations of the filter that has all 40."""
    days, memory = 40, 8
    y = observed(list(range(days)), days)["y"].value
    f, whole = propagator(), joint(1)
    noise = whole - f @ whole @ f.mT
    mean, covariance = torch.zeros(K, dtype=torch.float64), whole
    exact, widths = [], []
    for k, value in enumerate(y):
        if k:
            mean, covariance = f @ mean, f @ covariance @ f.mT + noise
        gain = (
            covariance
            @ H.mT
            @ torch.linalg.inv(H @ covariance @ H.mT + VARIANCE * torch.eye(2, dtype=torch.float64))
        )
        mean, covariance = mean + gain @ (value - H @ mean), covariance - gain @ H @ covariance
        exact.append(mean)
        widths.append(covariance.diagonal().sqrt())
    rows = torch.arange(days - memory + 1)[:, None] + torch.arange(memory)
    operator, error = (lambda x: x @ H.mT), Diagonal(torch.full((2,), VARIANCE, dtype=torch.float64))
    record = Observations({"y": Observation(y[rows], operator, error)})
    gaussian = window_gaussian()
    guided = CovarianceGuidance(gaussian, {"y": H})(TrajectoryDenoiser(gaussian, memory), record)
    start = torch.zeros(1, len(rows), memory, K, dtype=torch.float64)
    last = Sampler(24, order=2, time_grid="snr")(guided, start)[0, :, -1]
    error_ = (last - torch.stack(exact)[memory - 1 :]) / torch.stack(widths)[memory - 1 :]
    assert error_.square().mean().sqrt() < 0.1


class Mixing(nn.Module):
    """A network that depends on all steps of a window, on the closed form and on the time."""

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor) -> Tensor:
        weights = torch.linspace(-1, 2, x_t.shape[-2]).to(x_t)[:, None]
        return torch.tanh(x_t.cumsum(-2) * weights - linear + t)


def test_corrections_are_those_of_composed_windows(rng):
    """Trajectory less its Gaussian equals windows less theirs, composed; whatever the batch axes, and in parts."""
    gaussian = window_gaussian()
    network = NetworkDenoiser(gaussian, Mixing())
    x_t, t = normal((3, 40, T, K), rng=rng, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    found = TrajectoryDenoiser(network, T)(x_t, t) - TrajectoryGaussian(gaussian, T)(x_t, t)
    flat = x_t.flatten(0, 1)
    expected = MarkovBlanket(network, 3)(flat, t) - MarkovBlanket(gaussian, 3)(flat, t)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=0, atol=1e-12)


class ConditionalMixing(Mixing):
    """The same with features of the observations."""

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x_t, linear, t) + (0.0 if context is None else context)


def spread_and_mean(observations: Observations, posterior: WindowPosterior) -> Tensor:
    return posterior.mean() * posterior.relative_spread()


@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_conditional_trajectory_of_one_window_is_that_window(rng, weight):
    """With a network and features that use everything; several trajectories, each with its own missing values."""
    network = NetworkDenoiser(window_gaussian(), ConditionalMixing())
    values = torch.stack([observed([0, 1], 3)["y"].value, observed([2], 3)["y"].value])
    record = Observations({"y": replace(observed([0], 3)["y"], value=values)})
    guidance = ConditionalGuidance({"y": H}, spread_and_mean, weight)
    x_t, t = normal((5, 2, 3, K), rng=rng, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    found = guidance(TrajectoryDenoiser(network, 3), record)(x_t, t)
    torch.testing.assert_close(found, guidance(network, record)(x_t, t), rtol=0, atol=1e-8)


def test_untrained_conditional_trajectory_is_the_joint_gaussian():
    """Alone, and with one of two sensors left to guidance on top: means within .02 posterior deviations."""
    days = list(range(T - 5))
    record, prior = observed(days), TrajectoryDenoiser(NetworkDenoiser(window_gaussian(), NoCorrection()), T)
    mean, covariance = posterior(record["y"].value)
    std = covariance.diagonal().sqrt().reshape(T, K)
    conditional = ConditionalGuidance({"y": H}, spread_and_mean)(prior, record)
    y, noise = record["y"].value, Diagonal(torch.full((1,), VARIANCE, dtype=torch.float64))
    parts = [Observation(y[:, [k]], lambda x, k=k: x @ H[[k]].mT, noise) for k in (0, 1)]
    others = CovarianceGuidance(window_gaussian(), {"b": H[[1]]})
    mixed = ConditionalGuidance({"a": H[[0]]}, spread_and_mean, others=others)(
        prior, Observations({"a": parts[0], "b": parts[1]})
    )
    for denoiser in (conditional, mixed):
        found = Sampler(24, order=2, time_grid="snr")(denoiser, torch.zeros(1, T, K, dtype=torch.float64))[0]
        assert ((found - mean) / std).square().mean(1).sqrt().max() < 0.02


def test_trajectories_of_another_shape_are_refused():
    gaussian = window_gaussian()
    with pytest.raises(ValueError, match=r"takes trajectories \(15, 4\)"):
        TrajectoryGaussian(gaussian, T)(torch.zeros(2, 4, K), torch.tensor(0.5))
    with pytest.raises(ValueError, match="pad it with unobserved steps"):
        TrajectoryGaussian(gaussian, 1)
    with pytest.raises(ValueError, match="windows of an odd number of steps"):
        TrajectoryDenoiser(window_gaussian(2), T)


@pytest.mark.parametrize("length", [1, 3])
def test_mean_forecast_is_the_propagated_state(rng, length):
    """F^l x for a Markov state; nothing for steps that are independent."""
    x = normal((2, length - 1, K), rng=rng, dtype=torch.float64)
    found = forecast_mean(window_gaussian(length), x, 4)
    f = propagator()
    powers = [torch.linalg.matrix_power(f, lead) for lead in range(1, 5)]
    last = x[:, -1] if length > 1 else torch.zeros(2, K, dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack([last @ p.mT for p in powers], 1), rtol=0, atol=1e-8)
