"""Ensemble score filter: the posterior's score from the forecast as a mixture, no network and no training."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slams.assimilation.filter import Failure, Memory
from slams.assimilation.kalman import Departures
from slams.assimilation.local import Near, _Localized
from slams.core.localization import Localization
from slams.core.random import Rng
from slams.diffusion.kernel_mixture import KernelMixture, bandwidth, transport
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_ELEMENTS = 2**21  # of the temporaries of analyses done at once
_WIDTHS = 12  # candidates of the kernel's width
_COMPONENTS = 4  # effective ones a direction: on Lorenz-63 with 40 members 1 loses most of 8 truths, 4 none


class EnSF(_Localized):
    """Ensemble score filter with the exact likelihood.

    The forecast is a mixture with a component a member. In the coordinates z in which the ensemble has mean 0 and
    covariance 1,

        p(z) = 1/N sum_j N((1 - b^2)^1/2 z_j, b^2 1),

    whose first two moments are the ensemble's. Its width b is the one under which each member is most likely given the
    others: 1, a single Gaussian, where the ensemble looks Gaussian, and narrow where it has two peaks; or the next one
    that leaves four effective components a direction, half the members at most. With the observation linear within a
    component (slopes G by regression over the ensemble, values exact at every member) the posterior is a mixture in
    closed form, and so is its score at every noise level. Members go up the prior's probability flow to noise and down
    the posterior's: each stays as near to its forecast as the posterior allows, and where the mixture is one Gaussian
    the analysis is that of the ETKF.

    With a localization every variable has its own analysis, in the coordinates of the variables near it (`patch`), with
    the observations near it, R^-1 tapered; variables that are not observed follow their neighbours in the mixture.

    Args:
        dynamics: The model.
        localization: Observations near each variable, see `LETKF`; None for one analysis of everything.
        patch: Variables near each variable, `Localization` with the variables in place of the observations; needed with
            `localization`. It should hold the variables that the near observations depend on.
        kernel: b in (0, 1); None to choose it in every analysis, see `leave_one_out`.
        steps: Levels of noise on the way up, and on the way down.
        slopes: "ensemble" for one G by regression over all members, or, for a single variable, "member": one for each
            component, by regression weighted with its kernel, for operators that bend within the ensemble's spread.
        stochastic: Reverse diffusion from fresh noise instead of the flows.
        inflation: See `EnsembleKalman`.
        rtps: See `EnsembleKalman`.
        rtpp: See `EnsembleKalman`.
        adaptive: See `EnsembleKalman`.
        rotate: See `EnsembleKalman`.
        failure: See `Filter`.
        bound: See `Filter`.

    Raises:
        ValueError: If a setting is out of range, or patch and localization are not given together.

    Source:
        Bao, Zhang & Zhang (2024), doi:10.1016/j.cma.2024.117447, section 3, for the idea and the mixture; the likelihood
        there is damped, see `DampedEnSF`. Shrunken kernels: Liu & West (2001), Sequential Monte Carlo Methods in
        Practice, eq. 10.3.9.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        localization: Near | None = None,
        patch: Localization | None = None,
        kernel: float | None = None,
        steps: int = 12,
        slopes: Literal["ensemble", "member"] = "ensemble",
        stochastic: bool = False,
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
            localization=localization,
            inflation=inflation,
            rtps=rtps,
            rtpp=rtpp,
            adaptive=adaptive,
            rotate=rotate,
            failure=failure,
            bound=bound,
        )
        if kernel is not None and not 0 < kernel < 1:
            raise ValueError(f"the kernel's width must lie between 0 and 1, got {kernel}; None chooses it.")
        if steps < 2:
            raise ValueError(f"needs at least 2 levels of noise, got {steps}.")
        if slopes not in ("ensemble", "member"):
            raise ValueError(f'slopes must be "ensemble" or "member", got {slopes!r}.')
        if slopes == "member" and math.prod(dynamics.state_shape) > 1:
            raise ValueError(
                f"slopes of each member are for one variable, the state has {math.prod(dynamics.state_shape)}; use "
                '"ensemble".'
            )
        if (patch is None) != (localization is None):
            raise ValueError(
                "localization and patch belong together: give the variables near each variable, as "
                "Localization.periodic(size, torch.arange(size), radius), or neither."
            )
        self.patch = patch
        self.kernel = kernel
        self.steps = steps
        self.slopes = slopes
        self.stochastic = stochastic

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`; diagnostics "effective_size", of the components, and "kernel", b, both (*B).

        Raises:
            FloatingPointError: If the ensemble has no spread, or the likelihood is not finite.
        """
        A = E - E.mean(-2, keepdim=True)
        refuse_collapsed(A, departures, type(self).__name__, memory.step)
        if self.patch is None:
            z = coordinates(A)
            b = self._width(A, [(z, departures.Y, departures.d)])
            change, count = self._analysis(A, z, departures.Y, departures.d, b, rng)
            memory.diagnostics |= {"effective_size": count, "kernel": b}
            return E + change
        near = self._lists(observation, E)
        assert isinstance(near, _Neighbours)
        out, counts = E.clone(), []
        size = E.shape[-2]
        cost = E[..., 0, 0].numel() * size * (size + 4 * near.width)
        domains = torch.arange(E.shape[-1], device=E.device).split(max(1, _ELEMENTS // cost))
        b = self._width(A, (near.around(A, departures, domain) for domain in domains))
        for domain in domains:
            here = A[..., domain].movedim(-1, -2).unsqueeze(-1)
            change, count = self._analysis(here, *near.around(A, departures, domain), b.unsqueeze(-1), rng)
            out[..., domain] += change.squeeze(-1).movedim(-2, -1)
            counts.append(count)
        memory.diagnostics |= {"effective_size": torch.cat(counts, -1).mean(-1), "kernel": b}
        return out

    def _prepare(self, near: Localization, lasting: bool) -> object:
        assert self.patch is not None
        return _Neighbours(near, self.patch.to(near.weight))

    def _width(self, A: Tensor, parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """b of each replicate, (*B): one for all parts (z, Y, d), so that neighbours have it in common."""
        batch, size = A.shape[:-2], A.shape[-2]
        if self.kernel is not None:
            return A.new_full(batch, self.kernel)
        narrowest = math.log(bandwidth(size, 1) / 5)
        widths = torch.linspace(narrowest, -1e-6, _WIDTHS, dtype=A.dtype, device=A.device).exp()
        likelihood, excess = A.new_zeros(*batch, _WIDTHS), A.new_zeros(*batch, _WIDTHS)
        for z, Y, d in parts:
            needed = min(_COMPONENTS * z.shape[-1], size / 2)
            count = torch.stack([_effective(self._condition(z, Y, d, b)[1]) for b in widths], -1)
            likelihood = likelihood + _per_replicate(leave_one_out(z, widths), likelihood.ndim)
            excess = excess + _per_replicate(count - needed, excess.ndim)
        best = likelihood.argmax(-1, keepdim=True)
        place = torch.arange(_WIDTHS, device=A.device)
        fit = (place >= best) & (excess >= 0)
        return widths[torch.where(fit, place, _WIDTHS - 1).amin(-1)]

    def _condition(
        self, z: Tensor, Y: Tensor, d: Tensor, b: Tensor
    ) -> tuple[KernelMixture, KernelMixture, Tensor]:
        """Prior and posterior mixtures, and the basis they are in."""
        return (condition if self.slopes == "ensemble" else condition_each)(z, Y, d, b)

    def _analysis(
        self, A: Tensor, z: Tensor, Y: Tensor, d: Tensor, b: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """What an analysis adds to members (*B, N, m), and its effective number of components.

        Args:
            A: Anomalies of the variables to be changed, (*B, N, m).
            z: Coordinates of the mixture, (*B, N, r).
            Y: Whitened predicted anomalies, (*B, N, O).
            d: Whitened innovation, (*B, O).
            b: Width of the kernel, (*B) or what broadcasts to it.
            rng: Generator.
        """
        size, b = A.shape[-2], b[..., None, None]
        prior, posterior, Q = self._condition(z, Y, d, b)
        turned = z @ Q
        after = transport(turned, prior, posterior, steps=self.steps, rng=rng, stochastic=self.stochastic)
        regression = turned.mT @ A / (size - 1)
        return (after - turned) @ regression, _effective(posterior)


@dataclass(frozen=True)
class _Neighbours:
    """Lists of what is near each variable."""

    near: Localization
    patch: Localization

    @property
    def width(self) -> int:
        """Longest list."""
        return max(self.near.index.shape[1], self.patch.index.shape[1])

    def around(self, A: Tensor, departures: Departures, domain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Near G variables: coordinates of the patches (*B, G, N, r), and Y (*B, G, N, K), d (*B, G, K), tapered."""
        index, there = self.patch.index[domain], self.patch.weight[domain] > 0
        patch = A[..., index.flatten()].unflatten(-1, index.shape).movedim(-3, -2) * there.unsqueeze(-2)
        index, root = self.near.index[domain], self.near.weight[domain].sqrt()
        Y = departures.Y[..., index.flatten()].unflatten(-1, index.shape).movedim(-3, -2)
        return coordinates(patch), Y * root.unsqueeze(-2), departures.d[..., index] * root


def _effective(mixture: KernelMixture) -> Tensor:
    """Effective number of components, (*B)."""
    return 1 / mixture.logits.softmax(-1).square().sum(-1)


def _per_replicate(value: Tensor, axes: int) -> Tensor:
    """Sum over the domains of one part, (*B, [G,] K) -> (*B, K)."""
    return value.sum(-2) if value.ndim > axes else value


def coordinates(A: Tensor) -> Tensor:
    """Coordinates in which anomalies have covariance 1: A V s^-1/2, 0 along directions without spread.

    Args:
        A: Anomalies, (*B, N, n).

    Returns:
        (*B, N, r), r the smaller of n and N - 1.
    """
    size, n = A.shape[-2:]
    r = min(n, size - 1)
    if n < size:
        s, V = torch.linalg.eigh(A.mT @ A / (size - 1))
        z = A @ V
    else:
        s, U = torch.linalg.eigh(A @ A.mT / (size - 1))
        s, z = s[..., -r:], U[..., -r:] * s[..., -r:].clamp(min=0).sqrt().unsqueeze(-2) * math.sqrt(size - 1)
    keep = s > 1e3 * torch.finfo(A.dtype).eps * s[..., -1:]
    return z * torch.where(keep, s, 1.0).rsqrt().unsqueeze(-2) * keep.unsqueeze(-2)


def leave_one_out(z: Tensor, widths: Tensor) -> Tensor:
    """Log-likelihood of each member under the mixture of the others, summed over members.

    sum_i log 1/(N - 1) sum_{j != i} N(z_i; (1 - b^2)^1/2 z_j, b^2 1), up to a constant of b.

    Args:
        z: Members in coordinates of unit covariance, (*B, N, r).
        widths: Candidates of b, (K).

    Returns:
        (*B, K).

    Source:
        Habbema, Hermans & van den Broek (1974); Duin (1976), doi:10.1109/TC.1976.1674577.
    """
    gram = z @ z.mT
    square = gram.diagonal(dim1=-2, dim2=-1)
    rank = (z.abs().amax(-2) > 0).sum(-1)
    itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
    scores = []
    for b in widths:
        a = (1 - b * b).sqrt()
        apart = square.unsqueeze(-1) + a * a * square.unsqueeze(-2) - 2 * a * gram
        terms = (-0.5 * apart / (b * b)).masked_fill(itself, -math.inf).logsumexp(-1)
        scores.append(terms.sum(-1) - z.shape[-2] * rank * b.log())
    return torch.stack(scores, -1)


def condition(z: Tensor, Y: Tensor, d: Tensor, b: Tensor) -> tuple[KernelMixture, KernelMixture, Tensor]:
    """Prior and posterior mixtures of an ensemble.

    With m_j = (1 - b^2)^1/2 z_j, d_j = d - Y_j - G (m_j - z_j) and G^T G = Q diag(g) Q^T, in the basis Q: variances
    s^2 = b^2 / (1 + b^2 g), means m_j + s^2 Q^T G^T d_j, log w_j = -1/2 (|d_j|^2 - |s Q^T G^T d_j|^2).

    Args:
        z: Members in coordinates of unit covariance, (*B, N, r).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        b: Width of the kernel, (*B, 1, 1).

    Returns:
        Prior and posterior in the basis, and Q (*B, r, r).
    """
    size = z.shape[-2]
    G = Y.mT @ z / (size - 1)
    g, Q = torch.linalg.eigh(G.mT @ G)
    m = (1 - b * b).sqrt() * z
    apart = d.unsqueeze(-2) - Y - (m - z) @ G.mT
    turned = m @ Q
    prior = KernelMixture(turned, (b * b).expand_as(turned[..., :1, :]), torch.zeros_like(z[..., 0]))
    variances = b * b / (1 + b * b * g.clamp(min=0).unsqueeze(-2))
    pulled = apart @ (G @ Q)
    logits = -0.5 * (apart.square().sum(-1) - (pulled.square() * variances).sum(-1))
    return prior, KernelMixture(turned + variances * pulled, variances, logits), Q


def condition_each(z: Tensor, Y: Tensor, d: Tensor, b: Tensor) -> tuple[KernelMixture, KernelMixture, Tensor]:
    """The same of one variable, with a slope G_j for each component.

    G_j is the regression of Y on z with weights exp(-(z - z_j)^2 / (2 b^2)), and the observation of component j is
    linear about the mean of its weighted members.

    Args:
        z: Members in coordinates of unit variance, (*B, N, 1).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        b: Width of the kernel, (*B, 1, 1).
    """
    w = torch.softmax(-0.5 * ((z - z.mT) / b).square(), -1)
    z_near, Y_near = w @ z, w @ Y
    spread = (w @ z.square() - z_near.square()).clamp(min=torch.finfo(z.dtype).tiny)
    G = (w @ (z * Y) - z_near * Y_near) / spread
    m = (1 - b * b).sqrt() * z
    apart = d.unsqueeze(-2) - Y_near - G * (m - z_near)
    g = G.square().sum(-1, keepdim=True)
    variances = b * b / (1 + b * b * g)
    pulled = (G * apart).sum(-1, keepdim=True)
    logits = -0.5 * (
        apart.square().sum(-1, keepdim=True) - pulled.square() * variances + (1 + b * b * g).log()
    )
    prior = KernelMixture(m, (b * b).expand_as(m[..., :1, :]), torch.zeros_like(m[..., 0]))
    return prior, KernelMixture(m + variances * pulled, variances, logits[..., 0]), z.new_ones(1, 1)


def refuse_collapsed(A: Tensor, departures: Departures, name: str, step: int) -> None:
    """Stops where there is no spread to make coordinates of, or no likelihood."""
    if not bool((A.square().sum((-2, -1)) > 0).all()):
        raise FloatingPointError(
            f"{name}: the ensemble has collapsed to one state at step {step}; inflate it, or start with more spread."
        )
    if not (math.isfinite(departures.d.sum()) and math.isfinite(departures.Y.sum())):
        raise FloatingPointError(
            f"{name}: the likelihood is not finite at step {step}: predictions of the observations overflow; check the "
            "operator, or bound the state."
        )
