"""Flow: a discretized ordinary differential equation with additive noise, and its initial distribution."""

import abc
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.integrate import stepper
from slams.core.random import Rng, generator, normal
from slams.systems.base import Dynamics

Coefficient = float | Tensor


class Gaussian(nn.Module):
    """Gaussian initial distribution, x_0 ~ N(mean, cov).

    Args:
        mean: One number for all variables, or one each, (d).
        std: Standard deviation, one or (d); 0 for a fixed start.
        cov: Full covariance in place of `std`, (d, d), positive semi-definite.
        dtype: Dtype of draws; None for that of `mean`, float64 for plain numbers. A system uses its own.

    Raises:
        ValueError: If not exactly one of `std` and `cov` is given, `std` is negative, or `cov` is not a
            covariance matrix.

    >>> Gaussian((1.0, 2.0), std=0.0).sample(2)
    tensor([[1., 2.],
            [1., 2.]], dtype=torch.float64)
    """

    mean: Tensor
    root: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] | Tensor,
        *,
        std: float | Sequence[float] | Tensor | None = None,
        cov: Sequence[Sequence[float]] | Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (std is None) == (cov is None):
            raise InvalidValueError(
                "a Gaussian needs either std or cov, got both or neither; give one of them."
            )
        # Numbers become float64, so that a system in float64 gets all their digits.
        dtype = dtype or (mean.dtype if isinstance(mean, Tensor) else torch.float64)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=dtype), persistent=False)
        root = torch.as_tensor(std, dtype=dtype) if cov is None else factor(torch.as_tensor(cov, dtype=dtype))
        if std is not None and not bool((root >= 0).all()):
            raise InvalidValueError(f"std must not be negative, got {float(root.min()):g}.")
        self.register_buffer("root", root, persistent=False)

    def sized(self, size: int, dtype: torch.dtype | None = None) -> "Gaussian":
        """The same Gaussian with one number for each of `size` variables.

        Raises:
            ValueError: If it has another number of variables.
        """
        for name, value in (("mean", self.mean), ("spread", self.root)):
            if value.ndim and value.shape[-1] != size:
                raise InvalidValueError(
                    f"the {name} of the start has {value.shape[-1]} variables, the system {size}; "
                    "give one number, or one for each variable."
                )
        dtype = dtype or torch.get_default_dtype()
        mean = self.mean.to(dtype).expand(size).clone()
        if self.root.ndim == 2:
            return Gaussian(mean, cov=self.cov.to(dtype), dtype=dtype)
        return Gaussian(mean, std=self.root.to(dtype).expand(size).clone(), dtype=dtype)

    @property
    def cov(self) -> Tensor:
        """Covariance, (d, d); a scalar variance while the Gaussian is not `sized`."""
        if self.root.ndim == 2:
            return self.root @ self.root.mT
        return torch.diag(self.root**2) if self.root.ndim else self.root**2

    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """Independent draws, (*shape, d)."""
        draw = normal((*shape, *self.mean.shape), like=self.mean, rng=generator(rng, "initial"))
        return self.mean + (draw @ self.root.mT if self.root.ndim == 2 else draw * self.root)


def factor(cov: Tensor) -> Tensor:
    """A matrix A with A A^T = cov, also where cov is singular.

    Args:
        cov: Symmetric covariance, (*B, d, d).

    Returns:
        (*B, d, d).

    Raises:
        ValueError: If `cov` is not square, not symmetric, or has a negative eigenvalue.
    """
    if cov.ndim < 2 or cov.shape[-1] != cov.shape[-2]:
        raise InvalidValueError(f"a covariance must be a square matrix, got shape {tuple(cov.shape)}.")
    if not torch.allclose(cov, cov.mT, rtol=1e-5, atol=1e-12):
        raise InvalidValueError("a covariance must be symmetric; use (C + C.T) / 2 if rounding broke it.")
    values, vectors = torch.linalg.eigh((cov + cov.mT) / 2)
    scale = values.abs().amax(-1, keepdim=True)
    if bool((values < -1e-6 * scale).any()):
        raise InvalidValueError(
            f"a covariance must not have negative eigenvalues, got {float(values.min()):g}; add to its diagonal."
        )
    return vectors * values.clamp(min=0).sqrt()[..., None, :]


