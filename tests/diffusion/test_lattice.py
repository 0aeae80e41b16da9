"""Laws of guidance by values on a lattice: it is the closed form, whichever way it is solved."""

import pytest
import torch

from slams.core.covariance import Isotropic
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.covariance_matching import CovarianceMatching
from slams.diffusion.guidance.moment_matching import MomentMatching
from slams.diffusion.lattice import LatticeMatching, LatticeSystem
from slams.diffusion.schedule import VPCosine
from slams.diffusion.solenoidal import FlowCovariance, flow_moments
from slams.diffusion.solenoidal_denoiser import SolenoidalDenoiser
from slams.observation.observation import Observation, Observations
from slams.observation.operators import AvgPool, Box, Compose, Stride
from slams.systems.flows.kolmogorov import KolmogorovFlow

N, L, STEPS, STD = 16, 4, [0, 3], 0.1
SENSORS = {
    "means": (AvgPool(4), None),
    "points": (Stride(4, 1, axes=2), None),
    "box of means": (AvgPool(4), (1, 3)),
    "box of points": (Stride(2, axes=2), (2, 6)),
}


class Shrunk(Denoiser):
    """Any denoiser will do."""

    schedule = VPCosine()

    def forward(self, x_t, t):
        return 0.7 * x_t


@pytest.fixture(scope="module")
def covariance():
    flow = KolmogorovFlow(N, wavenumber=2)
    x = [flow.initial(8, rng=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        for _ in range(7):
            x.append(flow(x[-1]))
    x = torch.stack(x, 1)
    return FlowCovariance(flow_moments(x, x.mean((0, 1)), L), L, torch.float64)


def record(sensor, box, rng):
    h = sensor if box is None else Compose([sensor, Box(box)])
    truth = torch.randn(3, L, 2, N, N, dtype=torch.float64, generator=rng)
    value = torch.full_like(h(truth), torch.nan)
    value[:, STEPS] = h(truth)[:, STEPS]
    return Observations({"flow": Observation(value, h, Isotropic(STD**2), event=3)})


@pytest.mark.parametrize("name", SENSORS)
def test_a_lattice_is_solved_as_conjugate_gradients_do(name, covariance, rng):
    """The two share no step of their solution; 400 iterations leave 1e-7 of the innovation."""
    sensor, box = SENSORS[name]
    seen = record(sensor, box, rng)
    system = LatticeSystem(covariance, sensor, STEPS, (L, 2, N, N), STD, box=box)
    x_t = torch.randn(3, L, 2, N, N, dtype=torch.float64, generator=rng)
    exact = LatticeMatching(system=system)(Shrunk(), seen)
    other = CovarianceMatching(covariance=covariance, iterations=400, tolerance=1e-10)(Shrunk(), seen)
    for time in (0.9, 0.4, 0.02):
        t = torch.tensor(time, dtype=torch.float64)
        torch.testing.assert_close(exact(x_t, t), other(x_t, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SENSORS)
def test_the_system_undoes_its_matrix(name, covariance, rng):
    """(H C H^T + R) (H C H^T + R)^-1 r = r."""
    sensor, box = SENSORS[name]
    system = LatticeSystem(covariance, sensor, STEPS, (L, 2, N, N), STD, box=box)
    r = torch.randn_like(system.seen(torch.zeros(2, L, 2, N, N, dtype=torch.float64)))
    r = torch.randn(r.shape, dtype=torch.float64, generator=rng)
    u = system.solve(r, 0.0)
    back = system.seen(covariance.posterior(system.pulled(u), torch.zeros((), dtype=torch.float64)))
    torch.testing.assert_close(back + STD**2 * u, r, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SENSORS)
def test_the_denoisers_own_derivative_is_met_by_iterations(name, covariance, rng):
    """One iteration where it is that of C; as many as MomentMatching where it is another's."""
    sensor, box = SENSORS[name]
    seen = record(sensor, box, rng)
    system = LatticeSystem(covariance, sensor, STEPS, (L, 2, N, N), STD, box=box)
    x_t, t = (
        torch.randn(3, L, 2, N, N, dtype=torch.float64, generator=rng),
        torch.tensor(0.4, dtype=torch.float64),
    )
    exact = SolenoidalDenoiser(None, torch.zeros(2, N, N, dtype=torch.float64), covariance, VPCosine())
    plain, once = (LatticeMatching(system=system, iterations=n)(exact, seen)(x_t, t) for n in (0, 1))
    torch.testing.assert_close(once, plain, rtol=0, atol=1e-8)
    many = LatticeMatching(system=system, iterations=60)(Shrunk(), seen)(x_t, t)
    other = MomentMatching(iterations=60, tolerance=1e-10)(Shrunk(), seen)(x_t, t)
    torch.testing.assert_close(many, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_sample_that_fits_all_values_is_left_as_it_is(iterations, covariance, rng):
    """Without an innovation there is no direction to go, while the other samples have theirs."""
    seen = record(AvgPool(4), None, rng)
    system = LatticeSystem(covariance, AvgPool(4), STEPS, (L, 2, N, N), STD)
    x_t = torch.randn(3, L, 2, N, N, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.4, dtype=torch.float64)
    seen["flow"].value[0, STEPS] = system.seen(Shrunk()(x_t, t))[0]
    guided = LatticeMatching(system=system, iterations=iterations)(Shrunk(), seen)(x_t, t)
    assert torch.equal(guided[0], Shrunk()(x_t, t)[0])
    assert torch.isfinite(guided).all() and (guided - Shrunk()(x_t, t))[1:].abs().max() > 0.1


def test_what_is_no_lattice_is_refused(covariance, rng):
    with pytest.raises(ValueError, match="must be positive, got 0"):
        LatticeSystem(covariance, AvgPool(4), STEPS, (L, 2, N, N), 0.0)
    system = LatticeSystem(covariance, AvgPool(4), STEPS, (L, 2, N, N), STD)
    seen = record(AvgPool(4), None, rng)
    seen["flow"].value[0, 3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="missing at an observed step"):
        LatticeMatching(system=system)(Shrunk(), seen)
    with pytest.raises(ValueError, match="is one modality"):
        LatticeMatching(system=system)(Shrunk(), Observations({"a": seen["flow"], "b": seen["flow"]}))
