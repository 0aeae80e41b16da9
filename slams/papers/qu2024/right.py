"""Right mode: observations of the decoded state, ensembles, and the methods they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slams.core.random import fork, normal
from slams.diffusion.sampler import Sampler
from slams.evaluation.metrics import fair_crps
from slams.papers.qu2024.archive import STATE, Truths
from slams.papers.qu2024.chain import ChainPosterior
from slams.papers.qu2024.observing import LocalGaussian, operator
from slams.papers.qu2024.plan import MODELS, Qu2024Plan, Setting
from slams.papers.qu2024.prior import ModelPrior

ENDS = (0.05, 30.0)  # alpha / sigma at both ends of a draw

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

    def part(self, row: int) -> "Seen":
        """Those of one trajectory."""
        here = slice(row, row + 1)
        return replace(self, y=self.y[here], others={name: x[here] for name, x in self.others.items()})


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

    def pulled(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Information M (T, K, K) and G^T R^-1 y (R, T, K) of all observations.

        All trajectories must be observed at the same places.
        """
        count, steps = seen.y.shape[:2]
        patterns = self.prior.basis.shape[1]
        information, pulled = torch.zeros(steps, patterns, patterns), torch.zeros(count, steps, patterns)
        for g, variance, y in self._linear(seen):
            here = torch.isfinite(y)
            for day in range(steps):
                used = here[:, day].all(0)
                if bool(used.any()):
                    part = g[used] / variance[used, None]
                    information[day] += g[used].mT @ part
                    pulled[:, day] += y[:, day][:, used] @ part
        return information, pulled

    def _linear(self, seen: Seen) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Operator on patterns (P, K), error variances (P) and values (R, T, P) of each modality."""
        levels, points = seen.y.shape[2:]
        cells = self.prior.operators[STATE].unflatten(0, (levels, -1))
        _, among = self.local.covariances(seen.setting.name, seen.h)
        left = self.factors[STATE] * among.diagonal(dim1=1, dim2=2)
        found = [((seen.h @ cells).flatten(0, 1), (left + seen.setting.std**2).flatten(), seen.y.flatten(2))]
        for name, value in seen.others.items():
            width = len(self.local.lon)
            rest = self.factors[name] * self.prior.rest[name].repeat_interleave(width, 1)
            found.append((self.prior.operators[name], rest.flatten(), value.flatten(2)))
        return found

    @torch.no_grad()
    def draws(
        self,
        seen: Seen,
        members: int,
        *,
        seed: int,
        steps: int | None = None,
        label: tuple[str | int, ...] = (),
    ) -> Tensor:
        """Members (R, N, T, C, H, W) of the analysis.

        Args:
            seen: Observations.
            members: N.
            seed: Seed of the run.
            steps: Steps of the sampler with the network; the exact posterior of the closed form if None.
            label: Purpose of the random numbers.
        """
        information, pulled = self.pulled(seen)
        rng = fork(seed, "right", *label)
        chain, count = self.prior.chain, len(pulled)
        if steps is None:
            _, a = chain.draws(chain.precision(pulled.shape[1], information), pulled, members, rng=rng)
            x = (a @ self.prior.operators[STATE].mT).unflatten(-1, self.local.std.shape)
        else:
            denoiser = ChainPosterior(
                self.prior.denoiser, chain, information, pulled, network=not self.prior.idle
            )
            sampler = Sampler(steps, order=2 if steps > 1 else 1, time_grid="snr", ends=ENDS)
            noise = normal((count * members, pulled.shape[1], *self.prior.codec.event), rng=rng)
            a = (sampler(denoiser, noise).flatten(2) @ self.prior.basis).unflatten(0, (count, members))
            x = self.prior.decoded(a, STATE).flatten(-2)
        x = self._with_rest(x, seen, rng)
        mean = x.mean(1, keepdim=True)
        height = len(self.local.lat)
        return (mean + self.inflation * (x - mean)).unflatten(-1, (height, -1))

    def _with_rest(self, x: Tensor, seen: Seen, rng: torch.Generator) -> Tensor:
        """Members (R, N, T, C, H W) with what the patterns leave, given the members and the observations.

        Its mean follows the observations; deviations from it are drawn cell by cell, with the right variance at each.
        """
        gain, left = self.local.posterior(
            seen.setting.name, seen.h, torch.full((x.shape[3],), seen.setting.std**2)
        )
        variance = self.local.std.square().expand(x.shape[2:]).clone()
        frames = torch.isfinite(seen.y).flatten(2).all(2).all(0).nonzero().flatten().tolist()
        for day in frames:
            departure = seen.y[:, None, day] - x[:, :, day] @ seen.h.mT
            x[:, :, day] += torch.einsum("cxp,rncp->rncx", gain, departure)
            variance[day] = left
        return x + variance.sqrt() * normal(x.shape, like=x, rng=rng)


def interpolated(
    climate: LocalGaussian, seen: Seen, members: int, between: Sequence[float], *, every: int, seed: int
) -> Tensor:
    """Optimal interpolation of the frames, linear in time between them: members (R, N, T, C, H, W).

    Args:
        climate: Anomalies as fields with one correlation length.
        seen: Observations.
        members: N.
        between: Variance on days at a distance of 1, 2, … from the nearest frame, as a share of the climate's.
        every: Days from one frame to the next.
        seed: Seed of the run.
    """
    count, steps, levels = seen.y.shape[:3]
    gain, left = climate.posterior(seen.setting.name, seen.h, torch.full((levels,), seen.setting.std**2))
    frames = list(range(0, steps, every))
    at = torch.einsum("cxp,rfcp->rfcx", gain, seen.y[:, frames])
    mean, variance = torch.empty(count, steps, *left.shape), torch.empty(steps, *left.shape)
    for day in range(steps):
        before = min(day // every, len(frames) - 1)
        after = min(before + 1, len(frames) - 1)
        share = (day - frames[before]) / every if after > before else 0.0
        mean[:, day] = torch.lerp(at[:, before], at[:, after], share)
        near = min(day - frames[before], frames[after] - day if after > before else day - frames[before])
        variance[day] = left if near == 0 else between[min(near, len(between)) - 1] * climate.std.square()
    noise = normal((count, members, *mean.shape[1:]), rng=fork(seed, "interpolation", seen.setting.name))
    return (mean[:, None] + variance.sqrt() * noise).unflatten(-1, (len(climate.lat), -1))


def climatological(climate: LocalGaussian, truths: Truths, members: int, *, seed: int) -> Tensor:
    """The climatological normal of each cell: members (R, N, T, C, H, W)."""
    shape = truths.anomalies[STATE].shape
    noise = normal((shape[0], members, *shape[1:]), rng=fork(seed, "climatology"))
    return noise * climate.std.unflatten(-1, (len(climate.lat), -1))


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
            for row in range(len(exact)):  # one at a time, which bounds the memory
                x = one.draws(seen.part(row), members, seed=plan.seed, label=("calibration", row))[0]
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
