"""A network conditioned on observations, around the closed-form posterior."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from slams.core.errors import InvalidTypeError, InvalidValueError, NonFiniteError
from slams.core.random import Rng, normal
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser
from slams.diffusion.exact.window_posterior import WindowPosterior
from slams.diffusion.guidance.base import Guidance
from slams.diffusion.guidance.sda import CovarianceGuidance, pattern_jacobian
from slams.diffusion.guidance.trajectory import TrajectoryConditional, TrajectoryGuided
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser
from slams.observation.observation import Observation, Observations

Features = Callable[[Observations, WindowPosterior], Tensor]


@dataclass(frozen=True, eq=False)
class ConditionalGuidance(Guidance):
    """Draws by a network that was trained on observations: no likelihood and no gradient at draw time.

        E[x | x_t, y] = g_y(x_t) + s_t f(x_t, g_y, t, c(y)),   s_t = sigma_t / sqrt(alpha_t^2 + sigma_t^2),

    g_y the posterior mean of the closed form under linear operators (`WindowPosterior`), f the network of a
    `NetworkDenoiser` and c(y) features of the observations; untrained, it is the Gaussian posterior. Without
    observations g_y is the closed form of the prior and c = 0, so that the same network is the prior's.

    Attributes:
        jacobians: Linear operators G on the patterns of each modality, (prod(O), K) by name.
        features: c: observations (W, L, *O) and their posterior -> (W, L, C, ...).
        weight: Weight w of classifier-free guidance, m_0 + w (m_y - m_0) with m_0 the prior's mean; 1 is the posterior.
        offsets: Biases of the values for each member, (N, prod(O)) by name: f sees the values without their mean, the
            closed form of a member those without its own.
        others: Guidance by modalities without a Jacobian here, which the network was not trained on.

    Source:
        Ho & Salimans (2022), arXiv:2207.12598, eq. 6, whose w is one less.
    """

    closed_form: ClassVar[bool] = True

    jacobians: Mapping[str, Tensor]
    features: Features
    weight: float = 1.0
    others: Guidance | None = None
    offsets: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """The conditional denoiser of windows, composed where the prior is.

        Raises:
            TypeError: If the prior has no closed form with a network, or observations have no modalities.
        """
        if not isinstance(observations, Observations) or members:
            raise InvalidTypeError("ConditionalGuidance takes Observations along windows, members in front.")
        if isinstance(prior, MarkovBlanket):
            return MarkovBlanket(self(prior.denoiser, observations.windows(prior.length)), prior.length)
        if isinstance(prior, TrajectoryDenoiser) and isinstance(prior.windows, NetworkDenoiser):
            if observations.batch:
                return self._trajectories(prior, observations)
            alone = Observations({n: replace(o, value=o.value[None]) for n, o in observations.items()})
            return OnlyWindow(self._trajectories(prior, alone), len(prior.event))
        if not isinstance(prior, NetworkDenoiser):
            raise InvalidTypeError(
                f"{type(prior).__name__} has no network around a closed form; ConditionalGuidance needs a "
                "NetworkDenoiser trained on observations."
            )
        if not observations.batch:
            return OnlyWindow(self._windows(prior, observations.windows(prior.length)), len(prior.event))
        return self._windows(prior, observations)

    def _trajectories(self, prior: TrajectoryDenoiser, observations: Observations) -> Denoiser:
        """The conditional denoiser of trajectories (W, T, *O), guided by what the network was not trained on."""
        own, rest = self._split(observations)
        if not own:
            return self.others(prior, observations)  # type: ignore[misc]
        seen = Observations({name: self._unbiased(name, o) for name, o in own.items()})
        denoiser = TrajectoryConditional(prior, seen, self.jacobians, self.features, self.weight)
        for name, offset in self.offsets.items():
            if name in seen:
                denoiser.shift(self._deviations(seen[name], offset, self.jacobians[name]))
        if not rest:
            return denoiser
        if not isinstance(self.others, CovarianceGuidance):
            return self.others(denoiser, Observations(rest))  # type: ignore[misc]
        given = self.others.jacobians or {}
        others = {
            name: given[name] if name in given else pattern_jacobian(o, prior.gaussian)
            for name, o in rest.items()
        }
        both = Observations({**own, **rest})
        jacobians = {**others, **{name: self.jacobians[name] for name in own}}
        return TrajectoryGuided(denoiser, prior.gaussian, Observations(rest), jacobians, given, counted=both)

    def _split(self, observations: Observations) -> tuple[dict[str, Observation], dict[str, Observation]]:
        """What the network was trained on, and the rest."""
        own = {name: o for name, o in observations.items() if name in self.jacobians}
        rest = {name: o for name, o in observations.items() if name not in own}
        if rest and self.others is None:
            raise InvalidValueError(
                f"the network was trained on {sorted(self.jacobians)}, not on {sorted(rest)}; give "
                "others=CovarianceGuidance(…) for those."
            )
        return own, rest

    def _windows(self, prior: NetworkDenoiser, observations: Observations) -> Denoiser:
        """The conditional denoiser of windows (W, L, *O), guided by what the network was not trained on."""
        own, rest = self._split(observations)
        if not own:
            return self.others(prior, observations)  # type: ignore[misc]
        seen = Observations({name: self._unbiased(name, o) for name, o in own.items()})
        posterior = WindowPosterior.given(prior.gaussian, seen, self.jacobians)
        context = self.features(seen, posterior)
        for name, offset in self.offsets.items():
            if name in seen:
                deviations = self._deviations(seen[name], offset, self.jacobians[name])
                posterior.pulled = posterior.pulled - deviations
        denoiser = ConditionalDenoiser(prior, posterior, context, self.weight)
        if not rest:
            return denoiser
        if isinstance(self.others, CovarianceGuidance):
            return self.others.beside(denoiser, Observations(rest), seen, self.jacobians)
        return self.others(denoiser, Observations(rest))  # type: ignore[misc]

    def _unbiased(self, name: str, o: Observation) -> Observation:
        """An observation without the mean of its biases."""
        if name not in self.offsets:
            return o
        event = o.value.shape[o.value.ndim - o.event :]
        return replace(o, value=o.value - self.offsets[name].mean(0).to(o.value).reshape(event))

    @staticmethod
    def _deviations(o: Observation, offset: Tensor, jacobian: Tensor) -> Tensor:
        """G^T R^-1 of each member's bias less their mean where there are values, (N, W, L K)."""
        deviation = (offset - offset.mean(0)).to(o.value)
        parts = [(o.noise.apply(o.seen * each, o.precision) @ jacobian).flatten(-2) for each in deviation]
        return torch.stack(parts)


