"""The reference analyses, each a method with one verb: `moments(observations)`.

A baseline is a class of `BASELINES`: the test of a run scores it, and `slams assimilate --baselines` writes its members.
"""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.random import fork, normal
from slams.diffusion.trajectory import MarkovBlanket
from slams.pipeline.baselines.fit import (
    Baselines,
    at_channel,
    fit_interpolation,
    regressors,
    retrained_ridge,
    split,
)
from slams.pipeline.inputs.fields import phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.segments import Segment, seen_on
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.exact import exact_moments, latent_gaussian
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded
from slams.pipeline.model.spread import factor_of

Observed = Mapping[str, Tensor]
Moments = dict[str, tuple[Tensor, Tensor]]


class Days(Protocol):
    """Training and validation anomalies for fitting a baseline in the test of a run."""

    @property
    def train(self) -> Anomalies: ...  # noqa: D102

    @property
    def validation(self) -> Anomalies: ...  # noqa: D102

    @property
    def years(self) -> Sequence[np.ndarray]: ...  # noqa: D102


class Baseline(abc.ABC):
    """A reference analysis: mean and standard deviation of the state variables, standardized, point by point.

    Args:
        model: Trained model.
        fitted: Fitted baselines of the run.

    Attributes:
        name: Name in tables and files.
        observes: Whether it uses observations; one that does not is scored once.
        pairs: Whether its fit needs observations and states of the same dates, so that shuffled dates are left out.
        outlives: Whether its fits are stored for `slams assimilate`.
    """

    name: ClassVar[str]
    observes: ClassVar[bool] = True
    pairs: ClassVar[bool] = False
    outlives: ClassVar[bool] = True

    def __init__(self, model: Model, fitted: Baselines) -> None:
        self.model, self.fitted = model, fitted

    @classmethod
    def tuned(
        cls, model: Model, fitted: Baselines, days: Days, label: str, names: Sequence[str]
    ) -> Self | None:
        """The method for one set of observations in the test of a run; None without usable observations."""
        return cls(model, fitted)

    @classmethod
    def kept(cls, model: Model, fitted: Baselines, seen: Observed) -> Self | None:
        """The method for some observations, without training data; None without usable observations."""
        return cls(model, fitted)

    @abc.abstractmethod
    def moments(self, observations: Observed, composed: bool = True) -> Moments:
        """Mean and standard deviation of the state variables, NaN where training had no data.

        Args:
            observations: Anomalies by modality along one trajectory (T, *S); (W, L, *S) if not composed.
            composed: Whether windows are composed along a trajectory.
        """

    def each(self, trajectories: Sequence[Observed], composed: bool) -> Iterable[Moments]:
        """`moments` of every trajectory (T, *S)."""
        return (self.moments(seen) for seen in trajectories)

    def of_record(self, seen: Observed, segments: Sequence[Segment]) -> Moments:
        """`moments` of a record with gaps (T, *S)."""
        return self.moments(seen)


class ClimatologicalNormal(Baseline):
    """The climatological normal of training days at every point."""

    name, observes = "climatology", False

    def moments(self, observations: Observed, composed: bool = True) -> Moments:  # noqa: D102
        days = len(next(iter(observations.values())))
        found = {}
        for name in self.model.states:
            shape = self.model.layouts[name].shape
            zero = torch.zeros(days, *shape)
            std = torch.stack([n.std for n in self.fitted.networks[name]]).reshape(shape)
            found[name] = (zero, std.expand_as(zero))
        return found


