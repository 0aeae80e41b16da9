"""Laws of surface quasi-geostrophic turbulence: inversion, budgets, Eady's growth rates, orders, symmetries."""

import math

import numpy as np
import pytest
import torch

from slams.core.geometry import torus
from slams.systems import SurfaceQG

F64 = torch.float64
LENGTH, DEPTH, KELVIN = SurfaceQG.LENGTH, SurfaceQG.DEPTH, SurfaceQG.KELVIN
RATIO = 1e-2  # f / N
UNIT = 2 * math.pi / LENGTH


def system(size=16, **settings):
    return SurfaceQG(size, dtype=F64, **settings)


def free(size=16, **settings):
    """Without jet, relaxation and diffusion."""
    return system(size, **{"jet": 0.0, "relaxation": math.inf, "diffusion": math.inf} | settings)


def rough(model, *shape, rng):
    """Carried temperatures with energy in all waves, of standard deviation 5 K."""
    return model.project(5 * torch.randn(*shape, *model.state_shape, dtype=F64, generator=rng))


def angles(size):
    """2 pi x / L as a column and 2 pi y / L as a row, at the centres of cells."""
    points = (torch.arange(size, dtype=F64) + 0.5) * 2 * math.pi / size
    return points[:, None], points[None, :]


def wave(size, kx, ky, lower=(1.0, 0.3), upper=(0.7, 2.1)):
    """A plane wave at each lid, given by amplitude [K] and phase."""
    x, y = angles(size)
    return torch.stack([a * torch.cos(kx * x + ky * y + phase) for a, phase in (lower, upper)])


def between(psi, kx, ky, heights):
    """The stream function of a plane wave at heights z / H, given that at the lids: no PV inside."""
    m = math.hypot(kx, ky) * UNIT * DEPTH / RATIO
    lower, upper = psi[:, None]
    z = heights[:, None, None]
    return (lower * torch.sinh(m * (1 - z)) + upper * torch.sinh(m * z)) / math.sinh(m)


def eady(kx, ky, shear):
    """Growth rate [1/h] of Eady's unstable wave (Vallis 2017, eq. 9.91); negative square: neutral."""
    half = math.hypot(kx, ky) * UNIT * DEPTH / RATIO / 2
    square = (1 / math.tanh(half) - half) * (half - math.tanh(half))
    return kx * UNIT * shear / (2 * half) * math.copysign(abs(square) ** 0.5, square) * 3600


@pytest.mark.parametrize(("kx", "ky"), [(1, 0), (0, 2), (3, -5), (7, 7)])
def test_stream_function_has_the_lids_temperature_as_its_slope(kx, ky):
    """d psi/dz at both lids by one-sided differences of fourth order, error (m h)^4 / 5 < 1e-7."""
    temperature = wave(16, kx, ky)
    psi = system().streamfunction(temperature)
    h = 1e-3
    below = between(psi, kx, ky, torch.arange(5, dtype=F64) * h)
    above = between(psi, kx, ky, 1 - torch.arange(5, dtype=F64) * h)
    weights = torch.tensor([-25.0, 48.0, -36.0, 16.0, -3.0], dtype=F64)[:, None, None] / (12 * h * DEPTH)
    slopes = torch.stack([(weights * below).sum(0), -(weights * above).sum(0)])
    torch.testing.assert_close(slopes * KELVIN, temperature, rtol=0, atol=1e-6)


def test_energy_is_the_integral_over_the_volume():
    """Of 1/2 (u^2 + v^2 + (f/N)^2 psi_z^2) of one plane wave, by Gauss-Legendre quadrature in z."""
    kx, ky = 2, -3
    model = system()
    temperature = wave(16, kx, ky)
    psi = model.streamfunction(temperature)
    nodes, weights = (torch.as_tensor(a, dtype=F64) for a in np.polynomial.legendre.leggauss(20))
    z = (1 + nodes) / 2
    inside = between(psi, kx, ky, z)
    h = 1e-4
    slope = (between(psi, kx, ky, z + h) - between(psi, kx, ky, z - h)) / (2 * h * DEPTH)
    wind = (kx**2 + ky**2) * UNIT**2 * inside.square()
    density = (wind + RATIO**2 * slope.square()).mean((-2, -1)) / 2
    torch.testing.assert_close(model.energy(temperature), (weights / 2 * density).sum(), rtol=1e-7, atol=0)


