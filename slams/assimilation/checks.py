"""Objects of the user, checked where they enter a method: what came, what was expected, and the remedy."""

import torch
from torch import Tensor

from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation, Observations
from slams.systems.base import Dynamics


def check_observations(observations: object) -> None:
    """Refuses what is no `Observations`.

    Raises:
        TypeError: With what came and how to make them.
    """
    if not isinstance(observations, Observations):
        raise InvalidTypeError(
            f"observations are an Observations, values with their operator and error, got {type(observations).__name__}; "
            "make them by Survey(operator, variance).observe(truth), or as Observations({name: Observation(values, "
            "operator, covariance)})."
        )


def check_dynamics(dynamics: object) -> None:
    """Refuses what is no model.

    Raises:
        TypeError: With what came and how to make a model of it.
    """
    if isinstance(dynamics, type):
        raise InvalidTypeError(
            f"the model is the class {dynamics.__name__}; pass an object, {dynamics.__name__}(…)."
        )
    if not isinstance(dynamics, Dynamics):
        raise InvalidTypeError(
            f"a model is a slams.systems.Dynamics, got {type(dynamics).__name__}; make one of a function of states by "
            "slams.systems.FunctionModel(step, state_shape, dt)."
        )


def advanced(dynamics: Dynamics, x: Tensor, k: int, rng: Rng) -> Tensor:
    """One step of a model, (*B, *S) -> (*B, *S), that is what a step must be.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another shape, or the step has changed its input.
    """
    version = None if x.is_inference() else x._version
    after = dynamics.advance(x, k, rng=rng)
    name = type(dynamics).__name__
    if not isinstance(after, Tensor):
        raise InvalidTypeError(
            f"a step of {name} returns a {type(after).__name__}, expected a tensor; make a model of a NumPy function by "
            "slams.systems.FunctionModel(step, state_shape, dt, numpy=True)."
        )
    if after.shape != x.shape:
        raise InvalidValueError(
            f"a step of {name} makes {tuple(after.shape)} of states {tuple(x.shape)}; it must keep all leading axes, "
            "which are replicates and members. For a function of a single state pass FunctionModel(…, batched=False)."
        )
    if version is not None and x._version != version:
        raise InvalidValueError(
            f"a step of {name} changes its input in place, which filters still need; compute a new tensor, as in "
            "x + dt * f(x) in place of x += dt * f(x)."
        )
    return after


def check_operator(observation: Observation, x: Tensor, event: int) -> None:
    """Asks an operator once for what it makes of the first ensemble.

    Args:
        observation: Values (*B, O).
        x: Ensemble, (*B, N, *S).
        event: Number of axes of *S.

    Raises:
        TypeError: If it returns no tensor.
        ValueError: If it drops leading axes or changes its input in place, or is on another device.
    """
    if observation.value.device != x.device:
        raise InvalidValueError(
            f"the observations are on {observation.value.device}, the ensemble on {x.device}; move the model and its "
            "start there."
        )
    before = x.detach().clone()
    with torch.no_grad():
        predicted = observation.predict(x.detach())
    if not torch.equal(torch.nan_to_num(before), torch.nan_to_num(x)):
        raise InvalidValueError(
            f"the operator {observation.operator} changes the state in place; let it return a new tensor."
        )
    if predicted.shape[:-1] != x.shape[: x.ndim - event]:
        raise InvalidValueError(
            f"the operator {observation.operator} makes {tuple(predicted.shape)} of states {tuple(x.shape)}; it must "
            "keep all leading axes, which are replicates and members: index the state from the right, as in x[..., ::2]."
        )