class Flow(Dynamics, abc.ABC):
    """dx = f(x) dt + s dW, as x_{k+1} = Phi(x_k) + s sqrt(dt) N(0, I).

    Phi is `substeps` steps of an explicit method; the noise is added once, after them. A subclass writes
    `tendency` and names its coefficients. Each is an attribute and may be a tensor that broadcasts with the
    states, (*B, 1), so that replicates of an experiment differ; `forward` takes other values by keyword.

    Args:
        size: Number of variables d.
        coefficients: Values of the coefficients by name.
        dt: Model time between two states.
        substeps: Steps of the method in `dt`.
        method: "rk4", "heun" or "euler".
        noise: Standard deviation s per square root of model time.
        start: Distribution of initial states.
        dtype: Dtype of initial states; changed later by `.to()`.

    Raises:
        ValueError: If a setting is out of range or the method unknown.
    """

    coefficients: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        size: int,
        coefficients: Mapping[str, Coefficient],
        *,
        dt: float,
        substeps: int,
        method: str,
        noise: float,
        start: Gaussian | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if not dt > 0 or substeps < 1:
            raise InvalidValueError(
                f"dt must be positive and substeps at least 1, got dt={dt}, substeps={substeps}."
            )
        if not 0 <= noise < math.inf:
            raise InvalidValueError(f"noise is a standard deviation and must not be negative, got {noise}.")
        self.step = stepper(method)
        self.method, self.dt, self.substeps, self.noise = method, float(dt), int(substeps), float(noise)
        self.size, self.state_shape = size, (size,)
        self.start = None if start is None else start.sized(size, dtype)
        for name, value in coefficients.items():
            self._keep(name, value)

    def _keep(self, name: str, value: Coefficient) -> None:
        """Register a coefficient: tensors as buffers, parameters as trainable."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value if isinstance(value, Tensor) else float(value))
        if isinstance(value, Tensor) and value.ndim and value.shape[-1] not in (1, *self._widths):
            raise InvalidValueError(
                f"{name} has shape {tuple(value.shape)}, which does not broadcast with states of {self.size} "
                "variables; give it a last axis of 1."
            )

    @property
    def _widths(self) -> tuple[int, ...]:
        """Allowed lengths above 1 of a coefficient's last axis."""
        return ()

    def _prepared(self, x: Tensor, other: Mapping[str, Coefficient]) -> tuple[Tensor, dict[str, Coefficient]]:
        """States expanded to the batch axes of the coefficients, and these, those in `other` replaced."""
        if other.keys() - set(self.coefficients):
            name = min(other.keys() - set(self.coefficients))
            near = difflib.get_close_matches(name, self.coefficients, 1, 0.0)
            hint = f"did you mean {near[0]!r}?" if near else "it has none."
            raise InvalidValueError(f"{type(self).__name__} has no coefficient {name!r}; {hint}")
        values: dict[str, Coefficient] = {}
        for name in self.coefficients:
            value = other[name] if name in other else getattr(self, name)
            if isinstance(value, Tensor):
                # Without the cast float64 coefficients turn a float32 ensemble into float64, silently.
                value = value.to(x.dtype)
                x = x.expand(torch.broadcast_shapes(x.shape, value.shape))
            values[name] = value
        return x, values

    @abc.abstractmethod
    def tendency(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """dx/dt without noise, (*B, d) to the same.

        Args:
            x: States, (*B, d).
            **coefficients: Values that replace those of the system.

        Returns:
            [per model time], (*B, d).
        """

    def _advance(self, x: Tensor, values: dict[str, Coefficient]) -> Tensor:
        """One `dt` without noise."""
        for _ in range(self.substeps):
            x = self.step(lambda y, _: self.tendency(y, **values), x, 0.0, self.dt / self.substeps)
        return x

    def mean(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """Phi(x): states one `dt` later without noise, (*B, d) to the same.

        Args:
            x: States, (*B, d).
            **coefficients: Values that replace those of the system.

        Returns:
            (*B, d).

        Raises:
            ValueError: If the last axis is not `size`, or a coefficient does not exist.
        """
        if x.shape[-1:] != self.state_shape:
            raise InvalidValueError(
                f"states have shape {tuple(x.shape)}, but the last axis must be {self.size}; "
                "start from `initial()`."
            )
        return self._advance(*self._prepared(x, coefficients))

    def forward(self, x: Tensor, *, rng: Rng = None, **coefficients: Coefficient) -> Tensor:
        """Advance by one `dt`, with noise.

        Args:
            x: States, (*B, d).
            rng: Source of the noise.
            **coefficients: Values that replace those of the system.

        Returns:
            States one step later, (*B, d).
        """
        after = self.mean(x, **coefficients)
        if self.noise == 0:
            return after
        return after.add(normal(after.shape, like=after, rng=rng), alpha=self.noise * math.sqrt(self.dt))

    def log_transition(self, x: Tensor, after: Tensor) -> Tensor:
        """log p(x_{k+1} | x_k) = log N(x_{k+1}; Phi(x_k), s^2 dt I) [nats].

        Args:
            x: States x_k, (*B, d).
            after: States x_{k+1}, (*B, d).

        Returns:
            (*B).

        Raises:
            ValueError: If the system has no noise and hence no transition density.
        """
        if self.noise == 0:
            raise InvalidValueError("a system without noise has no transition density; give it noise > 0.")
        variance = self.noise**2 * self.dt
        square = (after - self.mean(x)).square().sum(-1)
        return -(square / variance + self.size * math.log(2 * math.pi * variance)) / 2

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draws of `start`, (*shape, d)."""
        if self.start is None:
            raise InvalidValueError(
                f"this {type(self).__name__} has no start; give it start=Gaussian(mean, std=...)."
            )
        return self.start.sample(*shape, rng=rng)

    def extra_repr(self) -> str:
        """Settings shown in `str(system)`."""
        values = [f"{name}={getattr(self, name)}" for name in self.coefficients]
        values += [f"dt={self.dt}", f"substeps={self.substeps}", f"method={self.method}"]
        return ", ".join([f"size={self.size}", *values, f"noise={self.noise}"])