def test_winds_of_the_jet_in_closed_form():
    """+-U / 2 sin(2 pi y / L), against each other; its energy spectrum has one shell, (U / 2)^2 / 4."""
    model = system(jet=40.0)
    _, y = angles(16)
    u, v = model.velocity(model.equilibrium).unbind(-3)
    expected = 20 * torch.sin(y) * torch.tensor([1.0, -1.0], dtype=F64)[:, None, None]
    torch.testing.assert_close(u, expected.expand(2, 16, 16), rtol=0, atol=1e-11)
    assert v.abs().max() < 1e-11
    spectrum = model.energy_spectrum(model.equilibrium)
    torch.testing.assert_close(spectrum[:, 1], torch.full((2,), 100.0, dtype=F64))
    assert (spectrum.sum(-1) - 100).abs().max() < 1e-9


@pytest.mark.parametrize("size", [16, 17])
def test_winds_turn_around_the_stream_function(size, rng):
    """Vorticity of the velocity is the Laplacian of psi, and there is no divergence."""
    model = system(size)
    x = rough(model, 2, rng=rng)
    psi, wind = model.streamfunction(x), model.velocity(x)
    kx, ky = torus.wavenumbers(size, psi)
    laplacian = torch.fft.irfft2(-(kx**2 + ky**2) * torch.fft.rfft2(psi), s=(size, size)) * UNIT**2
    torch.testing.assert_close(torus.vorticity(wind) * UNIT, laplacian, rtol=0, atol=1e-16)
    turned = torch.stack([wind[..., 1, :, :], -wind[..., 0, :, :]], -3)  # its vorticity is -div
    assert torus.vorticity(turned).abs().max() < 1e-9


@pytest.mark.parametrize("size", [16, 17, 21])
def test_advection_is_free_of_aliasing(size, rng):
    """-u . grad T against products on a grid of 64 points, which alias none of the waves kept."""
    model, fine = free(size, shear=20.0), system(64)
    x = rough(model, 2, rng=rng)
    dense = torus.resample(x, 64)
    kx, ky = torus.wavenumbers(64, dense)
    waves = torch.fft.rfft2(dense)
    east, north = (UNIT * torch.fft.irfft2(1j * k * waves, s=(64, 64)) for k in (kx, ky))
    u, v = fine.velocity(dense).unbind(-3)
    base = torch.tensor([-10.0, 10.0], dtype=F64)[:, None, None]
    expected = -3600 * ((u + base) * east + v * (north - KELVIN * 20 / DEPTH))
    rate = model._synthesis(model._rate(model._analysis(x), model._terms(x)))
    torch.testing.assert_close(rate, model.project(torus.resample(expected, size)), rtol=0, atol=1e-10)


def test_free_flow_conserves_energy_and_variances(rng):
    """Instantaneous rates relative to their largest possible size."""
    model = free()
    x = rough(model, 3, rng=rng)
    waves = model._analysis(x)
    change, psi, product = model._rate(waves, model._terms(x)), model._stream(x), model.torus.mean_product
    assert (change.abs().amax((-2, -1)) > 0.01).all()
    for other in (waves, psi):  # <T dT> and, by the symmetry of the inversion, <psi dT> of each lid
        size = (product(other, other) * product(change, change)).sqrt()
        assert (product(other, change).abs() < 1e-13 * size).all()


def test_drift_of_the_invariants_is_the_time_step_s(rng):
    """Over half a day: halving the step cuts it at least 2^4-fold, so nothing else leaks."""
    x = rough(free(), 2, rng=rng)
    drifts = []
    for step in (0.5, 0.25):
        model = free(step=step)
        after = model(x)
        variance = model.temperature_variance(after) / model.temperature_variance(x) - 1
        energy = model.energy(after) / model.energy(x) - 1
        drifts.append(torch.cat([variance, energy[:, None]], 1).abs())
    assert (model.energy(x) > 0).all()
    assert (drifts[0] < 1e-3).all() and (drifts[0] > 16 * drifts[1]).all()


