"""Sequential Langevin sampling: the score of the forecast ensemble, and chains from its members to the posterior."""

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import InflationKeywords
from slams.assimilation.ensemble.kalman import Departures, EnsembleKalman
from slams.assimilation.memory import Memory
from slams.assimilation.score.ensemble_mixture import coordinates
from slams.assimilation.score.ensemble_score import EnsembleScore, Frame, KernelScore, NetworkScore, NoScore
from slams.assimilation.score.ensf import refuse_collapsed
from slams.assimilation.score.langevin_chains import ChainTarget, FrameLikelihood, Ridge, Tempering
from slams.assimilation.score.likelihood import Likelihood
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

__all__ = ["SSLS", "Ridge", "Tempering"]

_SCORES: dict[str, Callable[[float | None], EnsembleScore]] = {
    "kernel": KernelScore,
    "denoising": lambda width: KernelScore(0.2 if width is None else width, shrink=False),
    "network": lambda width: NetworkScore() if width is None else NetworkScore(noise=width),
    "none": lambda width: NoScore(),
}
_CHAINS: dict[str, Tempering | Ridge] = {
    "tempering": Tempering(),
    "plain": Tempering(resample=False),
    "ascent": Tempering(noise=False),
    "ridge": Ridge(),
}


class SSLS(EnsembleKalman):
    """Langevin chains from the forecast's members, driven by the score of the forecast and of the likelihood.

    Works in the coordinates in which the forecast has covariance 1 and, by regression over the ensemble, the likelihood a
    diagonal curvature; the likelihood itself is that of the operator. A replicate without values, or without a
    score, keeps its forecast.

    Args:
        dynamics: The model.
        score: Estimate of the forecast's score: "kernel", `KernelScore`; "denoising", the same with kernels that do
            not shrink, the limit of a network's training; "network", `NetworkScore`; "none", no prior, as an ablation;
            or any `EnsembleScore`.
        chain: `Tempering` or `Ridge`, or by name with their defaults: "tempering"; "plain", tempering without drawing by
            weight; "ascent", without noise, which with score "none" is the ensemble of largest likelihood; "ridge".
        width: Width of a score given by name, in ensemble standard deviations: kernel width or denoising noise; None for
            its default.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If a name is unknown or the width is invalid.

    Source:
        Ding et al. (2024), arXiv:2411.13443.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        score: Literal["kernel", "denoising", "network", "none"] | EnsembleScore = "kernel",
        chain: Literal["tempering", "plain", "ascent", "ridge"] | Tempering | Ridge = "tempering",
        width: float | None = None,
        **common: Unpack[InflationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            **common,
        )
        if isinstance(score, str) and score not in _SCORES:
            raise InvalidValueError(
                f"score must be one of {', '.join(_SCORES)}, or an EnsembleScore, got {score!r}."
            )
        if isinstance(chain, str) and chain not in _CHAINS:
            raise InvalidValueError(
                f"chain must be one of {', '.join(_CHAINS)}, or a Tempering or Ridge, got {chain!r}."
            )
        if width is not None and score not in ("kernel", "denoising", "network"):
            raise InvalidValueError(
                f"width is of a kernel or a network, not of score {score!r}; leave it out."
            )
        self.score = _SCORES[score](width) if isinstance(score, str) else score
        self.chain = _CHAINS[chain] if isinstance(chain, str) else chain

    @torch.no_grad()
    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`.

        Diagnostics (*B): "correlation" of the members at the end with those where the last stage began, "mixed", whether
        it is small, "acceptance", "step" and "stages" of `Tempering`, and those of the score.

        Raises:
            FloatingPointError: If the ensemble has no spread, the likelihood is not finite, or a chain diverges; names
                the chain's stage and the range of the score.
        """
        A = E - E.mean(-2, keepdim=True)
        refuse_collapsed(A, departures, type(self).__name__, memory.step)
        z, slopes = _turned(coordinates(A), departures.Y)
        W = z.mT @ A / (E.shape[-2] - 1)
        frame = Frame(E.mean(-2, keepdim=True), W)
        prior = self.score.fit(z, frame, memory.carry, rng)
        unit = torch.ones_like(frame.mean)
        likelihood = FrameLikelihood(
            Likelihood(observation, self.dynamics.state_shape, frame.mean, unit), frame
        )
        target = ChainTarget(prior, likelihood, frame, slopes, self.score.draws)
        try:
            after, diagnostics = self.chain.run(z, target, memory.carry, rng)
        except FloatingPointError as error:
            raise NonFiniteError(f"{type(self).__name__} at step {memory.step}: {error}") from error
        memory.diagnostics |= diagnostics | prior.diagnostics
        moved = torch.ones_like(z[..., 0, 0], dtype=torch.bool) if prior.ready is None else prior.ready
        if departures.seen is not None:
            moved = moved & departures.seen.any(-1)
        return torch.where(moved[..., None, None], E + (after - z) @ W, E)


def _turned(z: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in which the regression of Y on z has orthogonal columns, and the squares of these, (*B, r)."""
    G = Y.mT @ z / (z.shape[-2] - 1)
    slopes, Q = torch.linalg.eigh(G.mT @ G)
    return z @ Q, slopes.clamp(min=0)
