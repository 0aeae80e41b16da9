"""Laws of trajectories composed of windows."""

import pytest
import torch

from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.sda import CovarianceGuidance, GaussianGuidance
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.networks.score_mlp import ScoreMLP
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from tests.diffusion.gaussian import chain, denoised, posterior

STEPS, RHO, ERROR = 25, 0.8, 0.1
ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.fixture
def values(rng) -> torch.Tensor:
    """Every fourth step of a chain seen, (T, 1)."""
    y = torch.full((STEPS, 1), float("nan"), dtype=torch.float64)
    y[1::4, 0] = torch.randn(len(range(1, STEPS, 4)), dtype=torch.float64, generator=rng)
    return y


def composed(values: torch.Tensor, length: int) -> MarkovBlanket:
    """The guided denoiser of windows of an AR(1) chain, composed."""
    gaussian = WindowGaussian(ONE, chain(length, RHO), 1e-3, (1,), VPCosine())
    seen = Observations({"a": Observation(values, Flatten(1), Diagonal(ERROR * ONE[0]))})
    guided = CovarianceGuidance(gaussian, {"a": ONE})(gaussian, seen.windows(length))
    return MarkovBlanket(guided, length)


def exact(values: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x | x_t, y] of the whole chain."""
    eye = torch.eye(STEPS, dtype=torch.float64)
    mean, covariance = posterior(chain(STEPS, RHO), eye, ERROR * eye, values.flatten())
    return denoised(covariance, mean, x_t.flatten(1), *VPCosine()(t))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_window_as_long_as_the_trajectory_is_exact(t, values, rng):
    x_t = torch.randn(6, STEPS, 1, dtype=torch.float64, generator=rng)
    time = torch.tensor(t, dtype=torch.float64)
    whole = composed(values, STEPS)
    torch.testing.assert_close(whole(x_t, time)[:, None], whole.denoiser(x_t[:, None], time), rtol=0, atol=0)
    torch.testing.assert_close(whole(x_t, time).flatten(1), exact(values, x_t, time), rtol=0, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_composed_posterior_approaches_the_exact_one_as_windows_grow(t, values, rng):
    """At least halved by each doubling of k, to 1 % of the chain's unit deviation at k = 8."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = VPCosine()(time)
    root = torch.linalg.cholesky(chain(STEPS, RHO))
    x = torch.randn(50, STEPS, dtype=torch.float64, generator=rng) @ root.mT
    x_t = (alpha * x + sigma * torch.randn(x.shape, dtype=torch.float64, generator=rng))[..., None]
    truth = exact(values, x_t, time)
    errors = [
        float((composed(values, 2 * k + 1)(x_t, time).flatten(1) - truth).square().mean().sqrt())
        for k in (1, 2, 4, 8)
    ]
    assert all(after < before / 2 for before, after in zip(errors[:-1], errors[1:], strict=True))
    assert errors[-1] < 0.01


def test_a_step_comes_from_the_middle_of_its_window_and_the_ends_from_the_outermost(values, rng):
    length, k = 5, 2
    x_t = torch.randn(3, STEPS, 1, dtype=torch.float64, generator=rng)
    time = torch.tensor(0.4, dtype=torch.float64)
    found = composed(values, length)(x_t, time)
    for i in range(STEPS):
        start = min(max(i - k, 0), STEPS - length)
        rows = slice(start, start + length)
        window = composed(values[rows], length)(x_t[:, rows], time)
        torch.testing.assert_close(found[:, i], window[:, i - start], rtol=0, atol=1e-12)


def test_lengths_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="odd number of steps, got 4"):
        MarkovBlanket(composed(values, 5).denoiser, 4)
    with pytest.raises(ValueError, match="a trajectory of 3 steps is shorter than the windows of 5"):
        composed(values, 5)(torch.zeros(1, 3, 1), torch.tensor(0.5))


