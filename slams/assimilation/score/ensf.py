"""Ensemble score filter: the posterior's score from the forecast as a mixture, no network and no training."""

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.ensemble.local import LocalizationKeywords, _Localized, geometry_of
from slams.assimilation.memory import Memory
from slams.assimilation.score.ensemble_mixture import (
    ONE,
    WIDTHS,
    Conditioning,
    EachConditioning,
    candidates,
    effective,
    leave_one_out,
)
from slams.assimilation.score.neighbours import LocalEnsemble, Neighbours
from slams.assimilation.score.true_likelihood import analysed, is_bent, weighted_size
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.geometry.localization import Localization, half_width
from slams.core.random import Rng
from slams.diffusion.exact.kernel_mixture import KernelMixture, transport
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_REACH = 2.25  # of patches, in radii
_COMPONENTS = 4  # effective ones a direction: on Lorenz-63 with 40 members 1 loses most of 8 truths, 4 none


class EnSF(_Localized):
    """Ensemble score filter: a mixture as prior, no network and no training.

    What is exact when: with an operator that is linear over the ensemble the posterior of the mixture is exact, in closed
    form; with one that bends, without localization, the likelihood is the operator's own and draws are exact in the limit
    of many `particles`; **with a localization, or `likelihood="linearized"`, the operator is taken as linear within a
    component, and nothing is exact where it bends**.

    The forecast is a mixture with a component a member. In the coordinates z in which the ensemble has mean 0 and
    covariance 1,

        p(z) = 1/N sum_j N((1 - b^2)^1/2 z_j, b^2 1),

    whose first two moments are the ensemble's. Its width b is the one under which each member is most likely given the
    others: 1, a single Gaussian, where the ensemble looks Gaussian, and narrow where it has two peaks; or the next one
    that leaves four effective components a direction, half the members at most. With the observation linear within a
    component (slopes G by regression over the ensemble, what they leave of the predictions added to R, values exact at
    every member) the posterior is a mixture in closed form, and so is its score at every noise level. Members go up the
    prior's probability flow to noise and down the posterior's: each stays as near to its forecast as the posterior
    allows, and where the mixture is one Gaussian the analysis has the moments of the ETKF's.

    Where the operator bends over the ensemble (`true_likelihood.bent`) the width is the likeliest as it is, or the
    coordinates are independent with widths of their own if members are more likely so; `particles` drawn from this prior
    are tempered to its posterior under p(y | x) by adjusted Langevin steps, and as many as there are members, with mean
    and covariance of all, are the analysis. The operator's gradient is used where it has one.

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
        likelihood: "exact", of the operator itself, refused with a localization; "linearized"; None for the exact one
            without a localization and the linearized one with it.
        particles: Draws of the posterior, at least, from which the members are taken where the operator bends.
        iterations: Linearized analyses in turn: where there is one Gaussian, each after the first takes the slopes from
            the members that the one before arrived at, for operators that bend between forecast and analysis.
        common: See `LocalizationKeywords`.

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
        likelihood: Literal["exact", "linearized"] | None = None,
        particles: int = 500,
        iterations: int = 1,
        **common: Unpack[LocalizationKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        size = math.prod(dynamics.state_shape)
        if self.half_width is not None and patch is None:
            geometry = geometry_of(dynamics)
            reach = _REACH * self.half_width / half_width(1.0) if reach is None else reach
            patch = Localization.between(geometry, geometry.points, reach / 2)
        _check(size, self._localizes, patch, kernel, steps, slopes, iterations, particles)
        self.patch = patch
        self.kernel = kernel
        self.steps = steps
        self.slopes = slopes
        self.stochastic = stochastic
        self.iterations = iterations
        self.likelihood = _likelihood(likelihood, patch)
        self.particles = particles

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`; diagnostics (*B).

        "kernel", b, or the geometric mean of those of independent coordinates; "one_gaussian", whether there was no
        mixture; "tempered", whether particles went to the operator's own likelihood: where there was one Gaussian and no
        tempering the analysis is the ETKF's, or LETKF's; "effective_size" of the components, of the members weighted by
        their likelihood where tempered; "acceptance" and "stages" of the chains, else NaN.

        Raises:
            FloatingPointError: If the ensemble has no spread, or the likelihood is not finite.
        """
        A = E - E.mean(-2, keepdim=True)
        refuse_collapsed(A, departures, type(self).__name__, memory.step)
        state = E.unflatten(-1, self.dynamics.state_shape)
        whole = self.patch is None
        bends = is_bent(state, departures, observation) if whole else torch.ones_like(E[..., 0, 0]) > 0
        exact = bends & (self.likelihood == "exact")
        numbers = dict.fromkeys(("acceptance", "stages"), torch.full_like(E[..., 0, 0], math.nan))
        out = E
        if not bool(exact.all()):
            out, closed = self._closed(E, departures, observation, memory, bool(bends.any()), rng)
            numbers |= closed
        if bool(exact.any()):
            after, found = analysed(
                E,
                departures,
                observation,
                self.dynamics.state_shape,
                width=self.kernel,
                particles=self.particles,
                rng=rng,
            )
            found["effective_size"] = weighted_size(departures)
            out = torch.where(exact[..., None, None], after, out)
            numbers |= {
                name: torch.where(exact, value, numbers.get(name, value)) for name, value in found.items()
            }
        memory.diagnostics |= numbers | {"tempered": exact.to(E.dtype)}
        return out

    def _closed(
        self,
        E: Tensor,
        departures: Departures,
        observation: Observation,
        memory: Memory,
        bends: bool,
        rng: Rng,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Analysis with the observation linear within a component, and diagnostics; `bends` if it may not be."""
        A = E - E.mean(-2, keepdim=True)
        if self.patch is None:
            near: object = Neighbours.whole(E.shape[-1], departures.d)
        else:
            near = self._lists(observation, E)
        assert isinstance(near, Neighbours)
        seen = LocalEnsemble.of(near, A, departures, bends)
        b = self._width(A, [seen.part(places)[1:] for places in near.asked()], bends)
        out, count = self._sweep(E, seen, None, b, rng)
        one = b > ONE
        for _ in range(1, self.iterations if bool(one.any()) else 1):
            state = out.unflatten(-1, self.dynamics.state_shape)
            after = Departures.of(state, observation)
            refuse_infinite(after, type(self).__name__, memory.step)
            moved = LocalEnsemble.of(near, out - E.mean(-2, keepdim=True), after, bends)
            again = self._sweep(E, seen, moved, torch.ones_like(b), rng)[0]
            out = torch.where(one[..., None, None], again, out)
        return out, {"effective_size": count, "kernel": b, "one_gaussian": one.to(E.dtype)}

    def _sweep(
        self, E: Tensor, seen: "LocalEnsemble", moved: "LocalEnsemble | None", b: Tensor, rng: Rng
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
            change, count = self._analysis(
                seen.anomalies(variables), z, Y, d, b.unsqueeze(-1), seen.bends, rng, after
            )
            out.index_add_(-2, variables.flatten(), change.mT.flatten(-3, -2))
            counts.append(count)
        return out.mT.contiguous(), torch.cat(counts, -1).mean(-1)

    def _prepare(self, near: Localization, lasting: bool) -> object:
        assert self.patch is not None
        return Neighbours.of(near, self.patch.to(near.weight))

    def _width(self, A: Tensor, parts: Sequence[tuple[Tensor, ...]], bends: bool) -> Tensor:
        """b of each replicate, (*B): one for all parts (z, Y, d), so that neighbours have it in common."""
        batch, size = A.shape[:-2], A.shape[-2]
        if self.kernel is not None:
            return A.new_full(batch, self.kernel)
        widths = candidates(A)
        scores = [leave_one_out(z, widths).sum(-2) for z, _, _ in parts]  # over analyses
        likelihood = torch.stack(scores).sum(0)
        best = likelihood.argmax(-1, keepdim=True)
        place = torch.arange(WIDTHS, device=A.device)
        excess = A.new_zeros(*batch, WIDTHS)
        for z, Y, d in parts:
            needed = min(_COMPONENTS * z.shape[-1], size / 2)
            for k in range(int(best.min()), WIDTHS - 1):
                count = effective(self._condition(z, Y, d, widths[k].view(1, 1), bends)[0]) - needed
                excess[..., k] += count.sum(-1)
        fit = (place >= best) & (excess >= 0)
        return widths[torch.where(fit, place, WIDTHS - 1).amin(-1)]

    def _condition(
        self, z: Tensor, Y: Tensor, d: Tensor, b: Tensor, bends: bool
    ) -> tuple[KernelMixture, KernelMixture, Tensor]:
        """Posterior and prior mixtures, and the basis they are in; b (*B, 1, 1).

        Predictions that do not bend in coordinates of the whole state are explained by them.
        """
        given: Conditioning | EachConditioning
        if self.slopes == "member":
            given = EachConditioning(z, Y, d)
        else:
            given = Conditioning.joint(z, Y, d, b) if bends else Conditioning.of(z, Y, d)
        return given.posterior(b), given.prior(b), given.Q

    def _analysis(
        self,
        A: Tensor,
        z: Tensor,
        Y: Tensor,
        d: Tensor,
        b: Tensor,
        bends: bool,
        rng: Rng,
        after: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Analysis increments of members (*B, N, m), and the effective number of mixture components.

        Args:
            A: Anomalies of the variables to be changed, (*B, N, m).
            z: Coordinates of the mixture, (*B, N, r).
            Y: Whitened predicted anomalies, (*B, N, O).
            d: Whitened innovation, (*B, O).
            b: Width of the kernel, (*B) or what broadcasts to it.
            bends: Whether predictions may be more than the coordinates explain.
            rng: Generator.
            after: Members that Y and d are of, in the coordinates; None for z.
        """
        size, b = A.shape[-2], b[..., None, None]
        if after is None:
            posterior, prior, Q = self._condition(z, Y, d, b, bends)
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


def _check(
    size: int,
    localized: bool,
    patch: Localization | None,
    kernel: float | None,
    steps: int,
    slopes: str,
    iterations: int,
    particles: int,
) -> None:
    """Stops at settings that cannot be, of a state of `size` variables."""
    if kernel is not None and not 0 < kernel < 1:
        raise InvalidValueError(
            f"the kernel's width must lie between 0 and 1, got {kernel}; None chooses it."
        )
    if steps < 2:
        raise InvalidValueError(f"needs at least 2 levels of noise, got {steps}.")
    if iterations < 1:
        raise InvalidValueError(f"needs at least one analysis in turn, got iterations={iterations}.")
    if particles < 2:
        raise InvalidValueError(f"needs at least 2 particles, got {particles}; some hundreds are usual.")
    if slopes not in ("ensemble", "member"):
        raise InvalidValueError(f'slopes must be "ensemble" or "member", got {slopes!r}.')
    if slopes == "member" and size > 1:
        raise InvalidValueError(
            f'slopes of each member are for one variable, the state has {size}; use "ensemble".'
        )
    if (patch is None) == localized:
        raise InvalidValueError(
            "localization and patch belong together: give the variables near each variable, as "
            "Localization.periodic(size, torch.arange(size), radius), or neither; or a radius, which makes both."
        )
    if patch is not None and (len(patch.index), patch.observations) != (size, size):
        raise InvalidValueError(
            f"the patch is between {len(patch.index)} and {patch.observations} variables, but the state has {size}; "
            "build it with the variables in place of the observations."
        )


def _likelihood(given: str | None, patch: Localization | None) -> str:
    """Which likelihood is meant."""
    if given not in ("exact", "linearized", None):
        raise InvalidValueError(f'likelihood must be "exact", "linearized" or None to choose, got {given!r}.')
    if given == "exact" and patch is not None:
        raise InvalidValueError(
            'local analyses have no exact likelihood: the operator is of whole states; use likelihood="linearized", '
            "or no localization and patch."
        )
    return given or ("exact" if patch is None else "linearized")


def refuse_collapsed(A: Tensor, departures: Departures, name: str, step: int) -> None:
    """Stops where there is no spread to make coordinates of, or no likelihood."""
    if not bool((A.square().sum((-2, -1)) > 0).all()):
        raise NonFiniteError(
            f"{name}: the ensemble has collapsed to one state at step {step}; inflate it, or start with more spread."
        )
    refuse_infinite(departures, name, step)


def refuse_infinite(departures: Departures, name: str, step: int) -> None:
    """Stops where there is no likelihood."""
    if not (math.isfinite(departures.d.sum()) and math.isfinite(departures.Y.sum())):
        raise NonFiniteError(
            f"{name}: the likelihood is not finite at step {step}: predictions of the observations overflow; check the "
            "operator, or bound the state."
        )
