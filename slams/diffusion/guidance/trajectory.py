"""Guidance of trajectories in closed form, and a conditional network along them."""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from slams.core.errors import NonFiniteError
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser, NoCorrection
from slams.diffusion.exact.window_posterior import WindowPosterior, pulled_back
from slams.diffusion.guidance.base import PatternGuided
from slams.diffusion.trajectory_gaussian import (
    WINDOWS,
    TrajectoryDenoiser,
    TrajectoryGaussian,
    middles,
    solved,
    windows_of,
)
from slams.observation.observation import Observation, Observations


class TrajectoryGuided(PatternGuided):
    """A denoiser of trajectories guided by the covariance of their Gaussian (see `CovarianceGuidance`).

    m_y = m + V (P + (alpha_t^2 / sigma_t^2) 1 + M)^-1 sum_m G_m^T R_m^-1 (y_m - h_m(V V^T m)), m = E[x | x_t] and P the
    precision of the trajectory; exact for a Gaussian prior in the span of its patterns under linear operators.

    Args:
        denoiser: The prior, of trajectories (*B, T, *Z).
        gaussian: Its closed form.
        observations: Observations of each trajectory, values (W, T, *O), or of one, (T, *O).
        jacobians: Linearized operator of each modality on the patterns, (prod(O), K).
        fitted: Names of the modalities whose Jacobian also carries their misfit back; all if None.
        counted: Observations that M counts, where the denoiser knows some already; the observations if None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        gaussian: TrajectoryGaussian,
        observations: Observations,
        jacobians: Mapping[str, Tensor],
        fitted: Collection[str] | None = None,
        *,
        counted: Observations | None = None,
    ) -> None:
        super().__init__(denoiser, gaussian, observations, jacobians, fitted, counted)
        self.gaussian: TrajectoryGaussian = gaussian
        self.information = [each.double() for each in self.informations(jacobians)]

    def solved(self, pattern: int, pulled: Tensor, t: Tensor) -> Tensor:
        """See `PatternGuided.solved`."""
        alpha, sigma = (float(each) for each in self.schedule(t.reshape(())))
        factor = self.gaussian.factor(alpha, sigma, self.information[pattern])
        return (sigma**2 * solved(factor, pulled.double())).to(pulled)


class TrajectoryConditional(Denoiser):
    """A network conditioned on the observations of windows, along trajectories (see `ConditionalGuidance`).

    E[x | x_t, y] = g_y,T(x_t) + s_t f(x_t, g_y, t, c(y)): g_y,T the exact posterior mean of the trajectory's Gaussian
    under linear operators. The correction f of a step is that of the window in whose middle it is, with the observations
    of that window and its posterior mean g_y, as in training.

    Args:
        prior: Trajectories of a network's windows.
        observations: Values (W, T, *O).
        jacobians: Linear operators on the patterns, (prod(O), K).
        features: c, a function of the observations of windows and of their posterior.
        weight: Weight of classifier-free guidance.
    """

    def __init__(
        self,
        prior: TrajectoryDenoiser,
        observations: Observations,
        jacobians: Mapping[str, Tensor],
        features: Callable[[Observations, WindowPosterior], Tensor],
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        assert isinstance(prior.windows, NetworkDenoiser)
        self.prior, self.network, self.gaussian = prior, prior.windows, prior.gaussian
        self.schedule, self.event, self.length = prior.schedule, prior.event, prior.length
        self.weight = weight
        self.index, first = observations.patterns()
        self.information = [observations.information(jacobians, window).double() for window in first]
        steps = observations.steps
        self.pulled = pulled_back(observations, jacobians).unflatten(-1, (steps, -1))
        windows = _windows(observations, self.network.length)
        self.posterior = WindowPosterior.given(self.network.gaussian, windows, jacobians)
        self.context = features(windows, self.posterior)

    def shift(self, pulled: Tensor) -> None:
        """Take G^T R^-1 b of a bias b of each member, (N, W, T K), out of what the closed form was given."""
        steps, length = self.gaussian.length, self.network.length
        own = pulled.unflatten(-1, (steps, -1))
        index = torch.arange(steps - length + 1)[:, None] + torch.arange(length)
        self.pulled = self.pulled - own
        self.posterior.pulled = self.posterior.pulled - own[:, :, index].flatten(1, 2).flatten(-2)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(N, W, T, *Z), the first axis missing where there is one draw of each; () -> the same.

        Raises:
            FloatingPointError: If the mean is not finite; names the time.
        """
        axes = 1 + len(self.event)
        if x_t.ndim == axes + 1:
            return self(x_t[None], t)[0]
        t = t.reshape(())
        mean = self._closed(x_t, t)
        if not isinstance(self.network.network, NoCorrection):
            mean = mean + self._corrections(x_t, t)
        if self.weight != 1:
            free = self.prior(x_t, t)
            mean = free + self.weight * (mean - free)
        if not bool(torch.isfinite(mean).all()):
            raise NonFiniteError(
                f"the conditional mean is not finite at diffusion time {float(t):.3f}; check the observations and their "
                "errors."
            )
        return mean

    def _closed(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        a = self.gaussian.coefficients(x_t)  # (N, W, T, K)
        right = (sigma**2 * self.pulled + alpha * a).double()
        found = torch.empty_like(right)
        for pattern, information in enumerate(self.information):
            rows = [w for w, number in enumerate(self.index) if number == pattern]
            factor = self.gaussian.factor(float(alpha), float(sigma), information)
            found[:, rows] = solved(factor, right[:, rows])
        outside = alpha * self.gaussian.window.remainder
        outside = outside / (alpha * outside + sigma**2)
        return outside * x_t + self.gaussian.expand(found.to(a) - outside * a)

    def _corrections(self, x_t: Tensor, t: Tensor) -> Tensor:
        event = len(self.event)
        rows = windows_of(x_t, self.network.length, event)  # (N, W, T - L + 1, L, *Z)
        flat = rows.flatten(1, 2)
        closed, members = self.posterior(flat, t), max(1, WINDOWS // flat.shape[1])
        parts = [
            torch.cat([self.network.correction(a, b, t, c) for a, b, c in self._parts(x, g)], 1)
            for x, g in zip(flat.split(members), closed.split(members), strict=True)
        ]
        return middles(torch.cat(parts).reshape(rows.shape), event)

    def _parts(self, x: Tensor, closed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Some windows at a time of rows (n, W', ...), and their context, which all n share."""
        rows = (each.split(WINDOWS, 1) for each in (x, closed))
        return zip(*rows, self.context.split(WINDOWS), strict=True)


def _windows(observations: Observations, length: int) -> Observations:
    """All windows of trajectories: values (W, T, *O) to (W (T - L + 1), L, *O)."""
    index = torch.arange(observations.steps - length + 1)[:, None] + torch.arange(length)
    return Observations(
        {
            name: Observation(o.value[:, index].flatten(0, 1), o.operator, o.noise, o.event)
            for name, o in observations.items()
        }
    )
