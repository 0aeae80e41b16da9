"""Laws of the U-Net of diffusion time over time, space or both."""

import math

import pytest
import torch
import torch.nn.functional as F

from slams.networks.layers import AxisConv
from slams.networks.score_unet import ScoreUNet, forcing_map
from slams.networks.unet import PublishedUNet

HALF = torch.tensor(0.5, dtype=torch.float64)


def random(*shape: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def small(event, **settings) -> ScoreUNet:
    """Two levels, one block each."""
    torch.manual_seed(0)
    small = {"hidden": (4, 6), "blocks": 1, "embedding": 6, "time": 12}
    return ScoreUNet(event, **{**small, **settings}).double()


def count(net: ScoreUNet) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("hidden, expected", [(64, 178_787), (32, 60_867)])
def test_the_published_global_network_has_as_many_weights(hidden, expected):
    assert count(ScoreUNet((3,), hidden=(hidden,))) == expected


@pytest.mark.parametrize(
    "order, hidden, expected",
    [
        (2, (96, 192, 384), 22_874_922),
        (2, (64, 128, 256), 10_244_746),
        (1, (32, 64, 128), 2_625_766),
        (1, (64, 128, 256), 10_240_134),
        (1, (96, 192, 384), 22_868_006),
    ],
)
def test_the_published_local_networks_have_as_many_weights(order, hidden, expected):
    with torch.device("meta"):  # 90 MB of weights need no memory to be counted
        net = ScoreUNet(
            (2, 64, 64),
            length=2 * order + 1,
            hidden=hidden,
            embedding=64,
            padding="circular",
            maps=torch.empty(1, 64, 64),
        )
    assert count(net) == expected


def test_the_global_network_sees_fourteen_steps_to_either_side(rng):
    """A convolution of width 3 in front, two in each of 6 blocks, one behind."""
    x = random(65, 3, rng=rng).requires_grad_()
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(ScoreUNet((3,)).double()(x, HALF)[32].sum(), x)
    seen = gradient.abs().sum(-1).nonzero().flatten() - 32
    assert seen.tolist() == list(range(-14, 15))


def test_beyond_the_reach_of_the_ends_a_long_trajectory_is_like_a_short_one(rng):
    torch.manual_seed(0)
    net, x = ScoreUNet((3,), hidden=(8,)).double(), random(2, 60, 3, rng=rng)
    inner = slice(14, 26)
    torch.testing.assert_close(net(x, HALF)[:, inner], net(x[:, :40], HALF)[:, inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [(3, 5), (5, 1)])
def test_padding_of_an_axis_closes_it_or_ends_it_in_zeros(kernel, rng):
    """Against the sum over shifts, where what is shifted in from beyond a zero axis is erased."""
    x = random(2, 3, 6, 8, rng=rng)
    conv = AxisConv(3, 4, kernel, ("zero", "circular")).double()
    total = conv.conv.bias[:, None, None].expand(2, 4, 6, 8).clone()
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            down, right = kernel[0] // 2 - i, kernel[1] // 2 - j
            moved = x.roll((down, right), (2, 3))
            row = torch.arange(6)
            moved[:, :, (row < down) | (row >= 6 + down)] = 0
            total += torch.einsum("oc,bchw->bohw", conv.conv.weight[:, :, i, j], moved)
    torch.testing.assert_close(conv(x), total, rtol=0, atol=1e-12)


PERIODIC = [
    ((2, 8, 12), {"length": 3, "padding": "circular"}, (2, 3)),
    ((2, 8, 12), {"length": 3, "padding": ("zero", "circular")}, (3,)),
    ((2, 8, 12), {"length": 3, "padding": "circular", "kernel": 5, "stride": (2, 1)}, (2, 3)),
    ((1, 12), {"length": 3, "padding": "circular"}, (2,)),
    ((2, 8, 4), {"padding": ("zero", "circular", "circular"), "stride": (1, 2, 2)}, (2, 3)),
]


@pytest.mark.parametrize("event, settings, axes", PERIODIC)
def test_it_moves_with_a_shift_along_periodic_axes_only(event, settings, axes, rng):
    """By multiples of the coarsening, here 2: the coarse grid must move by whole cells."""
    net, x = small(event, **settings), random(3, *event, rng=rng)
    out = net(x, HALF)
    for axis in range(2, x.ndim):
        moved, expected = net(x.roll(2, axis), HALF), out.roll(2, axis)
        if axis in axes:
            torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)
        else:
            assert float((moved - expected).detach().abs().max()) > 1e-3


def test_the_forcing_map_is_the_sine_of_the_cell_centres_and_tells_rows_from_columns(rng):
    found = forcing_map(64)
    assert found.shape == (1, 64, 64)
    for j in (0, 7, 63):
        assert float(found[0, 5, j]) == pytest.approx(math.sin(4 * (2 * math.pi / 64) * (j + 0.5)), abs=1e-6)
    net = small((2, 16, 16), length=3, padding="circular", maps=forcing_map(16))
    x = random(3, 2, 16, 16, rng=rng)
    out = net(x, HALF)
    torch.testing.assert_close(net(x.roll(2, 2), HALF), out.roll(2, 2), rtol=0, atol=1e-12)
    # one wave is 4 cells long
    torch.testing.assert_close(net(x.roll(4, 3), HALF), out.roll(4, 3), rtol=0, atol=1e-6)
    assert float((net(x.roll(2, 3), HALF) - out.roll(2, 3)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("length", [3, None])
def test_a_fixed_map_is_a_context_that_stays(length, rng):
    maps, x = random(2, 8, 4, rng=rng), random(5, 4, length or 6, 2, 8, 4, rng=rng)
    net = small((2, 8, 4), length=length, maps=maps)
    given = small((2, 8, 4), length=length, context=2)
    given.load_state_dict({k: v for k, v in net.state_dict().items() if k != "maps"})
    context = maps if length else maps[None]
    torch.testing.assert_close(given(x, HALF, context), net(x, HALF), rtol=0, atol=1e-12)


def test_what_comes_from_below_is_added(rng):
    """A lower level whose way up is cut leaves the network of the upper level."""
    deep, flat = small((2, 8), length=3), small((2, 8), length=3, hidden=(4,))
    torch.nn.init.zeros_(deep.grow[0].conv.weight)
    torch.nn.init.zeros_(deep.grow[0].conv.bias)
    own = flat.state_dict()
    flat.load_state_dict({k: v for k, v in deep.state_dict().items() if k in own})
    x = random(5, 3, 2, 8, rng=rng)
    torch.testing.assert_close(deep(x, HALF), flat(x, HALF), rtol=0, atol=1e-12)


def test_it_is_modulated_blocks_with_normed_upsampling_between(rng):
    """Two levels over time, with the weights taken by their names and everything else written out."""
    net, x, t = small((3,)), random(8, 3, rng=rng), torch.tensor(0.3, dtype=torch.float64)
    weights = net.state_dict()

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(x, name, stride=1):
        name = f"{name}.conv"
        return F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1)

    def norm(x):
        return (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()

    def block(x, name):
        inner = conv(norm(x + linear(e, f"{name}.project")[:, None]), f"{name}.layers.1")
        return x + conv(F.silu(inner), f"{name}.layers.3")

    angle = torch.pi * t * torch.arange(1, 17)
    e = linear(F.silu(linear(torch.cat([angle.cos(), angle.sin()]), "time.layers.0")), "time.layers.2")
    top = block(conv(x.mT, "first"), "down.0.0")
    low = block(block(conv(top, "shrink.0", 2), "down.1.0"), "up.1.0")
    top = top + conv(norm(low).repeat_interleave(2, -1), "grow.0")
    expected = conv(block(top, "up.0.0"), "last").mT
    torch.testing.assert_close(net(x, t), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("event, length", [((3,), None), ((2, 8), 3), ((2, 8, 4), 3), ((2, 8, 4), None)])
def test_each_sample_is_evaluated_at_its_own_time_and_context(event, length, rng):
    net = small(event, length=length, context=1)
    x = random(2, 3, length or 4, *event, rng=rng)
    context = random(2, 1, *(() if length else (4,)), 1, *event[1:], rng=rng)
    ones = [1] * (len(event) + 1)
    for shape in ((2, 3, *ones), (1, 3, *ones)):
        t = torch.rand(shape, generator=rng, dtype=torch.float64)
        found, times = net(x, t, context), t.expand(2, 3, *ones).reshape(2, 3)
        for i in range(2):
            for j in range(3):
                alone = net(x[i, j], times[i, j], context[i, 0])
                torch.testing.assert_close(found[i, j], alone, rtol=0, atol=1e-12)


def test_single_precision_agrees_with_double(rng):
    net, x = small((2, 8, 8), length=3, padding="circular"), random(3, 2, 8, 8, rng=rng)
    double = net(x, HALF)
    single = net.float()(x.float(), HALF)  # also with a time in double
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def kept(net: ScoreUNet, x: torch.Tensor) -> int:
    """Numbers held for the way back."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x, HALF)
    del out
    return sum(sizes.values())


def test_recomputing_leaves_values_and_gradients_alone_and_holds_less(rng):
    settings = {"length": 3, "blocks": 3, "padding": "circular"}
    plain, saving = small((2, 8, 8), **settings), small((2, 8, 8), recompute=True, **settings)
    x = random(64, 3, 2, 8, 8, rng=rng).requires_grad_()
    values = [net(x, HALF) for net in (plain, saving)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(value.square().sum(), [x, *net.parameters()])
        for value, net in zip(values, (plain, saving), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)
    assert kept(saving, x) < kept(plain, x) / 2


def test_settings_that_make_no_network_are_refused():
    for event, settings, message in [
        ((3,), {"length": 5}, "leave 0 axes"),
        ((2, 4, 4, 4), {}, "leave 4 axes"),
        ((2, 6, 8), {"length": 3, "hidden": (4, 4, 4)}, r"axes of \(6, 8\) cannot be coarsened 2 times"),
        ((2, 8, 8), {"length": 3, "kernel": 4}, "odd"),
        ((2, 8, 8), {"length": 3, "padding": ("zero",)}, "padding needs one entry or 2"),
        ((2, 8, 8), {"length": 3, "padding": "reflect"}, "'zero' or 'circular'"),
        ((2, 8, 8), {"length": 3, "hidden": (1,)}, "two channels"),
        ((2, 8, 8), {"length": 3, "maps": torch.zeros(1, 4, 4)}, r"got \(1, 4, 4\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            ScoreUNet(event, **settings)


def test_what_the_network_cannot_take_is_refused(rng):
    net = small((2, 8, 8), length=3, maps=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="windows of 3 steps, got 29; compose .* MarkovBlanket"):
        net(random(29, 2, 8, 8, rng=rng), HALF)
    with pytest.raises(ValueError, match=r"states of 2 channels .* got samples of shape \(3, 5, 8, 8\)"):
        net(random(3, 5, 8, 8, rng=rng), HALF)
    with pytest.raises(ValueError, match=r"maps of the grid \(8, 8\), got the grid \(16, 16\)"):
        net(random(3, 2, 16, 16, rng=rng), HALF)
    with pytest.raises(ValueError, match=r"0 channels of context.*got shape \(1, 8, 8\)"):
        net(random(3, 2, 8, 8, rng=rng), HALF, random(1, 8, 8, rng=rng))
    with pytest.raises(ValueError, match=r"axes of \(7,\) cannot be coarsened 1 times"):
        small((3,))(random(7, 3, rng=rng), HALF)


@pytest.mark.parametrize(
    "channels, hidden, expected", [(5, (32, 64, 128), 2_636_441), (10, (64, 128, 256), 10_290_290)]
)
def test_published_networks_of_fields_have_the_published_weights(channels, hidden, expected) -> None:
    """2.64 million of the latent and 10.29 million of pixels, with the three blocks and five days they were given."""
    assert count(PublishedUNet(5, (channels, 121, 240), hidden=hidden, blocks=3)) == expected


def test_published_correction_starts_at_nothing_and_sees_every_row() -> None:
    """Untrained it is the closed form; five rows, filled up to six, all reach the result; longitude has no seam."""
    torch.manual_seed(0)
    net = PublishedUNet(3, (2, 5, 8), hidden=(4, 6), blocks=1, embedding=6).double()
    rng = torch.Generator().manual_seed(1)
    x = random(2, 4, 3, 2, 5, 8, rng=rng)
    t = HALF.expand(2, 1, 1, 1, 1, 1)
    assert torch.equal(net(x, x, t), torch.zeros_like(x))
    torch.nn.init.normal_(net.network.last.conv.weight, generator=rng)
    out = net(x, x, t)
    torch.testing.assert_close(net(x.roll(2, -1), x, t), out.roll(2, -1))
    torch.testing.assert_close(net(x[1, 2], x, HALF), out[1, 2])
    x[..., -1, :] += 1
    assert ((net(x, x, t) - out)[..., -1, :].abs() > 1e-6).all()
