"""Parameters appended to the state are estimated by any filter, from observations of the state alone."""

import torch

from slams.assimilation.ensemble.kalman import ETKF
from slams.core.random import normal
from slams.observation import Survey, operators
from slams.systems import AugmentedParameters, Lorenz96
from tests.assimilation.twin import DOUBLE


def test_filter_finds_the_forcing_of_lorenz96(rng):
    """Prior N(6.5, 1), truth 8, 8 replicates, 200 cycles: within five of its own standard deviations and 0.1 of 8."""
    truth_system = Lorenz96(dtype=DOUBLE)
    start = truth_system.trajectory(truth_system.initial(8, rng=rng), 200)[:, -1]
    truth = truth_system.trajectory(start, 200)
    model = AugmentedParameters(truth_system, {"forcing": (6.5, 1.0)}, walk=0.01)
    seen = Survey(operators.Identity(), 1.0).observe(truth, rng=rng).pullback({"observation": model.state})
    forcing = 6.5 + normal((8, 40, 1), like=start, rng=rng)
    x0 = torch.cat([start[:, None] + normal((8, 40, 40), like=start, rng=rng), forcing], -1)
    post = ETKF(model, inflation=1.02, rotate=True).assimilate(seen, 40, x0=x0, keep="moments", rng=rng)
    mean, std = post.mean[:, -1, -1], post.variance[:, -1, -1].sqrt()
    assert (mean - 8).abs().max() < 0.1
    assert ((mean - 8).abs() < 5 * std).all()
