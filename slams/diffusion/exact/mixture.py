"""Denoisers of mixtures: a few Gaussians, or an ensemble of which each member is a mode."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, permutation
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.schedule import Schedule
from slams.observation.observation import Observation, Observations


class MixtureDenoiser(Denoiser):
    """Exact denoiser of x ~ sum_k w_k N(m_k, C_k).

    E[x | x_t] = sum_k softmax_k(log w_k + log p_k(x_t)) E_k[x | x_t].

    Args:
        components: The Gaussians, all of one event and schedule.
        weights: w_k, positive, shape (*B, K); they are divided by their sum.

    Raises:
        ValueError: If the weights are not one positive number per component.
    """

    log_weights: Tensor

    def __init__(self, components: Sequence[GaussianDenoiser], weights: Tensor) -> None:
        super().__init__()
        if weights.shape[-1:] != (len(components),) or not bool((weights > 0).all()):
            raise InvalidValueError(
                f"{len(components)} components need one positive weight each, got {weights.tolist()}."
            )
        self.components = nn.ModuleList(components)
        self.schedule = components[0].schedule
        self.event = components[0].event
        self.register_buffer("log_weights", (weights / weights.sum(-1, keepdim=True)).log())

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S)."""
        means = torch.stack([component(x_t, t) for component in self.components])
        shares = self._logits(x_t, t).softmax(0)
        return (shares.reshape(*shares.shape, *([1] * self.event)) * means).sum(0)

    def log_marginal(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t): (*B, *S) -> (*B)."""
        return self._logits(x_t, t).logsumexp(0)

    def given(
        self, observations: Observations | Observation, *, members: bool = False
    ) -> tuple["MixtureDenoiser", Tensor]:
        """Condition on observations through linear operators, exactly; see `GaussianDenoiser.given`.

        Returns:
            The posterior and log p(y) up to a constant of the prior, (*B).
        """
        parts, evidences = [], []
        for component in self._gaussians:
            part, evidence = component.given(observations, members=members)
            parts.append(part)
            evidences.append(evidence)
        logits = self.log_weights + torch.stack(evidences, -1)
        total = logits.logsumexp(-1)
        shares = (logits - total[..., None]).exp().clamp(min=torch.finfo(logits.dtype).tiny)
        return MixtureDenoiser(parts, shares), total

    @property
    def _gaussians(self) -> list[GaussianDenoiser]:
        return [component for component in self.components if isinstance(component, GaussianDenoiser)]

    def _logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(K, *B)."""
        terms = torch.stack([component.log_marginal(x_t, t) for component in self._gaussians])
        weights = self.log_weights.movedim(-1, 0)
        return terms + weights.reshape(len(weights), *([1] * (terms.ndim - weights.ndim)), *weights.shape[1:])


class EnsembleDenoiser(Denoiser):
    """Denoiser of an ensemble: x is a member x_j, plus N(0, v 1) where a kernel is given.

    E[x | x_t] = sum_j w_j (x_j + g (x_t - alpha x_j)),  g = alpha v / s^2,  s^2 = alpha^2 v + sigma^2,
    w = softmax_j(log p_j - |x_t - alpha x_j|^2 / (2 s^2)).

    Distances come from differences, not from products of norms: in single precision the latter lose what
    separates neighbours where sigma is small.

    Args:
        members: (*B, J, *S); x_t is (*B, N, *S).
        schedule: Noise schedule.
        event: Number of axes of *S.
        variance: v, of the kernel; 0 makes draws collapse onto members as t goes to 0.
        weights: p_j, positive, shape (*B, J); equal by default.
        batch: Members of a random subset, drawn anew for each evaluation; all by default.
        rng: Generator of the subsets.

    Raises:
        ValueError: If the variance is negative, or the subset not between 1 and J.

    Source:
        Bao, Zhang & Zhang (2024), doi:10.1016/j.cma.2024.117447, section 3.
    """

    members: Tensor
    log_weights: Tensor | None

    def __init__(
        self,
        members: Tensor,
        schedule: Schedule,
        *,
        event: int = 1,
        variance: float = 0.0,
        weights: Tensor | None = None,
        batch: int | None = None,
        rng: Rng = None,
    ) -> None:
        super().__init__()
        size = members.shape[-event - 1]
        if variance < 0:
            raise InvalidValueError(f"the kernel's variance must not be negative, got {variance}.")
        if batch is not None and not 1 <= batch <= size:
            raise InvalidValueError(f"a subset of {size} members has between 1 and {size}, got {batch}.")
        self.register_buffer("members", members.flatten(-event))
        self.register_buffer("log_weights", None if weights is None else weights.log())
        self.schedule = schedule
        self.event = event
        self.variance = variance
        self.batch = batch
        self.rng = None if batch is None else generator(rng, "subset of members")

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, N, *S), () or (b, 1, ..., 1) -> (*B, N, *S)."""
        alpha, sigma = self.schedule(t if t.ndim == 0 else t.flatten(-self.event))
        x = x_t.flatten(-self.event)
        members, weights = self._chosen()
        width = alpha**2 * self.variance + sigma**2
        # x / alpha against members rather than x against alpha x_j, so that each row may have its own time
        apart = _distances(x / alpha.clamp(min=1e-12), members) * alpha
        logits = -0.5 * apart**2 / width
        shares = (logits if weights is None else logits + weights.unsqueeze(-2)).softmax(-1)
        mean = shares @ members
        if self.variance:
            mean = mean + alpha * self.variance / width * (x - alpha * mean)
        return mean.reshape(x_t.shape)

    def _chosen(self) -> tuple[Tensor, Tensor | None]:
        if self.batch is None or self.batch == self.members.shape[-2]:
            return self.members, self.log_weights
        index = permutation(self.members.shape[-2], rng=self.rng)[: self.batch].to(self.members.device)
        weights = None if self.log_weights is None else self.log_weights[..., index]
        return self.members[..., index, :], weights


def _distances(x: Tensor, members: Tensor) -> Tensor:
    return torch.cdist(x, members, compute_mode="donot_use_mm_for_euclid_dist")
