"""MoistQG: quasi-geostrophic weather with moisture on a sphere with seasons, continents and mountains."""

import math

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.places import Geometry
from slams.core.geometry.spectral import SphericalHarmonics
from slams.core.integrate import integrating_factor_rk4
from slams.core.random import Rng, generator, normal
from slams.systems.base import Dynamics
from slams.systems.planet.climate import Climate, Weather
from slams.systems.planet.geography import land_fraction, orography

_DAY = 86400.0  # s
_YEAR = 365.25  # days
_RADIUS = 6.371e6  # m
_GAS = 287.0  # J/kg/K
_SPEED2 = (_RADIUS / _DAY) ** 2  # (radius/day)^2 in m^2/s^2
_OMEGA2 = 4 * math.pi  # twice the rotation rate [1/day]
_LATENT = 1.22  # K/day in a layer of 200 hPa for each mm/day of rain: L g / (c_p dp)

_COLDEST = 20.0  # day of the year of the northern winter's extreme
_LAYER = 200.0  # hPa, thickness of a layer
_SCALE_HEIGHT = 6500.0  # m
_EVAPORATES = 0.8  # relative humidity up to which water evaporates
_MEAN = (218.0, 240.0, 261.0, 276.0)  # K, standard atmosphere at 200, 400, 600, 800 hPa
_ALOFT, _MEAN_ALOFT = (10.0, 50.0, 100.0), (228.0, 214.0, 212.0)  # hPa, K
# Vertical shapes at 200, 400, 600, 800 hPa: equator-pole contrast, land against ocean, latent heat.
_PROFILE, _CONTINENTAL, _HEATING = (-0.35, 0.8, 1.0, 1.0), (0.0, 0.25, 0.6, 1.0), (0.0, 0.35, 0.4, 0.25)


