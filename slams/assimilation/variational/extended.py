"""The extended Kalman filter: covariance moved by the derivative of the model."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.assimilation.variational.linearized import (
    GaussianFilter,
    as_matrix,
    deterministic,
    jacobian,
    kalman_update,
    model_noise,
    moved,
)
from slams.core.covariance import Covariance
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics


class EKF(GaussianFilter):
    """Extended Kalman filter: m <- M(m), P <- inflation^dt M' P M'^T + Q, then the Kalman analysis.

    M' is exact, by differentiating the whole step; H is the derivative of h at the forecast. On a linear
    model this is the Kalman filter. Without inflation it loses chaotic systems, whose third-order terms it ignores.

    Args:
        dynamics: The model; its noise is read from `noise_covariance()`, or from `noise` per square root of time.
        inflation: Factor on the forecast covariance per unit of model time.
        frozen: Take exp(dt f'(x)), x at the end of the step, for the derivative of the step, as the published
            tables' code does; needs a model with a `tendency` f and short steps. Less accurate than
            the exact derivative.
        covariance: Covariance of the first state, (d, d), (d) variances or a `Covariance`. If None that of
            `dynamics.start`, and where there is none that of the first ensemble, which then needs more members
            than variables. The first mean is that of the first ensemble.
        model_error: Covariance Q of one step; that of the model's noise if None.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If `inflation` is not positive, a covariance does not fit, or there is no tendency to freeze.

    Source:
        Jazwinski (1970), Stochastic Processes and Filtering Theory, theorem 8.1.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        inflation: float = 1.0,
        frozen: bool = False,
        covariance: Tensor | Covariance | None = None,
        model_error: Tensor | Covariance | None = None,
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if not inflation > 0:
            raise InvalidValueError(f"inflation must be positive, got {inflation}; 1 inflates nothing.")
        if frozen and not callable(getattr(dynamics, "tendency", None)):
            raise InvalidValueError(
                f"frozen needs a model with a tendency, {type(dynamics).__name__} has none."
            )
        self.inflation, self.frozen = inflation, frozen
        self.covariance = None if covariance is None else as_matrix(covariance, dynamics)
        noise = model_noise(dynamics) if model_error is None else model_error
        self.model_error = None if noise is None else as_matrix(noise, dynamics, "model_error")

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`."""
        mean = self._mean_only(x)
        first = self.covariance if self.covariance is not None else self._own_covariance()
        P = _sample_covariance(x.flatten(self._axis + 1)) if first is None else self._spread_out(first, mean)
        memory.carry["first"] = memory.carry["covariance"] = P
        return mean

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; mean and covariance move."""
        P = memory.carry["covariance"]
        if self.frozen:
            x = deterministic(self.dynamics, memory.step - 1)(x)
            MT = self._resolvent(x)
            P = MT.mT @ P @ MT
        else:
            x, P = moved(self.dynamics, x, P, memory.step - 1)
        P = self.inflation**self.dynamics.dt * P
        if self.model_error is not None:
            P = P + self.model_error.to(P)
        if not bool(torch.isfinite(P).all()):  # a replicate that is replaced must be able to start anew
            finite = torch.isfinite(P).all(-1).all(-1)[..., None, None]
            P = torch.where(finite, P, memory.carry["first"])
        memory.carry["covariance"] = P
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        forecast, d, HT = self._compare(forecast, observation, memory)
        increment, memory.carry["covariance"] = kalman_update(memory.carry["covariance"], HT, d)
        return forecast + increment.reshape(forecast.shape)

    def _resolvent(self, x: Tensor) -> Tensor:
        """exp(dt f'(x))^T, (*B, d, d)."""
        tendency: Callable[[Tensor], Tensor] = self.dynamics.tendency  # type: ignore[assignment]
        size = torch.Size(self.dynamics.state_shape).numel()
        return torch.linalg.matrix_exp(self.dynamics.dt * jacobian(tendency, x, size, self._event)[1])

    def _own_covariance(self) -> Tensor | None:
        """Covariance of the model's initial distribution, None if it has none."""
        cov = getattr(getattr(self.dynamics, "start", None), "cov", None)
        return cov if isinstance(cov, Tensor) and cov.ndim >= 2 else None


def _sample_covariance(x: Tensor) -> Tensor:
    """Unbiased covariance of members (*B, N, d).

    Raises:
        ValueError: If there are not more members than variables: the covariance is singular.
    """
    count, size = x.shape[-2:]
    if count <= size:
        raise InvalidValueError(
            f"the first covariance of {size} variables needs more than {count} members; pass covariance= "
            f"or ask for more than {size} members."
        )
    A = x - x.mean(-2, keepdim=True)
    return A.mT @ A / (count - 1)
