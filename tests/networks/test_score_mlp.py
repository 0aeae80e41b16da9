"""Laws of the residual MLP of diffusion time."""

import pytest
import torch
import torch.nn.functional as F

from slams.networks.layers import FreeNorm
from slams.networks.score_mlp import ScoreMLP


def random(*shape: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def small(**settings: object) -> ScoreMLP:
    """A net of windows (3, 2)."""
    torch.manual_seed(0)
    return ScoreMLP(3, (2,), **{"hidden": (8, 8, 10), "embedding": 6, "time": 12, **settings}).double()


@pytest.mark.parametrize(
    "width, order, count",
    [
        (256, 1, 687_837),
        (256, 2, 691_215),
        (256, 3, 694_737),
        (256, 4, 698_403),
        (128, 1, 188_509),
        (128, 2, 190_351),
    ],
)
def test_the_published_networks_have_as_many_weights(width, order, count):
    net = ScoreMLP(2 * order + 1, (3,), hidden=(width,) * 5)
    assert sum(p.numel() for p in net.parameters()) == count


def test_it_is_linear_maps_where_the_width_changes_and_residual_blocks_between(rng):
    net, x, t = small(), random(3, 2, rng=rng), torch.tensor(0.3, dtype=torch.float64)
    weights = iter(net.state_dict().values())

    def linear(x):
        return F.linear(x, next(weights), next(weights))

    angle = torch.pi * t * torch.arange(1, 17)
    e = linear(F.silu(linear(torch.cat([angle.cos(), angle.sin()]))))
    h = torch.cat([x.flatten(), e])
    for width in (8, None, 10, 6):
        h = linear(h) if width else h
        normed = (h - h.mean()) / (h.var(unbiased=True) + 1e-5).sqrt()
        h = h + linear(F.silu(linear(normed)))
    assert next(weights, None) is None
    torch.testing.assert_close(net(x, t), h.reshape(3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_norm_has_no_weights_and_the_unbiased_variance(axis, rng):
    x = 3 + 2 * random(4, 5, 6, rng=rng)
    norm = FreeNorm(axis)
    expected = (x - x.mean(axis, keepdim=True)) / (x.var(axis, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    assert not list(norm.parameters())


def test_each_sample_is_evaluated_at_its_own_time_and_context(rng):
    net = small(context=2)
    x, context = random(4, 5, 3, 2, rng=rng), random(4, 1, 2, rng=rng)
    for t in (torch.rand(4, 5, 1, 1, generator=rng), torch.rand(1, 5, 1, 1, generator=rng)):
        found, times = net(x, t.double(), context), t.double().expand(4, 5, 1, 1)
        for i in range(4):
            for j in range(5):
                alone = net(x[i, j], times[i, j, 0, 0], context[i, 0])
                torch.testing.assert_close(found[i, j], alone, rtol=0, atol=1e-12)


def test_a_batch_of_one_time_is_that_time(rng):
    net, x, t = small(), random(5, 3, 2, rng=rng), torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(net(x, t), net(x, t.expand(5, 1, 1)), rtol=0, atol=1e-12)


def test_single_precision_agrees_with_double(rng):
    net, x, t = small(), random(5, 3, 2, rng=rng), torch.tensor(0.7, dtype=torch.float64)
    double = net(x, t)
    single = net.float()(x.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_recomputing_leaves_values_and_gradients_alone(rng):
    plain, saving = small(), small(recompute=True)
    x, t = random(5, 3, 2, rng=rng).requires_grad_(), torch.tensor(0.7, dtype=torch.float64)
    values = [net(x, t) for net in (plain, saving)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(value.square().sum(), [x, *net.parameters()])
        for value, net in zip(values, (plain, saving), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_the_net_cannot_take_is_refused(rng):
    t = torch.tensor(0.5, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"windows of shape \(3, 2\).*got samples of shape \(4, 65, 2\).*Markov"
    ):
        small()(random(4, 65, 2, rng=rng), t)
    with pytest.raises(ValueError, match=r"got samples of shape \(4, 3, 5\).*channels"):
        small()(random(4, 3, 5, rng=rng), t)
    with pytest.raises(ValueError, match=r"times of shape \(4,\).*one a sample, \(4, 1, 1\)"):
        small()(random(4, 3, 2, rng=rng), t.expand(4))
    with pytest.raises(ValueError, match=r"times of shape \(3, 1, 1\)"):
        small()(random(4, 3, 2, rng=rng), t.expand(3, 1, 1))
    with pytest.raises(ValueError, match=r"2 channels of context.*\(4, 2\); got none"):
        small(context=2)(random(4, 3, 2, rng=rng), t)
    with pytest.raises(ValueError, match=r"2 channels of context.*got shape \(3, 2\)"):
        small(context=2)(random(4, 3, 2, rng=rng), t, random(3, 2, rng=rng))
    with pytest.raises(ValueError, match="at least two"):
        ScoreMLP(1, (1,))
