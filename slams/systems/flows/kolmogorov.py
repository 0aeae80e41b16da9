"""KolmogorovFlow: two-dimensional turbulence under a sinusoidal force, on the torus."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slams.core.errors import InvalidValueError
from slams.core.geometry import torus
from slams.core.geometry.places import Geometry
from slams.core.geometry.torus import Torus
from slams.core.integrate import integrating_factor_rk4
from slams.core.random import Rng, generator, normal
from slams.systems.base import Dynamics

Coefficient = float | Tensor

_START_SPEED = 3.0  # largest speed of an initial field
_PEAK = 4.0  # wavenumber at which the log-normal shape of initial fields has its mode
_LOG_VARIANCE = 0.25  # variance of log k in that shape


class _Terms(NamedTuple):
    """Factors shared by the inner steps of one `dt`.

    Real factors of complex coefficients are written out for both of their parts: that product has vector
    instructions, the one of real with complex numbers casts first.
    """

    velocity: Tensor  # vorticity -> (u, v), complex (2, N, K + 1)
    products: Tensor  # (uv, u^2 - v^2) -> dw/dt, (2, N, K + 1, 2)
    force: Tensor  # the one driven coefficient, complex (*B)
    half_decay: Tensor  # exp(-(|k|^2 / Re + drag) step / 2), (*B, N, K + 1, 2)
    drag: Coefficient  # (*B, 1) or number


def _paired(x: Tensor) -> Tensor:
    """A real factor, once for the real and once for the imaginary part, (*S) to (*S, 2)."""
    return torch.stack([x, x], -1)


class KolmogorovFlow(Dynamics):
    """Incompressible Navier-Stokes equations on [0, 2 pi]^2, driven by a shear, slowed by drag.

    dv/dt + (v . grad) v = -grad p + lap v / Re + A sin(n y) e_x - c v, div v = 0, doubly periodic.

    A state is the velocity, (2, N, N): channel 0 is u along x, axis -2; channel 1 is v along y, axis -1;
    values sit at centres of cells, x = (i + 1/2) h, h = 2 pi / N. Vorticity w = dv/dx - du/dy is stepped
    in Fourier space, free of aliasing, damping exactly and the rest by fourth-order Runge-Kutta; the mean
    velocity is carried along and decays by drag alone. Divergence in a given state, and waves beyond
    K = (N - 1) // 3, are removed by the first step (`project`).

    A step is stable while |u| + |v| stays below 1.35 / max_courant times `max_speed`; beyond, fields
    grow to inf. `max_speed` is a setting and not measured, so that no state's steps depend on other states
    of its batch.

    Reynolds number, amplitude and drag may be tensors that broadcast with the states, (*B, 1, 1, 1).

    Args:
        size: Points N along a side.
        reynolds: Reynolds number Re = 1 / viscosity, positive; inf for no viscosity.
        dt: Model time between two states.
        amplitude: Amplitude A of the force.
        wavenumber: Wavenumber n of the force, 1 to K.
        drag: Drag coefficient c, non-negative.
        max_speed: Largest speed for which the inner step is stable.
        max_courant: Inner steps are the fewest with step * max_speed <= max_courant * h.
        checkpoint: Recompute inner steps in the backward pass instead of keeping their fields: a
            gradient then needs memory for one inner step and one field for each, at one more forward pass.
        dtype: Dtype of initial states; changed later by `.to()`.

    Raises:
        ValueError: If a setting is out of range or the grid cannot hold the force.

    Source:
        Set-up: Rozet & Louppe (2023), arXiv:2306.10574, section 4.2; Kochkov et al. (2021),
        doi:10.1073/pnas.2101784118. Products: Basdevant (1983), doi:10.1016/0021-9991(83)90064-5.
        Deviation: spectral instead of finite volumes, and a collocated instead of a staggered velocity.

    >>> flow = KolmogorovFlow(32)
    >>> flow(flow.initial(5)).shape
    torch.Size([5, 2, 32, 32])
    """

    _coefficients = ("reynolds", "amplitude", "drag")
    reynolds: Coefficient
    amplitude: Coefficient
    drag: Coefficient

    def __init__(
        self,
        size: int,
        reynolds: Coefficient = 1000.0,
        dt: float = 0.2,
        *,
        amplitude: Coefficient = 1.0,
        wavenumber: int = 4,
        drag: Coefficient = 0.1,
        max_speed: float = 5.0,
        max_courant: float = 0.75,
        checkpoint: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.torus = Torus(size, dtype)
        if not 1 <= wavenumber <= self.torus.truncation:
            raise InvalidValueError(
                f"a grid of {size} points carries forces of wavenumber 1 to {self.torus.truncation}, "
                f"got {wavenumber}; refine the grid."
            )
        for name, number in {"dt": dt, "max_speed": max_speed, "max_courant": max_courant}.items():
            if not 0 < number < math.inf:
                raise InvalidValueError(f"{name} must be positive and finite, got {number}.")
        self.size, self.state_shape, self.dt = size, (2, size, size), float(dt)
        self.geometry = Geometry.torus(self.state_shape)
        self.wavenumber, self.checkpoint = wavenumber, checkpoint
        for name, value in zip(self._coefficients, (reynolds, amplitude, drag), strict=True):
            self._keep(name, value)
        if not (bool((torch.as_tensor(reynolds) > 0).all()) and bool((torch.as_tensor(drag) >= 0).all())):
            raise InvalidValueError(
                f"reynolds must be positive and drag not negative, got reynolds={reynolds} and drag={drag}."
            )
        # The subtraction keeps rounding from adding a step where the division comes out whole.
        courant = self.dt * max_speed * size / (2 * math.pi * max_courant)
        self.substeps = max(1, math.ceil(courant - 1e-9))

    def _keep(self, name: str, value: Coefficient) -> None:
        """Register a coefficient: tensors as buffers, parameters as trainable."""
        if isinstance(value, Tensor) and value.ndim and tuple(value.shape[-3:]) != (1, 1, 1):
            raise InvalidValueError(
                f"{name} has shape {tuple(value.shape)}, but must broadcast with states (*B, 2, N, N) and be "
                "one number for each; give it three last axes of 1."
            )
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value if isinstance(value, Tensor) else float(value))

    def _value(self, name: str, x: Tensor) -> Coefficient:
        """A coefficient in the dtype of the states, tensors as (*B, 1, 1)."""
        value = getattr(self, name)
        if not isinstance(value, Tensor):
            return value
        return (value.squeeze(-3) if value.ndim else value).to(x)

    def _damping(self, x: Tensor) -> Tensor:
        """|k|^2 / Re + drag, (*B, N, K + 1)."""
        return self.torus.square.to(x) / self._value("reynolds", x) + self._value("drag", x)

    def _terms(self, x: Tensor, step: float) -> _Terms:
        """Factors of the equation in the precision of `x`."""
        grid = self.torus
        number = torch.complex64 if x.dtype == torch.float32 else torch.complex128
        products = torch.stack([grid.kx**2 - grid.ky**2, -grid.kx * grid.ky]) * grid.kept
        # -dF/dy of F = A sin(n y), whose point j = 0 is at y = h / 2
        angle = self.wavenumber * math.pi / self.size
        unit = -self.wavenumber / 2 * complex(math.cos(angle), math.sin(angle))
        amplitude = torch.as_tensor(self._value("amplitude", x), dtype=x.dtype, device=x.device)
        drag = self._value("drag", x)
        return _Terms(
            velocity=grid.biot_savart().to(number),
            products=_paired(products.to(x)),
            force=(unit * amplitude)[..., 0, 0] if amplitude.ndim else unit * amplitude,
            half_decay=_paired(torch.exp(-step / 2 * self._damping(x))),
            drag=drag[..., 0] if isinstance(drag, Tensor) and drag.ndim else drag,
        )

    def _rate(self, w: Tensor, mean: Tensor, terms: _Terms) -> Tensor:
        """dw/dt without damping: (d_yy - d_xx)(u v) + d_xy (u^2 - v^2) + force.

        Args:
            w: Vorticity, coefficients (*B, N, K + 1).
            mean: Mean of (u, v) at this time, (*B, 2).
            terms: Factors.

        Returns:
            (*B, N, K + 1).
        """
        waves = w.unsqueeze(-3) * terms.velocity
        waves[..., 0, 0] = mean
        u, v = self.torus.synthesis(waves).unbind(-3)
        products = self.torus.raw(torch.stack([u * v, (u + v) * (u - v)], -3))
        first, second = torch.view_as_real(products).unbind(-4)
        rate = torch.addcmul(first * terms.products[0], second, terms.products[1])
        rate = torch.view_as_complex(rate)
        rate[..., 0, self.wavenumber] += terms.force
        return rate

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity to vorticity, (*B, N, K + 1), and mean velocity, (*B, 2); expanded to the coefficients."""
        if x.ndim < 3 or tuple(x.shape[-3:]) != self.state_shape:
            raise InvalidValueError(
                f"states have shape {tuple(x.shape)}, but the last 3 axes must be {self.state_shape}; "
                "start from `initial()`, or change the grid with `slams.core.geometry.torus.resample`."
            )
        values = [getattr(self, name) for name in self._coefficients]
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        waves = self.torus.analysis(x.expand(torch.broadcast_shapes(x.shape, *shapes)))
        return self.torus.rotation(waves), waves[..., 0, 0]

    def _join(self, w: Tensor, mean: Tensor) -> Tensor:
        """Vorticity and mean velocity to velocity on the grid, (*B, 2, N, N)."""
        waves = w.unsqueeze(-3) * self.torus.biot_savart().to(w.dtype)
        waves[..., 0, 0] = mean
        return self.torus.synthesis(waves)

    def _inner(self, w: Tensor, mean: Tensor, step: float, terms: _Terms) -> Tensor:
        """One inner step of the vorticity; `mean` is that at its start."""

        def rate(w: Tensor, time: float) -> Tensor:
            away = -time * terms.drag
            decay = torch.exp(away) if isinstance(away, Tensor) else math.exp(away)
            return torch.view_as_real(self._rate(torch.view_as_complex(w), mean * decay, terms))

        w = integrating_factor_rk4(rate, torch.view_as_real(w), 0.0, step, terms.half_decay)
        return torch.view_as_complex(w)

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by one `dt`; no randomness.

        Args:
            x: Velocity, (*B, 2, N, N).
            rng: Not used.

        Returns:
            Velocity one `dt` later, (*B, 2, N, N), without divergence.

        Raises:
            ValueError: If the last axes are not `state_shape`.
        """
        step = self.dt / self.substeps
        terms = self._terms(x, step)
        w, mean = self._split(x)
        drag = terms.drag if isinstance(terms.drag, Tensor) else x.new_tensor(terms.drag)
        decay = torch.exp(-step * drag)
        spare = self.checkpoint and torch.is_grad_enabled()
        for _ in range(self.substeps):
            arguments = (w, mean, step, terms)
            if spare:
                w = checkpoint(self._inner, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                w = self._inner(*arguments)
            mean = mean * decay
        return self._join(w, mean)

    def tendency(self, x: Tensor) -> Tensor:
        """dv/dt, pressure included, (*B, 2, N, N) to the same; see the class for the equation."""
        terms = self._terms(x, 0.0)
        w, mean = self._split(x)
        rate = self._rate(w, mean, terms) - self._damping(x) * w
        return self._join(rate, -mean * terms.drag)

    def project(self, x: Tensor) -> Tensor:
        """Projection of a velocity onto fields without divergence and waves beyond K, (*B, 2, N, N)."""
        return self._join(*self._split(x))

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draw smooth random velocities without divergence and mean, of largest speed 3.

        White noise times LN(k) / k, LN(k) = exp(-(log 4 + 1/4 - log k)^2 / (2/4) - log k), projected.

        Args:
            *shape: Leading axes of the draw.
            rng: Source of randomness; a fresh seed if None.

        Returns:
            Velocity, (*shape, 2, N, N).

        Source:
            Initial fields of jax-cfd (`filtered_velocity_field`) as used by Rozet & Louppe (2023), arXiv:2306.10574.
        """
        grid = self.torus
        log = grid.square.clamp(min=1).log() / 2
        shape_of = torch.exp(-((math.log(_PEAK) + _LOG_VARIANCE - log) ** 2) / (2 * _LOG_VARIANCE) - 2 * log)
        noise = grid.analysis(
            normal((*shape, *self.state_shape), like=grid.kx, rng=generator(rng, "initial"))
        )
        w = grid.rotation(noise * shape_of.to(grid.kx))
        x = self._join(w, w.new_zeros(*shape, 2))
        speed = x.square().sum(-3, keepdim=True).sqrt().amax((-2, -1), keepdim=True)
        return x * (_START_SPEED / speed)

    def vorticity(self, x: Tensor) -> Tensor:
        """w = dv/dx - du/dy [1 / model time], positive anticlockwise, (*B, 2, N, N) to (*B, N, N).

        For the published convention, clockwise and in grid units, see
        `slams.core.geometry.torus.clockwise_vorticity`.
        """
        return torus.vorticity(x)

    def extra_repr(self) -> str:
        """Settings shown in `str(system)`."""
        values = [f"{name}={getattr(self, name)}" for name in self._coefficients]
        return ", ".join([f"size={self.size}", *values, f"dt={self.dt}", f"substeps={self.substeps}"])
