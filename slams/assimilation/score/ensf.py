"""Ensemble score filter: the posterior's score from the forecast as a mixture, no network and no training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.ensemble.local import LocalizationKeywords, _Localized, geometry_of
from slams.assimilation.filter import Memory
from slams.assimilation.score.ensemble_mixture import (
    ONE,
    WIDTHS,
    Conditioning,
    EachConditioning,
    candidates,
    effective,
    leave_one_out,
    projection,
)
from slams.core.geometry.localization import Localization, half_width
from slams.core.random import Rng
from slams.diffusion.exact.kernel_mixture import KernelMixture, transport
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_ELEMENTS = 2**18  # of the temporaries of analyses done at once: on a CPU they stay in a core's cache
_ELEMENTS_GPU = 2**26
_ASKED = 32  # local analyses that the width of the kernel is chosen by
_REACH = 2.25  # of patches, in radii
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
        patch: Variables near each variable, `Localization` with the variables in place of the observations; needed with
            `localization`. It should hold the variables that the near observations depend on.
        reach: Distance within which variables are in one patch, where a radius makes it; 2.25 radii if None.
        kernel: b in (0, 1); None to choose it in every analysis, see `leave_one_out`.
        steps: Levels of noise on the way up, and on the way down.
        slopes: "ensemble" for one G by regression over all members, or, for a single variable, "member": one for each
            component, by regression weighted with its kernel, for operators that bend within the ensemble's spread.
        stochastic: Reverse diffusion from fresh noise instead of the flows.
        iterations: Analyses in turn: where there is one Gaussian, each after the first takes the slopes from the members
            that the one before arrived at, for operators that bend between forecast and analysis.
        common: Keywords of `LocalizationKeywords`.

    Raises:
        ValueError: If a setting is out of range, patch and localization are not given together, or the patch is of
            another number of variables.

    Source:
        Bao, Zhang & Zhang (2024), doi:10.1016/j.cma.2024.117447, section 3, for the idea and the mixture; the likelihood
        there is damped, see `DampedEnSF`. Shrunken kernels: Liu & West (2001), Sequential Monte Carlo Methods in
        Practice, eq. 10.3.9.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        patch: Localization | None = None,
        reach: float | None = None,
        kernel: float | None = None,
        steps: int = 12,
        slopes: Literal["ensemble", "member"] = "ensemble",
        stochastic: bool = False,
        iterations: int = 1,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            **common,
        )
        if kernel is not None and not 0 < kernel < 1:
            raise ValueError(f"the kernel's width must lie between 0 and 1, got {kernel}; None chooses it.")
        if steps < 2:
            raise ValueError(f"needs at least 2 levels of noise, got {steps}.")
        if iterations < 1:
            raise ValueError(f"needs at least one analysis in turn, got iterations={iterations}.")
        if slopes not in ("ensemble", "member"):
            raise ValueError(f'slopes must be "ensemble" or "member", got {slopes!r}.')
        if slopes == "member" and math.prod(dynamics.state_shape) > 1:
            raise ValueError(
                f"slopes of each member are for one variable, the state has {math.prod(dynamics.state_shape)}; use "
                '"ensemble".'
            )
        if self.half_width is not None and patch is None:
            geometry = geometry_of(dynamics)
            reach = _REACH * self.half_width / half_width(1.0) if reach is None else reach
            patch = Localization.between(geometry, geometry.points, reach / 2)
        if (patch is None) == self._localizes:
            raise ValueError(
                "localization and patch belong together: give the variables near each variable, as "
                "Localization.periodic(size, torch.arange(size), radius), or neither; or a radius, which makes both."
            )
        size = math.prod(dynamics.state_shape)
        if patch is not None and (len(patch.index), patch.observations) != (size, size):
            raise ValueError(
                f"the patch is between {len(patch.index)} and {patch.observations} variables, but the state has {size}; "
                "build it with the variables in place of the observations."
            )
        self.patch = patch
        self.kernel = kernel
        self.steps = steps
        self.slopes = slopes
        self.stochastic = stochastic
        self.iterations = iterations

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
            near: object = _Neighbours.whole(E.shape[-1], departures.d)
        else:
            near = self._lists(observation, E)
        assert isinstance(near, _Neighbours)
        seen = _Seen.of(near, A, departures)
        b = self._width(A, [seen.part(places)[1:] for places in near.asked()])
        out, count = self._sweep(E, seen, None, b, rng)
        one = b > ONE
        for _ in range(1, self.iterations if bool(one.any()) else 1):
            state = out.unflatten(-1, self.dynamics.state_shape)
            after = Departures.of(state, observation)
            refuse_infinite(after, type(self).__name__, memory.step)
            moved = _Seen.of(near, out - E.mean(-2, keepdim=True), after)
            again = self._sweep(E, seen, moved, torch.ones_like(b), rng)[0]
            out = torch.where(one[..., None, None], again, out)
        memory.diagnostics |= {"effective_size": count, "kernel": b}
        return out

    def _sweep(
        self, E: Tensor, seen: "_Seen", moved: "_Seen | None", b: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """All local analyses, with slopes from members `moved` if any, and their mean number of components."""
        near = seen.lists
        out, counts = E.mT.clone(memory_format=torch.contiguous_format), []
        for places in near.pieces(E[..., 0, 0].numel(), E.shape[-2], E.device.type):
            variables = near.variables[places]
            W, z, Y, d = seen.part(places)
            after = None
            if moved is not None:
                Y, d = moved.predictions(places)
                after = moved.patch(places) @ W
            change, count = self._analysis(seen.anomalies(variables), z, Y, d, b.unsqueeze(-1), rng, after)
            out.index_add_(-2, variables.flatten(), change.mT.flatten(-3, -2))
            counts.append(count)
        return out.mT.contiguous(), torch.cat(counts, -1).mean(-1)

    def _prepare(self, near: Localization, lasting: bool) -> object:
        assert self.patch is not None
        return _Neighbours.of(near, self.patch.to(near.weight))

    def _width(self, A: Tensor, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """b of each replicate, (*B): one for all parts (z, Y, d), so that neighbours have it in common."""
        batch, size = A.shape[:-2], A.shape[-2]
        if self.kernel is not None:
            return A.new_full(batch, self.kernel)
        widths = candidates(A)
        scores = [_over_domains(leave_one_out(z, widths), len(batch)) for z, _, _ in parts]
        likelihood = torch.stack(scores).sum(0)
        best = likelihood.argmax(-1, keepdim=True)
        place = torch.arange(WIDTHS, device=A.device)
        excess = A.new_zeros(*batch, WIDTHS)
        for z, Y, d in parts:
            needed = min(_COMPONENTS * z.shape[-1], size / 2)
            for k in range(int(best.min()), WIDTHS - 1):
                count = effective(self._condition(z, Y, d, widths[k].view(1, 1))[0]) - needed
                excess[..., k] += _over_domains(count.unsqueeze(-1), len(batch))[..., 0]
        fit = (place >= best) & (excess >= 0)
        return widths[torch.where(fit, place, WIDTHS - 1).amin(-1)]

    def _condition(
        self, z: Tensor, Y: Tensor, d: Tensor, b: Tensor
    ) -> tuple[KernelMixture, KernelMixture, Tensor]:
        """Posterior and prior mixtures, and the basis they are in; b (*B, 1, 1)."""
        given: Conditioning | EachConditioning
        if self.slopes == "member":
            given = EachConditioning(z, Y, d)
        else:
            given = Conditioning.of(z, Y, d) if self.patch is None else Conditioning.joint(z, Y, d, b)
        return given.posterior(b), given.prior(b), given.Q

    def _analysis(
        self, A: Tensor, z: Tensor, Y: Tensor, d: Tensor, b: Tensor, rng: Rng, after: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Analysis increments of members (*B, N, m), and the effective number of mixture components.

        Args:
            A: Anomalies of the variables to be changed, (*B, N, m).
            z: Coordinates of the mixture, (*B, N, r).
            Y: Whitened predicted anomalies, (*B, N, O).
            d: Whitened innovation, (*B, O).
            b: Width of the kernel, (*B) or what broadcasts to it.
            rng: Generator.
            after: Members that Y and d are of, in the coordinates; None for z.
        """
        size, b = A.shape[-2], b[..., None, None]
        if after is None:
            posterior, prior, Q = self._condition(z, Y, d, b)
        else:
            given = Conditioning.again(z, after, Y, d)
            posterior, prior, Q = given.posterior(b), given.prior(b), given.Q
        turned = z @ Q
        if not self.stochastic and bool((b > ONE).all()):
            mean, variance = (value.unsqueeze(-2) for value in posterior.moments())
            carried = mean + variance.sqrt() * turned
        else:
            carried = transport(
                turned, prior, posterior, steps=self.steps, rng=rng, stochastic=self.stochastic
            )
        regression = turned.mT @ A / (size - 1)
        return (carried - turned) @ regression, effective(posterior)