class OnlyWindow(Denoiser):
    """A denoiser of W = 1 windows (*N, 1, L, *Z) as one of samples (*N, L, *Z).

    Args:
        denoiser: Denoiser of windows.
        event: Number of axes of *Z.
    """

    def __init__(self, denoiser: Denoiser, event: int) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.axis = -2 - event

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*N, L, *Z), () -> the same."""
        found: Tensor = self.denoiser(x_t.unsqueeze(self.axis), t)
        return found.squeeze(self.axis)


class ConditionalDenoiser(Denoiser):
    """E[x | x_t, y] as `ConditionalGuidance` states it.

    Args:
        prior: Closed form and network.
        posterior: g_y, of W windows.
        context: c(y), (W, L, C, ...).
        weight: w.
    """

    context: Tensor

    def __init__(
        self,
        prior: NetworkDenoiser,
        posterior: WindowPosterior,
        context: Tensor,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.prior, self.posterior = prior, posterior
        self.schedule, self.event, self.length = prior.schedule, prior.event, prior.length
        self.weight = weight
        self.register_buffer("context", context)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*N, W, L, *Z), () or (W, 1, ..., 1) -> the same.

        Raises:
            FloatingPointError: If the mean is not finite; names the time.
        """
        closed = self.posterior(x_t, t)
        mean = closed + self.prior.correction(x_t, closed, t, self.context)
        if self.weight != 1:
            free = self.prior(x_t, t)
            mean = free + self.weight * (mean - free)
        if not bool(torch.isfinite(mean).all()):
            raise NonFiniteError(
                f"the conditional mean is not finite at diffusion time {float(t.max()):.3f}; check the observations "
                "and their errors."
            )
        return mean


@dataclass(frozen=True, eq=False)
class Batch:
    """Noisy windows with what the closed form and the observations say of them.

    Attributes:
        x: Clean windows, (b, L, *Z).
        x_t: Noisy ones.
        t: Diffusion times, (b, 1, ..., 1).
        closed: E[x | x_t, y] of the closed form.
        context: Features of the observations, (b, L, C, ...).
        variance: Mean variance of a component in the closed form, (b, 1, ..., 1).
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    closed: Tensor
    context: Tensor
    variance: Tensor

    @classmethod
    def of(
        cls, x: Tensor, posterior: WindowPosterior, context: Tensor, ratio: Tensor, rng: Rng = None
    ) -> "Batch":
        """Windows with noise at alpha / sigma = `ratio`, (b, 1, ..., 1)."""
        t = posterior.schedule.time(ratio.double()).to(x)
        alpha, sigma = posterior.schedule(t)
        x_t = alpha * x + sigma * normal(x.shape, like=x, rng=rng)
        variance = posterior.variance(t.reshape(-1, 1)).reshape(t.shape)
        return cls(x, x_t, t, posterior(x_t, t), context, variance)

    @classmethod
    def join(cls, parts: Sequence["Batch"]) -> "Batch":
        """Several batches as one."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def split(self, count: int) -> "Iterator[Batch]":
        """Parts of so many windows."""
        parts = (getattr(self, f.name).split(count) for f in fields(self))
        return (Batch(*each) for each in zip(*parts, strict=True))

    def errors(
        self,
        denoiser: NetworkDenoiser,
        metric: Callable[[Tensor], Tensor] = torch.square,
        *,
        corrected: bool = True,
    ) -> Tensor:
        """Mean squared error of each window in units of the closed form's variance, (b); `metric` squares."""
        estimate = self.closed
        if corrected:
            estimate = estimate + denoiser.correction(self.x_t, self.closed, self.t, self.context)
        return (metric(estimate - self.x) / self.variance).flatten(1).mean(1)


def training_ratio(u: Tensor) -> Tensor:
    """alpha / sigma for training from uniform numbers: two fifths between .001 and .3, the others up to 30.

    Where almost no signal is left, the posterior mean is decided.
    """
    low, middle, high = (math.log(ratio) for ratio in (1e-3, 0.3, 30.0))
    lower = low + (middle - low) * u / 0.4
    return torch.where(u < 0.4, lower, middle + (high - middle) * (u - 0.4) / 0.6).exp()
