"""One twin experiment as data: truth, observations and the methods' model."""

from collections.abc import Callable

import torch
from torch import Tensor

from slams.core.covariance import Covariance, Diagonal, Isotropic
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import generator
from slams.observation import operators
from slams.observation.observation import Observations
from slams.observation.survey import Survey
from slams.systems.base import Dynamics
from slams.twin.experiment import TwinExperiment


class Twin:
    """A truth x_{k+1} = M(x_k), drawn once, and its observations y = h(x) + e with e ~ N(0, R).

    Args:
        model: Model of the methods.
        truth: Model of the truth; `model` if None. With another one the methods' model is in error.
        operator: h, (*B, *S) -> (*B, *O); every `stride`-th variable if None.
        stride: Distance of the observed variables, for systems whose state is a vector.
        every: Steps from one observation to the next; the first state is observed too.
        noise: Standard deviation of the observation errors, one number or one for each value of *O [unit of the
            observation], or their covariance.
        steps: Number of model steps; the truth has one state more.
        replicates: Number of independent truths; None for one without a replicate axis.
        seed: Seed of the truth and of the observation errors, which do not share a stream with each other or with a
            method of the same seed; None for a fresh one.

    Attributes:
        model: Model of the methods.
        truth: (steps + 1, *S), or (B, steps + 1, *S) with `replicates`.
        observations: One modality, values (steps + 1, *O) or (B, steps + 1, *O), NaN where nothing is observed.

    Raises:
        ValueError: If a number is out of range, the two models differ in the shape of their states, or the truth is not
            finite.
        TypeError: If `model` or `truth` is no `Dynamics`, or `seed` is no int.

    >>> from slams.systems import Lorenz96
    >>> Twin(Lorenz96(8), stride=2, noise=1.0, steps=20, seed=0).observations["observation"].value.shape
    torch.Size([21, 4])
    """

    def __init__(
        self,
        model: Dynamics,
        *,
        truth: Dynamics | None = None,
        operator: Callable[[Tensor], Tensor] | None = None,
        stride: int = 1,
        every: int = 1,
        noise: float | Tensor | Covariance = 1.0,
        steps: int,
        replicates: int | None = None,
        seed: int | None = 0,
    ) -> None:
        for name, each in (("model", model), ("truth", truth)):
            if each is not None and not isinstance(each, Dynamics):
                came = f"the class {each.__name__}" if isinstance(each, type) else f"a {type(each).__name__}"
                raise InvalidTypeError(
                    f"{name} is an instance of slams.Dynamics, such as slams.Lorenz96(), got {came}; wrap a function "
                    "in slams.systems.FunctionModel."
                )
        if steps < 1 or stride < 1:
            raise InvalidValueError(f"need steps >= 1 and stride >= 1, got {steps} and {stride}.")
        if operator is not None and stride != 1:
            raise InvalidValueError("operator and stride both say what is observed; give one of them.")
        system = model if truth is None else truth
        if operator is None and len(system.state_shape) != 1 and stride != 1:
            raise InvalidValueError(
                f"stride={stride} thins a vector, but states have shape {tuple(system.state_shape)}; pass an operator "
                "such as slams.operators.Stride."
            )
        operator = operator or (operators.Stride(stride) if stride > 1 else operators.Identity())
        survey = Survey(operator, _covariance(noise), every=every)
        experiment = TwinExperiment(system, survey, steps + 1, model=model, replicates=replicates)
        self.seed = generator(None).initial_seed() if seed is None else seed
        source = generator(self.seed, "truth")
        batch = () if replicates is None else (replicates,)
        with torch.no_grad():
            self.truth = system.trajectory(system.initial(*batch, rng=source), steps, rng=source)
            errors = generator(self.seed, "observation errors")
            self.observations: Observations = survey.observe(
                self.truth, event=len(system.state_shape), rng=errors
            )
        self.model, self.system, self.survey = model, system, survey
        self.replicates, self.experiment = replicates, experiment

    def __repr__(self) -> str:
        parts = [f"{type(self.model).__name__}, {self.observations.steps - 1} steps of {self.model.dt:g}"]
        if self.system is not self.model:
            parts.append(f"truth by {type(self.system).__name__}")
        values = ", ".join(str(tuple(each.value.shape)) for each in self.observations.values())
        parts.append(f"{len(self.observations.seen_steps)} observed times, values {values}")
        if self.replicates is not None:
            parts.append(f"{self.replicates} replicates")
        return f"Twin({'; '.join(parts)}; seed {self.seed})"


def _covariance(noise: float | Tensor | Covariance) -> Covariance:
    """R of the standard deviations that a user gives."""
    if isinstance(noise, Covariance):
        return noise
    std = torch.as_tensor(noise, dtype=torch.get_default_dtype())
    if not bool((std > 0).all()):
        raise InvalidValueError(f"noise is a positive standard deviation, got {noise}.")
    return Isotropic(float(std) ** 2) if std.ndim == 0 else Diagonal(std.flatten().square())
