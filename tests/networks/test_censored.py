"""The censored normal: its untrained climate, and the score of pairs against quadrature."""

import pytest
import torch
import torch.nn.functional as F

from slams.networks.censored import CensoredNormal, GridTrunk, VectorTrunk, exceedance, pair_score


def test_untrained_network_is_the_climate_of_each_point(rng):
    """Frequency and mean of 2e5 draws within five standard errors: one false alarm in 1e6."""
    frequency, mean = torch.tensor([0.05, 0.4, 0.9]), torch.tensor([0.02, 0.3, 1.5])
    network = CensoredNormal(VectorTrunk(3, (4,), (3,)), frequency, mean, lower=0.5)
    z, season = torch.randn(1, 3, 4, generator=rng), torch.zeros(1, 4)
    location, scale = network(z, season)
    draws = (location + scale * torch.randn(200_000, 3, generator=rng)).clamp(min=0.5) - 0.5
    error = (frequency * (1 - frequency) / 2e5).sqrt()
    assert bool(((draws > 0).float().mean(0) - frequency).abs().less(5 * error + 1e-3).all())
    assert bool((draws.mean(0) - mean).abs().less(5 * draws.std(0) / 2e5**0.5 + 2e-3 * mean).all())


def test_pairs_score_the_mixture_without_bias():
    """Over all pairs of four draws, the mean is the CRPS of the mixture's distribution by quadrature."""
    location = torch.tensor([-0.5, 0.2, 0.8, 1.5], dtype=torch.float64)
    scale = torch.tensor([0.3, 0.5, 0.4, 0.6], dtype=torch.float64)
    threshold = torch.linspace(0, 6, 4001, dtype=torch.float64)
    truth = torch.tensor([0.7], dtype=torch.float64)
    p = exceedance(location[:, None], scale[:, None], threshold[:, None, None])
    mixture = p.mean(1)[:, 0]
    crps = torch.trapezoid((mixture - (truth > threshold).double()).square(), threshold)
    measure = torch.full_like(threshold, float(threshold[1]))
    measure[[0, -1]] /= 2  # the trapezoidal rule
    pairs = [
        pair_score(p[:, i], p[:, j], truth, threshold, measure, torch.ones(1))
        for i in range(4)
        for j in range(4)
    ]
    assert float(torch.stack(pairs).mean()) == pytest.approx(float(crps), rel=1e-6)


def test_maps_of_position_are_channels_beside_the_others(rng):
    """They have a convolution of their own for speed: it is that of all channels together."""
    trunk = GridTrunk(3, (2, 4, 6), (1, 8, 12), observed=2, hidden=8)
    torch.nn.init.normal_(trunk.last.weight, std=0.1, generator=rng)
    z, season = torch.randn(2, 3, 2, 4, 6, generator=rng), torch.randn(2, 4, generator=rng)
    seen = torch.randn(2, 2, 8, 12, generator=rng)
    parts = [z.flatten(1, 2), season[..., None, None].expand(-1, -1, 4, 6), trunk.place.expand(2, -1, -1, -1)]
    x = F.silu(trunk.first(torch.cat([*parts, F.pixel_unshuffle(seen, 2)], 1)))
    wanted = F.pixel_shuffle(trunk.last(x + F.silu(trunk.second(x))), 2).unflatten(1, (2, 1))
    torch.testing.assert_close(trunk(z, season, seen), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
def test_grids_of_observed_fields_reach_their_own_cells(patch, rng):
    """With no neighbours of influence but 5 x 5 latent cells, a far cell does not change."""
    trunk = GridTrunk(3, (2, 8, 16), (1, 8 * patch, 16 * patch), observed=2, hidden=8)
    torch.nn.init.normal_(trunk.last.weight, std=0.1, generator=rng)
    z, season = torch.randn(1, 3, 2, 8, 16, generator=rng), torch.zeros(1, 4)
    seen = torch.randn(1, 2, 8 * patch, 16 * patch, generator=rng)
    moved = seen.clone()
    moved[..., 4 * patch, 0] += 1
    change = (trunk(z, season, moved) - trunk(z, season, seen)).abs().amax((0, 1, 2))
    assert float(change[4 * patch, 0]) > 0 and float(change[4 * patch, -patch]) > 0  # round the globe
    assert float(change[:, 4 * patch : 12 * patch].max()) == 0
