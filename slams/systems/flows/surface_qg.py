"""SurfaceQG: surface quasi-geostrophic turbulence between two lids, relaxed to a baroclinic jet."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slams.core.errors import InvalidValueError
from slams.core.geometry import torus
from slams.core.geometry.places import Geometry
from slams.core.geometry.torus import Torus, resample
from slams.core.integrate import integrating_factor_rk4
from slams.core.random import Rng, generator, normal
from slams.systems.base import Dynamics

_BUOYANCY = 1e-2  # N, buoyancy frequency [1/s]
_CORIOLIS = 1e-4  # f [1/s]
_DEPTH = 1e4  # H, distance of the lids [m]
_THETA, _GRAVITY = 300.0, 9.8  # reference temperature [K], g [m/s^2]
_RADIUS = _BUOYANCY * _DEPTH / _CORIOLIS  # N H / f, deformation radius [m]
_HOUR = 3600.0  # s

_ORDER = 8  # order of the hyperdiffusion
_NOISE = 5.0  # K, standard deviation of the noise of initial states
_LARGEST = 3.0  # wavenumber below which that noise has no slope


class _Terms(NamedTuple):
    """Factors shared by the inner steps; real ones are stored complex, which spares a cast in each product."""

    same: Tensor  # stream function of a lid's own temperature, upper sign of the lower lid, (M, K + 1)
    other: Tensor  # and of the other lid's, (M, K + 1)
    gradient: Tensor  # (d/dx, d/dy), (2, 1, M, K + 1)
    kept: Tensor  # minus the seconds of an hour within the truncation, else 0, (M, K + 1)
    base: Tensor  # flow of the constant shear at the lids [m/h], (2, 1, 1)
    slope: float  # -d(temperature)/dy of the constant shear [K/m], by the hour
    jet: Tensor  # coefficients of the equilibrium, (2, M, K + 1)
    half_decay: Tensor  # (M, K + 1)


class SurfaceQG(Dynamics):
    """Surface quasi-geostrophic turbulence between two lids, relaxed to a baroclinic jet.

    dT/dt + u . grad T = (T_jet - T) / relaxation - (|k| / (N / 2))^8 (T - T_jet) / diffusion at z = 0 and z = H,
    u = (-d psi/dy, d psi/dx), d psi/dz = g / (f theta_0) T at the lids, and no potential vorticity between them:
    d2 psi/dx2 + d2 psi/dy2 + (f / N)^2 d2 psi/dz2 = 0.

    A state is the departure of potential temperature [K], (2, N, N): channel 0 is the lower lid, 1 the upper;
    axis -2 is x, eastwards, axis -1 is y; values at centres of cells of the doubly periodic square of side
    L = 20 N H / f = 20 000 km. Times are hours. The published unit of "PV", d psi/dz [m/s], is `T / KELVIN`.

    T_jet = -(U / 2) (N / f) KELVIN coth(m / 2) cos(2 pi y / L) on both lids, m = 2 pi N H / (f L): winds of
    +-U / 2 sin(2 pi y / L), against each other. A constant shear may be added, whose temperature, linear in y,
    is not part of the state: alone, it is the model of Eady.

    Fields hold all waves up to (N - 1) // 2 in x and in y, and are multiplied on a grid of 3 N / 2 points, so
    that nothing is aliased: without relaxation and diffusion the mean squares of both lids and the energy are
    conserved. The shortest wave of an even grid, which has no phase, is dropped by the first step (`project`).
    Damping is exact, the rest is stepped by fourth-order Runge-Kutta, stable while |u| + |v| stays below
    0.9 L / (N step), 234 m/s by default; far beyond, fields grow to inf. A jet much
    stronger than 30 m/s needs a shorter `step`.

    Args:
        size: Points N along a side.
        dt: Time between two states [h].
        jet: Speed U of the jet [m/s], any sign.
        relaxation: Time scale of the relaxation [h]; inf for none.
        shear: Wind of the constant shear at the upper lid less that at the lower [m/s]; its mean is 0.
        diffusion: Time in which the wave of 2 cells is damped by e [h]; inf for none; None for
            24 (64 / N)^(5/3), near the values used with N = 32 to 128 and some 1.5 times weaker at 512.
        step: Longest inner step [h]; None for (64 / N) / 3.
        checkpoint: Recompute inner steps in the backward pass instead of keeping their fields: a
            gradient then needs memory for one inner step and one field for each, at one more forward pass.
        dtype: Dtype of initial states; changed later by `.to()`.

    Raises:
        ValueError: If a setting is out of range.

    Source:
        Equations: Blumen (1978), doi:10.1175/1520-0469(1978)035<0774:UPVFPI>2.0.CO;2; Held et al. (1995),
        doi:10.1017/S0022112095000012. Set-up: Tulloch & Smith (2009), doi:10.1175/2008JAS2653.1, with the
        numbers of Bao, Chipilski, Liang, Zhang & Whitaker (2024), arXiv:2404.00844. Deviations:
        hyperdiffusion within the Runge-Kutta step instead of after it, and of the departure from the jet, which
        is an exact solution; the shortest wave is dropped; arrays are (x, y), not (y, x).

    >>> turbulence = SurfaceQG(32)
    >>> turbulence(turbulence.initial(5)).shape
    torch.Size([5, 2, 32, 32])
    """

    LENGTH = 20 * _RADIUS  # L [m]
    DEPTH = _DEPTH  # H [m]
    KELVIN = _CORIOLIS * _THETA / _GRAVITY  # f theta_0 / g [K s/m]

    def __init__(
        self,
        size: int = 64,
        dt: float = 12.0,
        *,
        jet: float = 30.0,
        relaxation: float = 240.0,
        shear: float = 0.0,
        diffusion: float | None = None,
        step: float | None = None,
        checkpoint: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if size < 4:
            raise InvalidValueError(f"a grid needs at least 4 points along a side, got {size}.")
        diffusion = 24 * (64 / size) ** (5 / 3) if diffusion is None else diffusion
        step = 64 / size / 3 if step is None else step
        for name, number in {"dt": dt, "step": step}.items():
            if not 0 < number < math.inf:
                raise InvalidValueError(f"{name} must be positive and finite [h], got {number}.")
        for name, number in {"relaxation": relaxation, "diffusion": diffusion}.items():
            if not number > 0:
                raise InvalidValueError(
                    f"{name} must be a positive time scale [h], got {number}; give math.inf for none."
                )
        for name, number in {"jet": jet, "shear": shear}.items():
            if not math.isfinite(number):
                raise InvalidValueError(f"{name} must be a finite speed [m/s], got {number}.")
        self.torus = Torus((3 * size + 1) // 2, dtype)  # its truncation is (size - 1) // 2
        self.size, self.state_shape, self.dt = size, (2, size, size), float(dt)
        self.geometry = Geometry.torus(self.state_shape)
        self.jet, self.shear = float(jet), float(shear)
        self.relaxation, self.diffusion, self.checkpoint = float(relaxation), float(diffusion), checkpoint
        # The subtraction keeps rounding from adding a step where the division comes out whole.
        self.substeps = max(1, math.ceil(self.dt / step - 1e-9))

    @property
    def equilibrium(self) -> Tensor:
        """T_jet [K], (2, N, N)."""
        return self._equilibrium(self.torus.kx)

    def _equilibrium(self, like: Tensor) -> Tensor:
        """T_jet in the precision and on the device of a tensor."""
        half = math.pi * _RADIUS / self.LENGTH
        amplitude = -self.jet / 2 * _BUOYANCY / _CORIOLIS * self.KELVIN / math.tanh(half)
        y = (torch.arange(self.size, dtype=torch.float64) + 0.5) * 2 * math.pi / self.size
        return (amplitude * y.cos()).to(like).expand(self.state_shape)

    def _inversion(self) -> tuple[Tensor, Tensor]:
        """Stream function of the temperature of the same and of the other lid [m^2/s/K], (M, K + 1), float64.

        With m = |k| 2 pi N H / (f L): psi_0 = H / m (T_1 / sinh m - T_0 / tanh m) / KELVIN, psi_1 alike with
        both signs and lids exchanged; 0 for the mean, which has no velocity.
        """
        grid = self.torus
        m = grid.square.clamp(min=1).sqrt() * 2 * math.pi * _RADIUS / self.LENGTH
        scale = torch.where(grid.square > 0, grid.kept, 0) * _DEPTH / (self.KELVIN * m)
        # exp(-m) instead of sinh(m), which overflows
        return -scale / m.tanh(), -2 * scale * torch.exp(-m) / torch.expm1(-2 * m)

    def _terms(self, x: Tensor) -> _Terms:
        """Factors of the equation in the precision of `x`."""
        number = torch.complex64 if x.dtype == torch.float32 else torch.complex128
        grid, step = self.torus, self.dt / self.substeps
        same, other = (factor.to(number) for factor in self._inversion())
        unit = 2 * math.pi / self.LENGTH
        kx, ky = torch.broadcast_tensors(grid.kx.double(), grid.ky.double())
        decay = 1 / self.relaxation + (grid.square.sqrt() * 2 / self.size) ** _ORDER / self.diffusion
        return _Terms(
            same=same,
            other=other,
            gradient=(1j * unit * torch.stack([kx, ky])[:, None]).to(number),
            kept=(-_HOUR * grid.kept).to(number),
            base=x.new_tensor([-0.5, 0.5])[:, None, None] * self.shear,
            slope=self.KELVIN * self.shear / _DEPTH,
            jet=self._analysis(self._equilibrium(x)),
            half_decay=torch.exp(-step / 2 * decay).to(number),
        )

    def _analysis(self, x: Tensor) -> Tensor:
        """Coefficients of a field on the state's grid, (*B, N, N) to (*B, M, K + 1)."""
        return self.torus.analysis(resample(x, self.torus.size))

    def _synthesis(self, waves: Tensor) -> Tensor:
        """A field on the state's grid, (*B, M, K + 1) to (*B, N, N)."""
        return resample(self.torus.synthesis(waves), self.size)

    def _rate(self, waves: Tensor, terms: _Terms) -> Tensor:
        """dT/dt by advection [K/h]: -(u + base) dT/dx - v (dT/dy - slope).

        Args:
            waves: Temperature, coefficients (*B, 2, M, K + 1).
            terms: Factors.

        Returns:
            (*B, 2, M, K + 1).
        """
        psi = _stream(waves, terms.same, terms.other)
        both = torch.stack([psi, waves], -4)  # (*B, 2 fields, 2 lids, M, K + 1)
        slopes = both.unsqueeze(-5) * terms.gradient.unsqueeze(-4)
        along, across = self.torus.synthesis(slopes).unbind(-5)
        (v, east), (minus_u, north) = along.unbind(-4), across.unbind(-4)
        carried = (terms.base - minus_u) * east + v * (north - terms.slope)
        return self.torus.raw(carried) * terms.kept

    def _inner(self, departure: Tensor, terms: _Terms) -> Tensor:
        """One inner step of the departure from the jet."""

        def rate(departure: Tensor, time: float) -> Tensor:
            return self._rate(departure + terms.jet, terms)

        return integrating_factor_rk4(rate, departure, 0.0, self.dt / self.substeps, terms.half_decay)

    def _check(self, x: Tensor) -> None:
        if x.ndim < 3 or tuple(x.shape[-3:]) != self.state_shape:
            raise InvalidValueError(
                f"states have shape {tuple(x.shape)}, but the last 3 axes must be {self.state_shape}; "
                "start from `initial()`, or change the grid with `slams.core.geometry.torus.resample`."
            )
        if x.dtype not in (torch.float32, torch.float64):
            raise InvalidValueError(
                f"states must be float32 or float64, got {x.dtype}; convert them with `.to()`."
            )

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by one `dt`; no randomness.

        Args:
            x: Temperature at the lids [K], (*B, 2, N, N).
            rng: Not used.

        Returns:
            Temperature one `dt` later [K], (*B, 2, N, N).

        Raises:
            ValueError: If the last axes are not `state_shape`, or the precision is neither single nor double.
        """
        self._check(x)
        terms = self._terms(x)
        departure = self._analysis(x) - terms.jet
        spare = self.checkpoint and torch.is_grad_enabled()
        for _ in range(self.substeps):
            if spare:
                departure = checkpoint(
                    self._inner, departure, terms, use_reentrant=False, preserve_rng_state=False
                )
            else:
                departure = self._inner(departure, terms)
        return self._synthesis(departure + terms.jet)

    def project(self, x: Tensor) -> Tensor:
        """Projection of a state onto the resolved waves, without the shortest of an even grid; (*B, 2, N, N)."""
        self._check(x)
        return self._synthesis(self._analysis(x))

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draw the jet with noise, which takes some 30 days to become developed turbulence.

        Gaussian noise of standard deviation 5 K, independent on the lids, homogeneous, with the spectrum of
        developed surface quasi-geostrophic flow: variance by wavenumber as |k|^(-5/3) beyond 3, the same in all
        waves below.

        Args:
            *shape: Leading axes of the draw.
            rng: Source of randomness; a fresh seed if None.

        Returns:
            Temperature [K], (*shape, 2, N, N), of mean 0.
        """
        grid = self.torus
        shape_of = torch.where(grid.square > 0, grid.kept, 0) * grid.square.clamp(min=_LARGEST**2) ** (-2 / 3)
        variance = grid.mean_product(shape_of, shape_of) / self.size**2
        white = self._analysis(
            normal((*shape, *self.state_shape), like=grid.kx, rng=generator(rng, "initial"))
        )
        return self.equilibrium + self._synthesis(white * (_NOISE / variance.sqrt() * shape_of).to(grid.kx))

    def streamfunction(self, x: Tensor) -> Tensor:
        """psi at the lids without its mean [m^2/s], (*B, 2, N, N) to the same."""
        self._check(x)
        return self._synthesis(self._stream(x))

    def velocity(self, x: Tensor) -> Tensor:
        """Wind at the lids without the constant shear [m/s].

        Args:
            x: Temperature [K], (*B, 2, N, N).

        Returns:
            (u, v) of each lid, (*B, 2, 2, N, N): lids on axis -4, components on axis -3.
        """
        self._check(x)
        psi = self._stream(x) * (2 * math.pi / self.LENGTH)
        kx, ky = self.torus.kx.to(x), self.torus.ky.to(x)
        return self._synthesis(1j * torch.stack([-ky * psi, kx * psi], -3))

    def energy_spectrum(self, x: Tensor) -> Tensor:
        """Kinetic energy in shells of wavenumbers [m^2/s^2], (*B, 2, N, N) to (*B, 2, shells).

        Of each lid, without the constant shear; its sum over shells is the mean of |u|^2 / 2.
        """
        return torus.energy_spectrum(self.velocity(x))

    def energy(self, x: Tensor) -> Tensor:
        """Kinetic plus available potential energy, mean of the volume, without the constant shear's.

        1/2 <u^2 + v^2 + (f / N)^2 (d psi/dz)^2> = (f / N)^2 / (2 H) (<psi_1 T_1> - <psi_0 T_0>) / KELVIN,
        without the temperature's mean, which has no velocity.

        Args:
            x: Temperature [K], (*B, 2, N, N).

        Returns:
            [m^2/s^2], (*B).
        """
        self._check(x)
        lower, upper = self.torus.mean_product(self._stream(x), self._analysis(x)).unbind(-1)
        return (_CORIOLIS / _BUOYANCY) ** 2 / (2 * _DEPTH * self.KELVIN) * (upper - lower)

    def temperature_variance(self, x: Tensor) -> Tensor:
        """Mean square of the temperature at each lid [K^2], (*B, 2, N, N) to (*B, 2)."""
        self._check(x)
        waves = self._analysis(x)
        return self.torus.mean_product(waves, waves)

    def _stream(self, x: Tensor) -> Tensor:
        """Coefficients of the stream function [m^2/s], (*B, 2, M, K + 1)."""
        return _stream(self._analysis(x), *(factor.to(x) for factor in self._inversion()))

    def extra_repr(self) -> str:
        """Settings shown in `str(system)`."""
        names = ("size", "dt", "substeps", "jet", "relaxation", "shear", "diffusion")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _stream(waves: Tensor, same: Tensor, other: Tensor) -> Tensor:
    """Stream function of the temperature at the lids, coefficients (*B, 2, M, K + 1)."""
    lower, upper = waves.unbind(-3)
    return torch.stack([same * lower + other * upper, -same * upper - other * lower], -3)
