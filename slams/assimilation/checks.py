"""Objects of the user, checked where they enter a method: what came, what was expected, and the remedy."""

import math
import warnings

import torch
from torch import Tensor

from slams.assimilation.memory import Memory
from slams.core.covariance import Dense
from slams.core.errors import DivergenceWarning, InvalidTypeError, InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation, Observations
from slams.systems.base import Dynamics

FAR = 100.0  # standard deviations: no forecast that follows the truth is as far from an observation


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


def check_spread(x: Tensor, axis: int, name: str, step: int) -> None:
    """Warns of members that are all equal at the first analysis, which observations then can't change.

    Args:
        x: Forecast ensemble, (*B, N, *S).
        axis: Axis of the members, counted from the right.
        name: Name of the method.
        step: Number of the step.
    """
    members = x.flatten(axis + 1) if axis < -1 else x.unsqueeze(-1)
    if members.shape[-2] < 2:
        return
    equal = (members == members[..., :1, :]).all(-1).all(-1)
    if not bool(equal.any()):
        return
    among = f" in {int(equal.sum())} of {equal.numel()} replicates" if equal.numel() > 1 else ""
    warnings.warn(
        f"{name}: all members are equal at the first analysis, step {step}{among}, so that observations "
        "change nothing there; start from members that differ as much as the first state is uncertain (x0, or "
        "`initial` of the model).",
        DivergenceWarning,
        stacklevel=5,
    )


def far_value(members: Tensor, observation: Observation, memory: Memory) -> str:
    """What to say of the observed value that is furthest from the forecast, by its error and the forecast's spread.

    Args:
        members: Forecast, (*B, N, *S), or its mean, (*B, *S).
        observation: All values of the step, (*B, O).
        memory: Variables of the method, with all observations of the run.

    Returns:
        A clause with the remedy; empty if the distance is below FAR standard deviations or not finite.
    """
    d = observation.innovation(members)
    spread = torch.zeros_like(observation.filled)
    if d.ndim > observation.value.ndim:
        d, spread = d.mean(-2), d.var(-2)
    if isinstance(observation.noise, Dense):  # whitening mixes values
        error = observation.noise.matrix.diagonal().to(d)
    else:
        error = (
            observation.whiten(torch.ones_like(d), members=False).square().reciprocal()
        )  # inf where missing
    d = d.abs() / (error + spread).sqrt()
    if not FAR < float(d.max()) < math.inf:
        return ""
    at = int(d.argmax())
    replicate, column = divmod(at, d.shape[-1])
    place = column if observation.columns is None else int(observation.columns[column])
    of = f"value {place}"
    for name, one in (memory.observations or {}).items():
        size = math.prod(one.value.shape[-one.event :])
        if place < size:
            of = f"value {place} of {name!r}"
            break
        place -= size
    among = f" of replicate {replicate}" if d.numel() > d.shape[-1] else ""
    return (
        f"{of} at step {memory.step}{among}, {observation.value.flatten()[at]:.3g}, lies {d.max():.2g} standard "
        "deviations of error and spread from the forecast: make it NaN if it is a gross error, else enlarge the spread "
        "of the members or the error variance"
    )
