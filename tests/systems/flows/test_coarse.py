"""Forecasts at half the resolution of the states."""

import torch

from slams.systems.flows.coarse import CoarseMoistQG
from slams.systems.flows.quasigeostrophic import MoistQG

GRID = {"truncation": 10, "latitudes": 16, "longitudes": 32, "dtype": torch.float64}


@torch.no_grad()
def test_forecast_is_that_of_the_coarse_model():
    """A state without the small scales goes through the coarse model and back unchanged by the way."""
    system = CoarseMoistQG(**GRID)
    coarse = system.forecast_model
    small = coarse.initial(2, rng=0, day=20.0)
    y = torch.zeros(2, 6, 11, 11, dtype=torch.complex128)
    y[..., :6, :6] = coarse.harmonics.analysis(small[:, :-1])
    fine = torch.cat(
        [system.harmonics.synthesis(y), torch.full((2, 1, 16, 32), 20.0, dtype=torch.float64)], 1
    )
    forecast, expected = system(fine), coarse(small)
    assert (coarse.harmonics.truncation, coarse.harmonics.shape) == (5, (8, 16))
    found = system.harmonics.analysis(forecast[:, :-1])
    torch.testing.assert_close(
        found[..., :6, :6], coarse.harmonics.analysis(expected[:, :-1]), rtol=0, atol=1e-10
    )
    assert float(found[..., 6:].abs().max()) < 1e-10
    assert torch.equal(forecast[:, -1, 0, 0], torch.full((2,), 20.25, dtype=torch.float64))


@torch.no_grad()
def test_full_truncation_on_half_the_grid_is_near_the_model():
    """With all scales kept only aliasing and the coarse land differ: by less than half of a day's change."""
    fine = MoistQG(truncation=5, latitudes=16, longitudes=32)
    coarse = CoarseMoistQG(forecast_truncation=5, truncation=5, latitudes=16, longitudes=32)
    x = fine.initial(2, rng=1, day=20.0)
    one, other = x, x
    for _ in range(4):
        one, other = fine(one), coarse(other)
    change = (one - x)[:, :5].square().mean().sqrt()
    assert (one - other)[:, :5].square().mean().sqrt() < 0.5 * change
