"""Laws of velocities without divergence, wave by wave, against dense matrices over the cells."""

import math

import pytest
import torch
from torch import nn

from slams.core.covariance import Diagonal
from slams.diffusion.guidance.covariance_matching import CovarianceMatching
from slams.diffusion.schedule import VPCosine
from slams.diffusion.solenoidal import FlowCovariance, FlowMoments, Solenoidal, extended, flow_moments
from slams.diffusion.solenoidal_denoiser import SolenoidalDenoiser
from slams.diffusion.trajectory import MarkovBlanket
from slams.networks.score_flow import FlowUNet
from slams.observation.observation import Observation, Observations
from tests.diffusion.gaussian import positive

N, L, REST = 6, 3, 0.05


class Sensor(nn.Module):
    """A matrix on the whole state."""

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.matrix = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-3) @ self.matrix.mT


def directions(size: int = N) -> list[tuple[int, int, torch.Tensor]]:
    """Orthonormal velocities without divergence, (2, N, N), one cosine and one sine for each pair of waves."""
    x = torch.arange(size, dtype=torch.float64)
    found, most = [], size // 2 - 1
    for kx in range(-most, most + 1):
        for ky in range(0, most + 1):
            if (ky == 0 and kx <= 0) or (kx, ky) == (0, 0):
                continue
            phase = 2 * math.pi / size * (kx * x[:, None] + ky * x)
            along = torch.tensor([-ky, kx], dtype=torch.float64) / math.hypot(kx, ky)
            for wave in (phase.cos(), phase.sin()):
                found.append((abs(kx), ky, along[:, None, None] * wave * math.sqrt(2) / size))
    return found


def dense(moments: FlowMoments, length: int, size: int = N) -> torch.Tensor:
    """C over (L, 2, N, N) from its directions."""
    basis = directions(size)
    full = torch.zeros(length, 2 * size**2, length, 2 * size**2, dtype=torch.float64)
    left = torch.eye(2 * size**2, dtype=torch.float64)
    for kx, ky, field in basis:
        outer = torch.outer(field.flatten(), field.flatten())
        left -= outer
        full += torch.einsum("ij,ab->iajb", moments.quarter[kx, ky, :length, :length], outer)
    full += torch.einsum("ij,ab->iajb", torch.eye(length, dtype=torch.float64), moments.rest * left)
    return full.reshape(length * 2 * size**2, -1)


def curl(velocity: torch.Tensor) -> torch.Tensor:
    """dv/dx - du/dy on a square of side 2 pi, by complex transforms."""
    k = torch.fft.fftfreq(velocity.shape[-1], 1 / velocity.shape[-1], dtype=torch.float64)
    waves = torch.fft.fft2(velocity)
    return torch.fft.ifft2(1j * (k[:, None] * waves[..., 1, :, :] - k * waves[..., 0, :, :])).real


