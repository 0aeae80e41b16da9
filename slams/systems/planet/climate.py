"""Forcing of MoistQG, and the observable fields of its states."""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Climate:
    """Strengths of forcing and damping of MoistQG; `Climate.none()` leaves pure conservative flow.

    Attributes:
        contrast: Equator-pole difference of the equilibrium temperature, annual mean [K].
        season: Half of its annual range: added in winter, subtracted in summer [K].
        continental: Seasonal half-range of land against ocean at 45 degrees [K].
        relaxation: Time scale of the thermal relaxation [days]; 0 switches it off.
        drag: Time scale of the Ekman drag over sea [days]; 0 switches it off.
        land_drag: Drag over land, and again over the highest mountain, relative to sea.
        diffusion: Time scale of the eighth-order diffusion at the truncation [days]; 0 switches it off.
        mountain: Highest mountain relative to the depth of the lowest layer.
        evaporation: Time scale of evaporation over sea [days]; 0 switches all water sources and sinks off.
        condensation: Time scale of the rain that removes supersaturation [days].
        latent: Fraction of the latent heat released to the flow.
        trades: Convergence of the trade winds [1/day], which balanced flow lacks; they follow the sun.
    """

    contrast: float = 80.0
    season: float = 14.0
    continental: float = 14.0
    relaxation: float = 8.0
    drag: float = 1.0
    land_drag: float = 0.5
    diffusion: float = 0.7
    mountain: float = 0.35
    evaporation: float = 3.0
    condensation: float = 0.15
    latent: float = 0.35
    trades: float = 0.08

    @classmethod
    def none(cls) -> "Climate":
        """No source, no sink, no mountain."""
        return cls(**{field.name: 0.0 for field in fields(cls)})


@dataclass(frozen=True)
class Weather:
    """Observable fields of a MoistQG state, on the grid (lat north to south).

    Attributes:
        pressure: Levels of the temperature [hPa], ascending, (P,).
        temperature: Temperature [K], (*B, P, H, W).
        humidity: Column water relative to saturation, (*B, H, W).
        rain: Rain rate [mm/day], (*B, H, W).
        ascent: Ascent -omega at the interfaces [hPa/day], top to bottom, (*B, K - 1, H, W).
    """

    pressure: tuple[float, ...]
    temperature: Tensor
    humidity: Tensor
    rain: Tensor
    ascent: Tensor
