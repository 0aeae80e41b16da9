"""Laws of the moist quasi-geostrophic planet."""

import math
from dataclasses import replace

import pytest
import torch

from slams.systems import Climate, MoistQG
from slams.systems.planet.geography import land_fraction

OMEGA2 = 4 * math.pi


@pytest.fixture(scope="module")
def free() -> MoistQG:
    """Neither forced nor damped, double precision."""
    return MoistQG(Climate.none(), dtype=torch.float64)


def weather_like(system, *lead, rng):
    """Random coefficients with the strength and reddish spectrum of weather, and wet air."""
    sphere = system.harmonics
    noise = torch.randn(*lead, system.levels + 1, *sphere.shape, dtype=torch.float64, generator=rng)
    y = sphere.analysis(noise) / (1 + torch.arange(22, dtype=torch.float64))
    scale = torch.full((system.levels + 1, 1, 1), 30.0, dtype=torch.float64)
    y = y * scale
    y[..., 0, 0] = 0
    y[..., system.levels, 0, 0] = 20.0
    return y


def test_stream_function_inverts_potential_vorticity(free, rng):
    q = weather_like(free, 2, rng=rng)[..., :5, :, :]
    torch.testing.assert_close(free.vorticity(free.stream(q)), q, rtol=0, atol=1e-11)


def test_rossby_haurwitz_tendency_is_a_pure_shift(free):
    """psi = -w mu + Y_n^m at all levels turns at c = w - 2 (Omega + w) / (n (n + 1)), so dY/dt = -i m c Y."""
    n, m, w = 5, 4, 0.06
    psi = torch.zeros(1, 5, 22, 22, dtype=torch.complex128)
    psi[..., 0, 1] = -w / math.sqrt(3)  # mu = P_1 / sqrt(3)
    psi[..., m, n] = 0.01 + 0.02j
    y = torch.cat([free.vorticity(psi), torch.zeros_like(psi[:, :1])], 1)
    change = free.stream(free.tendency(y, torch.zeros(1, dtype=torch.float64))[:, :5])
    speed = w - (OMEGA2 + 2 * w) / (n * (n + 1))
    expected = torch.zeros_like(psi)
    expected[..., m, n] = -1j * m * speed * psi[..., m, n]
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-14)


def test_rossby_haurwitz_wave_moves_at_its_phase_speed():
    """Two days in steps of 1/64 day; rk4's phase error is (m c dt)^5 / 120 a step, below 1e-9 in all."""
    system = MoistQG(Climate.none(), dt=0.25, substeps=16, dtype=torch.float64)
    n, m, w = 5, 4, 0.06
    psi = torch.zeros(1, 5, 22, 22, dtype=torch.complex128)
    psi[..., 0, 1], psi[..., m, n] = -w / math.sqrt(3), 0.01 + 0.02j
    x = system._pack(torch.cat([system.vorticity(psi), torch.zeros_like(psi[:, :1])], 1), torch.zeros(1))
    after = system.trajectory(x, 8)[:, -1]
    turned = system.stream(system._unpack(after)[0][:, :5])[..., m, n]
    speed = w - (OMEGA2 + 2 * w) / (n * (n + 1))
    expected = psi[..., m, n] * complex(math.cos(m * speed * 2), -math.sin(m * speed * 2))
    torch.testing.assert_close(turned, expected, rtol=1e-7, atol=0)


def test_free_flow_conserves_energy_and_enstrophy(free, rng):
    """Instantaneous rates relative to their largest possible size, also over mountains."""
    mountains = MoistQG(replace(Climate.none(), mountain=0.35), dtype=torch.float64)
    for system in (free, mountains):
        y = weather_like(system, 3, rng=rng)
        q = y[:, :5]
        change = system.tendency(y, torch.zeros(3, dtype=torch.float64))[:, :5]
        mean, psi = system.harmonics.mean_product, system.stream(q)
        size = (mean(psi, psi) * mean(change, change)).sqrt().sum(-1)
        assert (mean(psi, change).sum(-1).abs() < 1e-10 * size).all()
        total = q + system._background
        size = (mean(total, total) * mean(change, change)).sqrt()
        assert (mean(total, change).abs() < 1e-10 * size).all()


def test_energy_is_positive_and_its_drift_is_the_time_step_s(rng):
    """Over a quarter of a day: halving the step cuts the drift at least 2^4-fold, so nothing else leaks."""
    drift = []
    for substeps in (4, 8):
        system = MoistQG(Climate.none(), substeps=substeps, dtype=torch.float64)
        y = weather_like(system, 2, rng=rng.manual_seed(0)) * 0.3
        before = system.energy(y[:, :5])
        after = system.energy(system._unpack(system(system._pack(y, torch.zeros(2))))[0][:, :5])
        assert (before > 0).all()
        drift.append((after / before - 1).abs())
    assert (drift[0] > 16 * drift[1]).all() and (drift[0] < 1e-3).all()


def test_pure_transport_conserves_water(free, rng):
    """Neither the wind nor the divergence of the omega flow changes the global mean."""
    y = weather_like(free, 3, rng=rng)
    change = free.tendency(y, torch.zeros(3, dtype=torch.float64))[:, 5]
    assert (change[:, 0, 0].abs() < 1e-12 * change.abs().amax((-2, -1))).all()
    assert (change.abs().amax((-2, -1)) > 0.1).all()  # there is transport to conserve


