"""Right mode: observations of the decoded state, ensembles, and the methods they are compared with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.core.random import fork, normal
from slams.diffusion.guidance.base import pulled_misfit
from slams.diffusion.guidance.trajectory import TrajectoryGuided
from slams.diffusion.sampler import Sampler, ends_for
from slams.diffusion.trajectory_gaussian import solved
from slams.evaluation.metrics import fair_crps
from slams.observation.observation import Observation, Observations
from slams.papers.qu2024.archive import STATE, Truths
from slams.papers.qu2024.observing import LocalGaussian, operator
from slams.papers.qu2024.plan import MODELS, Qu2024Plan, Setting
from slams.papers.qu2024.prior import ModelPrior

# Of models with auxiliary modalities: what is observed of these.
VARIANTS = ("observed", "every day", "dropped", "shuffled")


@dataclass(frozen=True)
class Seen:
    """Observations of the test trajectories.

    Attributes:
        setting: Observing system of the state.
        h: Its operator on one level, (P, H W).
        y: Observed values of the state, (R, T, C, P), NaN on days between frames.
        others: Observed anomalies of the auxiliary modalities, (R, T, C, H W), NaN where unobserved.
    """

    setting: Setting
    h: Tensor
    y: Tensor
    others: Mapping[str, Tensor]


def observe(
    plan: Qu2024Plan, setting: Setting, truths: Truths, model: str, variant: str = "observed"
) -> Seen:
    """Observations with the errors of a setting: the same for all models and variants.

    Args:
        plan: Days observed and seed.
        setting: Observing system of the state.
        truths: Trajectories.
        model: Name of the model, which has the auxiliary modalities.
        variant: Of `VARIANTS`: auxiliary modalities on frames, every day, not at all, or those of another trajectory.
    """
    h = operator(setting, truths.weights)
    exact = truths.anomalies[STATE].flatten(3) @ h.mT
    error = normal(exact.shape, like=exact, rng=fork(plan.seed, "errors", setting.name))
    unseen = torch.ones(plan.length, dtype=torch.bool)
    unseen[plan.frames] = False
    y = (exact + setting.std * error).masked_fill(unseen[:, None, None], torch.nan)
    others = {}
    for name in MODELS[model][1:] if variant != "dropped" else ():
        value = truths.anomalies[name].flatten(3).clone()
        if variant == "shuffled":
            value = value.roll(len(value) // 2, 0)
        if variant != "every day":
            value[:, unseen] = torch.nan
        others[name] = value
    return Seen(setting, h, y, others)


@dataclass(frozen=True)
class Analyst:
    """A model's analyses under one setting, by the network or in closed form.

    Attributes:
        prior: The model.
        local: What its patterns leave of the state.
        factors: Factor on the variance of what patterns leave, as error of an observation, by modality.
        inflation: Factor on the members' deviations.
    """

    prior: ModelPrior
    local: LocalGaussian
    factors: Mapping[str, float]
    inflation: float = 1.0

    @classmethod
    def of(cls, prior: ModelPrior, truths: Truths, kind: str) -> "Analyst":
        """With the calibration of a kind of setting."""
        length = prior.facts["length"]
        local = LocalGaussian(truths.lat, truths.lon, length, prior.rest[STATE])
        calibrated = prior.facts["calibrated"][kind]
        return cls(prior, local, calibrated["factors"], calibrated["inflation"])

    def _seen(self, seen: Seen) -> tuple[Observations, dict[str, Tensor]]:
        """Observations of the coefficients, (R, T, P) by modality, and their operators G (P, K).

        What patterns leave is an error of the observation.
        """
        levels = seen.y.shape[2]
        cells = self.prior.operators[STATE].unflatten(0, (levels, -1))
        _, among = self.local.covariances(seen.setting.name, seen.h)
        left = self.factors[STATE] * among.diagonal(dim1=1, dim2=2)
        parts = {STATE: ((seen.h @ cells).flatten(0, 1), (left + seen.setting.std**2).flatten(), seen.y)}
        for name, value in seen.others.items():
            rest = self.factors[name] * self.prior.rest[name].repeat_interleave(len(self.local.lon), 1)
            parts[name] = self.prior.operators[name], rest.flatten(), value
        found = {}
        for name, (g, variance, value) in parts.items():
            some = value.flatten(2)
            ever = torch.isfinite(some).any(0).any(0)  # rain is seen over land alone
            parts[name] = g[ever], variance[ever], some[..., ever]
            found[name] = Observation(
                parts[name][2], partial(_product, parts[name][0]), Diagonal(parts[name][1])
            )
        return Observations(found), {name: part[0] for name, part in parts.items()}

    @torch.no_grad()
    def coefficients(
        self, seen: Seen, members: int, *, seed: int, steps: int | None, label: Sequence[str | int]
    ) -> Tensor:
        """Members (R, N, T, K) of the analysis within the patterns; see `draws`."""
        observations, jacobians = self._seen(seen)
        prior = self.prior.trajectories(seen.y.shape[1], network=steps is not None)
        guided = TrajectoryGuided(prior, prior.gaussian, observations, jacobians)
        rng = fork(seed, "right", *label)
        noise = normal((members, *seen.y.shape[:2], *prior.event), rng=rng)
        if steps is not None:
            ends = ends_for(prior.gaussian.window)
            sampler = Sampler(steps, order=2 if steps > 1 else 1, time_grid="snr", ends=ends)
            return sampler(guided, noise).transpose(0, 1)
        pulled = pulled_misfit(prior.gaussian, guided.observations, guided.fits, torch.zeros_like(noise[:1]))
        factor = prior.gaussian.factor(information=guided.information[0])
        white = noise.double().movedim((2, 3), (0, 1))
        around = factor.coloured(white.flatten(2)).reshape(white.shape).movedim((0, 1), (2, 3))
        return (solved(factor, pulled.double()) + around).to(noise).transpose(0, 1)

    @torch.no_grad()
    def draws(
        self,
        seen: Seen,
        members: int,
        *,
        seed: int,
        steps: int | None = None,
        label: tuple[str | int, ...] = (),
    ) -> Iterator[Tensor]:
        """Members (N, T, C, H, W) of the analysis, one trajectory after another, which bounds the memory.

        All trajectories must be observed at the same places.

        Args:
            seen: Observations.
            members: N.
            seed: Seed of the run.
            steps: Steps of the sampler with the network; the exact posterior of the closed form if None or if the
                network is idle.
            label: Purpose of the random numbers.
        """
        if self.prior.idle:
            steps = None
        a = self.coefficients(seen, members, seed=seed, steps=steps, label=label)
        rest = self.local.posterior(
            seen.setting.name, seen.h, torch.full((seen.y.shape[2],), seen.setting.std**2)
        )
        for row, own in enumerate(a):
            if steps is None:
                x = (own @ self.prior.operators[STATE].mT).unflatten(-1, self.local.std.shape)
            else:
                x = self.prior.decoded(own, STATE).flatten(-2)
            x = self._with_rest(x, seen.y[row], seen.h, rest, fork(seed, "rest", *label, row))
            mean = x.mean(0)
            yield (mean + self.inflation * (x - mean)).unflatten(-1, (len(self.local.lat), -1))

    def _with_rest(
        self, x: Tensor, y: Tensor, h: Tensor, rest: tuple[Tensor, Tensor], rng: torch.Generator
    ) -> Tensor:
        """Members (N, T, C, H W) with what the patterns leave, given the members and the observations y (T, C, P).

        Its mean follows the observations by the gain of `rest`; deviations from it are drawn cell by cell, with the right
        variance at each.
        """
        gain, left = rest
        variance = self.local.std.square().expand(x.shape[1:]).clone()
        for day in torch.isfinite(y).flatten(1).all(1).nonzero().flatten().tolist():
            x[:, day] += torch.einsum("cxp,ncp->ncx", gain, y[day] - x[:, day] @ h.mT)
            variance[day] = left
        return x + variance.sqrt() * normal(x.shape, like=x, rng=rng)


def _product(g: Tensor, a: Tensor) -> Tensor:
    return a @ g.mT


def interpolated(
    climate: LocalGaussian, seen: Seen, members: int, between: Sequence[float], *, every: int, seed: int
) -> Iterator[Tensor]:
    """Optimal interpolation of the frames, linear in time between them: members (N, T, C, H, W) of each trajectory.

    Args:
        climate: Anomalies as fields with one correlation length.
        seen: Observations.
        members: N.
        between: Variance on days at a distance of 1, 2, … from the nearest frame, as a share of the climate's.
        every: Days from one frame to the next.
        seed: Seed of the run.
    """
    steps, levels = seen.y.shape[1:3]
    gain, left = climate.posterior(seen.setting.name, seen.h, torch.full((levels,), seen.setting.std**2))
    frames = list(range(0, steps, every))
    for row, y in enumerate(seen.y):
        at = torch.einsum("cxp,fcp->fcx", gain, y[frames])
        mean, variance = torch.empty(steps, *left.shape), torch.empty(steps, *left.shape)
        for day in range(steps):
            before = min(day // every, len(frames) - 1)
            after = min(before + 1, len(frames) - 1)
            share = (day - frames[before]) / every if after > before else 0.0
            mean[day] = torch.lerp(at[before], at[after], share)
            near = min(day - frames[before], frames[after] - day if after > before else day - frames[before])
            variance[day] = left if near == 0 else between[min(near, len(between)) - 1] * climate.std.square()
        noise = normal((members, *mean.shape), rng=fork(seed, "interpolation", seen.setting.name, row))
        yield (mean + variance.sqrt() * noise).unflatten(-1, (len(climate.lat), -1))


def climatological(climate: LocalGaussian, truths: Truths, members: int, *, seed: int) -> Iterator[Tensor]:
    """The climatological normal of each cell: members (N, T, C, H, W) of each trajectory."""
    for row, exact in enumerate(truths.anomalies[STATE]):
        noise = normal((members, *exact.shape), rng=fork(seed, "climatology", row))
        yield noise * climate.std.unflatten(-1, (len(climate.lat), -1))


def calibrated(
    plan: Qu2024Plan, prior: ModelPrior, settings: Sequence[Setting], truths: Truths, *,
    tried: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Factors on errors and the members' inflation for each kind of setting, by the closed form on validation days.

    Factors have the best CRPS, one modality after another; the inflation is error over spread.

    Args:
        plan: Observed days, ensemble size and seed.
        prior: The model, with the length of what its patterns leave in its facts.
        settings: One setting of each kind.
        truths: Validation trajectories.
        tried: Factors.
    """
    found: dict[str, dict[str, Any]] = {}
    members = plan.right.members
    exact = truths.anomalies[STATE]
    for setting in settings:
        seen = observe(plan, setting, truths, prior.name)
        local = LocalGaussian(truths.lat, truths.lon, prior.facts["length"], prior.rest[STATE])

        def score(one: Analyst, seen: Seen = seen) -> tuple[float, float]:
            """CRPS, and error over spread, on average over the trajectories."""
            total, error, spread = 0.0, 0.0, 0.0
            for row, x in enumerate(one.draws(seen, members, seed=plan.seed, label=("calibration",))):
                total += float(fair_crps(x, exact[row]).mean()) / len(exact)
                own = float(x.var(0).mean())
                error += float((x.mean(0) - exact[row]).square().mean()) - own / members
                spread += own
            return total, error / spread

        best = Analyst(prior, local, dict.fromkeys(MODELS[prior.name], 1.0))
        for name in MODELS[prior.name]:
            trials = [replace(best, factors={**best.factors, name: float(f)}) for f in tried]
            best = min(trials, key=lambda one: score(one)[0])
        inflation = min(max(score(best)[1], 0.5), 2.5) ** 0.5
        found[setting.kind] = {"factors": dict(best.factors), "inflation": inflation}
    return found