@pytest.mark.parametrize(("kx", "ky"), [(3, 0), (5, 0), (4, 3)])
@pytest.mark.parametrize("damped", [False, True])
def test_small_waves_on_constant_shear_grow_at_eadys_rate(kx, ky, damped):
    """From a wave at one lid; a fortnight later its decaying part is gone, below 1e-6 of the growing one."""
    scales = {"relaxation": 240.0, "diffusion": 24.0} if damped else {}
    model = free(shear=30.0, dt=12.0, step=1.0, **scales)
    rate = eady(kx, ky, 30.0)
    if damped:
        rate -= 1 / 240 + (math.hypot(kx, ky) / 8) ** 8 / 24
    path = model.trajectory(wave(16, kx, ky, (1e-6, 0.3), (0.0, 0.0)), 30)
    growth = (path[30].norm() / path[28].norm()).log() / 24
    assert eady(kx, ky, 30.0) * 14 * 24 > 7
    assert float(growth) == pytest.approx(rate, rel=1e-4)


def test_short_waves_on_constant_shear_beat_and_do_not_grow():
    """Beyond |k| N H / f = 2.399 the square of the rate is -w^2: T(t + s) + T(t - s) = 2 cos(w s) T(t)."""
    model = free(shear=30.0, dt=12.0, step=0.5)
    rate = eady(7, 4, 30.0)
    assert rate < 0 < eady(7, 3, 30.0)
    path = model.trajectory(wave(16, 7, 4, (1e-6, 0.3), (1e-6, 1.0)), 24)
    expected = 2 * math.cos(48 * rate) * path[4:-4]
    torch.testing.assert_close(path[8:] + path[:-8], expected, rtol=0, atol=1e-10)
    assert path.flatten(1).norm(dim=1).max() < 3 * path[0].norm()


def test_the_jet_is_stationary():
    model = system()
    start = model.equilibrium
    assert start.abs().max() > 25
    torch.testing.assert_close(model.trajectory(start, 10)[-1], start, rtol=0, atol=1e-10)


def test_zonal_departures_decay_exponentially():
    """They are carried nowhere: exp(-(1 / relaxation + (2 k / N)^8 / diffusion) t), to rounding."""
    model = system(relaxation=100.0, diffusion=5.0, dt=6.0)
    _, y = angles(16)
    for k in (2, 7):
        ripple = torch.cos(k * y).expand(2, 16, 16)
        decay = math.exp(-6 * (1 / 100 + (2 * k / 16) ** 8 / 5))
        expected = model.equilibrium + decay * ripple
        torch.testing.assert_close(model(model.equilibrium + ripple), expected, rtol=0, atol=1e-12)


def test_halving_the_step_shows_fourth_order(rng):
    x = system().initial(2, rng=rng)
    ends = [system(step=step)(x) for step in (1.0, 0.5, 0.0625)]
    slope = torch.log2((ends[0] - ends[2]).norm() / (ends[1] - ends[2]).norm())
    assert float(slope) == pytest.approx(4, abs=0.3)


def test_translation_along_the_jet_commutes_and_across_it_does_not(rng):
    model = system()
    x = model.initial(2, rng=rng)
    torch.testing.assert_close(model(x.roll(5, -2)), model(x).roll(5, -2), rtol=0, atol=1e-10)
    assert (model(x.roll(5, -1)) - model(x).roll(5, -1)).abs().max() > 0.1


def test_turning_the_box_upside_down_commutes(rng):
    """z to H - z exchanges the lids and the sign of T; the jet turns its sign, as half a side along y does."""
    model = system(shear=0.0)
    x = model.initial(2, rng=rng)

    def turned(x):
        return -x.flip(-3).roll(8, -1)

    torch.testing.assert_close(model(turned(x)), turned(model(x)), rtol=0, atol=1e-10)


def test_batch_equals_loop_and_steps_compose(rng):
    model = system(12, step=1.0)
    x = model.initial(2, 3, rng=rng)
    loop = torch.stack([torch.stack([model(state) for state in row]) for row in x])
    torch.testing.assert_close(model(x), loop, rtol=0, atol=1e-10)
    halves = system(12, dt=6.0, step=1.0)
    torch.testing.assert_close(halves.trajectory(x, 2)[:, :, -1], model(x), rtol=0, atol=1e-10)


