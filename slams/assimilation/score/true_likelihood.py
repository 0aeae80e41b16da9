"""Analyses with the likelihood of the operator itself: kernel priors, and many tempered particles for every member."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.score.ensemble_mixture import ONE, candidates, leave_one_out, projection
from slams.assimilation.score.ensemble_score import FittedScore, Frame, kernel_score
from slams.assimilation.score.langevin_chains import ChainTarget, FrameLikelihood, Tempering
from slams.assimilation.score.likelihood import Likelihood
from slams.core.random import Rng, normal, uniform
from slams.observation.observation import Observation

CHAIN = Tempering(block=5, longest=3, matched=False)
_BENT = 1e-2  # in errors of observation: the log-likelihood of a member near the truth changes by as much
_NODES = 1024  # of a tabulated marginal: 5 within the narrowest kernel
_RENEWALS = 30  # of coordinates drawn anew, at least each once
_NEVER = -1e30  # log-likelihood where the operator isn't defined: finite, so that weights are


def bent(x: Tensor, departures: Departures, observation: Observation) -> Tensor:
    """By how much the operator is no straight line over an ensemble, in deviations of the observation errors, (*B).

    |W (h((x_i + x_j) / 2) - (h(x_i) + h(x_j)) / 2)|, W^T W = R^-1, root mean square over pairs of members half
    the ensemble apart; 0 for a linear operator but for rounding, however few members there are.

    Args:
        x: Members, (*B, N, *S).
        departures: What they predict.
        observation: What is seen.
    """
    axis = departures.Y.ndim - 2
    far = max(1, x.shape[axis] // 2 - 1)
    middle = Departures.of((x + x.roll(far, axis)) / 2, observation)
    chord = (departures.Y + departures.Y.roll(far, -2)) / 2
    apart = middle.Y - chord + (departures.d - middle.d).unsqueeze(-2)
    return apart.square().sum(-1).mean(-1).sqrt()


def is_bent(x: Tensor, departures: Departures, observation: Observation) -> Tensor:
    """Which replicates see through an operator that bends by more than rounding and 1 % of an error, (*B)."""
    size = torch.maximum(departures.Y.abs().amax((-2, -1)), departures.d.abs().amax(-1))
    return ~(bent(x, departures, observation) < _BENT + 1e3 * torch.finfo(x.dtype).eps * size)


def weighted_size(departures: Departures) -> Tensor:
    """Effective number of members weighted by their likelihood, 1 / sum_j w_j^2, (*B)."""
    fit = (departures.Y * (departures.d.unsqueeze(-2) - 0.5 * departures.Y)).sum(-1)
    return 1 / fit.softmax(-1).square().sum(-1)


@dataclass(frozen=True)
class KernelPrior:
    """A forecast as a density in coordinates of its own.

    Attributes:
        frame: The coordinates.
        z: Members in them, (*B, N, r).
        centres: Of their kernels, (*B, N, r).
        score: The density.
        widths: Of kernels, (*B, 1) or (*B, r) where every coordinate has its own.
        fit: Log-likelihood of members given the others, with that of the coordinates, (*B).
        product: Whether coordinates are independent.
    """

    frame: Frame
    z: Tensor
    centres: Tensor
    score: FittedScore
    widths: Tensor
    fit: Tensor
    product: bool

    def draws(self, copies: int, rng: Rng) -> Tensor:
        """`copies` N draws, (*B, copies N, r), as many from each kernel."""
        centres = self.centres.repeat_interleave(copies, -2)
        if self.product:
            order = uniform(centres.shape, like=centres, dtype=centres.dtype, rng=rng).argsort(-2)
            centres = centres.gather(-2, order)
        return centres + self.widths.unsqueeze(-2) * normal(centres.shape, like=centres, rng=rng)

    def renewed(self, x: Tensor, likelihood: "SafeLikelihood", rng: Rng) -> Tensor:
        """Posterior particles (*B, M, r), each coordinate in turn drawn anew from its prior, or kept (Metropolis).

        Where coordinates are independent this lets particles cross from peak to peak.
        """
        size, r = x.shape[-2:]
        ell = likelihood.value(x)
        for k in range(max(_RENEWALS, r)):
            i = k % r
            place = (uniform(ell.shape, like=x, dtype=x.dtype, rng=rng) * self.z.shape[-2]).long()
            drawn = self.centres[..., i].gather(-1, place.clamp(max=self.z.shape[-2] - 1))
            drawn = drawn + self.widths[..., i, None] * normal(ell.shape, like=x, rng=rng)
            ahead = torch.cat([x[..., :i], drawn.unsqueeze(-1), x[..., i + 1 :]], -1)
            reached = likelihood.value(ahead)
            move = uniform(ell.shape, like=x, dtype=x.dtype, rng=rng).log() < reached - ell
            x, ell = torch.where(move.unsqueeze(-1), ahead, x), torch.where(move, reached, ell)
        return x


def joint_prior(E: Tensor, width: float | None) -> KernelPrior:
    """Kernels of one width b in the coordinates of the ensemble's covariance, for members (*B, N, d).

    p(z) = 1/N sum_j N((1 - b^2)^1/2 z_j, b^2 1), b that under which members are most likely given the others.
    """
    mean = E.mean(-2, keepdim=True)
    A = E - mean
    z = A @ projection(A)
    widths = candidates(z) if width is None else z.new_full((1,), width)
    likely = leave_one_out(z, widths)
    fit, place = likely.max(-1)
    b = widths[place]
    W = z.mT @ A / (E.shape[-2] - 1)
    # log |dz/dx| of z = x W^-1, and the constants of one sum over N - 1 kernels
    volume = -0.5 * torch.linalg.eigvalsh(W @ W.mT).clamp(min=torch.finfo(E.dtype).tiny).log().sum(-1)
    constant = volume - math.log(E.shape[-2] - 1)
    return KernelPrior(
        Frame(mean, W),
        z,
        (1 - b * b).sqrt()[..., None, None] * z,
        kernel_score(z, b),
        b.unsqueeze(-1),
        fit + E.shape[-2] * constant,
        product=False,
    )


def product_prior(E: Tensor) -> KernelPrior:
    """Independent coordinates, each with kernels of a width of its own, for members (*B, N, d) with N > d.

    p(u) = prod_i 1/N sum_j N(c_ji, b_i^2), c = (1 - b^2)^1/2 u, which keeps the variance of all, or sharpened kernels,
    c_j = (u_j + sum_k w_jk u_k) / 2 with w_jk the shares of the kernels at u_j, which keep that of each peak: whichever
    members are more likely under, given the others. The coordinates are the standardized variables, with the
    correlations that are more than sampling error removed: u = (x - mean) D^-1 P^-1/2, P the correlations shrunk to 0.

    Source:
        Schafer & Strimmer (2005), doi:10.2202/1544-6115.1175, for the shrinkage; sharpening: Choi & Hall (1999),
        doi:10.1093/biomet/86.4.941.
    """
    size = E.shape[-2]
    mean = E.mean(-2, keepdim=True)
    A = E - mean
    deviation = A.square().sum(-2, keepdim=True).div(size - 1).sqrt()
    standard = A / deviation
    r = standard.mT @ standard / (size - 1)
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    square = (r * (1 - eye)).square()
    noise = ((1 - square).square() * (1 - eye)).sum((-2, -1)) / (size - 1)
    weight = (noise / square.sum((-2, -1)).clamp(min=torch.finfo(r.dtype).tiny)).clamp(max=1.0)[
        ..., None, None
    ]
    s, V = torch.linalg.eigh((1 - weight) * r + weight * eye)
    s = s.clamp(min=torch.finfo(r.dtype).eps)
    u = standard @ ((V * s.rsqrt().unsqueeze(-2)) @ V.mT)
    scale = u.square().sum(-2, keepdim=True).div(size - 1).sqrt()
    u = u / scale
    W = scale.mT * ((V * s.sqrt().unsqueeze(-2)) @ V.mT) * deviation
    widths, one = candidates(u), u.mT
    global_fit, global_place = leave_one_out(one.unsqueeze(-1), widths).max(-1)
    sharp_fit, sharp_place = sharpened_fit(one, widths).max(-1)
    sharp = sharp_fit > global_fit
    b = widths[torch.where(sharp, sharp_place, global_place)]
    wide = b.unsqueeze(-2)
    centres = torch.where(sharp.unsqueeze(-2), sharpened(one, b).mT, (1 - wide * wide).sqrt() * u)
    fit = torch.where(sharp, sharp_fit, global_fit).sum(-1)
    volume = -(0.5 * s.log().sum(-1) + (deviation.log() + scale.log()).sum((-2, -1)))
    constant = volume - u.shape[-1] * math.log(size - 1)
    score = Marginals.of(centres, b).as_score()
    return KernelPrior(Frame(mean, W), u, centres, score, b, fit + size * constant, product=True)


def sharpened(u: Tensor, b: Tensor) -> Tensor:
    """Centres half way from members (*B, N) to the mean of the members near each, by kernels of widths b (*B)."""
    w = _weights(u, b)
    return 0.5 * (u + (w @ u.unsqueeze(-1))[..., 0] / w.sum(-1))


def sharpened_fit(u: Tensor, widths: Tensor) -> Tensor:
    """Log-likelihood of each member under sharpened kernels of the others, as `leave_one_out`: (*B, N) -> (*B, K)."""
    size = u.shape[-1]
    itself = torch.eye(size, dtype=torch.bool, device=u.device)
    scores = []
    for b in widths:
        w = _weights(u, b.expand(u.shape[:-1]))
        total, moment = w.sum(-1).unsqueeze(-2), (w @ u.unsqueeze(-1)).mT
        # centre j as it is without member i
        near = (moment - w * u.unsqueeze(-1)) / (total - w).masked_fill(itself, 1.0)
        apart = u.unsqueeze(-1) - 0.5 * (u.unsqueeze(-2) + near)
        terms = (-0.5 * (apart / b).square()).masked_fill(itself, -math.inf).logsumexp(-1)
        scores.append(terms.sum(-1) - size * b.log())
    return torch.stack(scores, -1)


def _weights(u: Tensor, b: Tensor) -> Tensor:
    """exp(-(u_j - u_k)^2 / (2 b^2)), (*B, N, N)."""
    return (-0.5 * ((u.unsqueeze(-1) - u.unsqueeze(-2)) / b[..., None, None]).square()).exp()


@dataclass(frozen=True)
class Marginals:
    """Log-densities of independent coordinates, tabulated.

    Attributes:
        low: First node, (*B, r).
        step: Between nodes, (*B, r).
        value: log p at the nodes, (*B, r, K).
        slope: Its derivative there.
        width: b, (*B, r): beyond the nodes log p falls as that of the last kernel.
    """

    low: Tensor
    step: Tensor
    value: Tensor
    slope: Tensor
    width: Tensor

    @classmethod
    def of(cls, centres: Tensor, b: Tensor) -> "Marginals":
        """Kernels of widths b (*B, r) about centres (*B, N, r)."""
        low, high = centres.amin(-2) - 4 * b, centres.amax(-2) + 4 * b
        step = (high - low) / (_NODES - 1)
        nodes = low.unsqueeze(-1) + step.unsqueeze(-1) * torch.arange(_NODES, dtype=b.dtype, device=b.device)
        value, slope = [], []
        for x, c, w in zip(
            nodes.unbind(-2), centres.unbind(-1), b.unbind(-1), strict=True
        ):  # a coordinate at a time
            w = w[..., None, None]
            apart = (c.unsqueeze(-2) - x.unsqueeze(-1)) / w
            logits = -0.5 * apart.square()
            value.append(logits.logsumexp(-1))
            slope.append((logits.softmax(-1) * apart / w).sum(-1))
        return cls(low, step, torch.stack(value, -2), torch.stack(slope, -2), b)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p up to a constant, (*B, M), and its gradient, of (*B, M, r)."""
        place = (x.mT - self.low.unsqueeze(-1)) / self.step.unsqueeze(-1)
        inside = place.nan_to_num().clamp(0, _NODES - 1)
        left = inside.floor().clamp(max=_NODES - 2)
        share, index = inside - left, left.long()
        value, slope = (
            torch.lerp(table.gather(-1, index), table.gather(-1, index + 1), share)
            for table in (self.value, self.slope)
        )
        beyond = (place - inside) * self.step.unsqueeze(-1)
        stiff = self.width.unsqueeze(-1).pow(-2)
        value = value + beyond * (slope - 0.5 * stiff * beyond)
        return value.sum(-2), (slope - stiff * beyond).mT

    def as_score(self) -> FittedScore:
        """As the chains take it."""
        return FittedScore(lambda x: self.both(x)[1], lambda x: self.both(x)[0], self.both)


