"""Laws of layers, the U-Net and the MLP."""

import pytest
import torch

from slams.networks.layers import LayerNorm2d, SphereConv, TimeEmbedding
from slams.networks.mlp import WindowMLP
from slams.networks.unet import WindowUNet

L, C, H, W = 3, 2, 4, 8


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight random, also those that start at zero, in double precision."""
    g = torch.Generator().manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.2 * torch.randn(p.shape, dtype=p.dtype, generator=g))
    return module


def unet(**settings) -> WindowUNet:
    network = randomized(WindowUNet(L, (C, H, W), hidden=(6, 8), blocks=1, embedding=8, **settings))
    torch.nn.init.zeros_(network.place)
    return network


def windows(rng, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, linear = torch.randn(2, *lead, L, C, H, W, dtype=torch.float64, generator=rng)
    return x, linear


@pytest.mark.parametrize("shift", [2, 4, 6])
def test_unet_is_circular_in_longitude(shift, rng):
    """Without places, a rolled window gives the rolled output, by the two cells that a coarse one joins."""
    network, (x, linear) = unet(), windows(rng, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    rolled = network(x.roll(shift, -1), linear.roll(shift, -1), t)
    torch.testing.assert_close(rolled, network(x, linear, t).roll(shift, -1), rtol=0, atol=1e-12)


def test_a_regional_unet_is_not_circular_and_places_break_the_symmetry(rng):
    x, linear = windows(rng, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    placed = unet()
    torch.nn.init.normal_(placed.place, generator=rng)
    for network in (unet(periodic=False), placed):
        rolled = network(x.roll(2, -1), linear.roll(2, -1), t)
        assert float((rolled - network(x, linear, t).roll(2, -1)).detach().abs().max()) > 1e-3


def test_unet_takes_any_lead_and_a_time_for_each_member(rng):
    """Windows of a batch do not see each other, and each has its own time."""
    network, (x, linear) = unet(), windows(rng, 2, 3)
    t = torch.tensor(0.3, dtype=torch.float64)
    each = torch.stack([torch.stack([network(x[i, j], linear[i, j], t) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(network(x, linear, t), each, rtol=0, atol=1e-12)
    times = torch.rand(2, 1, 1, 1, 1, dtype=torch.float64, generator=rng)
    each = torch.stack([network(x[i, 0], linear[i, 0], times[i].squeeze()) for i in range(2)])
    torch.testing.assert_close(network(x[:, 0], linear[:, 0], times), each, rtol=0, atol=1e-12)


def test_unet_that_cannot_halve_its_grid_is_refused():
    with pytest.raises(ValueError, match="8 x 6 must have a width divisible by 4"):
        WindowUNet(L, (C, 8, 6), hidden=(2, 2, 2))


def test_unet_repeats_the_southern_row_where_the_height_cannot_be_halved(rng):
    """5 rows from pole to pole give what the first 5 of 8 give whose last four are alike."""
    short = randomized(WindowUNet(L, (C, 5, 8), hidden=(4, 6, 6), blocks=1, embedding=4))
    tall = WindowUNet(L, (C, 8, 8), hidden=(4, 6, 6), blocks=1, embedding=4).double()
    rows = torch.arange(8).clamp(max=4)
    weights = short.state_dict()
    tall.load_state_dict(weights | {"place": weights["place"][:, rows]})
    x, linear = torch.randn(2, 2, L, C, 5, 8, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.3, dtype=torch.float64)
    expected = tall(x[..., rows, :], linear[..., rows, :], t)[..., :5, :]
    torch.testing.assert_close(short(x, linear, t), expected, rtol=0, atol=1e-12)


def test_mlp_takes_any_lead_and_a_time_for_each_member(rng):
    network = randomized(WindowMLP(L, (5,), hidden=8, blocks=2, embedding=4))
    x, linear = torch.randn(2, 2, 3, L, 5, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.3, dtype=torch.float64)
    each = torch.stack([torch.stack([network(x[i, j], linear[i, j], t) for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(network(x, linear, t), each, rtol=0, atol=1e-12)
    times = torch.rand(2, 1, 1, dtype=torch.float64, generator=rng)
    each = torch.stack([network(x[i, 0], linear[i, 0], times[i].squeeze()) for i in range(2)])
    torch.testing.assert_close(network(x[:, 0], linear[:, 0], times), each, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda: WindowMLP(L, (5,), hidden=8), lambda: WindowUNet(L, (C, H, W), hidden=(4, 4))]
)
def test_untrained_network_is_zero_and_can_learn(make, rng):
    """Only the last layer has a gradient at first, and it has one everywhere."""
    network = make()
    event = (5,) if isinstance(network, WindowMLP) else (C, H, W)
    x, linear = torch.randn(2, 2, L, *event, generator=rng)
    out = network(x, linear, torch.tensor(0.5))
    assert bool((out == 0).all())
    (out - x).square().mean().backward()
    assert bool((network.last.weight.grad.abs().sum(tuple(range(1, network.last.weight.ndim))) > 0).all())


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_sphere_conv_is_the_sum_over_neighbours(periodic, kernel, rng):
    """A cell east of the last is the first, or the last again on a regional grid; none lies beyond a pole."""
    layer = randomized(SphereConv(C, 3, kernel, periodic=periodic))
    x = torch.randn(C, H, W, dtype=torch.float64, generator=rng)
    reach = range(-(kernel // 2), kernel // 2 + 1)
    expected = layer.bias.detach()[:, None, None].repeat(1, H, W)
    for i in range(H):
        for j in range(W):
            for a in reach:
                for b in reach:
                    row = min(max(i + a, 0), H - 1)
                    column = (j + b) % W if periodic else min(max(j + b, 0), W - 1)
                    weight = layer.weight.detach()[:, :, a + kernel // 2, b + kernel // 2]
                    expected[:, i, j] += weight @ x[:, row, column]
    torch.testing.assert_close(layer(x[None])[0].detach(), expected, rtol=0, atol=1e-12)


def test_layer_norm_uses_one_grid_point_only(rng):
    x = torch.randn(2, 5, H, W, dtype=torch.float64, generator=rng)
    expected = (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(LayerNorm2d()(x), expected, rtol=0, atol=1e-12)


def test_time_embedding_flattens_its_times(rng):
    embed = TimeEmbedding(6).double()
    t = torch.rand(4, 1, 1, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(embed(t), torch.cat([embed(s) for s in t.flatten()]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["vector", "grid"])
def test_members_share_a_context_without_their_axis(kind, rng):
    """The correction is that with the context repeated for each member."""
    event = (5,) if kind == "vector" else (2, 4, 8)
    network = (
        WindowMLP(3, event, hidden=16, blocks=1, context=7)
        if kind == "vector"
        else WindowUNet(3, event, hidden=(8, 8), blocks=1, context=7)
    )
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=rng)
    x, g = torch.randn(2, 4, 6, 3, *event, generator=rng)
    context = torch.randn(6, 3, 7, *event[1:], generator=rng)
    t = torch.tensor(0.4)
    whole = network(x, g, t, context.expand(4, *context.shape))
    torch.testing.assert_close(network(x, g, t, context), whole, rtol=1e-5, atol=1e-6)
