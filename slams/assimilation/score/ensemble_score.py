"""Scores of a forecast ensemble: closed form, learnt at every step, given, or none."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from slams.assimilation.score.ensemble_mixture import ONE, candidates, leave_one_out
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal


@dataclass(frozen=True)
class Frame:
    """Working coordinates z of an analysis, in which the forecast has mean 0 and covariance 1: x = mean + z W.

    Attributes:
        mean: (*B, 1, d).
        W: (*B, r, d).
    """

    mean: Tensor
    W: Tensor

    def state(self, z: Tensor) -> Tensor:
        """(*B, M, r) -> (*B, M, d)."""
        return self.mean + z @ self.W


@dataclass(frozen=True)
class FittedScore:
    """Estimated score and density of a forecast.

    Attributes:
        score: Score grad log p: (*B, M, r) -> (*B, M, r).
        log_prob: log p up to a constant, (*B, M, r) -> (*B, M); None if only the score is available.
        both: Function of log p and its gradient, for estimates that share computations.
        precision: Precision of a Gaussian prior in working coordinates: 1, or 0 for no prior.
        ready: Mask of replicates with a score, (*B), None for all; the others keep their forecast.
        diagnostics: Numbers (*B).
    """

    score: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None = None
    both: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    precision: float = 1.0
    ready: Tensor | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class EnsembleScore(Protocol):
    """Estimates the score of the law that members are drawn from."""

    @property
    def draws(self) -> bool:
        """Whether members are draws of p, so that those of p p(y | x)^beta come from weighting them."""

    def fit(self, z: Tensor, frame: Frame, carry: dict[str, Tensor], rng: Rng = None) -> FittedScore:
        """Estimate from members.

        Args:
            z: Members in working coordinates, (*B, N, r).
            frame: Frame of the working coordinates.
            carry: Tensors (*B, ...) that live from one analysis to the next.
            rng: Generator.
        """


@dataclass(frozen=True)
class KernelScore:
    """The score that denoising score matching converges to with unlimited training, in closed form.

    Of the mixture p(z) = 1/N sum_j N(a z_j, b^2 1), grad log p = (sum_j w_j a z_j - z) / b^2 with
    w = softmax(-|z - a z_j|^2 / (2 b^2)). Denoising at noise b means a = 1, which inflates the covariance by b^2;
    a^2 = 1 - b^2 keeps it.

    Attributes:
        width: b in ensemble deviations; None for that under which members are most likely given the others.
        shrink: Whether a^2 = 1 - b^2, or a = 1.

    Raises:
        ValueError: If the width is not positive, or not below 1 where kernels are shrunk.

    Source:
        Vincent (2011), doi:10.1162/NECO_a_00142, eq. 9, for the equivalence; shrunken kernels: Liu & West (2001),
        Sequential Monte Carlo Methods in Practice, eq. 10.3.9.
    """

    width: float | None = None
    shrink: bool = True

    draws = True

    def __post_init__(self) -> None:
        if self.width is not None and not 0 < self.width < (1 if self.shrink else math.inf):
            raise InvalidValueError(
                f"the kernel's width must be positive, and below 1 if kernels shrink; got {self.width}. None chooses it."
            )

    def fit(self, z: Tensor, frame: Frame, carry: dict[str, Tensor], rng: Rng = None) -> FittedScore:
        """See `EnsembleScore.fit`; diagnostic "kernel", b."""
        b = self._width(z)
        return kernel_score(z, b, shrink=self.shrink)

    def _width(self, z: Tensor) -> Tensor:
        """b, (*B)."""
        if self.width is not None:
            return z.new_full(z.shape[:-2], self.width)
        widths = candidates(z)
        return widths[leave_one_out(z, widths).argmax(-1)]


def kernel_score(z: Tensor, b: Tensor, *, shrink: bool = True) -> FittedScore:
    """Density and score of kernels of widths b (*B) about members (*B, N, r); see `KernelScore`."""
    # kernels that do not shrink widen the mixture beyond N(0, 1)
    if shrink and bool((b > ONE).all()):
        return _gaussian(b)
    wide = b[..., None, None]
    points = (1 - wide * wide).sqrt() * z if shrink else z
    square = points.square().sum(-1).unsqueeze(-2)
    factor = 1 / (wide * wide)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = factor * (x @ points.mT - 0.5 * square)
        most = logits.amax(-1, keepdim=True)
        shares = (logits - most).exp_()
        total = shares.sum(-1, keepdim=True)
        density = (most + total.log()).squeeze(-1) - 0.5 * (factor * x.square()).sum(-1)
        return density, factor * ((shares @ points) / total - x)

    return FittedScore(lambda x: both(x)[1], lambda x: both(x)[0], both, diagnostics={"kernel": b})


def _gaussian(b: Tensor) -> FittedScore:
    """N(0, 1) in working coordinates."""

    def density(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(-1)

    return FittedScore(torch.neg, density, lambda x: (density(x), -x), diagnostics={"kernel": b})


@dataclass(frozen=True)
class GivenScore:
    """A score that is known, of states.

    Attributes:
        of: grad log p: (*B, M, d) -> (*B, M, d).
        log_prob: log p up to a constant, (*B, M, d) -> (*B, M); None if not known.
        draws: Whether the forecast's members are draws of p.
    """

    of: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None = None
    draws: bool = True

    def fit(self, z: Tensor, frame: Frame, carry: dict[str, Tensor], rng: Rng = None) -> FittedScore:
        """See `EnsembleScore.fit`."""
        density = self.log_prob
        return FittedScore(
            lambda x: self.of(frame.state(x)) @ frame.W.mT,
            None if density is None else lambda x: density(frame.state(x)),
        )


@dataclass(frozen=True)
class NoScore:
    """No prior: what the observations alone say, in directions that they see."""

    draws = False

    def fit(self, z: Tensor, frame: Frame, carry: dict[str, Tensor], rng: Rng = None) -> FittedScore:
        """See `EnsembleScore.fit`."""
        return FittedScore(torch.zeros_like, lambda x: torch.zeros_like(x[..., 0]), precision=0.0)


@dataclass(frozen=True)
class NetworkScore:
    """Denoising score matching on the forecast, at one level of noise, the network going on from the previous analysis.

    Members are whitened with the symmetric root of their covariance, which changes little from one analysis to the
    next. Where the covariance is 1 a Gaussian has score -z / (1 + noise^2) at that level; the network adds to it:

        S(z) = -z / (1 + noise^2) + f(z) / noise,    E |noise S(z + noise e) + e|^2 least.

    Each replicate trains its own, all at once. One whose loss is not finite, or far above that of f = 0, is reset to f of
    the previous analysis and keeps its forecast.

    Attributes:
        noise: Level of noise [ensemble deviations].
        hidden: Width of the network.
        blocks: Residual blocks.
        first: Steps of AdamW in the first analysis.
        steps: Steps in those that follow.
        batch: Members drawn for a step.
        rate: Learning rate.

    Source:
        Vincent (2011), doi:10.1162/NECO_a_00142, eq. 9; Ding et al. (2024), arXiv:2411.13443, section 3.2.
    """

    noise: float = 0.2
    hidden: int = 64
    blocks: int = 2
    first: int = 600
    steps: int = 100
    batch: int = 200
    rate: float = 2e-3

    draws = True

    def __post_init__(self) -> None:
        if (
            not self.noise > 0
            or not self.rate > 0
            or min(self.hidden, self.first, self.steps, self.batch) < 1
        ):
            raise InvalidValueError(f"needs a positive noise and rate, and counts of at least 1, got {self}.")

    def fit(self, z: Tensor, frame: Frame, carry: dict[str, Tensor], rng: Rng = None) -> FittedScore:
        """See `EnsembleScore.fit`.

        Diagnostics: "training_loss", in units of that of f = 0, "trained", 0 or 1, and "network_calls", inputs passed
        through the network, a backward pass counted as two.
        """
        U, _, V = torch.linalg.svd(frame.W, full_matrices=False)
        turn = U @ V
        x = z @ turn
        before = {name: carry.get(f"score/{name}") for name in self._shapes(1)}
        warm = all(value is not None for value in before.values())
        start = {k: v for k, v in before.items() if v is not None} if warm else self._fresh(x, rng)
        weights = self._train(x, start, self.steps if warm else self.first, rng)
        loss = self._loss_ratio(weights, x, rng)
        sound = torch.isfinite(loss) & (loss < 1.5)
        kept = {name: torch.where(_beside(sound, new), new, start[name]) for name, new in weights.items()}
        carry |= {f"score/{name}": value for name, value in kept.items()}

        # a gradient costs three passes of its batch; the two that measure the loss are of all members
        trained = 3 * (self.steps if warm else self.first) * min(self.batch, z.shape[-2]) + 2 * z.shape[-2]
        calls = torch.full_like(loss, float(trained))
        diagnostics = {"training_loss": loss, "trained": sound.to(z.dtype), "network_calls": calls}

        def score(z: Tensor) -> Tensor:
            calls.add_(z.shape[-2])
            return self._score(kept, z @ turn) @ turn.mT

        return FittedScore(score, ready=sound, diagnostics=diagnostics)

    def _shapes(self, size: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of each weight; biases have one row."""
        width = self.hidden
        shapes = {"in": (size, width), "in_bias": (1, width), "out": (width, size), "out_bias": (1, size)}
        for k in range(self.blocks):
            shapes |= {f"up{k}": (width, width), f"up_bias{k}": (1, width), f"down{k}": (width, width)}
        return shapes

    def _fresh(self, x: Tensor, rng: Rng) -> dict[str, Tensor]:
        """First weights: f = 0."""
        weights = {}
        for name, shape in self._shapes(x.shape[-1]).items():
            drawn = normal((*x.shape[:-2], *shape), like=x, rng=rng) / math.sqrt(shape[0])
            weights[name] = torch.zeros_like(drawn) if name.startswith("out") or "bias" in name else drawn
        return weights

    def _network(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        h = x @ w["in"] + w["in_bias"]
        for k in range(self.blocks):
            inner = h @ w[f"up{k}"] + w[f"up_bias{k}"]
            h = h + torch.nn.functional.silu(inner) @ w[f"down{k}"]
        return torch.nn.functional.silu(h) @ w["out"] + w["out_bias"]

    def _score(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        return self._network(w, x) / self.noise - x / (1 + self.noise**2)

    def _losses(self, w: dict[str, Tensor], x: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of each replicate, (*B)."""
        return (self.noise * self._score(w, x + self.noise * noise) + noise).square().mean((-2, -1))

    def _train(self, x: Tensor, start: dict[str, Tensor], steps: int, rng: Rng) -> dict[str, Tensor]:
        size, rng = x.shape[-2], generator(rng, "training")
        with torch.enable_grad():
            weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
            optimizer = torch.optim.AdamW(weights.values(), lr=self.rate, weight_decay=1e-3)
            plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                chosen = torch.randint(size, (min(self.batch, size),), generator=rng, device=rng.device)
                drawn = x[..., chosen.to(x.device), :]
                loss = self._losses(weights, drawn, normal(drawn.shape, like=x, rng=rng)).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                plan.step()
        return {name: value.detach() for name, value in weights.items()}

    @torch.no_grad()
    def _loss_ratio(self, weights: dict[str, Tensor], x: Tensor, rng: Rng) -> Tensor:
        """Loss over that of f = 0, on the same fresh noise."""
        noise = normal(x.shape, like=x, rng=rng)
        nothing = weights | {name: torch.zeros_like(weights[name]) for name in ("out", "out_bias")}
        return self._losses(weights, x, noise) / self._losses(nothing, x, noise)


def _beside(flags: Tensor, value: Tensor) -> Tensor:
    """Flags (*B) with the axes of a value (*B, ...)."""
    return flags.reshape(*flags.shape, *[1] * (value.ndim - flags.ndim))
