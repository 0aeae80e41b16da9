"""Guidance: how observations pull on a denoiser. A guided denoiser is a denoiser, so every sampler takes it."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from slams.core.errors import NonFiniteError
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.evidence import Evidence
from slams.diffusion.trajectory_gaussian import TrajectoryGaussian
from slams.observation.observation import Observation, Observations


class Guidance:
    """The settings of one way to condition a denoiser: called with prior and observations, it guides the prior.

    A subclass states `pull`, or `__call__` where it prepares more than its settings for a record; it is then an argument
    of `SDA` like those of the package.

    Attributes:
        closed_form: Whether it takes a `TrajectoryDenoiser`, windows composed in closed form, as prior.
    """

    closed_form: ClassVar[bool] = False

    def __new__(cls, *given: Any, **settings: Any) -> "Guidance":  # noqa: D102
        if not given or not isinstance(given[0], Denoiser):
            return super().__new__(cls)
        warnings.warn(
            f"{cls.__name__}(denoiser, observations, …) is now {cls.__name__}(…)(denoiser, observations): settings "
            "first. The old form works until version 0.4.",
            FutureWarning,
            stacklevel=2,
        )
        members = settings.pop("members", False)
        return cls(*given[2:], **settings)(given[0], given[1], members=members)  # type: ignore[return-value]

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """The guided denoiser, E[x | x_t, y].

        Args:
            prior: E[x | x_t].
            observations: Values (*B, L, *O) along windows, or (*B, *O) of one time.
            members: Whether samples are (*B, N, [L,] *S), with members behind the axes of the observations' batch,
                instead of (N, *B, [L,] *S).
        """
        return GuidedDenoiser(self, prior, observations, members=members)

    def pull(self, guided: "GuidedDenoiser", x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The prior's mean and the correction by the observations.

        Args:
            guided: Prior (`denoiser`), its `schedule`, `observations` and their `evidence`.
            x_t: Noisy samples, (*B, [L,] *S).
            t: Diffusion time, () or (b, 1, ..., 1).

        Returns:
            E[x | x_t] and E[x | x_t, y] - E[x | x_t], each the shape of `x_t`.
        """
        raise NotImplementedError(f"{type(self).__name__} states neither `pull` nor `__call__`.")


