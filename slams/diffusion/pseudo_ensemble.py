"""Pseudo-ensembles: members drawn by a diffusion model conditioned on the observations."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal
from slams.diffusion.conditional import Conditional, Guided, context_of
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.sampler import Sampler

Mode = Literal["draw", "transfer", "renoise"]


class PseudoEnsemble:
    """Members from a conditional diffusion model, in physical units.

    "draw" samples p(x | y) from pure noise. "transfer" carries states to noise along the probability flow and back with
    some fresh noise: the cloud around a forecast. "renoise" adds noise to states, x_t = alpha x + sigma eps, and goes
    back from there: with eta = 1 it samples p(x | x_t, y), what the model makes of forecasts with white errors of
    deviation `scale` sigma / alpha; with less it stays nearer to the states, as the flow does.

    Args:
        denoiser: Family of denoisers of standardised states (*B, d), given contexts (*b, 2 m, d), see `context_of`.
        mean: Mean of the states.
        scale: Standard deviation of the states.
        memory: Number m of times in a context.
        steps: Number of sampler steps from noise to data.
        eta: Fraction of ancestral noise in the reverse diffusion.
        guidance: Weight w of classifier-free guidance.
        depth: Diffusion time, in (0, 1], to which "transfer" and "renoise" go; see `depth_of`.
        mode: "draw", "transfer" or "renoise".
        source: Whose flow "transfer" follows up: "given" that of the posterior, which leads back to the states
            themselves where eta = 0, "free" that of the prior, which carries them from the prior into the posterior.

    Raises:
        ValueError: If a setting is out of range.

    Source:
        Asahi et al. (2023), arXiv:2308.06708; transfer after Su et al. (2023), arXiv:2203.08382; renoising after Meng et
        al. (2022), arXiv:2108.01073.
    """

    def __init__(
        self,
        denoiser: Conditional,
        *,
        mean: float = 0.0,
        scale: float = 1.0,
        memory: int = 16,
        steps: int = 12,
        eta: float = 0.3,
        guidance: float = 1.0,
        depth: float = 1.0,
        mode: Mode = "draw",
        source: Literal["given", "free"] = "given",
    ) -> None:
        if mode not in get_args(Mode) or source not in ("given", "free"):
            raise InvalidValueError(
                f"the mode is one of {get_args(Mode)} and the source 'given' or 'free', got {mode!r} and {source!r}."
            )
        if not 0 < depth <= 1 or scale <= 0 or memory < 1 or not 0 <= eta <= 1:
            raise InvalidValueError(
                f"depth is in (0, 1], scale positive, memory at least 1 and eta in [0, 1]; got {depth}, {scale}, "
                f"{memory} and {eta}."
            )
        self.denoiser = denoiser
        self.mean = mean
        self.scale = scale
        self.memory = memory
        self.guidance = guidance
        self.depth = depth
        self.mode = mode
        self.source = source
        self.sampler = Sampler(steps, eta, order=2, time_grid="snr", ends=(0.1, 60.0), max_step_ratio=1.0)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a member in one draw."""
        each = 1 if self.guidance in (0, 1) else 2
        up = self.sampler.steps if self.mode == "transfer" else 0
        return each * self.sampler.steps + up * (each if self.source == "given" else 1)

    def depth_of(self, error: float) -> float:
        """Diffusion time at which the noise is white and of standard deviation `error`, in physical units."""
        return float(self.denoiser.schedule.time(torch.tensor(self.scale / error)))

    def denoisers(self, values: Tensor, seen: Tensor) -> tuple[Denoiser, Denoiser]:
        """The guided denoiser of all members and the unconditional one.

        Args:
            values: Observations in physical units, newest first, (*B, m', d); anything where not seen.
            seen: Mask of observed values, bool (*B, m', d).
        """
        context = context_of((values - self.mean) / self.scale, seen, self.memory).unsqueeze(-3)
        given = self.denoiser.given(context)
        if self.guidance == 1 and self.source == "given":
            return given, given
        free = self.denoiser.given(torch.zeros_like(context))
        return Guided(given, free, self.guidance), free

    @torch.no_grad()
    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: Rng = None) -> Tensor:
        """Members given observations.

        Args:
            x: States in physical units (*B, N, d); "draw" takes their shape only.
            values: Observations in physical units, newest first, (*B, m', d); anything where not seen.
            seen: Mask of observed values, bool (*B, m', d).
            rng: Generator of the noise.

        Returns:
            (*B, N, d), in physical units.

        Raises:
            ValueError: If shapes do not fit.
            FloatingPointError: If a draw is not finite.
        """
        if x.ndim != values.ndim or x.shape[:-2] != values.shape[:-2] or x.shape[-1] != values.shape[-1]:
            raise InvalidValueError(
                f"members (*B, N, d) and observations (*B, m', d) share *B and d, got {tuple(x.shape)} and "
                f"{tuple(values.shape)}."
            )
        given, free = self.denoisers(values, seen)
        if self.mode == "draw":
            noise = normal(x.shape, like=x, rng=rng)
            return self.mean + self.scale * self.sampler(given, noise, rng=rng)
        z = (x - self.mean) / self.scale
        if self.mode == "renoise":
            alpha, sigma = given.schedule(torch.tensor(self.depth, dtype=torch.float64).to(z))
            z = alpha * z + sigma * normal(z.shape, like=z, rng=rng)
        else:
            upward = replace(self.sampler, eta=0.0)
            z = upward.invert(given if self.source == "given" else free, z, depth=self.depth)
        return self.mean + self.scale * self.sampler.onward(given, z, depth=self.depth, rng=rng)

    @torch.no_grad()
    def estimate(self, x: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """E[x | forecast, y], the forecast's error being white with the deviation of `depth`: one evaluation.

        Args:
            x: Forecasts in physical units (*B, N, d).
            values: Observations, as in `draw`.
            seen: Mask of observed values, as in `draw`.

        Returns:
            (*B, N, d), in physical units.
        """
        given, _ = self.denoisers(values, seen)
        t = torch.tensor(self.depth, dtype=torch.float64).to(x)
        alpha, _ = given.schedule(t)
        return self.mean + self.scale * given(alpha * (x - self.mean) / self.scale, t)
