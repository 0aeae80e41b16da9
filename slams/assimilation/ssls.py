"""Sequential Langevin sampling: the score of the forecast ensemble, and chains from its members to the posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slams.assimilation.ensemble_score import EnsembleScore, Frame, KernelScore, NetworkScore, NoScore, Score
from slams.assimilation.ensf import coordinates, refuse_collapsed
from slams.assimilation.filter import Failure, Memory
from slams.assimilation.kalman import Departures, EnsembleKalman
from slams.assimilation.likelihood import Likelihood
from slams.core.random import Rng, normal
from slams.diffusion.langevin import langevin
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_GOAL = 0.6  # acceptance at which adjusted Langevin chains move fastest, 0.574 with many variables


@dataclass(frozen=True)
class Tempering:
    """Chains through p(z) p(y | z)^beta, beta from 0 to 1, preconditioned and of adapted step.

    The stages of beta follow from the members: each is as far as the weights p(y | z)^(difference) leave `spread` of them
    effective. With `resample` members are first drawn by these weights, which moves probability between peaks that no
    chain can cross in the time. Then come blocks of `block` steps: adjusted (MALA) where the density is known, the step
    adapted to an acceptance of 0.6; else unadjusted with the noise of two steps averaged, exact for Gaussians. At
    beta = 1 blocks go on until the members have forgotten where the stage began, or `longest` are done.

    Attributes:
        spread: Share of effective members at each stage.
        resample: Whether to draw members by weight between stages.
        block: Steps of a block, and of a stage below beta = 1.
        longest: Blocks at beta = 1.
        stages: Most stages; the last is beta = 1 in any case.
        forgotten: Correlation, averaged over directions, of members with the start of the stage that counts as none.
        step: First step, in units of the Gaussian posterior's variance in every direction.
        noise: False climbs to the largest density, without noise.

    Source:
        Ding et al. (2024), arXiv:2411.13443, algorithm 2, for the tempering; resampling: Del Moral, Doucet & Jasra
        (2006), doi:10.1111/j.1467-9868.2006.00553.x; averaged noise: Leimkuhler & Matthews (2013),
        doi:10.1093/amrx/abs010.
    """

    spread: float = 0.5
    resample: bool = True
    block: int = 6
    longest: int = 8
    stages: int = 30
    forgotten: float = 0.2
    step: float = 0.3
    noise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.spread < 1 or min(self.block, self.longest, self.stages) < 1 or not self.step > 0:
            raise ValueError(f"needs spread in (0, 1), counts of at least 1 and a positive step, got {self}.")

    def run(
        self, x: Tensor, target: "Target", carry: dict[str, Tensor], rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Members (*B, N, r) to draws of the posterior, and diagnostics (*B)."""
        beta, h = torch.zeros_like(x[..., 0, 0]), carry.get("step", torch.full_like(x[..., 0, 0], self.step))
        count = torch.zeros_like(beta)
        weigh = self.noise and target.draws
        for stage in range(1, self.stages + 1):
            ell = target.likelihood.gradient(x)[0]
            if not bool(torch.isfinite(ell).all()):
                raise FloatingPointError(
                    "the likelihood of a member is not finite; check the operator, or bound the state."
                )
            new = self._next(ell, beta) if weigh and stage < self.stages else torch.ones_like(beta)
            if weigh and self.resample:
                x = _resampled(x, (new - beta).unsqueeze(-1) * ell, rng)
            count += beta < 1
            beta = new
            if bool((beta >= 1).all()):
                break
            x, h, _ = self._moved(x, target.at(beta), h, rng)
        start, post = x, target.at(torch.ones_like(beta))
        for _ in range(self.longest):
            x, h, accepted = self._moved(x, post, h, rng)
            memory = _correlation(start, x)
            if self.noise and bool((memory < self.forgotten).all()):
                break
        carry["step"] = h
        mixed = (memory < self.forgotten).to(x.dtype)
        return x, {"stages": count, "acceptance": accepted, "step": h, "correlation": memory, "mixed": mixed}

    def _next(self, ell: Tensor, beta: Tensor) -> Tensor:
        """The largest beta that leaves enough members effective, by bisection."""
        low, high = beta.clone(), torch.ones_like(beta)
        goal, size = self.spread, ell.shape[-1]

        def enough(value: Tensor) -> Tensor:
            w = ((value - beta).unsqueeze(-1) * ell).softmax(-1)
            return 1 / w.square().sum(-1) >= goal * size

        there = enough(high)
        for _ in range(30):
            middle = (low + high) / 2
            fits = enough(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        # never less than a step that the first bisections can resolve, so that stages end
        return torch.where(there, 1.0, torch.maximum(low, beta + (1 - beta) * 1e-6))

    def _moved(self, x: Tensor, at: "Tempered", h: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """One block: members, the step for the next, and the share accepted."""
        wide = h[..., None, None] * at.variances
        if at.log_prob is not None and self.noise:
            x, accepted = langevin(
                at.score, x, step=wide, count=self.block, batch=x.ndim - 1, log_prob=at.log_prob, rng=rng
            )
            accepted = accepted.mean(-1)
            return x, (h * (2 * (accepted - _GOAL)).exp()).clamp(1e-6, 2.0), accepted
        h = torch.minimum(h, 0.5 / _stiffness(x, at, rng))
        wide = h[..., None, None] * at.variances
        before = normal(x.shape, like=x, rng=rng)
        for _ in range(self.block):
            x = x + wide * at.score(x)
            if self.noise:
                after = normal(x.shape, like=x, rng=rng)
                x = x + (wide / 2).sqrt() * (before + after)
                before = after
        return x, (1.2 * h).clamp(max=max(0.3, self.step)), torch.ones_like(h)


@dataclass(frozen=True)
class Ridge:
    """The released chain: no tempering, no preconditioning, an exponential step with a pull to 0.

    x <- e^(-lambda h) x + h phi(-lambda h) (grad log p(y | x) + S(x)) + (2 h phi(-2 lambda h))^1/2 w,
    phi(q) = (e^q - 1) / q, in units of the state, gradients of a member larger than `clip` in root mean square shortened.
    With h `count` below the posterior's variance the result depends on where the chain began: see "correlation".

    Attributes:
        strength: lambda at first.
        decay: Factor on lambda from stage to stage.
        stages: Stages.
        step: h.
        count: Steps of a stage.
        clip: Largest root mean square of a gradient.

    Source:
        Ding et al. (2024), arXiv:2411.13443, released code.
    """

    strength: float = 1e-3
    decay: float = 0.5
    stages: int = 1
    step: float = 1e-3
    count: int = 500
    clip: float = 10.0

    def run(
        self, x: Tensor, target: "Target", carry: dict[str, Tensor], rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Tempering.run`; works in the span of the ensemble."""
        frame, h = target.frame, self.step
        score = target.at(torch.ones_like(x[..., 0, 0])).score
        inverse = torch.linalg.pinv(frame.W)
        start, state = x, frame.state(x)
        for stage in range(self.stages):
            q = h * self.strength * self.decay**stage
            keep = math.exp(-q)
            drift = -math.expm1(-q) / q * h if q else h
            width = math.sqrt(-math.expm1(-2 * q) / q * h if q else 2 * h)
            for _ in range(self.count):
                # gradients of z are W grad; those of x in the span are recovered with the pseudo-inverse
                slope = score((state - frame.mean) @ inverse) @ inverse.mT
                size = slope.square().mean(-1, keepdim=True).sqrt()
                slope = slope * (self.clip / size.clamp(min=self.clip))
                state = keep * state + drift * slope + width * normal(state.shape, like=state, rng=rng)
        x = (state - frame.mean) @ inverse
        memory = _correlation(start, x)
        return x, {"correlation": memory, "mixed": (memory < 0.2).to(x.dtype)}


@dataclass(frozen=True)
class Target:
    """Prior, likelihood and the curvature of the Gaussian posterior, in working coordinates.

    Attributes:
        prior: The forecast's score.
        likelihood: Of working coordinates.
        frame: What these are.
        slopes: Curvature of the likelihood along each, by regression over the ensemble, (*B, r).
        draws: Whether members are draws of the prior.
    """

    prior: Score
    likelihood: "FrameLikelihood"
    frame: Frame
    slopes: Tensor
    draws: bool

    def at(self, beta: Tensor) -> "Tempered":
        """The posterior with the likelihood to the power beta, (*B)."""
        wide, prior = beta[..., None, None], self.prior
        variances = 1 / (1 + wide * self.slopes.unsqueeze(-2))
        if prior.log_prob is None:
            return Tempered(lambda x: prior.score(x) + wide * self.likelihood.gradient(x)[1], None, variances)
        known: list[Tensor] = []  # the last place with density and slope: asked for one after the other

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            if not known or known[0] is not x:
                density, slope = (
                    prior.both(x) if prior.both else (prior.log_prob(x), prior.score(x))  # type: ignore[misc]
                )
                ell, pull = self.likelihood.gradient(x)
                known[:] = [x, density + beta.unsqueeze(-1) * ell, slope + wide * pull]
            return known[1], known[2]

        return Tempered(lambda x: evaluate(x)[1], lambda x: evaluate(x)[0], variances)


@dataclass(frozen=True)
class Tempered:
    """One stage: score, density if known, and the variances steps are measured in, (*B, 1, r)."""

    score: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None
    variances: Tensor


@dataclass(frozen=True)
class FrameLikelihood:
    """log p(y | mean + z W) and its gradient in z."""

    of: Likelihood
    frame: Frame

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(*B, M, r) -> (*B, M) and (*B, M, r)."""
        ell, slope = self.of.gradient(z @ self.frame.W)
        return ell, slope @ self.frame.W.mT


_SCORES: dict[str, EnsembleScore] = {"kernel": KernelScore(), "network": NetworkScore(), "none": NoScore()}


class SSLS(EnsembleKalman):
    """Langevin chains from the forecast's members, driven by the score of the forecast and of the likelihood.

    Works in the coordinates in which the forecast has covariance 1 and, by regression over the ensemble, the likelihood a
    diagonal curvature; the likelihood itself is that of the operator. A replicate of which nothing is seen, or whose
    score could not be learnt, keeps its forecast.

    Args:
        dynamics: The model.
        score: How the forecast's score is estimated: "kernel", `KernelScore`; "network", `NetworkScore`; "none", no
            prior, as an ablation; or any `EnsembleScore`.
        chain: `Tempering` or `Ridge`; `Tempering(noise=False)` with score "none" is the ensemble of largest likelihood.
        inflation: See `EnsembleKalman`.
        rtps: See `EnsembleKalman`.
        rtpp: See `EnsembleKalman`.
        adaptive: See `EnsembleKalman`.
        rotate: See `EnsembleKalman`.
        failure: See `Filter`.
        bound: See `Filter`.

    Raises:
        ValueError: If the score's name is unknown.

    Source:
        Ding et al. (2024), arXiv:2411.13443.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        score: Literal["kernel", "network", "none"] | EnsembleScore = "kernel",
        chain: Tempering | Ridge = Tempering(),  # noqa: B008
        inflation: float = 1.0,
        rtps: float = 0.0,
        rtpp: float = 0.0,
        adaptive: bool = False,
        rotate: bool = False,
        failure: Failure = "stop",
        bound: float = float("inf"),
    ) -> None:
        super().__init__(
            dynamics,
            inflation=inflation,
            rtps=rtps,
            rtpp=rtpp,
            adaptive=adaptive,
            rotate=rotate,
            failure=failure,
            bound=bound,
        )
        if isinstance(score, str) and score not in _SCORES:
            raise ValueError(
                f"score must be one of {', '.join(_SCORES)}, or an EnsembleScore, got {score!r}."
            )
        self.score = _SCORES[score] if isinstance(score, str) else score
        self.chain = chain

    @torch.no_grad()
    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`.

        Diagnostics (*B): "correlation" of the members at the end with those where the last stage began, "mixed", whether
        it is small, "acceptance", "step" and "stages" of `Tempering`, and those of the score.

        Raises:
            FloatingPointError: If the ensemble has no spread, or the likelihood is not finite.
        """
        A = E - E.mean(-2, keepdim=True)
        refuse_collapsed(A, departures, type(self).__name__, memory.step)
        z, slopes = _turned(coordinates(A), departures.Y)
        W = z.mT @ A / (E.shape[-2] - 1)
        frame = Frame(E.mean(-2, keepdim=True), W)
        prior = self.score.fit(z, frame, memory.carry, rng)
        unit = torch.ones_like(frame.mean)
        likelihood = FrameLikelihood(
            Likelihood(observation, self.dynamics.state_shape, frame.mean, unit), frame
        )
        target = Target(prior, likelihood, frame, slopes, self.score.draws)
        after, diagnostics = self.chain.run(z, target, memory.carry, rng)
        memory.diagnostics |= diagnostics | prior.diagnostics
        moved = torch.ones_like(z[..., 0, 0], dtype=torch.bool) if prior.ready is None else prior.ready
        if departures.seen is not None:
            moved = moved & departures.seen.any(-1)
        return torch.where(moved[..., None, None], E + (after - z) @ W, E)


def _turned(z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in which the regression of Y on z has orthogonal columns, and the squares of these, (*B, r)."""
    G = Y.mT @ z / (z.shape[-2] - 1)
    slopes, Q = torch.linalg.eigh(G.mT @ G)
    return z @ Q, slopes.clamp(min=0)


def _resampled(x: Tensor, log_weights: Tensor, rng: Rng) -> Tensor:
    """Members drawn by weight, systematically: each is drawn the whole part of its expected number at least."""
    size = x.shape[-2]
    cdf = log_weights.softmax(-1).cumsum(-1)
    device = torch.device("cpu") if rng is None else rng.device
    shift = torch.rand((*cdf.shape[:-1], 1), generator=rng, dtype=x.dtype, device=device).to(x)
    places = (torch.arange(size, dtype=x.dtype, device=x.device) + shift) / size * cdf[..., -1:]
    index = torch.searchsorted(cdf, places).clamp(max=size - 1)
    return x.gather(-2, index.unsqueeze(-1).expand_as(x))


def _correlation(start: Tensor, end: Tensor) -> Tensor:
    """Correlation over members of where they were and are, averaged over the directions in which they vary, (*B)."""
    a, b = start - start.mean(-2, keepdim=True), end - end.mean(-2, keepdim=True)
    scale = (a.square().sum(-2) * b.square().sum(-2)).sqrt()
    share = (a * b).sum(-2) / scale.clamp(min=torch.finfo(a.dtype).tiny)
    return share.mean(-1)


def _stiffness(x: Tensor, at: Tempered, rng: Rng) -> Tensor:
    """Largest curvature in units of the step's variances, from differences of scores along a drawn direction, (*B)."""
    root = at.variances.sqrt()
    u = normal(x.shape, like=x, rng=rng)
    u = u / u.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    small = 1e-2
    bend = root * (at.score(x + small * root * u) - at.score(x)) / small
    return (-(bend * u).sum(-1)).amax(-1).clamp(min=1.0)