class GuidedDenoiser(Denoiser):
    """E[x | x_t, y] of a prior and observations, joined by a guidance.

    Args:
        guidance: Approximation of the likelihood's gradient.
        denoiser: The prior.
        observations: Values (*B, L, *O) along windows, or (*B, *O).
        members: Position of the members' axis, as in `Guidance.__call__`.

    Raises:
        FloatingPointError: If a guided mean is not finite in sampling; names time and norm of the guidance.
    """

    def __init__(
        self,
        guidance: Guidance,
        denoiser: Denoiser,
        observations: Observations | Observation,
        *,
        members: bool = False,
    ) -> None:
        super().__init__()
        self.guidance = guidance
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.observations = observations
        self.evidence = Evidence(observations, members=members)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, [L,] *S), () or (b, 1, ..., 1) -> shape of `x_t`; not differentiable any further."""
        mean, guidance = self.guidance.pull(self, x_t, t)
        guided = (mean + guidance).detach()
        refuse_broken(guided, guidance, t)
        return guided


class PatternGuided(Denoiser):
    """A denoiser guided by the covariance of the patterns of its closed form; a subclass states `solved`.

    Args:
        denoiser: The prior, of windows or trajectories (*B, L, *Z).
        gaussian: Its closed form.
        observations: Values (W, L, *O), or of one window or trajectory, (L, *O).
        jacobians: G of each modality on the patterns, (prod(O), K).
        fitted: Names of the modalities whose G also carries their misfit back; that of the others is differentiated.
            All if None.
        counted: Observations that M counts, where the denoiser knows some already; the observations if None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        gaussian: WindowGaussian | TrajectoryGaussian,
        observations: Observations,
        jacobians: Mapping[str, Tensor],
        fitted: Collection[str] | None,
        counted: Observations | None,
    ) -> None:
        super().__init__()
        self.denoiser, self.gaussian, self.schedule = denoiser, gaussian, denoiser.schedule
        self.alone = not observations.batch
        self.observations = observations.windows(gaussian.length) if self.alone else observations
        fits = observations if fitted is None else [name for name in observations if name in fitted]
        self.fits = {name: jacobians[name].to(gaussian.basis) for name in fits}
        self.counted = self.observations if counted is None else counted
        self.index, self.first = self.counted.patterns()

    def informations(self, jacobians: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """M of each pattern of observed values, (L, K, K)."""
        own = {name: jacobians[name] for name in self.counted}
        return (self.counted.information(own, window) for window in self.first)

    def solved(self, pattern: int, pulled: Tensor, t: Tensor) -> Tensor:
        """(C^-1 + (alpha_t / sigma_t)^2 1 + M)^-1 b for one pattern, (N, W', L, K) -> the same."""
        raise NotImplementedError(f"{type(self).__name__} does not state `solved`.")

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(N, W, L, *Z), one of the first axes missing where there is one window or one draw of each; () -> the same.

        Raises:
            FloatingPointError: If the guidance is not finite; names the diffusion time.
        """
        event = 1 + len(self.gaussian.event)
        if self.alone:
            return self._guided(x_t.unsqueeze(-1 - event), t).squeeze(-1 - event)
        return self._guided(x_t, t) if x_t.ndim > event + 1 else self._guided(x_t[None], t)[0]

    def _guided(self, x_t: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            mean = self.denoiser(x_t, t)
        # what lies outside the patterns is not updated, so it must not enter the misfit either
        inside = self.gaussian.expand(self.gaussian.coefficients(mean))
        pulled = pulled_misfit(self.gaussian, self.observations, self.fits, inside)  # (N, W, L, K)
        increment = torch.empty_like(pulled)
        for pattern in range(len(self.first)):
            rows = [w for w, number in enumerate(self.index) if number == pattern]
            increment[:, rows] = self.solved(pattern, pulled[:, rows], t)
        if not bool(torch.isfinite(increment).all()):
            raise NonFiniteError(
                f"the guidance is not finite at diffusion time {float(t):.3f} (largest gradient "
                f"{float(torch.nan_to_num(pulled).abs().max()):g}); check the observations and their errors."
            )
        flat = increment.flatten(-2) if isinstance(self.gaussian, WindowGaussian) else increment
        return mean + self.gaussian.expand(flat)


def pulled_misfit(
    gaussian: WindowGaussian | TrajectoryGaussian,
    observations: Observations,
    fits: Mapping[str, Tensor],
    x: Tensor,
) -> Tensor:
    """Gradient of the log-likelihood at x (N, W, L, *Z) by the patterns' coefficients, (N, W, L, K).

    Args:
        gaussian: Has the patterns.
        observations: Values (W, L, *O).
        fits: Operators on the patterns, (prod(O), K), of the modalities whose misfit they carry back; that of the others
            is differentiated.
        x: States.
    """
    total = x.new_zeros(())
    others = {name: o for name, o in observations.items() if name not in fits}
    with torch.no_grad():
        for name, operator in fits.items():
            o = observations[name]
            total = total + o.noise.apply(o.residual(x), o.precision) @ operator
    if others:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(Observations(others).log_likelihood(leaf).sum(), leaf)
        total = total + gradient.flatten(-len(gaussian.event)) @ gaussian.basis
    return total


def refuse_broken(guided: Tensor, guidance: Tensor, t: Tensor) -> None:
    """Raise an error if a guided mean is not finite.

    Args:
        guided: E[x | x_t, y] (*B, *S).
        guidance: Correction of the prior's mean by guidance, shape of `guided`.
        t: Diffusion time.

    Raises:
        FloatingPointError: If a value is not finite; names the time and the largest norm of the guidance.
    """
    if bool(torch.isfinite(guided).all()):
        return
    finite = torch.isfinite(guidance)
    largest = float(torch.where(finite, guidance, 0.0).reshape(len(guidance), -1).norm(dim=1).max())
    raise NonFiniteError(
        f"the guided mean is not finite at diffusion time {float(t.max()):.3f} (largest norm of the finite part "
        f"of the guidance {largest:g}, {int((~finite).sum())} of its values not finite); check the observations "
        "and their errors, or take more steps."
    )
