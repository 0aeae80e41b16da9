"""Particle filters: weights on members that only the model moves; exact in the limit of many members.

Weights are kept as logarithms, (*B, N), normalised so that logsumexp is 0: an observation far from every member
leaves them finite.
"""

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.filter import Filter
from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.assimilation.variational.linearized import chi2, deterministic, whitened_residual
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, uniform
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

Resampling = Literal["systematic", "residual"]

_TRIALS = 128  # members whose moves tell how far the model's noise carries


class BootstrapPF(Filter):
    """Bootstrap filter: w_i <- w_i p(y | x_i), and resampling where few members carry the weight.

    After resampling, members drawn more than once are spread by jitter N^(-1/(d + 4)) C^1/2 N(0, I) with the
    weighted covariance C, without which copies stay copies under a model without noise. The posterior
    is the weighted ensemble, from which `members` are drawn systematically.

    Args:
        dynamics: The model.
        threshold: Resample where the effective size falls below this share of the members, in [0, 1].
        jitter: Factor on the jitter; 0 for none, which is exact as N grows.
        resampling: "systematic" or "residual".
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If a setting is invalid.

    Source:
        Gordon, Salmond & Smith (1993), doi:10.1049/ip-f-2.1993.0015; resampling by effective size: Liu & Chen
        (1998), doi:10.1080/01621459.1998.10473765; jitter: Musso, Oudjane & Le Gland (2001), Sequential Monte
        Carlo Methods in Practice, chapter 12.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        threshold: float = 0.2,
        jitter: float = 0.0,
        resampling: Resampling = "systematic",
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if not 0 <= threshold <= 1 or not jitter >= 0:
            raise InvalidValueError(
                f"need a threshold in [0, 1] and jitter >= 0, got {threshold} and {jitter}; the threshold is "
                "a share of the members."
            )
        if resampling not in ("systematic", "residual"):
            raise InvalidValueError(f'resampling must be "systematic" or "residual", got {resampling!r}.')
        self.threshold = threshold
        self.jitter = jitter
        self.resampling = resampling

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """Equal weights."""
        memory.carry["log_weights"] = self._weights(x, Memory())
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; the new weights are in `memory.carry["log_weights"]`."""
        memory = Memory() if memory is None else memory
        rng = generator(rng, "analysis")
        log_weights = self._weigh(forecast, observation, memory)
        # members that are not finite are left where they are: the loop replaces them or stops
        needed = self._few(log_weights) & torch.isfinite(self._flat(forecast)).all(-1).all(-1)
        if not bool(needed.any()):
            return forecast
        index = self._draw(log_weights, rng)
        memory.carry["log_weights"] = torch.where(needed[..., None], self._even(log_weights), log_weights)
        E = self._flat(forecast)
        moved = self._spread(take(E, index), index, E, log_weights, rng)
        return torch.where(needed[..., None, None], moved, E).reshape(forecast.shape)

    def moments(self, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Weighted mean and unbiased variance, each (*B, *S)."""
        E = self._flat(x)
        mean, variance = weighted_moments(E, self._weights(x, memory))
        shape = (*E.shape[:-2], *self.dynamics.state_shape)
        return mean.reshape(shape), variance.reshape(shape)

    def members(self, x: Tensor, memory: Memory, size: int, *, rng: Rng = None) -> Tensor:
        """Members drawn systematically from the weighted ensemble, (*B, N, *S)."""
        log_weights = self._weights(x, memory)
        index = systematic(log_weights, _uniform(log_weights[..., 0], rng), size)
        drawn = take(self._flat(x), index)
        return drawn.reshape(*drawn.shape[:-1], *self.dynamics.state_shape)

    def _weigh(self, x: Tensor, observation: Observation, memory: Memory) -> Tensor:
        """Multiply the weights by the likelihood; effective size and innovation go to the diagnostics."""
        before = self._weights(x, memory)
        residual = whitened_residual(observation, x)
        log_weights = normalise(before + log_likelihood(residual), before)
        memory.carry["log_weights"] = log_weights
        memory.diagnostics["effective_size"] = effective_size(log_weights)
        if "innovation" not in memory.diagnostics:
            mean, variance = weighted_moments(residual, before)
            memory.diagnostics["innovation"] = chi2(observation, mean, variance)
        return log_weights

    def _weights(self, x: Tensor, memory: Memory) -> Tensor:
        """Log weights of an ensemble, equal where the memory has none."""
        kept = memory.carry.get("log_weights")
        return self._even(self._flat(x)[..., 0]) if kept is None else kept

    @staticmethod
    def _even(like: Tensor) -> Tensor:
        return torch.full_like(like, 1 / like.shape[-1]).log()

    def _few(self, log_weights: Tensor) -> Tensor:
        """Whether too few members carry the weight, (*B)."""
        return effective_size(log_weights) < self.threshold * log_weights.shape[-1]

    def _draw(self, log_weights: Tensor, rng: Rng) -> Tensor:
        """Indices of the resampled members, (*B, N)."""
        if self.resampling == "residual":
            return residual(log_weights, _uniform(log_weights, rng))
        return systematic(log_weights, _uniform(log_weights[..., 0], rng))

    def _spread(self, drawn: Tensor, index: Tensor, E: Tensor, log_weights: Tensor, rng: Rng) -> Tensor:
        """Add jitter to members drawn more than once; E (*B, N, d) and its weights give its covariance."""
        if not self.jitter:
            return drawn
        size, width = E.shape[-2:]
        root = self.jitter * size ** (-1 / (width + 4)) * weighted_root(E, log_weights)
        noise = normal((*drawn.shape[:-1], root.shape[-2]), like=E, rng=rng)
        return torch.where(repeated(index)[..., None], drawn + noise @ root, drawn)

    def _flat(self, x: Tensor) -> Tensor:
        """(*B, N, *S) -> (*B, N, d)."""
        event = len(self.dynamics.state_shape)
        return x if event == 1 else x.flatten(-event) if event else x[..., None]


class AuxiliaryPF(BootstrapPF):
    """Auxiliary filter: members are chosen by how well their forecast will fit, before they move.

    With a point m_i that stands for where member i goes, members are drawn with g_i ~ w_i q(y | m_i), moved,
    and weighted with p(y | x_i) / q(y | m_i). The look-ahead q = N(h(m_i), R + S) is as wide as observation and model
    together, S the mean over members of (h(x_i) - h(m_i)) (h(x_i) - h(m_i))^T for a trial move x_i: with R alone, sharper
    than the model's noise, nearly all members would be those of few points, and the weights of the moved ones unbounded.

    Args:
        dynamics: The model.
        point: x_{k-1} -> m, (*B, N, *S) to the same; if None, the model's forecast without noise where it has a
            method `mean`, else one draw of it.
        threshold: Choose anew where the effective size of g falls below this share; 1 for always.
        jitter: Factor on the jitter, as in `BootstrapPF`.
        resampling: Resampling scheme, as in `BootstrapPF`.
        common: Keywords of `FilterKeywords`.

    Source:
        Pitt & Shephard (1999), doi:10.1080/01621459.1999.10474153, section 3; a look-ahead no sharper than
        the target: Johansen & Doucet (2008), doi:10.1016/j.spl.2008.01.032.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        point: Callable[[Tensor], Tensor] | None = None,
        threshold: float = 1.0,
        jitter: float = 0.0,
        resampling: Resampling = "systematic",
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, threshold=threshold, jitter=jitter, resampling=resampling, **common)
        self.point = point

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """Choose members by `memory.coming`, then move them."""
        coming = memory.coming
        if coming is None:
            return super().forecast(x, memory, rng=rng)
        before = self._weights(x, memory)
        point = self._forecast_point(x, memory, rng)
        seen = whitened_residual(coming, point)
        fit = log_likelihood(self._widened(seen, coming, x, memory, rng))
        first = normalise(before + fit, before)
        needed = (self._few(first) & torch.isfinite(fit).any(-1))[..., None]
        index = torch.where(
            needed, self._draw(first, rng), torch.arange(first.shape[-1], device=first.device)
        )
        chosen = torch.gather(fit, -1, index)
        memory.carry["log_weights"] = normalise(torch.where(needed, -chosen, before), before)
        drawn = take(self._flat(x), index).reshape(x.shape)
        moved = super().forecast(drawn, memory, rng=rng)
        # the weights of these members already include y: the innovation is that of the points, with the spread
        # that the model's noise gives the members around theirs
        around = whitened_residual(coming, moved) - take(seen, index)
        mean, variance = weighted_moments(seen, before)
        memory.diagnostics["innovation"] = chi2(coming, mean, variance + around.square().mean(-2))
        spread = self._spread(self._flat(moved), index, self._flat(point), first, rng)
        return spread.reshape(x.shape)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """Weigh; members are chosen before the next move."""
        self._weigh(forecast, observation, Memory() if memory is None else memory)
        return forecast

    def _widened(self, seen: Tensor, coming: Observation, x: Tensor, memory: Memory, rng: Rng) -> Tensor:
        """Residuals (*B, N, O) of the points in units of R + S, S from a trial move of some members."""
        axis, some = seen.ndim - 2, min(seen.shape[-2], _TRIALS)
        trial = super().forecast(x.narrow(axis, 0, some), memory, rng=rng)
        apart = whitened_residual(coming, trial) - seen[..., :some, :]
        apart = torch.where(torch.isfinite(apart).all(-1, keepdim=True), apart, 0.0)
        C = apart.mT @ apart / some
        C.diagonal(dim1=-2, dim2=-1).add_(1.0)
        root = torch.linalg.cholesky_ex(C)[0]
        return torch.linalg.solve_triangular(root, seen.mT, upper=False).mT

    def _forecast_point(self, x: Tensor, memory: Memory, rng: Rng) -> Tensor:
        if self.point is not None:
            return self.point(x)
        if callable(getattr(self.dynamics, "mean", None)):
            return deterministic(self.dynamics, memory.step - 1)(x)
        return super().forecast(x, memory, rng=rng)