class ClosedForm(Baseline):
    """The closed-form Gaussian of the states' own patterns.

    See `slams.assimilation.baseline.gaussian.ClosedFormGaussian`.

    Attributes:
        closed: Gaussian of the values of the state that are present.
        present: Mask of those values among all, (D).
        operators: Linear operators of modalities on its patterns.
        errors: Their error covariances or variances.
    """

    name = "gaussian"

    def __init__(self, model: Model, fitted: Baselines) -> None:
        super().__init__(model, fitted)
        self.closed, self.present = fitted.gaussian, fitted.present
        self.operators, self.errors = fitted.linear(model)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Modalities without a linear operator: in no set, or observed through another operator in the fit."""
        jacobians = self.model.jacobians()
        return [n for n in names if n not in self.operators or len(self.operators[n]) != len(jacobians[n])]

    @classmethod
    def kept(cls, model: Model, fitted: Baselines, seen: Observed) -> Self | None:  # noqa: D102
        method = cls(model, fitted)
        return None if len(method.unknown(seen)) == len(seen) else method

    def exact(self, observations: Observed, composed: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the present values, before the spread is calibrated."""
        return exact_moments(self.model, self.closed, self.operators, self.errors, observations, composed)

    def moments(self, observations: Observed, composed: bool = True) -> Moments:  # noqa: D102
        mean, std = self.exact(observations, composed)
        seen = [n for n, value in observations.items() if bool(torch.isfinite(value).any())]
        sets, rest = self.model.recipe.experiment.sets, self.closed.rest
        factor = factor_of(self.fitted.spreads.get(self.name, {}), sets, seen)
        std = (std.square() + (factor**2 - 1) * (std.square() - rest).clamp(min=0)).sqrt()
        found: Moments = {}
        for name, (own, rows) in split(self.model, self.present).items():
            pair = []
            for part in (mean, std):
                full = torch.full((*part.shape[:-1], len(own)), torch.nan)
                full[..., own] = part[..., rows]
                pair.append(full.reshape(*part.shape[:-1], *self.model.layouts[name].shape))
            found[name] = (pair[0], pair[1])
        return found

    def each(self, trajectories: Sequence[Observed], composed: bool) -> Iterable[Moments]:
        """All windows at once: those with the same observed points share one factorization."""
        if composed:
            return super().each(trajectories, composed)
        stacked = {name: torch.stack([seen[name] for seen in trajectories]) for name in trajectories[0]}
        joint = self.moments(stacked, composed=False)
        return ({n: (m[i], s[i]) for n, (m, s) in joint.items()} for i in range(len(trajectories)))

    def of_record(self, seen: Observed, segments: Sequence[Segment]) -> Moments:  # noqa: D102
        ignored = self.unknown(seen)
        known = {n: v for n, v in seen.items() if n not in ignored}
        found: Moments = {}
        for n in self.model.states:
            blank = torch.full((len(next(iter(seen.values()))), *self.model.layouts[n].shape), torch.nan)
            found[n] = (blank, blank.clone())
        for segment in segments:
            for n, pair in self.moments(seen_on(segment, known)).items():
                for whole, part in zip(found[n], pair, strict=True):
                    whole[segment.days] = part[segment.keep]
        return found


class LatentGaussian(ClosedForm):
    """The closed form of the latent prior: patterns, operators and errors of the analysis, without its network.

    With a ~ N(0, C) the coefficients of the latents' patterns over a window and the decoders linearized on them, the
    state is x = G a + e, where e has the variance of the linearized decoders' residuals, and a modality y_m = G_m a + r,
    where r has the calibrated error of the analysis. Mean and standard deviation of x are exact.
    """

    name = "latent_gaussian"

    def __init__(self, model: Model, fitted: Baselines) -> None:
        Baseline.__init__(self, model, fitted)
        self.closed, self.present = latent_gaussian(model)
        self.operators, self.errors = model.jacobians(), model.errors()