def test_diagnosed_omega_closes_the_vorticity_budget(free, rng):
    """Lowest level: d lap psi / dt + J(psi, lap psi + f) = -f_0 omega / dp, omega found from thickness."""
    sphere = free.harmonics
    y = weather_like(free, 2, rng=rng)
    change, _, _, lift = free._evaluate(y, torch.zeros(2, dtype=torch.float64), slice(None))
    psi = free.stream(y[:, :5])[:, -1]
    vorticity = sphere.laplacian * psi
    f = torch.zeros_like(psi)
    f[:, 0, 1] = OMEGA2 / math.sqrt(3)
    carried = sphere.analysis(sphere.jacobian(sphere.gradient(psi), sphere.gradient(vorticity + f)))
    budget = sphere.laplacian * free.stream(change[:, :5])[:, -1] + carried
    omega = sphere.synthesis(budget)
    torch.testing.assert_close(lift[:, -1], -free._ascent * omega, rtol=1e-9, atol=1e-9)


def test_thermal_wind_of_solid_shear_in_closed_form(free):
    """psi_above - psi_below = -U mu balances R T ln(p2/p1) = -Omega U (mu^2 - 1/3)."""
    shear = 0.2
    psi = torch.zeros(1, 5, 22, 22, dtype=torch.complex128)
    psi[:, :3, 0, 1] = -shear / math.sqrt(3)  # levels above the interface at 600 hPa
    temperature = free.harmonics.synthesis(free._warmth(psi))[0]
    expected = -OMEGA2 / 2 * shear * (free.harmonics.mu**2 - 1 / 3) / free._depth[2]
    torch.testing.assert_close(temperature[2], expected.expand(32, 64), rtol=1e-11, atol=1e-11)
    assert temperature[[0, 1, 3]].abs().max() < 1e-11


def test_rotation_about_the_axis_commutes_without_geography(rng):
    climate = replace(Climate(), continental=0.0, land_drag=0.0, mountain=0.0, evaporation=0.0)
    system = MoistQG(climate, dtype=torch.float64)
    x = system._pack(weather_like(system, 2, rng=rng) * 0.3, torch.full((2,), 40.0))
    torch.testing.assert_close(system(x.roll(7, -1)), system(x).roll(7, -1), rtol=0, atol=1e-9)


def test_geography_breaks_the_rotation(rng):
    """Without this the test above could pass for lack of anything to rotate."""
    system = MoistQG(dtype=torch.float64)
    x = system._pack(weather_like(system, 1, rng=rng) * 0.3, torch.full((1,), 40.0))
    assert (system(x.roll(7, -1)) - system(x).roll(7, -1)).abs().max() > 1e-3


def test_batch_equals_loop(rng):
    system = MoistQG(dtype=torch.float64)
    x = torch.stack([system.initial(3, rng=rng, day=day) for day in (10.0, 200.0)])
    loop = torch.stack([torch.stack([system(state) for state in row]) for row in x])
    torch.testing.assert_close(system(x), loop, rtol=0, atol=1e-10)


def test_halving_the_step_shows_fourth_order(rng):
    """Without rain, whose threshold has no fourth derivative; slope from 1/8, 1/16 against 1/128 day."""
    climate = replace(Climate(), evaporation=0.0)
    y = weather_like(MoistQG(climate, dtype=torch.float64), 1, rng=rng) * 0.3
    ends = []
    for substeps in (2, 4, 32):
        system = MoistQG(climate, substeps=substeps, dtype=torch.float64)
        ends.append(system(system._pack(y, torch.full((1,), 40.0)))[:, :5])
    slope = torch.log2((ends[0] - ends[2]).norm() / (ends[1] - ends[2]).norm())
    assert float(slope) == pytest.approx(4, abs=0.5)


def test_clock_and_rain(rng):
    """The date moves by dt and wraps; rain falls only from supersaturated columns."""
    system = MoistQG(dtype=torch.float64)
    x = system.initial(1, rng=rng, day=365.1)
    torch.testing.assert_close(system(x)[0, -1], torch.full((32, 64), 0.1, dtype=torch.float64))
    weather = system.weather(x)
    assert ((weather.rain > 0) == (weather.humidity > 1)).all()
    assert weather.temperature.shape == (1, len(weather.pressure), 32, 64)


def test_summer_hemisphere_is_drawn_to_warmth():
    """Equilibrium temperature north of 30 N is higher in July than in January, south of 30 S lower."""
    system = MoistQG(dtype=torch.float64)
    sphere = system.harmonics
    tau = sphere.synthesis(system.equilibrium(torch.tensor([202.0, 20.0], dtype=torch.float64)))[:, -1]
    warmer = (tau[0] - tau[1]) * sphere.mu  # tau has the sign of f T
    assert warmer[sphere.latitude > 30].mean() > 0 > warmer[sphere.latitude < -30].mean()


def test_a_third_of_the_planet_is_land():
    sphere = MoistQG().harmonics
    land = land_fraction(sphere.latitude, sphere.longitude)
    assert 0.3 < float(sphere.mean((land > 0.5).float())) < 0.4
    assert ((land >= 0) & (land <= 1)).all()


def test_wrong_shapes_and_steps_are_refused():
    with pytest.raises(ValueError, match="substeps at least 1"):
        MoistQG(substeps=0)
    with pytest.raises(ValueError, match="last 3 axes"):
        MoistQG().trajectory(torch.zeros(5, 32, 64), 1)
    with pytest.raises(ValueError, match="steps must be"):
        MoistQG().trajectory(torch.zeros(7, 32, 64), -1)