@dataclass(frozen=True)
class _Neighbours:
    """Lists of what is near the variables of each local analysis.

    Attributes:
        near: Indices of observations, (G, K).
        root: Square roots of their weights, (G, K).
        patch: Variables used as coordinates, (G, n).
        there: Mask of those that are not padding, (G, n).
        variables: Analysed variables, (G, m).
    """

    near: Tensor
    root: Tensor
    patch: Tensor
    there: Tensor
    variables: Tensor

    @classmethod
    def whole(cls, size: int, d: Tensor) -> "_Neighbours":
        """One analysis of everything."""
        all_of = torch.arange(size, device=d.device)[None]
        seen = torch.arange(d.shape[-1], device=d.device)[None]
        return cls(seen, torch.ones_like(seen, dtype=d.dtype), all_of, torch.ones_like(all_of) > 0, all_of)

    @classmethod
    def of(cls, near: Localization, patch: Localization) -> "_Neighbours":
        """Neighbours with the same lists share an analysis if they come in groups of one size."""
        count, variables = len(near.index), torch.arange(len(near.index), device=near.index.device)[:, None]
        new = torch.ones(count, dtype=torch.bool, device=near.index.device)
        for lists in (near, patch):
            same = (lists.index[1:] == lists.index[:-1]) & (lists.weight[1:] == lists.weight[:-1])
            new[1:] &= ~same.all(-1)
        first = new.nonzero()[:, 0]
        m = count // len(first)
        if m > 1 and bool((first == torch.arange(0, count, m, device=first.device)[: len(first)]).all()):
            variables = variables.view(-1, m) if count % m == 0 else variables
        one = variables[:, 0]
        there = patch.weight[one] > 0
        return cls(near.index[one], near.weight[one].sqrt(), patch.index[one], there, variables)

    def pieces(self, replicates: int, size: int, device: str) -> tuple[Tensor, ...]:
        """Analyses that are done at once."""
        width = self.near.shape[1] + 4 * self.patch.shape[1] + 3 * size + 2 * self.variables.shape[1]
        most = _ELEMENTS if device == "cpu" else _ELEMENTS_GPU
        return torch.arange(len(self.variables), device=self.variables.device).split(
            max(1, most // (replicates * size * width))
        )

    def asked(self) -> tuple[Tensor, ...]:
        """Analyses, evenly spread, that choose the width of the kernel."""
        count = len(self.variables)
        places = torch.linspace(0, count - 1, min(count, _ASKED), device=self.variables.device).round().long()
        return places.split(32)


@dataclass(frozen=True)
class _Seen:
    """An ensemble and its neighbour lists; members last: what belongs to one variable is one run of memory."""

    lists: _Neighbours
    A: Tensor
    Y: Tensor
    d: Tensor

    @classmethod
    def of(cls, lists: _Neighbours, A: Tensor, departures: Departures) -> "_Seen":
        return cls(lists, A.mT.contiguous(), departures.Y.mT.contiguous(), departures.d)

    def anomalies(self, index: Tensor) -> Tensor:
        """Anomalies of variables (G, n), (*B, G, N, n)."""
        return self.A.index_select(-2, index.flatten()).unflatten(-2, index.shape).mT

    def patch(self, places: Tensor) -> Tensor:
        """Anomalies of the patches of some analyses, (*B, G, N, n)."""
        return self.anomalies(self.lists.patch[places]) * self.lists.there[places].unsqueeze(-2)

    def part(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Near some analyses: projection to coordinates (*B, G, n, r), coordinates, tapered Y (*B, G, N, K) and d."""
        patch = self.patch(places)
        W = projection(patch)
        return W, patch @ W, *self.predictions(places)

    def predictions(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tapered Y (*B, G, N, K) and d (*B, G, K) near some analyses."""
        index, root = self.lists.near[places], self.lists.root[places]
        Y = self.Y.index_select(-2, index.flatten()).unflatten(-2, index.shape) * root.unsqueeze(-1)
        return Y.mT, self.d[..., index] * root


def _over_domains(value: Tensor, axes: int) -> Tensor:
    """Sum over the analyses of one part, (*B, [G,] K) -> (*B, K)."""
    return value.sum(-2) if value.ndim > axes + 1 else value


def refuse_collapsed(A: Tensor, departures: Departures, name: str, step: int) -> None:
    """Stops where there is no spread to make coordinates of, or no likelihood."""
    if not bool((A.square().sum((-2, -1)) > 0).all()):
        raise FloatingPointError(
            f"{name}: the ensemble has collapsed to one state at step {step}; inflate it, or start with more spread."
        )
    refuse_infinite(departures, name, step)


def refuse_infinite(departures: Departures, name: str, step: int) -> None:
    """Stops where there is no likelihood."""
    if not (math.isfinite(departures.d.sum()) and math.isfinite(departures.Y.sum())):
        raise FloatingPointError(
            f"{name}: the likelihood is not finite at step {step}: predictions of the observations overflow; check the "
            "operator, or bound the state."
        )
