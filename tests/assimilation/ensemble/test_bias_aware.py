"""A LETKF that corrects its model: the error is found, and it is the generative filter without draws."""

import pytest
import torch

from slams.assimilation import LETKF, BiasAwareLETKF, GenerativeEnKF
from slams.core.random import normal
from slams.observation import Survey, operators
from slams.systems import KolmogorovFlow, LinearGaussian, Lorenz96
from tests.assimilation.ensemble.test_generative import NEAR, SYSTEM, Stub, assimilate, climate, twin

DOUBLE = torch.float64
SETTINGS = {"localization": NEAR, "inflation": 1.05, "rotate": True}


@pytest.mark.parametrize("uniform", [True, False])
def test_it_is_the_generative_filter_without_draws_bit_for_bit(uniform):
    observations, x0 = twin(steps=30)
    ours = BiasAwareLETKF(SYSTEM, closure=8, uniform=uniform, **SETTINGS)
    stub = Stub(*climate())
    other = GenerativeEnKF(
        SYSTEM, generator=stub, trust=0.0, horizon=0, closure=8, uniform=uniform, **SETTINGS
    )
    one, two = assimilate(ours, observations, x0), assimilate(other, observations, x0)
    assert torch.equal(one.samples, two.samples) and not stub.conditioned
    assert float(one.diagnostics["model_error"][:, 20:].abs().min()) > 0
    nothing = assimilate(BiasAwareLETKF(SYSTEM, closure=0, **SETTINGS), observations, x0)
    assert torch.equal(nothing.samples, assimilate(LETKF(SYSTEM, **SETTINGS), observations, x0).samples)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_error_of_a_linear_model_is_found(every, uniform, rng):
    """x' = 0.9 x + e in truth, without e in the model: v is e within 6 standard errors of its running mean.

    The mean of 400 increments of deviation below 0.3 has a standard error of 0.015 a site, and 6 of these are 0.09; the
    mean over the 8 sites 0.005.
    """
    d, steps = 8, 3000
    eye, zero = torch.eye(d, dtype=DOUBLE), torch.zeros(d, dtype=DOUBLE)
    error = torch.full((d,), 0.3, dtype=DOUBLE) if uniform else torch.linspace(-0.5, 0.5, d, dtype=DOUBLE)
    model = LinearGaussian(0.9 * eye, 0.01 * eye, zero, eye)
    truth, x = [], model.initial(2, rng=rng)
    for _ in range(steps):
        truth.append(x)
        x = model(x, rng=rng) + error
    observations = Survey(operators.Identity(), 0.05, every=every).observe(torch.stack(truth, 1), rng=rng)
    method = BiasAwareLETKF(model, closure=400, uniform=uniform)
    seen = []

    def monitor(k, state):
        seen.append(method._error(state.memory))
        return {}

    method.assimilate(observations, 20, keep="scores", monitor=monitor, rng=rng)
    assert float((seen[-1] - error).abs().max()) < (0.03 if uniform else 0.09)


def test_the_first_estimate_is_the_error_and_not_a_sum_of_increments():
    """x' = x + 1 in truth, x in the model, accurate observations: an increment is the whole error until v is applied."""
    d = 10
    eye, zero = torch.eye(d, dtype=DOUBLE), torch.zeros(d, dtype=DOUBLE)
    model = LinearGaussian(eye, 0.05 * eye, zero, eye)
    truth = torch.arange(41, dtype=DOUBLE)[None, :, None].expand(2, 41, d)
    observations = Survey(operators.Identity(), 1e-4).observe(truth, rng=0)
    post = BiasAwareLETKF(model, uniform=True, closure=10, inflation=1.1).assimilate(observations, 40, rng=1)
    found = post.diagnostics["model_error"]
    assert float(found[:, :9].abs().max()) == 0 and float((found[:, 11:] - 1).abs().max()) < 0.1


def test_the_error_of_lorenz96_shrinks_the_filter_s_own(rng):
    """F is 10 in truth and 8 in the model, an error of 0.1 a step: found to a fifth, and the RMSE falls by a quarter."""
    truth_system, model = Lorenz96(20, 10.0, dtype=DOUBLE), Lorenz96(20, 8.0, dtype=DOUBLE)
    start = truth_system.trajectory(truth_system.initial(4, rng=rng), 100)[:, -1]
    truth = truth_system.trajectory(start, 300)
    observations = Survey(operators.Identity(), 1.0).observe(truth, rng=rng)
    x0 = start.unsqueeze(1) + normal((4, 20, 20), like=start, rng=rng)
    settings = {"radius": 4.0, "inflation": 1.08}
    methods = LETKF(model, **settings), BiasAwareLETKF(model, uniform=True, **settings)
    plain, found = (m.assimilate(observations, 20, x0=x0, keep="moments", rng=0) for m in methods)
    e, v = (float((post.mean - truth)[:, 150:].square().mean().sqrt()) for post in (plain, found))
    assert v < 0.75 * e
    assert found.diagnostics["model_error"][:, 150:].mean() == pytest.approx(2 * 0.05, rel=0.2)


def test_fields_of_several_axes_are_corrected(rng):
    """The error of a state (2, 16, 16) has its shape, and a killed run would find it among its variables."""
    flow = KolmogorovFlow(16, reynolds=100.0, dt=0.1, wavenumber=2)
    truth = flow.trajectory(flow.initial(rng=rng), 14)
    observations = Survey(operators.Identity(event=3), 0.01).observe(truth, event=3, rng=rng)
    post = BiasAwareLETKF(flow, closure=5, radius=3.0, inflation=1.2).assimilate(observations, 6, rng=0)
    assert torch.isfinite(post.samples).all() and post.samples.shape[2:] == (2, 16, 16)
    assert float(post.diagnostics["model_error"][12:].abs().max()) > 0


def test_a_negative_average_is_refused():
    with pytest.raises(ValueError, match="closure must not be negative, got -1"):
        BiasAwareLETKF(SYSTEM, closure=-1)
