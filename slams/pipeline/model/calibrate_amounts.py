"""Correlations of the draws of amounts, chosen on validation windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slams.core.geometry.distance import great_circle
from slams.core.geometry.waves import space_time_normal
from slams.evaluation.metrics import fair_crps
from slams.pipeline.model.amount_days import AmountDays, Posteriors
from slams.pipeline.model.amounts import AmountDecoder, Noise, seeded

_LENGTHS, _NUGGETS = (250.0, 500.0, 1000.0, 2000.0), (0.0, 0.3, 0.6)
_TIMES = (0.3, 0.7, 1.5, 3.0)
_AREAS = (9, 81)  # nearest points, whose means fix the correlation in space
_CENTRES = 200  # of the areas


@torch.no_grad()
def calibrated(
    decoder: AmountDecoder, days: AmountDays, held: Sequence[Posteriors], name: str
) -> AmountDecoder:
    """The decoder with the correlations that score best on validation windows.

    Length and nugget have the least product of the fair CRPS of the amount's means over the 9 and the 81 nearest points,
    the time that of means over the days of a window: the score at single points does not depend on them.

    Args:
        decoder: Trained decoder.
        days: Validation days.
        held: Draws of validation windows.
        name: Name of the amount.
    """
    windows = CalibrationWindows.of(decoder, days, held, name)
    middle = slice(windows.location.shape[2] // 2, windows.location.shape[2] // 2 + 1)
    space = [
        replace(decoder.noise, length=length, nugget=nugget) for length in _LENGTHS for nugget in _NUGGETS
    ]
    areas = nearest(windows.points, windows.weight, seeded(days.model.recipe, "areas"))

    def of_space(setting: Noise) -> float:
        x, y = windows.amounts(decoder, setting, middle)
        scores = [fair_crps(x[..., each].mean(-1), y[..., each].mean(-1)).nanmean() for each in areas]
        return float(torch.stack(scores).log().sum())

    noise = min(space, key=of_space)

    def of_time(setting: Noise) -> float:
        x, y = windows.amounts(decoder, setting, slice(None))
        return float((windows.weight * fair_crps(x.mean(2), y.mean(1))).nanmean())

    noise = min((replace(noise, time=time) for time in _TIMES), key=of_time)
    return AmountDecoder(decoder.network, decoder.layout, decoder.observed, decoder.scale, noise)


@dataclass(frozen=True)
class CalibrationWindows:
    """Members and truth of validation windows, at the points of the first channel that mostly have values.

    Attributes:
        location, scale: m and s, (N, W, L, P).
        truth: Transformed amounts, (W, L, P).
        points: (P, 2) [degrees].
        weight: Weights, (P).
        seed: Generator's seed of the draws.
    """

    location: Tensor
    scale: Tensor
    truth: Tensor
    points: Tensor
    weight: Tensor
    seed: int

    @classmethod
    def of(
        cls, decoder: AmountDecoder, days: AmountDays, held: Sequence[Posteriors], name: str
    ) -> "CalibrationWindows":
        """The windows of posterior draws; arguments of `calibrated`."""
        rng, truth = seeded(days.model.recipe, "calibration"), days.physical(name)
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for each in held:
            for window, rows in enumerate(each.rows):
                z = days.latents(each.coefficients[:, window], rng)
                found = decoder.parameters(z, days.phase[rows], days.seen_along(each, window))
                for kept, x in zip(parts, (*found, truth[rows][None]), strict=True):
                    kept.append(x[:, :, 0].flatten(2))
        location, scale, y = (torch.stack(part, 1) for part in parts)
        known = (torch.isfinite(y).float().mean((0, 1, 2)) > 0.5).nonzero().squeeze(-1)
        layout = decoder.layout
        return cls(
            location[..., known],
            scale[..., known],
            y[0][..., known],
            layout.points()[known],
            layout.weights().flatten()[known],
            days.model.recipe.seed,
        )

    def amounts(self, decoder: AmountDecoder, noise: Noise, days: slice) -> tuple[Tensor, Tensor]:
        """Members (N, W, D, P) and truth (W, D, P) above the bound, in the unit of the files."""
        location, scale = (x[:, :, days] for x in (self.location, self.scale))
        count, windows, length = location.shape[:3]
        field = space_time_normal(
            self.points, length, count * windows,
            length=noise.length, time=noise.time, nugget=noise.nugget, rng=self.seed,
        ).reshape(location.shape)  # fmt: skip
        u = location + scale * field
        x = decoder.scale.excess(decoder.scale.values(u))
        return x, decoder.scale.excess(self.truth[:, days])


def nearest(points: Tensor, weight: Tensor, rng: torch.Generator) -> list[Tensor]:
    """The 9 and the 81 nearest points of some points drawn by weight, each among its own, (n, 9) and (n, 81).

    Where there are fewer points, all of them.
    """
    some = torch.multinomial(weight, min(_CENTRES, int((weight > 0).sum())), generator=rng)
    order = great_circle(points[some], points).argsort(1)
    return [order[:, :count] for count in _AREAS]