class Interpolation(Baseline):
    """Optimal interpolation of direct measurements, day by day; climatology without observations."""

    name, pairs = "interpolation", True

    def __init__(
        self, model: Model, fitted: Baselines, interpolators: Mapping[str, AnomalyInterp] | None = None
    ) -> None:
        super().__init__(model, fitted)
        self.interpolators = dict(interpolators or {})

    @classmethod
    def tuned(
        cls, model: Model, fitted: Baselines, days: Days, label: str, names: Sequence[str]
    ) -> Self | None:
        """The fit on validation days, once for all sets that measure a variable by the same modalities."""
        known = {(n, tuple(f.ratios)): f for (_, n), f in fitted.interpolators.items()}
        std = {n: s.std for n, s in model.codec.statistics.items()}
        for name, direct in _direct(model, names).items():
            if (name, direct) not in known:
                validation = days.validation
                subset = torch.arange(0, len(validation[name]), max(1, len(validation[name]) // 60))
                # windows of one day, all of them observed
                seen = observe(model.layouts, model.recipe, validation, direct, days=subset[:, None], std=std)
                days_seen = {n: value[:, 0] for n, value in seen.items()}
                known[name, direct] = fit_interpolation(
                    model, fitted.networks, name, days_seen, validation[name][subset]
                )
            fitted.interpolators[label, name] = known[name, direct]
        return cls(model, fitted, {n: known[n, d] for n, d in _direct(model, names).items()})

    @classmethod
    def kept(cls, model: Model, fitted: Baselines, seen: Observed) -> Self | None:
        """The fit on the set nearest to the observed one, with the other sets' ratios for missing modalities."""
        found = {}
        for name, direct in _direct(model, [m for m in seen if m in fitted.networks]).items():
            fits = [fit for (_, variable), fit in fitted.interpolators.items() if variable == name]
            ratios = {m: r for fit in fits for m, r in fit.ratios.items()}
            if set(ratios) & set(direct):
                nearest = min(fits, key=lambda fit: len(set(fit.ratios) ^ set(direct)))
                ratios |= nearest.ratios
                found[name] = AnomalyInterp(nearest.length, {m: ratios[m] for m in direct if m in ratios})
        return cls(model, fitted, found) if found else None

    def moments(self, observations: Observed, composed: bool = True) -> Moments:  # noqa: D102
        found = {}
        for name, interpolator in self.interpolators.items():
            used = {m: observations[m] for m in interpolator.ratios}
            if any(bool(torch.isfinite(v).any()) for v in used.values()):
                found[name] = self._interpolated(name, interpolator, used)
            else:
                found[name] = ClimatologicalNormal(self.model, self.fitted).moments(used)[name]
        return found

    def _interpolated(self, name: str, interpolator: AnomalyInterp, seen: Observed) -> tuple[Tensor, Tensor]:
        networks, shape = self.fitted.networks, self.model.layouts[name].shape
        pairs = [
            interpolator.analyse(networks[name][channel], *at_channel(networks, seen, channel))
            for channel in range(shape[0])
        ]
        mean, std = (torch.stack(parts, 1).reshape(-1, *shape) for parts in zip(*pairs, strict=True))
        return mean, std


class Regression(Baseline):
    """Ridge regression retrained for one set: the gain from a separate model for each set."""

    name, pairs, outlives = "ridge", True, False
    operators: dict[str, tuple[Tensor, Tensor]]
    names: Sequence[str]

    @classmethod
    def tuned(
        cls, model: Model, fitted: Baselines, days: Days, label: str, names: Sequence[str]
    ) -> Self | None:
        """The regression, for vector latents only, whose observations are few enough."""
        if model.recipe.latent.kind != "vector":
            return None
        method = cls(model, fitted)
        method.names = names
        method.operators = retrained_ridge(model, days.train, days.validation, names, days.years)
        return method

    @classmethod
    def kept(cls, model: Model, fitted: Baselines, seen: Observed) -> None:
        """None: it needs training data."""

    def moments(self, observations: Observed, composed: bool = True) -> Moments:  # noqa: D102
        y, found = regressors(self.model, observations, self.names), {}
        for name, (operator, std) in self.operators.items():
            shape = self.model.layouts[name].shape
            mean = (y @ operator.mT).reshape(-1, *shape)
            found[name] = (self.model.codec.masked(name, mean), std.reshape(shape).expand_as(mean))
        return found


BASELINES: tuple[type[Baseline], ...] = (
    ClimatologicalNormal,
    ClosedForm,
    LatentGaussian,
    Interpolation,
    Regression,
)


def _direct(model: Model, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each state variable, those of the modalities that measure it directly, in the recipe's order."""
    found = {}
    for name in model.states:
        listed = model.recipe.data.direct.get(name, ())
        direct = tuple(m for m in listed if m in names and m not in model.operators)
        if direct:
            found[name] = direct
    return found


def members_of(
    model: Model, method: Baseline, moments: Moments, dates: np.ndarray, seed: int
) -> dict[str, Tensor]:
    """Members (N, T, *S) from standardized marginals, independent in each point."""
    count, phase = model.recipe.assimilation.members, phase_of(dates)
    found = {}
    for name, (mean, std) in moments.items():
        noise = normal((count, *mean.shape), like=mean, rng=fork(seed, method.name, name))
        found[name] = model.codec.possible(name, mean + std * noise, phase)
    return found


@torch.no_grad()
def prior(
    model: Model, segments: Sequence[Segment], dates: np.ndarray, seed: int, progress: Callable[[int], None]
) -> dict[str, Tensor]:
    """Unconditional draws of the latent prior along each run of days, decoded, (N, T, *S) by state."""
    sampler, count, gaussian = model.sda().sampler, model.recipe.assimilation.members, model.prior.gaussian
    rng = fork(seed, "prior")
    phase = phase_of(dates)
    found = {n: torch.empty(count, len(dates), *model.layouts[n].shape) for n in model.states}
    blanket = MarkovBlanket(model.prior.denoiser, gaussian.length)
    for segment in segments:
        noise = normal((count, len(segment.rows), *gaussian.event), like=gaussian.basis, rng=rng)
        z = sampler(blanket, noise, rng=rng, progress=progress)[:, segment.keep]
        for name, members in found.items():
            members[:, segment.days] = decoded(model, z, name, phase[segment.days], rng=rng)
    return found


@torch.no_grad()
def reconstruction(model: Model, values: Observed, dates: np.ndarray) -> dict[str, Tensor]:
    """Reconstruction of the given states by the autoencoder, (1, T, *S) each; NaN on days without data.

    Args:
        model: Trained model.
        values: Anomalies of the modalities in their files, (T, *S).
        dates: Dates (T).
    """
    given = [name for name in model.states if name in values]
    z = model.codec.encode(values) if given else None
    found = {}
    for name in given:
        assert z is not None
        again = decoded(model, z[None], name, phase_of(dates), rng=None, residual=False)
        days = torch.isfinite(values[name]).flatten(1).any(1)
        found[name] = torch.where(days.reshape(-1, *[1] * (values[name].ndim - 1)), again, torch.nan)
    return found