def test_single_precision_follows_double(rng):
    """Half a day in float32, errors below 1e-5 of the field; the dtype is that of the states."""
    model = system()
    x = model.initial(2, rng=rng)
    single = model(x.float())
    assert single.dtype == torch.float32 and model(x).dtype == F64
    assert SurfaceQG(16, dtype=torch.float32).initial().dtype == torch.float32
    assert (single - model(x)).abs().max() < 1e-5 * x.abs().max()
    small = SurfaceQG(16, dtype=torch.float32)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(small.double().equilibrium, model.equilibrium, rtol=0, atol=1e-12)


def test_gradients_are_those_of_differences(rng):
    """Also when inner steps are recomputed."""
    x = system(8).initial(2, rng=rng)
    way, weight = (torch.randn(x.shape, dtype=F64, generator=rng) for _ in range(2))
    gradients = []
    for model in (system(8), system(8, checkpoint=True)):
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((model(point) * weight).sum(), point)
        slope = ((model(x + 1e-4 * way) - model(x - 1e-4 * way)) * weight).sum() / 2e-4
        assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-6)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_state_without_its_shortest_wave_is_projected(rng):
    """Projecting twice is projecting once; on odd grids nothing is lost; the mean is kept."""
    x = torch.randn(2, 2, 12, 12, dtype=F64, generator=rng)
    once = system(12).project(x)
    torch.testing.assert_close(system(12).project(once), once, rtol=0, atol=1e-13)
    assert (once - x).abs().max() > 0.1
    torch.testing.assert_close(once.mean((-2, -1)), x.mean((-2, -1)), rtol=0, atol=1e-13)
    odd = torch.randn(2, 2, 13, 13, dtype=F64, generator=rng)
    torch.testing.assert_close(system(13).project(odd), odd, rtol=0, atol=1e-13)


def test_initial_noise_has_its_stated_size(rng):
    """Mean square of 200 draws within 5 standard errors, computed from the spectrum drawn: one alarm in 10^6.

    So for the ratio of the powers at |k| = 3 and 6, each the mean of 1600 squared normals, here 2^(8/3).
    """
    model = system()
    noise = model.initial(200, rng=rng) - model.equilibrium
    assert (noise.mean((-2, -1)).abs() < 1e-12).all()
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    error = 5**2 * math.sqrt(2 * float(power.square().sum() / power.sum() ** 2) / 400)
    assert float(noise.square().mean()) == pytest.approx(25, abs=5 * error)
    ratio = float((power[3, 0] + power[0, 3]) / (power[6, 0] + power[0, 6]))
    assert ratio == pytest.approx(2 ** (8 / 3), rel=5 * math.sqrt(2 * 2 / 1600))
    first, again = (model.initial(2, rng=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


def test_the_jet_breaks_into_turbulence_and_keeps_its_energy():
    """After 20 days eddies are developed, winds below the stable limit, energy far below the jet's."""
    model = SurfaceQG(16, dtype=torch.float32)
    path = model.trajectory(model.initial(2, rng=torch.Generator().manual_seed(0)), 60)[:, 40:]
    eddies = (path - path.mean(-2, keepdim=True)).square().mean((-3, -2, -1)).sqrt()
    assert (eddies > 2).all() and (eddies < 25).all()
    assert (model.energy(path) < model.energy(model.equilibrium)).all()
    assert model.velocity(path).abs().sum(-3).max() < 234


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "at least 4 points"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"dt": math.inf}, "dt must be positive"),
        ({"step": -1.0}, "step must be positive"),
        ({"relaxation": 0.0}, "relaxation must be a positive"),
        ({"diffusion": math.nan}, "diffusion must be a positive"),
        ({"jet": math.nan}, "jet must be a finite"),
        ({"shear": math.inf}, "shear must be a finite"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SurfaceQG(**{"size": 8} | settings)


def test_bad_states_are_refused():
    model = SurfaceQG(8)
    for call in (model, model.energy, model.velocity, model.streamfunction, model.project):
        with pytest.raises(ValueError, match="last 3 axes"):
            call(torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match="float32 or float64"):
        model(torch.zeros(2, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps must be"):
        model.trajectory(torch.zeros(2, 8, 8), -1)