class Net(Denoiser):
    """A random network as the denoiser of windows; remembers how many windows it was given at most."""

    def __init__(self, length: int, event: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ScoreMLP(length, (event,), hidden=(32, 32), embedding=4, time=8).double()
        self.schedule = VPCosine()
        self.most = 0

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, x_t.shape[1])
        alpha, sigma = self.schedule(t)
        return (x_t - sigma * self.net(x_t, t)) / alpha


def random(*shape: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_windows_of_a_network_are_stitched_one_by_one_with_each_samples_time(k, chunk, rng):
    length, steps = 2 * k + 1, 14
    net, x_t = Net(length, 3), random(5, steps, 3, rng=rng)
    t = torch.rand(5, 1, 1, generator=rng, dtype=torch.float64)
    found = MarkovBlanket(net, length, chunk=chunk)(x_t, t)
    for n in range(5):
        rows = []
        for start in range(steps - length + 1):
            window = net(x_t[n : n + 1, None, start : start + length], t[n, 0, 0])[0, 0]
            rows += [*window[:k]] if start == 0 else []
            rows += [window[k]]
            rows += [*window[k + 1 :]] if start == steps - length else []
        torch.testing.assert_close(found[n], torch.stack(rows), rtol=0, atol=1e-12)


def kept(blanket: MarkovBlanket, x_t: torch.Tensor, t: torch.Tensor) -> int:
    """Numbers held for the way back."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = blanket(x_t, t)
    del out
    return sum(sizes.values())


@pytest.mark.parametrize("chunk", [1, 8, 50, 119, 500])
def test_chunks_leave_values_and_gradients_alone(chunk, rng):
    net, t = Net(9, 3), torch.tensor(0.4, dtype=torch.float64)
    x_t, v = random(2, 127, 3, rng=rng).requires_grad_(), random(2, 127, 3, rng=rng)
    found = []
    for blanket in (MarkovBlanket(net, 9), MarkovBlanket(net, 9, chunk=chunk)):
        mean = blanket(x_t, t)
        gradients = torch.autograd.grad((v * mean).sum(), [x_t, *net.parameters()])
        with torch.no_grad():
            found.append([mean, blanket(x_t, t), *gradients])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


def test_the_network_never_sees_more_windows_than_a_chunk_and_holds_nothing_of_them(rng):
    t = torch.tensor(0.4, dtype=torch.float64)
    x_t = random(2, 255, 3, rng=rng).requires_grad_()
    net = Net(9, 3)
    blanket = MarkovBlanket(net, 9, chunk=16)
    blanket(x_t, t).sum().backward()
    assert net.most == 16
    assert kept(blanket, x_t, t) < kept(MarkovBlanket(net, 9), x_t, t) / 20


def test_a_chunked_blanket_guides_like_a_whole_one(rng):
    y = torch.full((60, 1), float("nan"), dtype=torch.float64)
    y[::5, 0] = random(12, rng=rng)
    seen = Observations({"a": Observation(y, Flatten(1), Diagonal(ERROR * ONE[0]))})
    net, x_t, t = Net(5, 1), random(3, 60, 1, rng=rng), torch.tensor(0.4, dtype=torch.float64)
    whole, parts = (GaussianGuidance()(MarkovBlanket(net, 5, chunk=c), seen)(x_t, t) for c in (None, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-10)


def test_chunks_and_windows_that_do_not_fit_are_refused(values):
    guided = composed(values, 5).denoiser
    with pytest.raises(ValueError, match="holds observations of every window"):
        MarkovBlanket(guided, 5, chunk=3)
    with pytest.raises(ValueError, match="positive number of windows, got 0"):
        MarkovBlanket(Net(5, 1), 5, chunk=0)
    with pytest.raises(ValueError, match="windows of 5 steps, got length 7"):
        MarkovBlanket(guided.denoiser, 7)
    t = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"windows of shape \(5, 1\).*got samples of shape .*5, 3\)"):
        MarkovBlanket(Net(5, 1), 5)(torch.zeros(2, 9, 3, dtype=torch.float64), t)
    with pytest.raises(ValueError, match=r"windows of shape \(5, 1\).*compose"):
        MarkovBlanket(Net(5, 1), 7)(torch.zeros(2, 9, 1, dtype=torch.float64), t)
