"""Langevin chains from the forecast's members to the posterior."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.score.ensemble_score import FittedScore, Frame
from slams.assimilation.score.likelihood import Likelihood
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.random import Rng, normal, uniform
from slams.diffusion.divergence import LARGEST, extent

_LONGEST = 3.0  # h, over which members forget 95 % of where they were
_SEEN = 1e-3  # least precision of a posterior, in units of the forecast's
_GOAL = 0.6  # acceptance at which adjusted Langevin chains move fastest, 0.574 with many variables


@dataclass(frozen=True)
class Tempering:
    """Chains through p(z) p(y | z)^beta, beta from 0 to 1, preconditioned and of adapted step.

    The stages of beta follow from the members: each is as far as the weights p(y | z)^(difference) leave `spread` of them
    effective. With `resample` members are first drawn by these weights, which moves probability between peaks that no
    chain can cross in the time. Then come blocks of `block` steps, with V the variances of the Gaussian posterior,

        x <- x + a V grad log p + (a (2 - a) V)^1/2 w,    a = 1 - e^-h,

    which of a Gaussian of variance V is the exact motion over a time h. Where the density is known steps are accepted or
    not (Metropolis), h adapted to an acceptance of 0.6; elsewhere h is limited by the largest curvature. At beta = 1
    blocks go on until the members have forgotten where the stage began, or `longest` are done.

    With `matched` the noise of each step has over the members mean 0, covariance 1 and, where they are enough, no
    correlation with them: of a Gaussian posterior the ensemble then has the first two moments without sampling error,
    whose sum over analyses loses the track where members are few.

    Attributes:
        spread: Share of effective members at each stage.
        resample: Whether to draw members by weight between stages.
        block: Steps of a block, and of a stage below beta = 1.
        longest: Blocks at beta = 1.
        stages: Most stages; the last is beta = 1 in any case.
        forgotten: Correlation, averaged over directions, of members with the start of the stage that counts as none.
        step: First h.
        matched: Whether the noise of the members has the moments of its law.
        noise: False climbs to the largest density, without noise.

    Source:
        Ding et al. (2024), arXiv:2411.13443, algorithm 2, for the tempering; resampling: Del Moral, Doucet & Jasra
        (2006), doi:10.1111/j.1467-9868.2006.00553.x; adjusted steps: Roberts & Tweedie (1996), doi:10.2307/3318418;
        noise of given moments: Pham (2001), doi:10.1175/1520-0493(2001)129<1194:SMFSDA>2.0.CO;2, appendix.
    """

    spread: float = 0.5
    resample: bool = True
    block: int = 6
    longest: int = 8
    stages: int = 30
    forgotten: float = 0.2
    step: float = 0.3
    noise: bool = True
    matched: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.spread < 1 or min(self.block, self.longest, self.stages) < 1 or not self.step > 0:
            raise InvalidValueError(
                f"needs spread in (0, 1), counts of at least 1 and a positive step, got {self}."
            )

    def run(
        self, x: Tensor, target: "ChainTarget", carry: dict[str, Tensor], rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Members (*B, N, r) to draws of the posterior, and diagnostics (*B)."""
        beta, h = torch.zeros_like(x[..., 0, 0]), carry.get("step", torch.full_like(x[..., 0, 0], self.step))
        count = torch.zeros_like(beta)
        weigh = self.noise and target.draws
        for stage in range(1, self.stages + 1):
            ell = target.likelihood.gradient(x)[0]
            if not bool(torch.isfinite(ell).all()):
                raise NonFiniteError(
                    "the likelihood of a member is not finite; check the operator, or bound the state."
                )
            new = self._next(ell, beta) if weigh and stage < self.stages else torch.ones_like(beta)
            if weigh and self.resample:
                x = _resampled(x, (new - beta).unsqueeze(-1) * ell, rng)
            count += beta < 1
            beta = new
            if bool((beta >= 1).all()):
                break
            x, h, _ = self._moved(x, target.at(beta), h, rng, f"stage {stage}")
        start, post = x, target.at(torch.ones_like(beta))
        for block in range(1, self.longest + 1):
            x, h, accepted = self._moved(x, post, h, rng, f"block {block} of the last stage")
            memory = _correlation(start, x)
            if self.noise and bool((memory < self.forgotten).all()):
                break
        # a chain that ran away would leave its replicate without a step in all analyses to come
        carry["step"] = torch.where(torch.isfinite(h), h, self.step)
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

    def _moved(
        self, x: Tensor, at: "Tempered", h: Tensor, rng: Rng, where: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block: members, the step for the next, and the share accepted."""
        adjusted = at.log_prob is not None and self.noise
        if not adjusted:
            # at 1, a Gaussian's, any step will do; in stiffer directions a / (2 - a) of the excess is the bias
            h = torch.minimum(h, -torch.log1p(-0.95 / (1 + 4 * (_stiffness(x, at, rng) - 1))))
        a = -torch.expm1(-h)[..., None, None]
        root, width = at.variances.sqrt(), (a * (2 - a)).sqrt()
        slope = at.score(x)
        # proposals that are not finite are only rejected: without a score no member would move, without a word
        _refuse_diverged(x, slope, where)
        density = at.log_prob(x) if adjusted and at.log_prob is not None else None
        accepted = torch.zeros_like(h)
        for _ in range(self.block):
            ahead = x + a * at.variances * slope
            if not self.noise:
                x, slope = ahead, at.score(ahead)
                continue
            w = _noise(x, rng) if self.matched else normal(x.shape, like=x, rng=rng)
            ahead = ahead + width * root * w
            there = at.score(ahead)
            if density is None or at.log_prob is None:
                x, slope = ahead, there
                continue
            back = w + a / width * root * (slope + there)
            reached = at.log_prob(ahead)
            ratio = reached - density + 0.5 * (w.square() - back.square()).sum(-1)
            move = _uniform(ratio, rng).log() < ratio
            x, slope = (torch.where(move.unsqueeze(-1), n, o) for n, o in ((ahead, x), (there, slope)))
            density = torch.where(move, reached, density)
            accepted += move.to(x.dtype).mean(-1) / self.block
        _refuse_diverged(x, slope, where)
        if not adjusted:
            return x, (1.2 * h).clamp(max=_LONGEST), torch.ones_like(h)
        return x, (h * (2 * (accepted - _GOAL)).exp()).clamp(1e-6, _LONGEST), accepted


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
        self, x: Tensor, target: "ChainTarget", carry: dict[str, Tensor], rng: Rng
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
                _refuse_diverged((state - frame.mean) @ inverse, slope, f"stage {stage + 1}")
                size = slope.square().mean(-1, keepdim=True).sqrt()
                slope = slope * (self.clip / size.clamp(min=self.clip))
                state = keep * state + drift * slope + width * normal(state.shape, like=state, rng=rng)
        x = (state - frame.mean) @ inverse
        memory = _correlation(start, x)
        return x, {"correlation": memory, "mixed": (memory < 0.2).to(x.dtype)}


@dataclass(frozen=True)
class ChainTarget:
    """Prior, likelihood and the curvature of the Gaussian posterior, in working coordinates.

    Attributes:
        prior: The forecast's score.
        likelihood: Likelihood in working coordinates.
        frame: Frame of the working coordinates.
        slopes: Curvature of the likelihood along each, by regression over the ensemble, (*B, r).
        draws: Whether members are draws of the prior.
    """

    prior: FittedScore
    likelihood: "FrameLikelihood"
    frame: Frame
    slopes: Tensor
    draws: bool

    def at(self, beta: Tensor) -> "Tempered":
        """The posterior with the likelihood to the power beta, (*B)."""
        wide, prior = beta[..., None, None], self.prior
        precision = prior.precision + wide * self.slopes.unsqueeze(-2)
        # without a prior, directions that observations hardly see have no posterior: members stay there
        variances = torch.where(precision > _SEEN, 1 / precision.clamp(min=_SEEN), 0.0)
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


def _refuse_diverged(x: Tensor, slope: Tensor, where: str) -> None:
    """Stops chains whose members, in deviations of the forecast, or score are not finite or beyond all use."""
    if bool(x.abs().amax() <= LARGEST) and math.isfinite(slope.sum()):
        return
    raise NonFiniteError(
        f"the chains diverged in {where}: members are {extent([x])} deviations of the forecast, the score of forecast "
        f"and likelihood {extent([slope])}; usual causes: a score network that is not trained or takes other units than "
        "the state's, a step that is too long, an operator whose gradient overflows."
    )


def _noise(x: Tensor, rng: Rng) -> Tensor:
    """N(0, 1) given that the mean over members is 0, the covariance 1, and the correlation with x none, (*B, N, r).

    With 2 r + 1 members or fewer the last is left out, with r + 1 or fewer the covariance as well: there is no room.
    """
    w = normal(x.shape, like=x, rng=rng)
    w = w - w.mean(-2, keepdim=True)
    size, r = x.shape[-2:]
    if size <= r + 1:
        return w * math.sqrt(size / (size - 1))
    if size > 2 * r + 1:
        A = x - x.mean(-2, keepdim=True)
        gram = A.mT @ A
        largest = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None].clamp(min=1e-30)
        # directions that no member varies in have nothing to solve for
        ridge = 10 * torch.finfo(x.dtype).eps * largest
        regular = gram + ridge * torch.eye(r, dtype=x.dtype, device=x.device)
        w = w - A @ torch.linalg.solve_ex(regular, A.mT @ w)[0]
    # unchecked: a chain that ran away shows in the members, where `Filter` names it
    L = torch.linalg.cholesky_ex(w.mT @ w / (size - 1))[0]
    return torch.linalg.solve_triangular(L, w.mT, upper=False).mT


def _uniform(like: Tensor, rng: Rng) -> Tensor:
    """Draws of the shape of `like`, in [0, 1)."""
    return uniform(like.shape, like=like, dtype=like.dtype, rng=rng)


def _resampled(x: Tensor, log_weights: Tensor, rng: Rng) -> Tensor:
    """Members drawn by weight, systematically: each is drawn the whole part of its expected number at least."""
    size = x.shape[-2]
    cdf = log_weights.softmax(-1).cumsum(-1)
    shift = _uniform(cdf[..., :1], rng)
    places = (torch.arange(size, dtype=x.dtype, device=x.device) + shift) / size * cdf[..., -1:]
    index = torch.searchsorted(cdf, places).clamp(max=size - 1)
    return x.gather(-2, index.unsqueeze(-1).expand_as(x))


def _correlation(start: Tensor, end: Tensor) -> Tensor:
    """Correlation over members of where they were and are, averaged over all directions, 0 where none varies, (*B)."""
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
