"""Draws that diverge stop, whoever made them, with the step, the network's output and the usual causes."""

import math
import re

import pytest
import torch
from torch import nn

from slams.assimilation.score.latent import Latent
from slams.assimilation.score.sda import SDA
from slams.core.covariance import Diagonal
from slams.core.errors import DivergenceWarning, NonFiniteError
from slams.diffusion.divergence import LARGEST, data_scale, refuse_diverged
from slams.diffusion.guidance.moment_matching import MomentMatching
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.precondition import NoisePrediction, Preconditioned
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity


class Net(nn.Module):
    """A network whose output is its input times a factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x, t):
        return self.factor * x


def seen(noise: float = 0.1) -> Observations:
    value = torch.linspace(-1, 1, 12).reshape(3, 4)
    return Observations({"y": Observation(value, Identity(), Diagonal(torch.full((4,), noise**2)))})


@pytest.mark.parametrize("sampler", [Sampler(16), Sampler(8, corrections=1), Sampler(8, method="heun")])
@pytest.mark.parametrize("guidance", [GaussianGuidance(), MomentMatching(), lambda prior, _: prior])
@pytest.mark.parametrize("factor", [1e8, 1e12, math.inf, math.nan])
@pytest.mark.parametrize("wrapper", [Preconditioned, NoisePrediction])
@pytest.mark.filterwarnings("error::slams.core.errors.DivergenceWarning")
def test_no_network_of_large_output_gives_draws_without_a_word(wrapper, factor, guidance, sampler):
    """Beyond 1e6 deviations of the data an error, beyond 100 a warning; what is not finite is always an error."""
    method = SDA(wrapper(Net(factor), VPCosine()), sampler, guidance=guidance, event=(4,))
    known = NonFiniteError if not math.isfinite(factor) else (NonFiniteError, DivergenceWarning)
    with pytest.raises(known, match="usual causes: a network that is not trained") as raised:
        method.assimilate(seen(), 3, rng=0)
    if raised.type is NonFiniteError:
        assert re.search(rf"step \d+ of {sampler.steps}.*the network's output was ", str(raised.value))


def test_finite_but_absurd_draws_stop_and_those_of_sound_networks_do_not():
    """A denoiser that answers 1e18 is finite at every step; one that answers 0 is that of white data."""
    absurd = SDA(
        NoisePrediction(Net(-1e18), VPCosine()), Sampler(8), guidance=lambda prior, _: prior, event=(4,)
    )
    with pytest.raises(NonFiniteError, match=r"diverged: they reach .*after step 1 of 8.*in \[-.*e\+18, "):
        absurd.prior(3, 2, rng=0)
    white = SDA(Preconditioned(Net(0.0), VPCosine()), Sampler(64), event=(4,), guidance=GaussianGuidance())
    assert float(white.assimilate(seen(), 50, rng=0).samples.abs().max()) < 6


def test_the_bound_follows_the_standard_deviation_that_a_prior_states():
    """Draws of data of deviation 1e7, half way up the noise: as sound as those of deviation 1."""
    x_t = torch.full((1, 2, 4), 1e7)
    wide, narrow = (MarkovBlanket(Preconditioned(Net(0.0), VPCosine(), std=s), 1) for s in (1e7, 1.0))
    assert (data_scale(wide), data_scale(narrow)) == (1e7, 1.0)
    assert float(Sampler(8).onward(wide, x_t, depth=0.5).max()) > LARGEST
    with pytest.raises(NonFiniteError, match="diverged"):
        Sampler(8).onward(narrow, x_t, depth=0.5)
    refuse_diverged(x_t, wide, "a sampler")
    with pytest.raises(NonFiniteError, match="deviations of the data, 1;"):
        refuse_diverged(x_t, narrow, "a sampler")


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e18])
def test_draws_of_a_foreign_sampler_are_checked_too(value):
    class Foreign:
        def __call__(self, denoiser, noise, *, rng=None):
            return torch.where(noise == noise.max(), value, noise)

    method = SDA(Preconditioned(Net(0.0), VPCosine()), Foreign(), guidance=GaussianGuidance(), event=(4,))
    for draw in (
        lambda: method.assimilate(seen(), 3, rng=0),
        lambda: method.prior(3, 2, rng=0),
        lambda: method.windows(Observations({"y": _windows()}), 3, rng=0),
    ):
        with pytest.raises(NonFiniteError, match="draws of Foreign"):
            draw()


def _windows() -> Observation:
    return Observation(torch.zeros(2, 3, 4), Identity(), Diagonal(torch.ones(4)))


def test_draws_far_from_the_data_of_a_network_are_a_warning():
    """A network that predicts no noise keeps x / alpha, which begins at 1e3: beyond 100 deviations, far below 1e6."""
    method = SDA(
        NoisePrediction(Net(0.0), VPCosine()), Sampler(8), guidance=lambda prior, _: prior, event=(4,)
    )
    with pytest.warns(DivergenceWarning, match="more than 100 times the standard deviation.*not trained"):
        assert float(method.assimilate(seen(), 3, rng=0).samples.abs().max()) > 100


def test_a_decoder_that_overflows_is_named_with_the_range_of_the_latent():
    inner = SDA(Preconditioned(Net(0.0), VPCosine()), Sampler(8), guidance=GaussianGuidance(), event=(4,))
    inner.guidance = lambda prior, _: prior
    method = Latent(inner, {"y": lambda z: z}, decode=lambda z: (1e30 * z).square())
    with pytest.raises(NonFiniteError, match=r"the decoder makes values .*not finite of latent draws in \[-"):
        method.assimilate(seen(), 3, rng=0)