def log_likelihood(residual: Tensor) -> Tensor:
    """-1/2 |r_i|^2 of whitened residuals, (*B, N, O) -> (*B, N); -inf for what is not finite."""
    value = -0.5 * residual.square().sum(-1)
    return torch.where(torch.isnan(value), -torch.inf, value)


def normalise(log_weights: Tensor, otherwise: Tensor) -> Tensor:
    """Log weights whose logsumexp is 0; `otherwise`, (*B, N), where all are -inf."""
    total = torch.logsumexp(log_weights, -1, keepdim=True)
    return torch.where(torch.isfinite(total), log_weights - total, otherwise)


def effective_size(log_weights: Tensor) -> Tensor:
    """1 / sum w_i^2 of normalised log weights, (*B, N) -> (*B).

    Source:
        Kong, Liu & Wong (1994), doi:10.1080/01621459.1994.10476469, in the form of Liu & Chen (1995).

    >>> effective_size(torch.full((5,), 0.2).log())
    tensor(5.)
    """
    return (-torch.logsumexp(2 * log_weights, -1)).exp()


def weighted_moments(E: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of a weighted ensemble.

    m = sum w_i x_i, v = sum w_i (x_i - m)^2 / (1 - sum w_i^2).

    Args:
        E: Members, (*B, N, d).
        log_weights: Normalised log-weights, (*B, N).

    Returns:
        Each (*B, d).
    """
    w = log_weights.exp()
    mean = w.unsqueeze(-2) @ E
    variance = w.unsqueeze(-2) @ (E - mean).square()
    return mean.squeeze(-2), variance.squeeze(-2) * _unbias(w)[..., None]


def weighted_root(E: Tensor, log_weights: Tensor) -> Tensor:
    """A with A^T A the unbiased covariance of a weighted ensemble, (*B, min(N, d), d)."""
    w = log_weights.exp()
    anomalies = E - w.unsqueeze(-2) @ E
    A = anomalies * (w * _unbias(w)[..., None]).sqrt().unsqueeze(-1)
    if E.shape[-2] <= E.shape[-1]:
        return A
    values, vectors = torch.linalg.eigh(A.mT @ A)
    return values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT


def systematic(log_weights: Tensor, uniform: Tensor, size: int | None = None) -> Tensor:
    """Systematic resampling: one draw for all, so that |n_i - M w_i| < 1.

    Args:
        log_weights: Normalised log-weights, (*B, N).
        uniform: u in [0, 1), (*B); the positions are (j + u) / M.
        size: Number of draws M; N if None.

    Returns:
        Indices in rising order, (*B, M).

    Source:
        Carpenter, Clifford & Fearnhead (1999), doi:10.1049/ip-rsn:19990255, section 4.

    >>> systematic(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor(0.5), 4)
    tensor([0, 0, 1, 2])
    """
    size = log_weights.shape[-1] if size is None else size
    place = torch.arange(size, dtype=torch.float64, device=log_weights.device)
    return _invert(log_weights.double().exp(), (place + uniform.double()[..., None]) / size)


def residual(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Residual resampling: floor(N w_i) copies, and the rest drawn from what remains of the weights.

    Args:
        log_weights: Normalised log-weights, (*B, N).
        uniform: Uniform numbers u in [0, 1), (*B, N), used for the remaining copies.

    Returns:
        Indices in rising order, (*B, N).

    Source:
        Liu & Chen (1998), doi:10.1080/01621459.1998.10473765, section 3.2.

    >>> residual(torch.tensor([0.5, 0.375, 0.125, 0.0]).log(), torch.tensor([0.6, 0.1, 0.7, 0.1]))
    tensor([0, 0, 1, 2])
    """
    size = log_weights.shape[-1]
    expected = size * log_weights.double().exp()
    # N w = 2 may have come out as 2 - rounding
    count = (expected * (1 + 8 * torch.finfo(log_weights.dtype).eps)).floor()
    missing = size - count.sum(-1, keepdim=True)
    drawn = _invert((expected - count).clamp(min=0), uniform.double())
    place = torch.arange(size, device=log_weights.device)
    count = count.scatter_add(-1, drawn, (place < missing).to(count.dtype).expand_as(drawn))
    return torch.searchsorted(count.cumsum(-1), place.to(count).expand_as(count).contiguous(), right=True)


def take(E: Tensor, index: Tensor) -> Tensor:
    """Members by index: (*B, N, d) and (*B, M) to (*B, M, d)."""
    return torch.gather(E, -2, index.unsqueeze(-1).expand(*index.shape, E.shape[-1]))


def repeated(index: Tensor) -> Tensor:
    """Mask of indices, sorted along the last axis, that occur more than once.

    >>> repeated(torch.tensor([0, 0, 1, 2, 2]))
    tensor([ True,  True, False,  True,  True])
    """
    same = index[..., 1:] == index[..., :-1]
    return torch.nn.functional.pad(same, (1, 0)) | torch.nn.functional.pad(same, (0, 1))


def _invert(weights: Tensor, position: Tensor) -> Tensor:
    """First index whose cumulated share of the weights exceeds the position: never one of weight 0."""
    total = weights.cumsum(-1)
    share = total / total[..., -1:].clamp(min=torch.finfo(total.dtype).tiny)
    below = position.clamp(max=1 - 1e-15).contiguous()
    return torch.searchsorted(share, below, right=True).clamp(max=weights.shape[-1] - 1)


def _unbias(w: Tensor) -> Tensor:
    """1 / (1 - sum w_i^2), (*B); bounded where one member has all the weight, whose spread is 0 anyway."""
    return 1 / (1 - w.square().sum(-1)).clamp(min=1 / w.shape[-1])


def _uniform(like: Tensor, rng: Rng) -> Tensor:
    """Uniform draws in [0, 1) of the shape of `like`."""
    return uniform(like.shape, like=like, dtype=torch.float64, rng=rng)