@dataclass(frozen=True)
class SafeLikelihood(FrameLikelihood):
    """The same, impossible where the operator isn't defined, and without gradient where it has none."""

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `FrameLikelihood.gradient`."""
        try:
            ell, slope = super().gradient(z)
        except RuntimeError:  # of operators outside torch
            return self.value(z), torch.zeros_like(z)
        return _defined(ell), slope.nan_to_num(0.0, 0.0, 0.0)

    def value(self, z: Tensor) -> Tensor:
        """The first alone."""
        with torch.no_grad():
            return _defined(self.of.value(z @ self.frame.W))


def _defined(ell: Tensor) -> Tensor:
    return ell.nan_to_num(_NEVER, _NEVER, _NEVER).clamp(min=_NEVER)


def analysed(
    E: Tensor,
    departures: Departures,
    observation: Observation,
    state_shape: tuple[int, ...],
    *,
    width: float | None,
    particles: int,
    rng: Rng,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Members (*B, N, d) of the posterior of a kernel prior under the operator's own likelihood, and diagnostics (*B).

    Particles drawn from the prior are tempered to the posterior (`Tempering`); of these N are taken, evenly along the
    direction of the largest variance, and a linear map gives them mean and covariance of all. The prior is the one under
    which members are more likely given the others: `joint_prior` or, with more members than variables, `product_prior`.

    Args:
        E: Members.
        departures: What they predict.
        observation: What is seen.
        state_shape: *S.
        width: b of the joint prior; None to choose prior and width.
        particles: At least as many.
        rng: Generator.
    """
    priors = [joint_prior(E, width)]
    size, d = E.shape[-2:]
    varied = bool(((E - E[..., :1, :]).abs().amax(-2) > 0).all())
    if width is None and d < size - 1 and varied:
        priors.append(product_prior(E))
    chosen = torch.stack([prior.fit for prior in priors]).argmax(0)
    out, numbers = E, dict[str, Tensor]()
    for k, prior in enumerate(priors):
        if not bool((chosen == k).any()):
            continue
        after, found = _tempered(prior, departures, observation, state_shape, particles, rng)
        found["kernel"] = prior.widths.log().mean(-1).exp()
        found["one_gaussian"] = (prior.widths > ONE).all(-1).to(E.dtype)
        mine = chosen == k
        out = torch.where(mine[..., None, None], after, out)
        numbers = {name: torch.where(mine, value, numbers.get(name, value)) for name, value in found.items()}
    return out, numbers


