"""The Gaussian rival of stochastic decoders: amounts as censored normal scores in the closed form of the latent.

The coefficients a of the latent's patterns and the normal scores g of the amount are jointly normal: a given the
observations in closed form, g = G a + B r + e with the residuals r of observed fields on the same grid in the 3 x 3 cells
around. Factors on the observation errors and on the spread of e, and the penalty of the regression, are those with the
best fair CRPS of log(1 + x) on validation windows, for each set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from slams.assimilation.baseline.censored import CensoredRegression
from slams.assimilation.baseline.draws import CoefficientPosterior
from slams.core.normal_scores import NormalScores
from slams.core.random import fork
from slams.data.windows import window_starts
from slams.evaluation.metrics import fair_crps
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.amounts import readable
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model

_PENALTIES = (100.0, 1000.0)
_ERRORS = (0.25, 1.0)  # factors on the calibrated error covariances
_SPREADS = (0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
_WINDOWS, _MEMBERS = 24, 12  # of the choice on validation days
_SIDE = 3  # cells


@dataclass(frozen=True)
class Setting:
    """Choices of one set: the regression's penalty, the factor on errors and that on the spread."""

    penalty: float = 100.0
    errors: float = 1.0
    spread: float = 1.0


@dataclass
class CensoredGaussian:
    """Members of an amount from the closed form.

    Attributes:
        model: Trained model.
        fields: Fields of all days.
        name: Name of the amount.
        settings: Choices by set, as they are made.
    """

    model: Model
    fields: Fields
    name: str
    settings: dict[tuple[str, ...], Setting] = field(default_factory=dict)

    def members(
        self,
        seen: Mapping[str, Tensor],
        days: Tensor,
        setting: Setting,
        members: int,
        *,
        rng: torch.Generator,
    ) -> Tensor:
        """Draws given the observations of windows.

        Args:
            seen: Observed anomalies by modality (W, L, *S).
            days: Rows of the fields' days, (W, L).
            setting: Choices.
            members: Ensemble size N.
            rng: Generator.

        Returns:
            (N, W, L, *S) after the transform, NaN where training had no data.
        """
        errors = {n: setting.errors * e for n, e in self.model.errors().items()}
        jacobians = self.model.jacobians()
        operators = {n: jacobians[n] for n in seen}
        a = self._posterior.draws(self.model.seen(seen, errors), operators, members, rng=rng)
        regression, local, correlation = self._fit(setting.penalty)
        g = a @ regression.operator.mT
        for name in self._local:
            if name in seen:
                residual = seen[name].flatten(2) - a @ jacobians[name].mT
                g = g + self._around(torch.nan_to_num(residual), local[name])
        windows, length = days.shape
        noise = regression.noise(members * windows, length, correlation, rng=rng)
        g = g + setting.spread * noise.reshape(members, windows, length, -1)
        month = self._month(days.flatten())
        values = self._scores.values(g.flatten(1, 2), month).unflatten(1, (windows, length))
        shape = self.model.layouts[self.name].shape
        whole = torch.full((*values.shape[:-1], len(self._present)), torch.nan)
        whole[..., self._present] = values
        return whole.unflatten(-1, shape)

    def along(
        self, seen: Mapping[str, Tensor], days: Tensor, setting: Setting, *, rng: torch.Generator
    ) -> Tensor:
        """As many draws as the recipe has members along a trajectory, each day from the window in whose middle it is.

        Args:
            seen: Observed anomalies by modality (T, *S).
            days: Rows of the fields' days, (T).
            setting: Choices.
            rng: Generator.

        Returns:
            (N, T, *S) after the transform.
        """
        length, count = self.model.recipe.prior.window, self.model.recipe.assimilation.members
        windows = torch.arange(len(days) - length + 1)[:, None] + torch.arange(length)
        x = self.members({n: v[windows] for n, v in seen.items()}, days[windows], setting, count, rng=rng)
        k = length // 2
        return torch.cat([x[:, 0, :k], x[:, :, k], x[:, -1, length - k :]], 1)

    def tuned(self, names: Sequence[str]) -> Setting:
        """The choices for a set of observations, made once on validation windows."""
        key = tuple(names)
        if key not in self.settings:
            recipe = self.model.recipe
            index = self.fields.part(recipe.data.validation)
            starts = window_starts(self.fields.dates[index], recipe.prior.window)
            rows = starts[:: max(1, len(starts) // _WINDOWS)][:_WINDOWS, None] + torch.arange(
                recipe.prior.window
            )
            days = torch.from_numpy(index)[rows]
            values = anomalies(self.model.codec, self.fields, days.flatten().numpy())
            std = {n: s.std for n, s in self.model.codec.statistics.items()}
            where = torch.arange(days.numel()).reshape(days.shape)
            seen = observe(self.model.layouts, recipe, values, names, days=where, std=std)
            truth = self.fields.values[self.name][days]
            weight = torch.where(torch.isfinite(truth), self.model.layouts[self.name].weights(), 0.0)

            def score(setting: Setting) -> float:
                rng = fork(recipe.seed, "censored", *key)
                x = torch.nan_to_num(self.members(seen, days, setting, _MEMBERS, rng=rng))
                return float((weight * fair_crps(x, torch.nan_to_num(truth))).sum())

            found = min((Setting(p, e, 1.2) for p in _PENALTIES for e in _ERRORS), key=score)
            spreads = [Setting(found.penalty, found.errors, s) for s in _SPREADS]
            self.settings[key] = min(spreads, key=score)
        return self.settings[key]

    @cached_property
    def _posterior(self) -> CoefficientPosterior:
        return CoefficientPosterior(self.model.prior.gaussian)

    @cached_property
    def _present(self) -> Tensor:
        return self.model.codec.statistics[self.name].present.flatten()

    @cached_property
    def _rows(self) -> Tensor:
        """Days of the training coefficients that the prior keeps."""
        index = torch.from_numpy(self.fields.part(self.model.recipe.data.train))
        return index[:: max(1, len(index) // 1800)]

    @cached_property
    def _scores(self) -> NormalScores:
        x = self.fields.values[self.name][self._rows].flatten(1)[:, self._present]
        layout = self.model.layouts[self.name]
        latitude = layout.points()[:, 0].repeat(layout.shape[0])[self._present]
        lower = self.model.recipe.modalities[self.name].transformed.lower
        return NormalScores(x, self._month(self._rows), latitude, lower or 0.0)

    @cached_property
    def _local(self) -> tuple[str, ...]:
        return tuple(n for n in readable(self.model.recipe, self.model.layouts, self.name) if n != self.name)

    def _month(self, days: Tensor) -> Tensor:
        dates = self.fields.dates[days.numpy()]
        return torch.from_numpy(dates.astype("datetime64[M]").astype(int) % 12)

    def _fit(self, penalty: float) -> tuple[CensoredRegression, dict[str, Tensor], float]:
        if penalty not in self._fits:
            self._fits[penalty] = self._fitted(penalty)
        return self._fits[penalty]

    @cached_property
    def _fits(self) -> dict[float, tuple[CensoredRegression, dict[str, Tensor], float]]:
        return {}

    def _fitted(self, penalty: float) -> tuple[CensoredRegression, dict[str, Tensor], float]:
        """The regression, the coefficients of local residuals (P, 9) by modality, and e's correlation from day to day."""
        a, month = self.model.prior.statistics["coefficients"], self._month(self._rows)
        x = self.fields.values[self.name][self._rows].flatten(1)[:, self._present]
        rng = fork(self.model.recipe.seed, "censored", "fit")
        found = CensoredRegression.fit(
            a, self._scores.scores(x, month), self._scores.thresholds(month), penalty, rng=rng
        )
        e, local = found.residuals * found.std, {}
        for name in self._local:
            phase = phase_of(self.fields.dates[self._rows.numpy()])
            y = self.model.codec.anomaly(name, self.fields.values[name][self._rows], phase).flatten(1)
            residual = torch.nan_to_num(y - a @ self.model.jacobians()[name].mT)
            patches = self._patches(residual[:, None])[:, 0]  # (n, 9, P)
            gram = torch.einsum("nip,njp->pij", patches, patches)
            gram = gram + 0.02 * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(_SIDE**2)
            cross = torch.einsum("nip,np->pi", patches, e)
            local[name] = torch.linalg.solve(gram, cross[..., None]).squeeze(-1)
            e = e - torch.einsum("nip,pi->np", patches, local[name])
        std = e.square().mean(0).sqrt().clamp(min=0.02)
        rest = CensoredRegression(found.operator, std, e / std)
        step = (self._rows[1:] - self._rows[:-1]).min()
        lagged = float((rest.residuals[1:] * rest.residuals[:-1]).mean())
        return rest, local, max(lagged, 0.0) ** (1 / int(step))

    def _patches(self, x: Tensor) -> Tensor:
        """The 3 x 3 cells around each present cell: fields (*B, L, H W) to (*B, L, 9, P)."""
        layout = self.model.layouts[self.name]
        height, width = layout.shape[1:]
        flat, half = x.reshape(-1, 1, height, width), _SIDE // 2
        flat = F.pad(flat, (half, half, 0, 0), mode="circular" if layout.is_global else "replicate")
        flat = F.pad(flat, (0, 0, half, half), mode="replicate")
        found = F.unfold(flat, _SIDE)[..., self._present]
        return found.reshape(*x.shape[:-1], _SIDE**2, -1)

    def _around(self, residual: Tensor, coefficients: Tensor) -> Tensor:
        """B r of residuals (N, W, L, H W), (N, W, L, P)."""
        each = [torch.einsum("wlip,pi->wlp", self._patches(member), coefficients) for member in residual]
        return torch.stack(each)
