"""The guidances of score-based data assimilation: by a closed-form covariance, and the published scalar width."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.base import Guidance, GuidedDenoiser, PatternGuided
from slams.diffusion.guidance.trajectory import TrajectoryGuided
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser, TrajectoryGaussian
from slams.observation.observation import Observation, Observations


@dataclass(frozen=True, eq=False)
class CovarianceGuidance(Guidance):
    """Guidance with the closed-form covariance of x given x_t; exact for Gaussian prior, linear operators.

    With the Gaussian's window covariance C and the Gauss-Newton matrix M = G^T R^-1 G of the observations,

        m_y = m + V (C^-1 + (alpha_t^2 / sigma_t^2) 1 + M)^-1 sum_m G_m^T R_m^-1 (y_m - h_m(V V^T m)),

    m = E[x | x_t] from any denoiser. C^-1 + M is diagonalized once for each set of values that windows observed,
    so that every diffusion time costs two products with its eigenvectors; nothing is differentiated through
    the network. What an operator sees outside the patterns is left out.

    Given Jacobians, such as a regression of h over the whole climate, also carry the misfit back, and h is only
    evaluated: M then is the matrix that belongs to the gradient. With the derivative of h at m in its place, what the two
    matrices differ by is multiplied by the variance of directions that M does not see: a decoder 3 % from its
    linear fit, seen in 5 % of the columns, cost 7 % of the error of the mean. Without a given Jacobian the gradient
    is that of h at m, and M of h at the mean of the prior.

    Attributes:
        gaussian: The closed form whose covariance is used; that of the prior if None.
        jacobians: Linearized operator of each modality on the patterns, G = dh/da, (prod(O), K) by name, a fit over
            the climate; those not given are derivatives of h at the mean of the prior, see `pattern_jacobian`.
        derivative: Whether the derivative of h at m carries all misfits back, and records are guided window by window,
            as in version 0.1.

    Source:
        Finzi et al. (2023), arXiv:2306.07526, eq. 6, with the exact Gaussian covariance in place of a
        Jacobian of the network; Rozet et al. (2024), arXiv:2405.13712, section 3.2 for the moment-matching
        view.
    """

    gaussian: WindowGaussian | None = None
    jacobians: Mapping[str, Tensor] | None = None
    derivative: bool = False

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """See `Guidance`; not with the derivative."""
        return not self.derivative

    def __new__(cls, *given: Any, **settings: Any) -> Any:  # noqa: D102
        if len(given) < 3:
            return object.__new__(cls)
        prior, gaussian, observations, *jacobians = given  # the older order
        return super().__new__(cls, prior, observations, gaussian, *jacobians, **settings)

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """The guided denoiser; one of composed windows is composed of guided ones.

        Args:
            prior: Denoiser of windows, or of windows composed by `MarkovBlanket`; or a `TrajectoryDenoiser`, whose own
                closed form is used.
            observations: Observations of each window, values (W, L, *O), or of one trajectory, (L, *O).
            members: Not available here.

        Raises:
            TypeError: If the prior has no covariance, or observations have no modalities.
            FloatingPointError: If the guidance is not finite in sampling; names the diffusion time.
        """
        if not isinstance(observations, Observations) or members:
            raise InvalidTypeError(
                "CovarianceGuidance takes Observations along windows, with members in front; use "
                "CovarianceMatching for a single Observation."
            )
        if isinstance(prior, MarkovBlanket):
            windows = observations.windows(prior.length)
            return MarkovBlanket(self(prior.denoiser, windows), prior.length)
        gaussian: WindowGaussian | TrajectoryGaussian
        if isinstance(prior, TrajectoryDenoiser):
            gaussian = prior.gaussian
        else:
            gaussian = covariance_of(prior) if self.gaussian is None else self.gaussian
        given = self.jacobians or {}
        jacobians = {
            name: given[name] if name in given else pattern_jacobian(o, gaussian)
            for name, o in observations.items()
        }
        if isinstance(prior, TrajectoryDenoiser):
            return TrajectoryGuided(prior, prior.gaussian, observations, jacobians, given)
        assert isinstance(gaussian, WindowGaussian)
        fitted = () if self.derivative else given
        return CovarianceGuided(prior, gaussian, observations, jacobians, fitted)

    def beside(
        self,
        denoiser: Denoiser,
        observations: Observations,
        known: Observations,
        jacobians: Mapping[str, Tensor],
    ) -> Denoiser:
        """A denoiser that knows some observations already, guided by others.

        The precision of what is not yet known is C^-1 + (alpha_t / sigma_t)^2 1 + M with M that of both.

        Args:
            denoiser: E[x | x_t, known], of windows.
            observations: The others, values (W, L, *O).
            known: Those that the denoiser knows, (W, L, *O).
            jacobians: Linear operators of the known ones.
        """
        if self.gaussian is None:
            raise InvalidTypeError("guidance beside known observations needs a closed form; pass gaussian=….")
        given = self.jacobians or {}
        own = {
            n: given[n] if n in given else pattern_jacobian(o, self.gaussian) for n, o in observations.items()
        }
        both = Observations({**known, **observations})
        return CovarianceGuided(
            denoiser, self.gaussian, observations, {**own, **jacobians}, given, counted=both
        )


def covariance_of(prior: Denoiser) -> WindowGaussian:
    """The closed-form Gaussian of a prior: itself, or the one that its network corrects.

    Raises:
        TypeError: If it has none.
    """
    gaussian = prior if isinstance(prior, WindowGaussian) else getattr(prior, "gaussian", None)
    if not isinstance(gaussian, WindowGaussian):
        raise InvalidTypeError(
            f"{type(prior).__name__} has no covariance in closed form; pass CovarianceGuidance(gaussian="
            "WindowGaussian.fit(…)) of training states, or another guidance such as MomentMatching()."
        )
    return gaussian


def pattern_jacobian(observation: Observation, gaussian: WindowGaussian | TrajectoryGaussian) -> Tensor:
    """Derivative of an operator with respect to the patterns' coefficients of one step, at the mean of the prior.

    G = dh(V a)/da at a = 0, from as many derivatives as there are values or patterns, whichever are fewer.

    Args:
        observation: Its operator h: (*B, *Z) -> (*B, *O), any differentiable function of one step.
        gaussian: Has the patterns V.

    Returns:
        (prod(O), K).
    """
    count, width = observation.noise.size, gaussian.basis.shape[1]
    copies = min(count, width)
    with torch.enable_grad():
        a = gaussian.basis.new_zeros(copies, width, requires_grad=True)
        values = observation.predict((a @ gaussian.basis.mT).unflatten(-1, gaussian.event))
        unit = torch.eye(copies, dtype=values.dtype, device=values.device)
        if count <= width:
            return torch.autograd.grad(values, a, unit)[0]
        # G v as the derivative by u of G^T u, for operators without forward-mode differentiation
        dual = torch.zeros_like(values, requires_grad=True)
        (pulled,) = torch.autograd.grad(values, a, dual, create_graph=True)
        return torch.autograd.grad(pulled, dual, unit)[0].mT


class CovarianceGuided(PatternGuided):
    """A denoiser of windows, guided as `CovarianceGuidance` states.

    Args:
        denoiser: The prior, of windows (*B, L, *Z).
        gaussian: The closed form whose covariance is used.
        observations: Observations of each window, values (W, L, *O), or of one, (L, *O).
        jacobians: G of each modality, (prod(O), K).
        fitted: Names of the modalities whose G also carries their misfit back to the patterns; that of the others is
            differentiated. All if None.
        counted: Observations that M counts, where the denoiser knows some already; the observations if None.
    """

    values: Tensor
    vectors: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        gaussian: WindowGaussian,
        observations: Observations,
        jacobians: Mapping[str, Tensor],
        fitted: Collection[str] | None = None,
        *,
        counted: Observations | None = None,
    ) -> None:
        super().__init__(denoiser, gaussian, observations, jacobians, fitted, counted)
        values, vectors = [], []
        for information in self.informations(jacobians):
            value, vector = torch.linalg.eigh(gaussian.posterior_precision(information))
            values.append(value.clamp(min=1e-6).to(gaussian.basis))
            vectors.append(vector.to(gaussian.basis))
        self.register_buffer("values", torch.stack(values))
        self.register_buffer("vectors", torch.stack(vectors))

    def solved(self, pattern: int, pulled: Tensor, t: Tensor) -> Tensor:
        """See `PatternGuided.solved`."""
        alpha, sigma = self.schedule(t)
        value, vector = self.values[pattern], self.vectors[pattern]
        damped = (pulled.flatten(-2) @ vector) / (value + (alpha / sigma) ** 2)
        return (damped @ vector.mT).reshape(pulled.shape)


@dataclass(frozen=True, eq=False)
class GaussianGuidance(Guidance):
    """SDA's guidance: a likelihood widened by a scalar, differentiated through the denoiser.

    p(y | x_t) ~ N(y; h(m), R + gamma (sigma_t / alpha_t)^2 1),
    m_y = m + (sigma_t^2 / alpha_t) grad_{x_t} log p(y | x_t).

    It is biased even under an exact prior, because gamma ignores the operator. Errors may be any at one diffusion
    time; at a time for each sample they must be independent, else sampling raises a TypeError.

    Attributes:
        gamma: Width of the surrogate, positive: one, or for each modality one or one a value (prod(O)).

    Raises:
        ValueError: If a gamma is not positive; when called, if they do not name the modalities.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, eq. 13-15.
    """

    gamma: float | Mapping[str, float | Tensor] = 1e-2

    def __post_init__(self) -> None:
        widths = self.gamma if isinstance(self.gamma, Mapping) else {"all modalities": self.gamma}
        for name, width in widths.items():
            if not bool((torch.as_tensor(width) > 0).all()):
                raise InvalidValueError(f"gamma must be positive, got {width} for {name}.")

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """See `Guidance.__call__`."""
        if not isinstance(observations, Observations) or members:
            raise InvalidTypeError(
                "GaussianGuidance takes Observations along windows, with members in front."
            )
        self._widths(observations)
        return GuidedDenoiser(self, prior, observations)

    def _widths(self, observations: Observations) -> dict[str, float | Tensor]:
        given = self.gamma if isinstance(self.gamma, Mapping) else dict.fromkeys(observations, self.gamma)
        widths: dict[str, float | Tensor] = dict(given)
        if set(widths) != set(observations):
            raise InvalidValueError(
                f"gamma is for {sorted(widths)}, but {sorted(observations)} were observed."
            )
        return widths

    def pull(self, guided: GuidedDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance.pull`."""
        assert isinstance(guided.observations, Observations)
        alpha, sigma = guided.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = guided.denoiser(leaf, t)
            log_likelihood = self._log_likelihood(guided.observations, mean, (sigma / alpha) ** 2)
            (gradient,) = torch.autograd.grad(log_likelihood, leaf)
        return mean, sigma**2 / alpha * gradient

    def _log_likelihood(self, observations: Observations, mean: Tensor, ratio: Tensor) -> Tensor:
        """Log-likelihood of all samples, with errors widened by gamma times (sigma / alpha)^2."""
        widths = self._widths(observations)
        if ratio.numel() == 1:
            added = {name: width * float(ratio) for name, width in widths.items()}
            return observations.widened(added).log_likelihood(mean).sum()
        total = mean.new_zeros(())
        for name, o in observations.items():
            if not isinstance(o.noise, Diagonal):
                raise InvalidTypeError(
                    f"samples at times of their own need independent errors, got a {type(o.noise).__name__} covariance "
                    f"of {name}; ask at one time, or use MomentMatching."
                )
            residual = o.residual(mean)  # (*B, L, n): what stands behind is of size one in `ratio`
            wide = o.noise.variance + widths[name] * ratio.reshape(ratio.shape[: residual.ndim])
            total = total - 0.5 * (residual**2 / wide).sum()
        return total