def _tempered(
    prior: KernelPrior,
    departures: Departures,
    observation: Observation,
    state_shape: tuple[int, ...],
    particles: int,
    rng: Rng,
) -> tuple[Tensor, dict[str, Tensor]]:
    frame, size = prior.frame, prior.z.shape[-2]
    G = departures.Y.mT @ prior.z / (size - 1)
    likelihood = SafeLikelihood(
        Likelihood(observation, state_shape, frame.mean, torch.ones_like(frame.mean)), frame
    )
    target = ChainTarget(prior.score, likelihood, frame, G.square().sum(-2), draws=True)
    x = prior.draws(-(-particles // size), rng)
    x, found = CHAIN.run(x, target, {}, rng)
    if prior.product:
        x = prior.renewed(x, likelihood, rng)
    return frame.state(thinned(x, size, rng)), {name: found[name] for name in ("acceptance", "stages")}


def thinned(x: Tensor, size: int, rng: Rng) -> Tensor:
    """`size` of the particles (*B, M, r), with mean and covariance of all.

    Systematically in order of their place along the direction of the largest variance; then the linear map of least
    change, T = C^-1/2 (C^1/2 S C^1/2)^1/2 C^-1/2, from their covariance C to that of all, S.
    """
    count = x.shape[-2]
    mean = x.mean(-2, keepdim=True)
    S = (x - mean).mT @ (x - mean) / (count - 1)
    top = torch.linalg.eigh(S)[1][..., -1:]
    order = ((x - mean) @ top)[..., 0].argsort(-1)
    shift = uniform(x[..., 0, :1].shape, like=x, dtype=x.dtype, rng=rng)
    place = (
        ((torch.arange(size, dtype=x.dtype, device=x.device) + shift) * (count / size))
        .long()
        .clamp(max=count - 1)
    )
    index = order.gather(-1, place)
    D = x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
    D = D - D.mean(-2, keepdim=True)
    s, V = torch.linalg.eigh(D.mT @ D / (size - 1))
    keep = s > 1e3 * torch.finfo(x.dtype).eps * s[..., -1:]
    root = s.clamp(min=0).sqrt() * keep
    inverse = torch.where(keep, 1 / torch.where(keep, root, 1.0), 0.0)
    inner = root.unsqueeze(-1) * (V.mT @ S @ V) * root.unsqueeze(-2)
    t, U = torch.linalg.eigh(inner)
    middle = (U * t.clamp(min=0).sqrt().unsqueeze(-2)) @ U.mT
    T = V @ (inverse.unsqueeze(-1) * middle * inverse.unsqueeze(-2)) @ V.mT
    return mean + D @ T
