"""The interpolation that every field analysis is compared with: optimal interpolation of anomalies in space alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.geometry.distance import great_circle


@dataclass(frozen=True)
class Network:
    """Points at which one quantity is measured directly.

    Attributes:
        points: (latitude, longitude), (P, 2) [degrees].
        std: Climatological spread of the anomaly at each point, (P).
    """

    points: Tensor
    std: Tensor


@dataclass(frozen=True)
class AnomalyInterp:
    """Optimal interpolation of anomalies, each day and level alone.

    Anomalies in units of their own climatological spread have correlation exp(-(d / length)^2 / 2) at distance d, and
    network m an error of variance ratio_m:  x = B_xo (B_oo + R)^-1 y.

    Attributes:
        length: Correlation length [km].
        ratios: Error variance of each network in units of the anomaly's.
        spread: Factor on the standard deviation, which the correlation model alone gets wrong.

    Source:
        Gandin (1963), Objective analysis of meteorological fields; Daley (1991), chapter 4.
    """

    length: float
    ratios: Mapping[str, float]
    spread: float = 1.0

    def analyse(
        self, target: Network, networks: Mapping[str, Network], values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation at the target.

        Args:
            target: Points of the analysis, P_x.
            networks: Observing networks by name.
            values: Anomalies (n, P_m), NaN where missing, of each network.

        Returns:
            Two tensors (n, P_x).
        """
        names = list(values)
        points = torch.cat([networks[m].points for m in names])
        scaled = torch.cat([values[m] / networks[m].std for m in names], 1)
        ratio = torch.cat([torch.full((len(networks[m].points),), self.ratios[m]) for m in names])
        among = self._correlation(points, points) + torch.diag(ratio)
        across = self._correlation(target.points, points)
        mean = torch.empty(len(scaled), len(target.points))
        std = torch.empty_like(mean)
        patterns, where = torch.isfinite(scaled).unique(dim=0, return_inverse=True)
        for number, seen in enumerate(patterns):
            rows = where == number
            index = seen.nonzero().squeeze(-1)
            gain = torch.linalg.solve(
                among[index][:, index].double(), across[:, index].mT.double()
            ).mT.float()
            mean[rows] = scaled[rows][:, index] @ gain.mT
            std[rows] = (1 - (gain * across[:, index]).sum(-1)).clamp(min=1e-6).sqrt()
        return mean * target.std, self.spread * std * target.std

    def _correlation(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (great_circle(a, b) / self.length) ** 2)

    @classmethod
    def fit(
        cls,
        target: Network,
        truth: Tensor,
        weights: Tensor,
        networks: Mapping[str, Network],
        values: Mapping[str, Tensor],
        *,
        lengths: Sequence[float] = (150, 250, 400, 600, 800, 1000, 1400, 2000),
        ratios: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    ) -> "AnomalyInterp":
        """The length and the ratios with the smallest error on the days given, then the spread.

        Ratios are searched in turn from the largest, for every length.

        Args:
            target: Points of the truth, P_x.
            truth: Anomalies (n, P_x), NaN where not to be scored.
            weights: Area weights (P_x).
            networks: Observing networks by name.
            values: Observed anomalies on those days (n, P_m).
            lengths: Lengths tried [km].
            ratios: Error ratios tried.

        Returns:
            The best.
        """

        def score(candidate: "AnomalyInterp") -> float:
            mean, _ = candidate.analyse(target, networks, values)
            weight = torch.where(torch.isfinite(truth), weights, 0.0)
            return float((weight * (mean - torch.nan_to_num(truth)) ** 2).sum() / weight.sum())

        def tuned(best: "AnomalyInterp") -> "AnomalyInterp":
            for m in values:
                best = min((cls(best.length, {**best.ratios, m: float(r)}) for r in ratios), key=score)
            return best

        # for every length: one that is too long, with errors that are too small, is the best in its neighbourhood
        worst = dict.fromkeys(values, float(max(ratios)))
        best = tuned(min((tuned(cls(float(length), worst)) for length in lengths), key=score))
        mean, std = best.analyse(target, networks, values)
        weight = torch.where(torch.isfinite(truth), weights, 0.0)
        error = (weight * (mean - torch.nan_to_num(truth)) ** 2).sum() / (weight * std**2).sum()
        return cls(best.length, best.ratios, float(error.sqrt()))
