"""Moist quasi-geostrophic flow forecast at a lower resolution than that of its states."""

from typing import Any

import torch
from torch import Tensor

from slams.core.random import Rng
from slams.systems.flows.quasigeostrophic import MoistQG
from slams.systems.planet.climate import Climate


class CoarseMoistQG(MoistQG):
    """MoistQG whose states and weather have one resolution and whose forecasts have another.

    A forecast cuts the harmonics of a state at `forecast_truncation`, advances them on a grid of half as many
    latitudes and longitudes, and returns a state without the smaller scales. Land, mountains and drag of the forecast
    are those of the coarse grid.

    Args:
        climate: Strengths of forcing and damping.
        forecast_truncation: Triangular truncation of the forecast; half of `truncation`, rounded down, if None.
        common: Further keywords of `MoistQG`, for the states.
    """

    def __init__(
        self, climate: Climate | None = None, *, forecast_truncation: int | None = None, **common: Any
    ) -> None:
        super().__init__(climate, **common)
        height, width = self.harmonics.shape
        cut = self.harmonics.truncation // 2 if forecast_truncation is None else forecast_truncation
        self.forecast_model = MoistQG(
            climate,
            truncation=cut,
            latitudes=height // 2,
            longitudes=width // 2,
            dt=self.dt,
            substeps=self.substeps,
            dtype=self.land.dtype,
        )

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by `dt` days, (*B, K + 2, H, W) to the same; `rng` is not used."""
        coarse, y = self.forecast_model, self.harmonics.analysis(x[..., :-1, :, :])
        kept = coarse.harmonics.truncation + 1
        small = coarse.harmonics.synthesis(y[..., :kept, :kept])
        clock = x[..., -1:, :1, :1].expand(*x.shape[:-3], 1, *coarse.harmonics.shape)
        small = coarse(torch.cat([small, clock], -3))
        y = torch.zeros_like(y)
        y[..., :kept, :kept] = coarse.harmonics.analysis(small[..., :-1, :, :])
        return self._pack(y, small[..., -1, 0, 0])
