"""Laws of models made of functions, and of what is refused where they enter a method."""

import numpy as np
import pytest
import torch

from slams.assimilation import EAKF, ETKF
from slams.core.covariance import Isotropic
from slams.core.random import normal
from slams.observation import Observation, Observations, Survey, operators
from slams.systems import FunctionModel, Lorenz96

SYSTEM = Lorenz96(8, dtype=torch.float64)
STATES = SYSTEM.trajectory(SYSTEM.initial(rng=0), 300)[100:]
SEEN = Survey(operators.Stride(2), 1.0).observe(STATES[:6], rng=1)


def lorenz96(x):
    """A step of Heun's method in NumPy, for any leading axes."""

    def slope(x):
        return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + 8.0

    ahead = x + 0.05 * slope(x)
    return x + 0.025 * (slope(x) + slope(ahead))


def test_a_function_of_torch_is_the_system_that_it_steps():
    model = FunctionModel(
        lambda x: SYSTEM(x), (8,), 0.05, initial=lambda *shape, rng: SYSTEM.initial(*shape, rng=rng)
    )
    found, expected = (ETKF(m).assimilate(SEEN, 6, rng=1).samples for m in (model, SYSTEM))
    assert torch.equal(found, expected)


def test_a_numpy_function_of_batches_and_of_single_states_are_the_same_model():
    many = FunctionModel(lorenz96, (8,), 0.05, initial=STATES, numpy=True)
    one = FunctionModel(lorenz96, (8,), 0.05, initial=STATES, numpy=True, batched=False)
    runs = [ETKF(model).assimilate(SEEN, 6, rng=1).samples for model in (many, one)]
    assert torch.equal(*runs)
    heun = Lorenz96(8, method="heun", dtype=torch.float64)
    torch.testing.assert_close(many(STATES[0]), heun(STATES[0]), rtol=0, atol=1e-12)


def test_a_noisy_function_gets_the_generator_and_a_start_is_drawn_from_the_states():
    model = FunctionModel(lambda x, rng: x + normal(x.shape, like=x, rng=rng), (8,), initial=STATES)
    assert torch.equal(model.trajectory(STATES[0], 3, rng=4), model.trajectory(STATES[0], 3, rng=4))
    first = model.initial(3, 2, rng=0)
    assert first.shape == (3, 2, 8)
    assert all(bool((x == STATES).all(-1).any()) for x in first.flatten(0, 1))
    with pytest.raises(ValueError, match="x0="):
        FunctionModel(lorenz96, (8,)).initial()


def in_place(x):
    return x.mul_(0.9)


WRONG_STEPS = {
    "in place": (in_place, ValueError, "changes its input in place"),
    "numpy": (lambda x: x.numpy() * 0.9, TypeError, "numpy=True"),
    "leading axes": (lambda x: x.reshape(-1, 8)[0], ValueError, "batched=False"),
    "shape": (lambda x: x[..., :5], ValueError, r"makes \(6, 5\) of states \(6, 8\)"),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_step_that_is_none_is_named_with_the_remedy(name):
    step, error, message = WRONG_STEPS[name]
    with pytest.raises(error, match=message):
        ETKF(FunctionModel(step, (8,), initial=STATES)).assimilate(SEEN, 6, rng=1)


WRONG_OPERATORS = {
    "in place": (lambda x: x.mul_(1.1)[..., ::2], ValueError, "in place"),
    "numpy": (lambda x: x.numpy()[..., ::2], TypeError, "torch functions"),
    "leading axes": (lambda x: x.reshape(-1, 8)[0, ::2], ValueError, "index the state from the right"),
}


@pytest.mark.parametrize("name", WRONG_OPERATORS)
def test_an_operator_that_is_none_is_named_with_the_remedy(name):
    operator, error, message = WRONG_OPERATORS[name]
    seen = Observations({"a": Observation(SEEN["observation"].value, operator, Isotropic(1.0))})
    with pytest.raises(error, match=message):
        EAKF(SYSTEM).assimilate(seen, 6, rng=1)


def test_what_is_no_model_or_no_observations_is_named_with_the_remedy():
    with pytest.raises(TypeError, match=r"the class Lorenz96; pass an object, Lorenz96\(…\)"):
        ETKF(Lorenz96)
    with pytest.raises(TypeError, match=r"FunctionModel\(step, state_shape, dt\)"):
        ETKF(lorenz96)
    with pytest.raises(TypeError, match="got Tensor; make them by Survey"):
        ETKF(SYSTEM).assimilate(torch.zeros(5, 4), 6)
    with pytest.raises(TypeError, match="seed"):
        ETKF(SYSTEM).assimilate(SEEN, 6, rng="0")
