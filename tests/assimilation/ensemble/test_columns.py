"""The LETKF by columns is the LETKF with the localization of its sites repeated."""

import pytest
import torch

from slams.assimilation import LETKF
from slams.assimilation.ensemble.columns import ColumnLETKF, blocks
from slams.core.covariance import Diagonal
from slams.core.geometry.localization import Localization
from slams.core.random import normal
from slams.observation.observation import Observation
from slams.systems import FunctionModel

CHANNELS, SITES = 3, 12


def case(rng):
    """Three channels on a line of twelve sites, five of channel 0 observed."""
    model = FunctionModel(lambda x: x, (CHANNELS, SITES), 1.0)
    x = normal((10, CHANNELS, SITES), dtype=torch.float64, rng=rng)
    places = torch.tensor([0, 3, 4, 7, 11])
    near = Localization.line(SITES, places.double(), 1.5)
    operator = lambda state: state[..., 0, :][..., places]  # noqa: E731
    value = normal((5,), dtype=torch.float64, rng=rng)
    noise = Diagonal(torch.full((5,), 0.5, dtype=torch.float64))
    return model, x, near, Observation(value, operator, noise)


def test_columns_equal_the_repeated_localization(rng):
    """In every variable, to rounding: neighbours without padding are the same sums."""
    model, x, near, observation = case(rng)
    variables = torch.arange(CHANNELS * SITES).reshape(CHANNELS, SITES).mT
    columns = ColumnLETKF(model, variables=variables, localization=near, rtps=0.4)
    whole = LETKF(model, localization=near.repeated(CHANNELS), rtps=0.4)
    torch.testing.assert_close(
        columns.analyse(x, observation), whole.analyse(x, observation), rtol=0, atol=1e-12
    )


def test_inflation_of_the_present_leaves_the_past(rng):
    """The first channel is relaxed, the others are those of an analysis without inflation."""
    model, x, near, observation = case(rng)
    variables = torch.arange(CHANNELS * SITES).reshape(CHANNELS, SITES).mT
    settings = {"variables": variables, "localization": near}
    inflated = ColumnLETKF(model, rtps=0.7, present=SITES, **settings).analyse(x, observation)
    whole = ColumnLETKF(model, rtps=0.7, **settings).analyse(x, observation)
    bare = ColumnLETKF(model, **settings).analyse(x, observation)
    torch.testing.assert_close(inflated[:, 0], whole[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(inflated[:, 1:], bare[:, 1:], rtol=0, atol=1e-12)
    assert (inflated[:, 0] - bare[:, 0]).abs().max() > 1e-2


def test_blocks_hold_every_variable_once():
    variables, columns = blocks(4, 6, 8, 2)
    assert variables.flatten().sort().values.tolist() == list(range(4 * 6 * 8))
    assert variables.shape == (12, 16) and columns.shape == (12, 4)
    assert (variables % 48 == columns.repeat(1, 4)).all()


def test_wrong_groups_are_refused(rng):
    model, x, near, observation = case(rng)
    with pytest.raises(ValueError, match="two sites"):
        ColumnLETKF(model, variables=torch.zeros(SITES, 2, dtype=torch.long), localization=near)
    with pytest.raises(ValueError, match="localization"):
        ColumnLETKF(model, variables=torch.arange(SITES)[:, None])
    with pytest.raises(ValueError, match="12 sites .* 5 groups"):
        ColumnLETKF(model, variables=torch.arange(5)[:, None], localization=near).analyse(x, observation)
    with pytest.raises(ValueError, match="multiple|no blocks"):
        blocks(1, 5, 8, 2)
