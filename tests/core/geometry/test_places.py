"""Laws of places: where variables and the values of operators are."""

import pytest
import torch

from slams.core.geometry.distance import great_circle
from slams.core.geometry.places import Geometry, places_of
from slams.observation.operators import AvgPool, Compose, Flatten, Pointwise, Select, Stack, Stride
from slams.systems import KolmogorovFlow, Lorenz96, MoistQG, SurfaceQG


def test_a_value_of_one_variable_is_where_that_is_to_the_bit():
    circle, x = Geometry.circle(12), torch.linspace(-3, 5, 12)
    for operator, sites in [
        (Stride(3, 1), [1, 4, 7, 10]),
        (Compose([Stride(4), Pointwise("arctan", scale=0.1)]), [0, 4, 8]),
        (Stack([Select(torch.tensor([11]), event=1), Select(torch.tensor([2, 0]), event=1)]), [11, 2, 0]),
        (lambda x: x[..., 3:5] ** 3, [3, 4]),
    ]:
        found = places_of(operator, x, circle)
        assert torch.equal(found[:, 0], torch.tensor(sites, dtype=torch.float64))


def test_a_mean_is_in_the_middle_the_short_way_round():
    """On a circle of 12 the mean of sites 11 and 1 is at 0; on a line of 12 at 6."""
    ends = Select(torch.tensor([11, 1]), event=1)

    def mean(x):
        return ends(x).mean(-1, keepdim=True)

    x = torch.ones(12)
    assert float(places_of(mean, x, Geometry.circle(12)) % 12) == pytest.approx(0.0)
    assert float(places_of(mean, x, Geometry.line(12))) == pytest.approx(6.0)


def test_blocks_of_a_torus_and_of_the_sphere_are_at_their_centres():
    torus = Geometry.torus((2, 4, 8))
    found = places_of(Compose([AvgPool(2), Flatten(3)]), torch.ones(2, 4, 8), torus)
    expected = torch.cartesian_prod(torch.tensor([0.5, 2.5]), torch.tensor([0.5, 2.5, 4.5, 6.5])).double()
    torch.testing.assert_close(found, expected.repeat(2, 1))
    lat, lon = torch.tensor([20.0, -20.0]), torch.arange(0.0, 360, 90)
    sphere = Geometry.sphere(lat, lon)
    equator = places_of(
        lambda x: x.reshape(*x.shape[:-2], -1)[..., [0, 4]].mean(-1, True), torch.ones(2, 4), sphere
    )
    torch.testing.assert_close(equator, torch.zeros(1, 2, dtype=torch.float64), rtol=0, atol=1e-10)


def test_places_that_an_operator_states_are_taken_and_blind_values_refused():
    class Gauge(torch.nn.Module):
        places = torch.tensor([[2.5]])

        def forward(self, x):
            return x[..., :1].round()

    circle, x = Geometry.circle(4), torch.ones(4)
    assert torch.equal(places_of(Gauge(), x, circle), torch.tensor([[2.5]], dtype=torch.float64))
    with pytest.raises(ValueError, match="value 0 of the operator .* depends on no variable"):
        places_of(lambda x: x[..., :2] * 0, x, circle)


@pytest.mark.parametrize("system", [Lorenz96(6), KolmogorovFlow(16), SurfaceQG(16), MoistQG()])
def test_a_system_states_the_place_of_every_variable(system):
    geometry = system.geometry
    assert len(geometry.points) == torch.Size(system.state_shape).numel()
    assert len(geometry.dims) == len(system.state_shape)


def test_the_planet_is_measured_in_kilometres():
    """Two latitudes at the equator are 180 / 32 degrees apart, nearly."""
    points = MoistQG().geometry.points
    apart = float(great_circle(points[64 * 15 : 64 * 15 + 1], points[64 * 16 : 64 * 16 + 1]))
    assert apart == pytest.approx(6371 * torch.pi / 32, rel=0.03)