class MoistQG(Dynamics):
    """Quasi-geostrophic potential vorticity at five levels, column water, and the date.

    dq_k/dt = -J(psi_k, q_k + f + topography_k) - drag_k - relaxation_k + latent_k - nu lap^4 q_k,
    q_k = lap psi_k - (tau_k / R_k^2 below) + (tau_{k-1} / R_{k-1}^2 above), tau = psi_above - psi_below;
    dW/dt = -J(psi_low, W) - div(W grad chi) + evaporation - rain, lap chi = divergence of the lowest layer
    from the diagnosed omega. Lengths are Earth radii, times days.

    A state is (K + 2, H, W): potential vorticity of K = 5 levels from the top without f [1/day], column
    water [mm], and the day of the year (0 = 1 January), constant over the grid.

    Args:
        climate: Strengths of forcing and damping.
        truncation: Triangular truncation.
        latitudes: Gaussian latitudes H.
        longitudes: Longitudes W.
        dt: Time between two states [days].
        substeps: Runge-Kutta steps in `dt`.
        dtype: Dtype of states, float32 or float64.

    Source:
        Marshall & Molteni (1993), doi:10.1175/1520-0469(1993)050<1792:TADUOP>2.0.CO;2, eq. 1-4; column water
        after Lambaerts, Lapeyre & Zeitlin (2011), doi:10.1063/1.3582356. Deviations: five equal layers, an
        analytic seasonal equilibrium instead of one fitted to analyses, temperature by linear balance.
    """

    pressure = (100.0, 300.0, 500.0, 700.0, 900.0)  # hPa, of the stream function
    interfaces = (200.0, 400.0, 600.0, 800.0)  # hPa, of temperature and omega
    land: Tensor
    _thickness: Tensor
    _stretch: Tensor
    _modes: Tensor
    _gain: Tensor
    _half_decay: Tensor
    _depth: Tensor
    _background: Tensor
    _drag: Tensor
    _annual: Tensor
    _winter: Tensor
    _heating: Tensor
    _ascent: Tensor
    _trades: Tensor

    radii = (420.0, 280.0, 240.0, 230.0)  # km, deformation radii of the interfaces

    def __init__(
        self,
        climate: Climate | None = None,
        *,
        truncation: int = 21,
        latitudes: int = 32,
        longitudes: int = 64,
        dt: float = 0.25,
        substeps: int = 2,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dt <= 0 or substeps < 1:
            raise InvalidValueError(
                f"dt must be positive and substeps at least 1, got dt={dt}, substeps={substeps}."
            )
        self.climate = climate if climate is not None else Climate()
        self.harmonics = SphericalHarmonics(truncation, latitudes, longitudes, dtype)
        self.dt, self.substeps, self.levels = dt, substeps, len(self.pressure)
        self.state_shape = (self.levels + 2, latitudes, longitudes)
        lat, lon = self.harmonics.latitude, self.harmonics.longitude
        self.geometry = Geometry.sphere(lat, lon, self.levels + 2)
        # Built in float64 whatever the dtype: the inversion's small differences would lose digits in float32.
        double = SphericalHarmonics(truncation, latitudes, longitudes, torch.float64)
        vertical = self._vertical(double)
        for name, value in (vertical | self._planet(double, vertical["_depth"])).items():
            self.register_buffer(
                name, value.to(dtype.to_complex() if value.is_complex() else dtype), persistent=False
            )

    def _vertical(self, sphere: SphericalHarmonics) -> dict[str, Tensor]:
        """Stretching between levels and its inversion, thickness to temperature, diffusion."""
        inverse_square = (torch.tensor(self.radii, dtype=torch.float64) * 1e3 / _RADIUS) ** -2
        thickness = torch.eye(self.levels, dtype=torch.float64).diff(dim=0).neg()  # (K - 1, K)
        values, modes = torch.linalg.eigh(-thickness.T @ torch.diag(inverse_square) @ thickness)
        gain = 1 / (sphere.laplacian + values[:, None]).clamp(max=-1e-9)
        gain = torch.where(sphere.laplacian == 0, 0.0, gain)[:, None, :]  # (K, 1, N); the mean is pinned to 0
        scale = self.climate.diffusion
        rate = (sphere.laplacian / sphere.laplacian[-1]) ** 4 / scale if scale > 0 else 0 * sphere.laplacian
        rate = torch.stack([rate] * self.levels + [3 * rate])[:, None, :]  # water has the steepest edges
        pressure = torch.tensor(self.pressure, dtype=torch.float64)
        return {
            "_thickness": thickness,
            "_stretch": inverse_square[:, None, None],
            "_modes": modes,
            "_gain": gain,
            "_half_decay": torch.exp(-rate * self.dt / self.substeps / 2),
            "_depth": (pressure[1:] / pressure[:-1]).log()[:, None, None] * _GAS / _SPEED2,
        }

    def _planet(self, sphere: SphericalHarmonics, depth: Tensor) -> dict[str, Tensor]:
        """Constant fields of the planet: rotation, land, topography, drag, the parts of the equilibrium."""
        climate, sine = self.climate, sphere.mu
        land = land_fraction(sphere.latitude, sphere.longitude)
        height = orography(sphere.latitude, sphere.longitude)
        coriolis, edge = _OMEGA2 * sine.expand_as(land), _OMEGA2 * math.sin(math.radians(15))
        unbalance = coriolis / (coriolis**2 + edge**2)  # 1 / f, kept finite at the equator
        background = torch.zeros(self.levels, *land.shape, dtype=torch.float64) + coriolis
        background[-1] += climate.mountain * coriolis * height
        profile = torch.tensor(_PROFILE, dtype=torch.float64)[:, None, None]
        continental = torch.tensor(_CONTINENTAL, dtype=torch.float64)[:, None, None]
        contrast = (land - land.mean(-1, keepdim=True)) * 2 * sine * (1 - sine**2).sqrt()
        winter = -climate.season * sine**3 * profile - climate.continental * contrast * continental
        drag = 1 / climate.drag if climate.drag > 0 else 0.0
        heating = torch.tensor(_HEATING, dtype=torch.float64)[:, None, None] * _LATENT * climate.latent
        north, south = (torch.exp(-(((sphere.latitude[:, None] - at) / 9) ** 2)) for at in (7.0, -7.0))
        belts = -climate.trades * torch.stack([(north + south) / 2, (south - north) / 2])[:, None].expand(
            2, 1, *land.shape
        )
        return {
            "land": land,
            "_trades": sphere.analysis(belts),
            "_background": sphere.analysis(background),
            "_drag": drag * (1 + climate.land_drag * (land + height)),
            "_annual": sphere.analysis(-climate.contrast * sine.abs() ** 3 * profile * unbalance * depth),
            "_winter": sphere.analysis(winter * unbalance * depth),
            "_heating": heating * unbalance * depth,
            # omega: 1 / f_45 at high latitudes, 0 at the equator, which has no balanced temperature.
            "_ascent": coriolis / (coriolis**2 + edge**2).sqrt() / (_OMEGA2 * 0.5**0.5),
        }

    def vorticity(self, psi: Tensor) -> Tensor:
        """Potential vorticity without f and topography of a stream function, both (*B, K, M, N)."""
        tau = _mix(self._thickness, psi)
        return self.harmonics.laplacian * psi - _mix(self._thickness.T, self._stretch * tau)

    def stream(self, vorticity: Tensor) -> Tensor:
        """Stream function [radius^2/day] of potential vorticity: inverts `vorticity` up to the mean."""
        return _mix(self._modes, self._gain * _mix(self._modes.T, vorticity))

    def energy(self, vorticity: Tensor) -> Tensor:
        """Kinetic plus available potential energy, -1/2 sum_k <psi_k q_k>, (*B, K, M, N) to (*B)."""
        return -0.5 * self.harmonics.mean_product(self.stream(vorticity), vorticity).sum(-1)

    def enstrophy(self, vorticity: Tensor) -> Tensor:
        """Potential enstrophy 1/2 <(q_k + f + topography_k)^2> of each level, (*B, K, M, N) to (*B, K)."""
        total = vorticity + self._background
        return 0.5 * self.harmonics.mean_product(total, total)

    def equilibrium(self, day: Tensor) -> Tensor:
        """Thickness tau [radius^2/day] of radiative equilibrium, day (*B) to (*B, K-1, M, N)."""
        phase = _phase(day)[..., None, None, None]
        return self._annual + phase * self._winter

    def saturation(self, temperature: Tensor) -> Tensor:
        """Column water at saturation [mm] for the temperature at 800 hPa [K]: 7 % a degree near 285 K."""
        return 50.0 * torch.exp(0.065 * (temperature - 288.0).clamp(max=15.0))

    def _warmth(self, psi: Tensor, above: slice = slice(None)) -> Tensor:
        """Balanced temperature departure of interfaces [K]: R ln(p2/p1) lap T = div(f grad tau)."""
        tau = _mix(self._thickness[above], psi)
        sphere = self.harmonics
        return sphere.inverse_laplacian(_OMEGA2 * sphere.balance(tau)) / self._depth[above]

    def tendency(self, y: Tensor, day: Tensor) -> Tensor:
        """Time derivative of the coefficients without diffusion.

        Args:
            y: Potential vorticity [1/day] and column water [mm], (*B, K + 1, M, N).
            day: Day of the year, (*B).

        Returns:
            dy/dt [per day], shape of `y`.
        """
        return self._evaluate(y, day, slice(self.levels - 2, None))[0]

    def _evaluate(self, y: Tensor, day: Tensor, above: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tendency, rain, relative humidity, omega / dp [1/day] at the interfaces below levels `above`."""
        sphere, climate = self.harmonics, self.climate
        q, water = y[..., : self.levels, :, :], y[..., self.levels :, :, :]
        psi = self.stream(q)
        east, north = sphere.gradient(torch.cat([psi, q + self._background, water], -3))
        flow, carried = slice(0, self.levels), slice(self.levels, 2 * self.levels)
        values = sphere.synthesis(
            torch.cat(
                [
                    water,
                    sphere.laplacian * water,
                    self._warmth(psi, slice(-1, None)),
                    sphere.laplacian * psi[..., -1:, :, :],
                ],
                -3,
            )
        )
        wet, wet_laplacian, warm, spin = values.split(1, -3)
        rain, evaporation, humidity = self._water_cycle(wet, warm + _MEAN[-1])

        advection = sphere.jacobian(
            (east[..., flow, :, :], north[..., flow, :, :]),
            (east[..., carried, :, :], north[..., carried, :, :]),
        )
        change = -advection
        change[..., -1:, :, :] -= self._drag * spin
        upper, lower = slice(0, self.levels - 1), slice(1, self.levels)
        crossing = -sphere.jacobian(
            (east[..., upper, :, :][..., above, :, :], north[..., upper, :, :][..., above, :, :]),
            (east[..., lower, :, :][..., above, :, :], north[..., lower, :, :][..., above, :, :]),
        )  # v . grad tau at the interfaces
        count = crossing.shape[-3]
        heat = self._heating * rain
        if climate.latent > 0:
            parts = sphere.analysis(torch.cat([change, crossing, heat], -3))
            source = parts[..., self.levels + count :, :, :]
        else:
            parts = sphere.analysis(torch.cat([change, crossing], -3))
            source = torch.zeros_like(psi[..., 1:, :, :])
        if climate.relaxation > 0:
            source = source + (self.equilibrium(day) - _mix(self._thickness, psi)) / climate.relaxation
        dq = parts[..., : self.levels, :, :] - _mix(self._thickness.T, self._stretch * source)
        dq = dq * (sphere.laplacian != 0)
        dtau = _mix(self._thickness[above], self.stream(dq))
        crossing = parts[..., self.levels : self.levels + count, :, :]
        lift = self._ascent * sphere.synthesis(
            self._stretch[above] * (dtau + crossing - source[..., above, :, :])
        )

        moisture = self._moisture(day, lift, east, north, wet, wet_laplacian, evaporation - rain)
        return torch.cat([dq, moisture], -3), rain, humidity, lift

    def _moisture(
        self,
        day: Tensor,
        lift: Tensor,
        east: Tensor,
        north: Tensor,
        wet: Tensor,
        wet_laplacian: Tensor,
        gain: Tensor,
    ) -> Tensor:
        """Tendency of the column's water: local gain, advection by the two lowest levels, and convergence."""
        sphere, climate = self.harmonics, self.climate
        divergence = sphere.analysis(lift[..., -1:, :, :])
        if climate.trades > 0:
            divergence = divergence + self._trades[0] + _phase(day)[..., None, None, None] * self._trades[1]
        chi = sphere.inverse_laplacian(divergence)
        potential, spreading = sphere.synthesis(torch.cat([chi, sphere.laplacian * chi], -3)).split(1, -3)
        low = (
            east[..., self.levels - 2 : self.levels, :, :].mean(-3, keepdim=True),
            north[..., self.levels - 2 : self.levels, :, :].mean(-3, keepdim=True),
        )
        swept = sphere.jacobian(low, (east[..., -1:, :, :], north[..., -1:, :, :]))
        # div(W grad chi) = (lap(W chi) + W lap chi - chi lap W) / 2 conserves water to rounding.
        local = gain - swept - (wet * spreading - potential * wet_laplacian) / 2
        both = sphere.analysis(torch.cat([local, wet * potential], -3))
        return both[..., :1, :, :] - sphere.laplacian * both[..., 1:, :, :] / 2

    def _water_cycle(self, wet: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rain, evaporation [mm/day] and relative humidity of the column, grid fields."""
        climate = self.climate
        saturated = self.saturation(temperature)
        if climate.evaporation <= 0:
            return torch.zeros_like(wet), torch.zeros_like(wet), wet / saturated
        rain = (wet - saturated).clamp(min=0) / climate.condensation
        evaporation = (
            (_EVAPORATES * saturated - wet).clamp(min=0) / climate.evaporation * (1 - 0.7 * self.land)
        )
        return rain, evaporation, wet / saturated

    def _unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A state as coefficients and day of the year."""
        return self.harmonics.analysis(x[..., :-1, :, :]), x[..., -1, 0, 0]

    def _pack(self, y: Tensor, day: Tensor) -> Tensor:
        """Coefficients and day of the year as a state."""
        fields = self.harmonics.synthesis(y)
        clock = day[..., None, None, None].to(fields.dtype).expand(*fields.shape[:-3], 1, *fields.shape[-2:])
        return torch.cat([fields, clock], -3)

    def initial(self, *shape: int, rng: Rng = None, day: float = 0.0) -> Tensor:
        """Jets near radiative equilibrium under random vortices; weather is developed after about 60 days.

        Args:
            *shape: Leading axes of the draw.
            rng: Source of randomness.
            day: Day of the year, 0 = 1 January.

        Returns:
            States, (*shape, K + 2, H, W).
        """
        sphere = self.harmonics
        when = torch.full(shape, float(day), dtype=self.land.dtype, device=self.land.device)
        grid = (*shape, self.levels, *self.land.shape)
        noise = sphere.analysis(normal(grid, like=self.land, rng=generator(rng, "initial")))
        degree = torch.arange(sphere.truncation + 1, device=self.land.device)
        noise = noise * ((degree >= 3) & (degree <= 10)) / (1 + degree) * 0.05
        weights = torch.linalg.pinv(self._thickness.double()).to(self.land.dtype)
        psi = _mix(0.6 * weights, self.equilibrium(when)) + noise
        saturated = self.saturation(sphere.synthesis(self._warmth(psi, slice(-1, None))) + _MEAN[-1])
        water = sphere.analysis(0.6 * saturated)
        return self._pack(torch.cat([self.vorticity(psi), water], -3), when)

    def extra_repr(self) -> str:
        """Settings shown in `str(system)`."""
        shape = (self.harmonics.truncation, *self.harmonics.shape)
        return f"{self.climate}, grid={shape}, dt={self.dt}, substeps={self.substeps}, radii={self.radii}"

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by `dt` days, (*B, K + 2, H, W) to the same; `rng` is not used."""
        y, day = self._unpack(x)
        step = self.dt / self.substeps
        for k in range(self.substeps):
            y = integrating_factor_rk4(
                lambda z, t: self.tendency(z, day + t), y, k * step, step, self._half_decay
            )
        return self._pack(y, torch.remainder(day + self.dt, _YEAR))

    def weather(self, x: Tensor) -> Weather:
        """Temperature, humidity, rain and ascent of states.

        Between 200 and 800 hPa temperature is the balanced one of the layers. Above 100 hPa waves of degree n
        decay with height at the rate kappa = N sqrt(n (n + 1)) / (f radius), so T = -kappa H phi / R, cold
        above highs, with a part of the 200 hPa departure mixed in and a radiative mean state by season.

        Args:
            x: States, (*B, K + 2, H, W).

        Returns:
            `Weather` on the grid.
        """
        sphere = self.harmonics
        y, day = self._unpack(x)
        _, rain, humidity, lift = self._evaluate(y, day, slice(None))
        psi = self.stream(y[..., : self.levels, :, :])
        warmth = self._warmth(psi)
        geopotential = sphere.inverse_laplacian(_OMEGA2 * sphere.balance(psi[..., :1, :, :])) * _SPEED2
        decay = 2.0e-2 / 1.0e-4 * (-sphere.laplacian).sqrt() / _RADIUS  # 1/m
        scale = -0.45 * _SCALE_HEIGHT / _GAS * decay * geopotential
        aloft = [scale * torch.exp(-decay * _SCALE_HEIGHT * math.log(100.0 / p)) for p in _ALOFT]
        leak = torch.tensor([0.15, 0.25, 0.5], dtype=self.land.dtype)[:, None, None] * warmth[..., :1, :, :]
        temperature = sphere.synthesis(torch.cat([torch.cat(aloft, -3) + leak, warmth], -3))
        phase = _phase(day)[..., None, None]
        sine = sphere.mu
        radiative = torch.stack(
            [
                -phase * 18.0 * sine + 0 * self.land,
                -4.0 * (1 - 2 * sine**2) - phase * 6.0 * sine + 0 * self.land,
                -10.0 * (1 - 2 * sine**2) - phase * 3.0 * sine + 0 * self.land,
            ],
            -3,
        )
        temperature[..., : len(_ALOFT), :, :] += radiative
        mean = torch.tensor(_MEAN_ALOFT + _MEAN, dtype=self.land.dtype)[:, None, None]
        return Weather(
            _ALOFT + self.interfaces,
            temperature + mean,
            humidity[..., 0, :, :],
            rain[..., 0, :, :],
            -200.0 * lift,
        )


def _phase(day: Tensor) -> Tensor:
    """1 in the depth of the northern winter, -1 half a year later."""
    return torch.cos(2 * math.pi * (day - _COLDEST) / _YEAR)


def _mix(matrix: Tensor, fields: Tensor) -> Tensor:
    """Apply a real (J, K) matrix to the levels of coefficients, (*B, K, M, N) to (*B, J, M, N)."""
    flat = torch.view_as_real(fields).flatten(-3)
    mixed = (matrix @ flat).reshape(*fields.shape[:-3], matrix.shape[0], *fields.shape[-2:], 2)
    return torch.view_as_complex(mixed)
