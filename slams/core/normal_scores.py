"""Gaussian anamorphosis of amounts with a point mass at their bound, by month and latitude."""

import torch
from torch import Tensor

_BAND = 10.0  # degrees of latitude that share a distribution
_LEVELS = 200  # quantiles of the values above the bound


class NormalScores:
    """Amounts x >= lower as normal scores g: g <= c where x = lower, else Φ(g) = F(x).

    The distribution F is that of all points of a band of 10 degrees of latitude in a month; c = Φ^-1(F(lower)).

    Args:
        x: Training values (n, P), NaN where missing.
        month: Month of each day, 0 to 11, (n).
        latitude: Latitude of each point [degrees], (P).
        lower: The bound.

    Source:
        Amezcua & Van Leeuwen (2014), doi:10.3402/tellusa.v66.23493, section 3, with censoring.
    """

    def __init__(self, x: Tensor, month: Tensor, latitude: Tensor, lower: float = 0.0) -> None:
        self.lower = lower
        _, self.band = ((latitude + 90) / _BAND).floor().long().unique(return_inverse=True)
        bands = int(self.band.max()) + 1
        self.dry = torch.full((12, bands), 0.5)
        self.above = torch.zeros(12, bands, _LEVELS)
        level = (torch.arange(_LEVELS) + 0.5) / _LEVELS
        for m in month.unique().tolist():
            for b in range(bands):
                values = x[month == m][:, self.band == b]
                values = values[torch.isfinite(values)]
                wet = values[values > lower]
                if not len(values):
                    continue
                least = 0.5 / len(values)  # no event is certain that was always seen
                share = torch.tensor(1 - len(wet) / len(values))
                self.dry[m, b] = share.clamp(least, 1 - least)
                if len(wet):
                    at = (level * len(wet)).long().clamp(max=len(wet) - 1)
                    self.above[m, b] = wet.sort().values[at]
                else:
                    self.above[m, b] = lower

    def thresholds(self, month: Tensor) -> Tensor:
        """c of each point on days of some months (n), (n, P)."""
        return torch.special.ndtri(self.dry[month][:, self.band])

    def scores(self, x: Tensor, month: Tensor) -> Tensor:
        """g of values (n, P); c where x is at the bound, NaN where it is missing."""
        found = torch.full_like(x, torch.nan)
        for m in month.unique().tolist():
            days = (month == m).nonzero()
            for b in range(self.dry.shape[1]):
                points = (self.band == b).nonzero().squeeze(-1)
                values, dry = x[days, points].contiguous(), self.dry[m, b]
                rank = torch.searchsorted(self.above[m, b].contiguous(), torch.nan_to_num(values))
                share = (rank / _LEVELS).clamp(0.5 / _LEVELS, 1 - 0.5 / _LEVELS)
                g = torch.special.ndtri(torch.where(values > self.lower, dry + (1 - dry) * share, dry))
                found[days, points] = torch.where(torch.isfinite(values), g, torch.nan)
        return found

    def values(self, g: Tensor, month: Tensor) -> Tensor:
        """Amounts of normal scores (*B, n, P) on days of some months (n); NaN stays."""
        dry, band = self.dry[month][:, self.band], self.band
        share = (torch.special.ndtr(g) - dry) / (1 - dry)
        at = (torch.nan_to_num(share) * _LEVELS - 0.5).clamp(0, _LEVELS - 1)
        below = at.floor().long().clamp(max=_LEVELS - 2)
        table = self.above[month[:, None], band]  # (n, P, levels)
        table = table.expand(*g.shape, _LEVELS)
        low, high = (table.gather(-1, (below + k)[..., None]).squeeze(-1) for k in (0, 1))
        found = torch.where(share > 0, torch.lerp(low, high, at - below), self.lower)
        return torch.where(torch.isnan(g), torch.nan, found)
