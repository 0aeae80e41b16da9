"""Shocks and spin-up: their statistics, and that nothing else happens."""

import pytest
import torch

from slams.systems import Lorenz96
from slams.systems.shocks import Shocked, SpunUp

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shocks_come_as_often_and_as_strong_as_stated():
    """Of 20 000 states a share p within 6 standard errors is hit; what hits has deviation s within 6: alarms in 1e8."""
    system = Lorenz96(8, dtype=DOUBLE)
    x = system.initial(20_000, rng=rng(1))
    apart = Shocked(system, 0.1, 0.7)(x, rng=rng()) - system(x)
    hit = (apart != 0).any(-1)
    assert bool(((apart != 0).all(-1) == hit).all())
    assert abs(float(hit.double().mean()) - 0.1) < 6 * (0.1 * 0.9 / 20_000) ** 0.5
    values = apart[hit]
    assert abs(float(values.mean())) < 6 * 0.7 / values.numel() ** 0.5
    assert abs(float(values.std()) / 0.7 - 1) < 6 / (2 * values.numel()) ** 0.5


def test_the_same_generator_gives_the_same_shocks():
    system = Shocked(Lorenz96(8, dtype=DOUBLE), 0.3, 1.0)
    x = system.initial(2, rng=rng(1))
    one, two = (system.trajectory(x, 20, rng=rng(2)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("probability, deviation", [(0.0, 1.0), (0.5, 0.0)])
def test_without_shocks_it_is_the_system_itself(probability, deviation):
    """And draws nothing, so that a truth stays the same truth."""
    system, source = Lorenz96(8, dtype=DOUBLE), rng(3)
    x, before = system.initial(3, rng=rng(1)), rng(3).get_state()
    path = Shocked(system, probability, deviation).trajectory(x, 10, rng=source)
    assert torch.equal(path, system.trajectory(x, 10))
    assert torch.equal(source.get_state(), before)


def test_a_spun_up_start_is_a_later_state():
    system = Lorenz96(8, dtype=DOUBLE)
    late = SpunUp(system, 30).initial(2, rng=rng(1))
    assert torch.equal(late, system.trajectory(system.initial(2, rng=rng(1)), 30)[:, -1])
    assert torch.equal(SpunUp(system, 30)(late), system(late))


def test_wrong_settings_are_refused():
    system = Lorenz96(8)
    with pytest.raises(ValueError, match="probability"):
        Shocked(system, 1.5, 1.0)
    with pytest.raises(ValueError, match="deviation"):
        Shocked(system, 0.5, -1.0)
    with pytest.raises(ValueError, match="steps"):
        SpunUp(system, -1)