def gradient(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.fft.fftfreq(field.shape[-1], 1 / field.shape[-1], dtype=torch.float64)
    waves = torch.fft.fft2(field)
    return torch.fft.ifft2(1j * k[:, None] * waves).real, torch.fft.ifft2(1j * k * waves).real


@pytest.fixture
def case():
    rng = torch.Generator().manual_seed(0)
    half = N // 2 + 1
    quarter = torch.stack([positive(L, rng).double() for _ in range(half * half)]).reshape(half, half, L, L)
    mean = torch.zeros(2, N, N, dtype=torch.float64)
    mean[0] = (2 * math.pi / N * torch.arange(N, dtype=torch.float64)).sin()
    return FlowMoments(mean, quarter, REST), rng


def test_the_amplitude_is_an_isometry_of_what_has_no_divergence():
    """On each direction the inverse gives it back with its norm; a gradient, the mean and the shortest waves vanish."""
    frame = Solenoidal(N)
    fields = torch.stack([field for *_, field in directions()])
    waves = frame.analysis(fields)
    amplitude = frame.field(waves)
    gram = amplitude.flatten(1) @ amplitude.flatten(1).mT
    torch.testing.assert_close(gram, torch.eye(len(fields), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(frame.synthesis(waves), fields, rtol=0, atol=1e-12)
    torch.testing.assert_close(frame.waves(amplitude), waves, rtol=0, atol=1e-12)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, N, N, generator=rng, dtype=torch.float64)
    kept = torch.einsum("dcxy,cxy->d", fields, x)
    projected = torch.einsum("d,dcxy->cxy", kept, fields)
    torch.testing.assert_close(frame.synthesis(frame.analysis(x)), projected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
def test_without_a_network_it_is_the_dense_gaussian(case, t):
    """E[x | x_t] = mu + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mu)."""
    moments, rng = case
    covariance = FlowCovariance(moments, L, torch.float64)
    denoiser = SolenoidalDenoiser(None, moments.mean, covariance, VPCosine())
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = denoiser.schedule(time)
    x_t = torch.randn(4, L, 2, N, N, generator=rng, dtype=torch.float64)
    full = dense(moments, L)
    gain = alpha * torch.linalg.solve(
        alpha**2 * full + sigma**2 * torch.eye(len(full), dtype=torch.float64), full
    )
    expected = moments.mean + ((x_t - alpha * moments.mean).flatten(1) @ gain).reshape(x_t.shape)
    torch.testing.assert_close(denoiser(x_t, time), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [2, L, 5])
def test_guidance_by_it_is_that_of_the_joint_gaussian(case, length):
    """E[x | x_t, y] from the precisions of prior, noisy state and observations, also beyond the steps given."""
    moments, rng = case
    covariance = FlowCovariance(moments, length, torch.float64)
    longer = FlowMoments(moments.mean, extended(moments.quarter, length), REST)
    full = dense(longer, length)
    denoiser = SolenoidalDenoiser(None, moments.mean, covariance, VPCosine())
    seen = torch.randn(4, 2 * N**2, generator=rng, dtype=torch.float64)
    value = torch.randn(length, 4, generator=rng, dtype=torch.float64)
    value[1, 2] = torch.nan
    noise = Diagonal(torch.full((4,), 0.04, dtype=torch.float64))
    observations = Observations({"a": Observation(value, Sensor(seen), noise)})
    H = torch.block_diag(*[seen] * length)[~value.isnan().flatten()]
    y = value.flatten()[~value.isnan().flatten()]
    times = torch.tensor([0.1, 0.6], dtype=torch.float64)
    x_t = torch.randn(2, length, 2, N, N, generator=rng, dtype=torch.float64)
    guided = CovarianceMatching(covariance=covariance, tolerance=1e-13)(denoiser, observations)
    got = guided(x_t, times.reshape(2, 1, 1, 1, 1))
    mean = moments.mean.expand(length, 2, N, N).flatten()
    for i, time in enumerate(times):
        alpha, sigma = denoiser.schedule(time)
        precision = (
            torch.linalg.inv(full)
            + (alpha / sigma) ** 2 * torch.eye(len(full), dtype=torch.float64)
            + H.mT @ H / 0.04
        )
        right = (alpha / sigma**2) * (x_t[i].flatten() - alpha * mean) + H.mT @ (y - H @ mean) / 0.04
        expected = mean + torch.linalg.solve(precision, right)
        torch.testing.assert_close(got[i].flatten(), expected, rtol=0, atol=1e-8)


def test_a_series_goes_on_as_the_chain_it_is_of():
    """C_ij = f^|i - j| of a first-order chain from its first three steps; of any, positive definite."""
    step = torch.arange(12, dtype=torch.float64)
    chain = 0.9 ** (step[:, None] - step).abs()
    torch.testing.assert_close(extended(chain[:3, :3][None], 12)[0], chain, rtol=0, atol=1e-12)
    assert torch.equal(extended(chain[None], 5)[0], chain[:5, :5])
    some = positive(4, torch.Generator().manual_seed(3)).double()
    assert float(torch.linalg.eigvalsh(extended(some[None], 20)).min()) > 0


def test_moments_come_back_from_draws(case):
    """Each entry within 6 standard errors of 4000 draws, a false alarm in 3e5 runs of its 144 entries."""
    moments, rng = case
    full = dense(moments, L)
    draws = torch.randn(4000, len(full), generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(full).mT
    x = (draws + moments.mean.expand(L, 2, N, N).flatten()).reshape(-1, L, 2, N, N)
    found = flow_moments(x, moments.mean, L)
    assert found.rest == pytest.approx(REST, rel=6 * math.sqrt(2 / (4000 * L * 2 * N**2 / 2)))
    for kx, ky in {(kx, ky) for kx, ky, _ in directions()}:
        true = moments.quarter[kx, ky]
        spread = (true**2 + true.diagonal()[:, None] * true.diagonal()).sqrt() / math.sqrt(2 * 4000)
        assert ((found.quarter[kx, ky] - true).abs() <= 6 * spread).all()
    assert float(torch.linalg.eigvalsh(found.quarter).min()) > -1e-12
    with pytest.raises(ValueError, match="as long"):
        flow_moments(x, moments.mean, L + 1)


class Spy(nn.Module):
    """Returns a constant, and remembers what it was shown."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        self.x, self.s = x, s
        return self.value * x[..., :L, :, :]


def test_the_network_sees_velocity_vorticity_and_advection_of_the_gaussians_answer(case):
    """-w and -u . grad w in units of the prior's deviation of w, which is taken over cells, steps and the mean."""
    moments, rng = case
    spy = Spy()
    covariance = FlowCovariance(moments, L, torch.float64)
    denoiser = SolenoidalDenoiser(spy, moments.mean, covariance, VPCosine(), interval=0.3)
    time = torch.tensor(0.3, dtype=torch.float64)
    x_t = torch.randn(2, L, 2, N, N, generator=rng, dtype=torch.float64)
    fields = torch.stack([field for *_, field in directions()])
    flat = fields.flatten(1)
    velocity = (denoiser(x_t, time).flatten(-3) @ flat.mT @ flat).reshape(2, L, 2, N, N)
    spread = torch.stack([moments.quarter[kx, ky].diagonal().mean() for kx, ky, _ in directions()])
    square = (spread[:, None, None] * curl(fields).square()).sum(0) + curl(moments.mean).square()
    w = -curl(velocity) / square.mean().sqrt()
    u, v = velocity.unbind(-3)
    wx, wy = gradient(w)
    expected = torch.cat([u, v, w, 0.3 * (u * wx + v * wy)], -3)
    assert expected.abs().max() < denoiser.bound
    torch.testing.assert_close(spy.x[:, L:], expected, rtol=0, atol=1e-10)


def test_the_network_sees_and_answers_in_units_of_what_is_known(case):
    """Shown unit variance; what it answers moves each direction in units of its standard deviation given x_t."""
    moments, rng = case
    covariance = FlowCovariance(moments, L, torch.float64)
    spy = Spy()
    denoiser = SolenoidalDenoiser(spy, moments.mean, covariance, VPCosine())
    time = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = denoiser.schedule(time)
    full = dense(moments, L)
    eye = torch.eye(len(full), dtype=torch.float64)
    noisy = alpha**2 * full + sigma**2 * eye
    e = torch.randn(3, len(full), generator=rng, dtype=torch.float64)
    x_t = alpha * moments.mean + (e @ torch.linalg.cholesky(noisy).mT).reshape(3, L, 2, N, N)
    plain = denoiser(x_t, time)
    spy.value = 1.0
    moved = (denoiser(x_t, time) - plain).flatten(1)
    # an answer that is the whitened input itself moves by sigma C^1/2 W^-1 W^-1 (x_t - alpha mu) on what is carried
    fields = torch.stack([field for *_, field in directions()])
    carried = torch.block_diag(*[fields.flatten(1).mT @ fields.flatten(1)] * L)
    values, vectors = torch.linalg.eigh(full)
    root = (vectors * values.sqrt()) @ vectors.mT
    expected = sigma * (x_t - alpha * moments.mean).flatten(1) @ torch.linalg.inv(noisy) @ root @ carried
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-10)
    shown = spy.x[:, :L].flatten(1)
    # the network's time is that of log sigma / alpha in the range of training
    low, high = (math.log(end) for end in denoiser.trained)
    assert float(spy.s) == pytest.approx((math.log(float(sigma / alpha)) - low) / (high - low))
    square = ((x_t - alpha * moments.mean).flatten(1) @ torch.linalg.inv(noisy) @ carried) * (
        (x_t - alpha * moments.mean).flatten(1)
    )
    torch.testing.assert_close(shown.square().sum(1), square.sum(1), rtol=1e-10, atol=0)


def test_times_of_samples_and_composition(case):
    """A time for each sample is the same as one after the other, with a network and in longer trajectories."""
    _, rng = case
    quarter = torch.stack([positive(L, rng) for _ in range(81)]).reshape(9, 9, L, L).double()
    moments = FlowMoments(torch.zeros(2, 16, 16), quarter, 0.01)
    network = FlowUNet(16, L, hidden=(4, 4), blocks=(1, 1))
    nn.init.normal_(network.network.last.conv.weight, generator=rng)
    denoiser = MarkovBlanket(
        SolenoidalDenoiser(network, moments.mean, FlowCovariance(moments, L), VPCosine()), L
    )
    x_t = torch.randn(2, 5, 2, 16, 16, generator=rng)
    times = torch.tensor([0.2, 0.7])
    together = denoiser(x_t, times.reshape(2, 1, 1, 1, 1))
    for i, time in enumerate(times):
        torch.testing.assert_close(together[i], denoiser(x_t[i : i + 1], time)[0], rtol=0, atol=1e-5)
    untrained = SolenoidalDenoiser(
        FlowUNet(16, L, hidden=(4, 4), blocks=(1, 1)), moments.mean, FlowCovariance(moments, L), VPCosine()
    )
    alone = SolenoidalDenoiser(None, moments.mean, FlowCovariance(moments, L), VPCosine())
    torch.testing.assert_close(untrained(x_t[:, :L], times[0]), alone(x_t[:, :L], times[0]))


def test_what_does_not_fit_is_told(case):
    moments, _ = case
    denoiser = SolenoidalDenoiser(None, moments.mean, FlowCovariance(moments, L), VPCosine())
    with pytest.raises(ValueError, match="does not belong"):
        denoiser(torch.zeros(1, L + 1, 2, N, N), torch.tensor(0.5))
    with pytest.raises(ValueError, match="even grid"):
        FlowCovariance(FlowMoments(moments.mean, moments.quarter[:-1], REST), L)
