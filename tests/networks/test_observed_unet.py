"""The network of states on a ring: equivariant to shifts, and dependent on the observations."""

import pytest
import torch

from slams.core.random import fork
from slams.networks.observed_unet import ObservedUNet

SMALL = {"memory": 2, "features": 6, "encoder": (8, 10, 12), "hidden": (8, 10, 12), "embedding": 8}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ObservedUNet(16, **SMALL).double()
        torch.nn.init.normal_(made.unet.last.conv.weight)  # starts at zero, which would satisfy any law
    return made.requires_grad_(False)


def inputs(size=16):
    x = torch.randn(3, 5, size, dtype=torch.float64, generator=fork(0, "x"))
    context = torch.randn(3, 1, 4, size, dtype=torch.float64, generator=fork(0, "context"))
    return x, torch.rand(3, 1, 1, dtype=torch.float64, generator=fork(0, "t")), context


@pytest.mark.parametrize("size", [16, 20, 40])
@pytest.mark.parametrize("turn", [4, -8])
def test_turned_states_and_observations_are_answered_turned(network, size, turn):
    x, t, context = inputs(size)
    plain = network(x, t, network.encode(context))
    turned = network(x.roll(turn, -1), t, network.encode(context.roll(turn, -1)))
    torch.testing.assert_close(turned, plain.roll(turn, -1), rtol=0, atol=1e-12)
    only_states = network(x.roll(turn, -1), t, network.encode(context))
    assert float((only_states - plain.roll(turn, -1)).abs().max()) > 1e-2


def test_rows_are_answered_each_by_itself(network):
    """A batch with contexts and times of its own gives what each row gives alone."""
    x, t, context = inputs()
    both = network(x, t, network.encode(context))
    for k in range(3):
        alone = network(x[k, 2], t[k, 0, 0], network.encode(context[k, 0]))
        torch.testing.assert_close(alone, both[k, 2], rtol=0, atol=1e-12)


def test_every_channel_of_the_observations_reaches_every_site_nearby(network):
    x, t, context = inputs()
    plain = network(x, t, network.encode(context))
    for channel in range(4):
        other = context.clone()
        other[..., channel, 7] += 1
        moved = (network(x, t, network.encode(other)) - plain).abs().amin((0, 1))
        assert float(moved[5:10].min()) > 1e-6


def test_a_new_network_says_nothing():
    fresh = ObservedUNet(16, **SMALL)
    x, t, context = (value.float() for value in inputs())
    assert not fresh(x, t, fresh.encode(context)).any()


def test_wrong_channels_are_named(network):
    with pytest.raises(ValueError, match="4 channels of context"):
        network.encode(torch.zeros(3, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="coarsened"):
        network(*inputs(18)[:2], torch.zeros(3, 1, 6, 18, dtype=torch.float64))
