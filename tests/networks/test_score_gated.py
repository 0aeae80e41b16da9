"""Laws of the gated score network."""

import pytest
import torch

from slams.networks.score_gated import ScoreGated


def network(dilations, channels: int = 3) -> ScoreGated:
    """With weights that are nowhere zero."""
    torch.manual_seed(0)
    made = ScoreGated(channels, width=8, gates=6, dilations=dilations).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return made


def test_untrained_it_says_nothing():
    made = ScoreGated(3, width=8, gates=6, dilations=(0, 2))
    assert not made(torch.randn(2, 5, 3), torch.tensor(0.3)).any()


def test_steps_see_each_other_as_far_as_the_dilations_reach():
    """Derivatives of the middle step: exactly the sums of 0 or +-d over blocks."""
    made = network((1, 4))
    x = torch.randn(1, 21, 3, dtype=torch.float64, requires_grad=True)
    made(x, torch.tensor(0.4, dtype=torch.float64))[0, 10].sum().backward()
    seen = x.grad[0].abs().sum(-1).nonzero().squeeze(-1) - 10
    assert seen.tolist() == [-5, -4, -3, -1, 0, 1, 3, 4, 5]


def test_vectors_are_independent_and_each_has_its_time():
    made = network((0, 0))
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    times = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    together = made(x, times[:, None, None])
    apart = torch.stack(
        [torch.stack([made(row, t) for row in rows]) for rows, t in zip(x, times, strict=True)]
    )
    torch.testing.assert_close(together, apart)


def test_products_are_in_reach():
    """A single block already has mixed second derivatives by two inputs (difference quotients over 1e-3)."""
    made = network((0,), channels=2)
    x = torch.randn(64, 2, dtype=torch.float64)
    t = torch.tensor(0.5, dtype=torch.float64)
    h = 1e-3
    e = torch.eye(2, dtype=torch.float64)
    mixed = made(x + h * (e[0] + e[1]), t) - made(x + h * e[0], t) - made(x + h * e[1], t) + made(x, t)
    assert (mixed / h**2).abs().mean() > 1e-3


@pytest.mark.parametrize(
    "settings", [{"dilations": ()}, {"dilations": (-1,)}, {"dilations": (0,), "width": 0}]
)
def test_impossible_sizes_are_told(settings):
    with pytest.raises(ValueError, match="dilations"):
        ScoreGated(3, **{"width": 4, "gates": 4, **settings})


def test_other_channels_are_told():
    with pytest.raises(ValueError, match="3 values"):
        network((0,))(torch.zeros(1, 4, dtype=torch.float64), torch.tensor(0.5))
