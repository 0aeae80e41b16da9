"""Guided denoisers: E[x | x_t, y]. A guided denoiser is a denoiser, so every sampler takes it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.evidence import refuse_broken
from slams.observation.observation import Observations


class CovarianceGuidance(Denoiser):
    """Guidance with the closed-form covariance of x given x_t; exact for Gaussian prior, linear operators.

    With the Gaussian's window covariance C and the Gauss-Newton matrix M = G^T R^-1 G of the observations,

        m_y = m + V (C^-1 + (alpha_t^2 / sigma_t^2) 1 + M)^-1 V^T grad_m log p(y | m),

    m = E[x | x_t] from any denoiser. C^-1 + M is diagonalized once for each set of values that windows saw,
    so that every diffusion time costs two products with its eigenvectors; nothing is differentiated through
    the network. What an operator sees outside the patterns moves the gradient, but its variance is not
    counted.

    Args:
        denoiser: The prior, for windows (*B, L, *Z).
        gaussian: The closed form whose covariance is used.
        observations: What was seen in each window, values (W, L, *O).
        jacobians: Linearized operator of each modality on the patterns, dh/da, (prod(O), K).

    Raises:
        FloatingPointError: In sampling, if the guidance is not finite; names the diffusion time.

    Source:
        Finzi et al. (2023), arXiv:2306.07526, eq. 6, with the exact Gaussian covariance in place of a
        Jacobian of the network; Rozet et al. (2024), arXiv:2405.13712, section 3.2 for the moment-matching
        view.
    """

    values: Tensor
    vectors: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        gaussian: WindowGaussian,
        observations: Observations,
        jacobians: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.gaussian = gaussian
        self.schedule = denoiser.schedule
        self.observations = observations
        self.index, first = observations.patterns()
        values, vectors = [], []
        for window in first:
            information = observations.information(jacobians, window)
            value, vector = torch.linalg.eigh(gaussian.posterior_precision(information))
            values.append(value.clamp(min=1e-6).to(gaussian.basis))
            vectors.append(vector.to(gaussian.basis))
        self.register_buffer("values", torch.stack(values))
        self.register_buffer("vectors", torch.stack(vectors))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(N, W, L, *Z), () -> (N, W, L, *Z)."""
        alpha, sigma = self.schedule(t)
        with torch.no_grad():
            mean = self.denoiser(x_t, t)
        with torch.enable_grad():
            # what lies outside the patterns is not updated, so it must not enter the misfit either
            leaf = self.gaussian.expand(self.gaussian.coefficients(mean)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.observations.log_likelihood(leaf).sum(), leaf)
        pulled = self.gaussian.coefficients(gradient)  # (N, W, L K)
        increment = torch.empty_like(pulled)
        for pattern, (value, vector) in enumerate(zip(self.values, self.vectors, strict=True)):
            rows = [w for w, number in enumerate(self.index) if number == pattern]
            damped = (pulled[:, rows] @ vector) / (value + (alpha / sigma) ** 2)
            increment[:, rows] = damped @ vector.mT
        if not bool(torch.isfinite(increment).all()):
            raise FloatingPointError(
                f"the guidance is not finite at diffusion time {float(t):.3f} (largest gradient "
                f"{float(torch.nan_to_num(gradient).abs().max()):g}); "
                "check the observations and their errors."
            )
        return mean + self.gaussian.expand(increment)


class GaussianGuidance(Denoiser):
    """SDA's guidance: a likelihood widened by a scalar, differentiated through the denoiser.

    p(y | x_t) ~ N(y; h(m), R + gamma (sigma_t / alpha_t)^2 1),
    m_y = m + (sigma_t^2 / alpha_t) grad_{x_t} log p(y | x_t).

    It is biased even under an exact prior, because gamma does not know the operator; it is here for
    comparison.

    Args:
        denoiser: The prior.
        observations: What was seen, with any errors at one time, with independent ones at a time for each sample.
        gamma: Width of the surrogate, positive: one, or for each modality one or one a value (prod(O)).

    Raises:
        ValueError: If a gamma is not positive, or they do not name the modalities.
        FloatingPointError: In sampling, if the guided mean is not finite; names time and norm of the guidance.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, eq. 13-15.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations,
        gamma: float | Mapping[str, float | Tensor] = 1e-2,
    ) -> None:
        super().__init__()
        widths = dict(gamma) if isinstance(gamma, Mapping) else dict.fromkeys(observations, gamma)
        if set(widths) != set(observations):
            raise ValueError(f"gamma is for {sorted(widths)}, but {sorted(observations)} were observed.")
        for name, width in widths.items():
            if not bool((torch.as_tensor(width) > 0).all()):
                raise ValueError(f"gamma must be positive, got {width} for {name}.")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.observations = observations
        self.gamma = widths

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, *Z), () or (b, 1, ..., 1) -> shape of `x_t`; not differentiable any further.

        Raises:
            TypeError: If times differ and errors are correlated.
        """
        alpha, sigma = self.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = self.denoiser(leaf, t)
            log_likelihood = self._log_likelihood(mean, (sigma / alpha) ** 2)
            (gradient,) = torch.autograd.grad(log_likelihood, leaf)
        guidance = sigma**2 / alpha * gradient
        guided = (mean + guidance).detach()
        refuse_broken(guided, guidance, t)
        return guided

    def _log_likelihood(self, mean: Tensor, ratio: Tensor) -> Tensor:
        """Of all samples together, with errors widened by gamma times (sigma / alpha)^2."""
        if ratio.numel() == 1:
            added = {name: width * float(ratio) for name, width in self.gamma.items()}
            return self.observations.widened(added).log_likelihood(mean).sum()
        total = mean.new_zeros(())
        for name, o in self.observations.items():
            if not isinstance(o.noise, Diagonal):
                raise TypeError(
                    f"samples at times of their own need independent errors, got a {type(o.noise).__name__} covariance "
                    f"of {name}; ask at one time, or use MomentMatching."
                )
            residual = o.residual(mean)  # (*B, L, n): what stands behind is of size one in `ratio`
            wide = o.noise.variance + self.gamma[name] * ratio.reshape(ratio.shape[: residual.ndim])
            total = total - 0.5 * (residual**2 / wide).sum()
        return total
