"""Forward filtering, backward simulation: draws of whole trajectories whose early states are no copies."""

from typing import Protocol

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.assimilation.particle.bootstrap import (
    effective_size,
    log_likelihood,
    normalise,
    systematic,
)
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, permutation, settled, uniform
from slams.core.renamed import old_keywords
from slams.observation.observation import Observations

_NEGLIGIBLE = 30.0  # nats below the largest weight
_REACH = 6.0  # standard deviations of the noise, beyond which a particle is no ancestor


class Noisy(Protocol):
    """A system of vectors with additive noise: x_{k+1} = mean(x_k) + noise sqrt(dt) N(0, I)."""

    dt: float
    noise: float

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """(*shape, d)."""

    def mean(self, x: Tensor) -> Tensor:
        """(*B, d) -> (*B, d)."""


class BackwardSimulation(Assimilator):
    """Particle smoother: a bootstrap filter forward, then draws of trajectories backward.

    After the filter has left weighted particles (x_k^i, w_k^i) at every step, a trajectory is drawn from its end:
    x_L among the last particles, then x_k = x_k^i with probability proportional to

        w_k^i p(x_{k+1} | x_k^i),

    so that every step is drawn anew from all particles. Ancestral lines (`backward=False`, the published reference of
    SDA) are draws of the same distribution, but those of a long window meet in few ancestors. Both are exact as the
    number of particles grows.

    Args:
        dynamics: A system with additive noise.
        particles: Number of particles of the filter.
        spin_up: Transitions between `dynamics.initial` and the first step.
        threshold: Resample where the effective size falls below this share of the particles.
        backward: Whether to simulate backward; ancestral lines otherwise.
        rows: Trajectories drawn at once: neighbours, so that few particles come into question for each group.

    Raises:
        ValueError: If the system has no noise or a setting is invalid.

    Source:
        Godsill, Doucet & West (2004), doi:10.1198/016214504000000151, algorithm 1.
    """

    def __init__(
        self,
        dynamics: Noisy,
        *,
        particles: int = 2**14,
        spin_up: int = 0,
        threshold: float = 0.5,
        backward: bool = True,
        rows: int = 32,
    ) -> None:
        if not dynamics.noise > 0:
            raise InvalidValueError(
                "backward simulation needs a system with noise; without, smooth with IEnKS or 4D-Var."
            )
        if min(particles, rows) < 1 or spin_up < 0 or not 0 <= threshold <= 1:
            raise InvalidValueError(
                f"need particles and rows >= 1, spin_up >= 0 and a threshold in [0, 1], got {particles}, {rows}, "
                f"{spin_up} and {threshold}."
            )
        self.dynamics = dynamics
        self.particles = particles
        self.spin_up = spin_up
        self.threshold = threshold
        self.backward = backward
        self.rows = rows

    @torch.no_grad()
    @old_keywords("method setting")
    def assimilate(self, observations: Observations, members: int, *, rng: Rng = None) -> Posterior:
        """Draw trajectories of one record.

        Args:
            observations: Values (L, *O), without replicates: the particles of one fill the memory.
            members: Trajectories.
            rng: Generator.

        Returns:
            Samples (N, L, d); the filter's "effective_size" and the number of distinct "ancestors" of the samples, (L).

        Raises:
            ValueError: If `members` is below 1 or there are replicates.
        """
        if members < 1 or observations.batch:
            raise InvalidValueError(
                f"takes one record, (L, *O), and draws at least one trajectory; got replicates {observations.batch} and "
                f"{members}; call it once for each."
            )
        source, seed = settled(rng)
        rng = generator(source, "method")
        states, weights, parents, effective = self._filter(observations, rng)
        last = systematic(weights[-1], uniform((), like=weights[-1], rng=rng), members)
        last = last[permutation(members, rng=rng)]
        draw = self._simulate if self.backward else self._lines
        index, drawn = draw(states, weights, parents, last, rng)
        ancestors = torch.tensor([len(row.unique()) for row in index.unbind(1)], dtype=drawn.dtype)
        return Posterior(drawn, {"effective_size": effective, "ancestors": ancestors}, seed=seed)

    def _filter(
        self, observations: Observations, rng: Rng
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None], Tensor]:
        """Particles (P, d) and log weights (P) of every step, their parents of the step before where resampled."""
        x = self.dynamics.initial(self.particles, rng=rng)
        for _ in range(self.spin_up):
            x = self._move(x, rng)
        even = x.new_full((self.particles,), 1 / self.particles).log()
        states: list[Tensor] = []
        weights: list[Tensor] = []
        parents: list[Tensor | None] = []
        sizes = []
        for k in range(observations.steps):
            parent, before = None, even
            if k:
                x, before = states[-1], weights[-1]
                if float(effective_size(before)) < self.threshold * self.particles:
                    parent = systematic(before, uniform((), like=before, rng=rng))
                    x, before = x[parent], even
                x = self._move(x, rng)
            seen = observations.step(k)
            if seen is not None:
                residual = seen.whiten(seen.innovation(x, members=True), members=True)
                before = normalise(before + log_likelihood(residual), before)
            states.append(x)
            weights.append(before)
            parents.append(parent)
            sizes.append(effective_size(before))
        return states, weights, parents, torch.stack(sizes)

    def _move(self, x: Tensor, rng: Rng) -> Tensor:
        moved = self.dynamics.mean(x)
        return moved.add(normal(x.shape, like=x, rng=rng), alpha=self.dynamics.noise * self.dynamics.dt**0.5)

    def _lines(
        self,
        states: list[Tensor],
        weights: list[Tensor],
        parents: list[Tensor | None],
        last: Tensor,
        rng: Rng,
    ) -> tuple[Tensor, Tensor]:
        """Ancestral lines of the last particles: indices (N, L) and states (N, L, d)."""
        index = [last]
        for parent in reversed(parents[1:]):
            index.append(index[-1] if parent is None else parent[index[-1]])
        index.reverse()
        return torch.stack(index, 1), torch.stack([x[i] for x, i in zip(states, index, strict=True)], 1)

    def _simulate(
        self,
        states: list[Tensor],
        weights: list[Tensor],
        parents: list[Tensor | None],
        last: Tensor,
        rng: Rng,
    ) -> tuple[Tensor, Tensor]:
        """As `_lines`, every step drawn anew."""
        index = [last]
        drawn = [states[-1][last]]
        for x, w in zip(reversed(states[:-1]), reversed(weights[:-1]), strict=True):
            mean, after = self.dynamics.mean(x), drawn[-1]
            chance = uniform((len(last),), like=x, rng=rng)
            chosen = torch.empty_like(last)
            widest = int((after.amax(0) - after.amin(0)).argmax())
            for group in after[:, widest].argsort().split(self.rows):
                kept = self._possible(mean, w, after[group])
                chosen[group] = kept[self._choose(mean[kept], w[kept], after[group], chance[group])]
            index.append(chosen)
            drawn.append(x[chosen])
        index.reverse()
        drawn.reverse()
        return torch.stack(index, 1), torch.stack(drawn, 1)

    def _possible(self, mean: Tensor, log_weights: Tensor, after: Tensor) -> Tensor:
        """Indices of the particles, (P, d) without noise, that may be an ancestor of any of `after`."""
        reach = _REACH * self.dynamics.noise * self.dynamics.dt**0.5
        inside = log_weights > log_weights.max() - _NEGLIGIBLE
        for axis in range(mean.shape[-1]):
            place = mean[:, axis]
            inside &= (place > after[:, axis].min() - reach) & (place < after[:, axis].max() + reach)
        kept = inside.nonzero().squeeze(-1)
        # never empty: each of `after` has its own parent, unless that weighed next to nothing
        return kept if len(kept) else torch.arange(len(mean), device=mean.device)

    def _choose(self, mean: Tensor, log_weights: Tensor, after: Tensor, uniform: Tensor) -> Tensor:
        """One of the particles for each trajectory, w_i p(after | x_i): (P, d), (P), (n, d), (n) -> (n)."""
        variance = self.dynamics.noise**2 * self.dynamics.dt
        centre = after.mean(0)  # so that squares do not cancel
        mean, after = mean - centre, after - centre
        fit = torch.addmm(log_weights - mean.square().sum(-1) / (2 * variance), after, mean.mT / variance)
        total = fit.sub_(fit.amax(-1, keepdim=True)).exp_().cumsum(-1)
        place = uniform.to(total).unsqueeze(-1) * total[:, -1:]
        return torch.searchsorted(total, place, right=True).squeeze(-1).clamp(max=len(mean) - 1)
