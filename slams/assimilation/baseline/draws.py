"""Draws of a Gaussian prior's coefficients given observations through linear operators."""

from collections.abc import Mapping

import torch
from torch import Tensor

from slams.core.random import normal
from slams.diffusion.denoiser import WindowGaussian
from slams.observation.observation import Observation, Observations


class CoefficientPosterior:
    """Exact draws of the coefficients a of windows, with the prior and the operators of `ClosedFormGaussian`.

    Args:
        prior: Gaussian over windows.
    """

    def __init__(self, prior: WindowGaussian) -> None:
        length, patterns = prior.length, prior.basis.shape[1]
        self.length, self.patterns = length, patterns
        self.precision = prior.posterior_precision(prior.basis.new_zeros(length, patterns, patterns))

    def draws(
        self,
        observations: Observations,
        operators: Mapping[str, Tensor],
        members: int,
        *,
        rng: torch.Generator,
    ) -> Tensor:
        """Draws given the observations of windows.

        Args:
            observations: Anomalies (W, L, *O); their operators are not used.
            operators: Matrices G_m by modality, (prod(O), K).
            members: Number of draws N.
            rng: Generator.

        Returns:
            (N, W, L, K).
        """
        parts = [_seen_rows(o, operators[name]) for name, o in observations.items()]
        pulled = torch.stack([o.noise.apply(o.filled, o.precision) @ g for o, g in parts]).sum(0)
        index, first = observations.patterns()
        found = pulled.new_empty(members, *pulled.shape)
        for number, window in enumerate(first):
            information = torch.stack([_information(o, g, window) for o, g in parts]).sum(0)
            factor = torch.linalg.cholesky(self.precision + torch.block_diag(*information.double()))
            rows = [w for w, n in enumerate(index) if n == number]
            mean = torch.cholesky_solve(pulled[rows].flatten(1).double().mT, factor).mT
            noise = normal((members * len(rows), mean.shape[1]), like=mean, rng=rng)
            deviation = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
            draws = mean + deviation.reshape(members, len(rows), -1)
            found[:, rows] = draws.to(pulled).unflatten(-1, (self.length, self.patterns))
        return found


def _seen_rows(o: Observation, operator: Tensor) -> tuple[Observation, Tensor]:
    """The observation and its operator without the values that are never seen."""
    rows = o.seen.flatten(0, -2).any(0).nonzero().squeeze(-1)
    value = o.value.flatten(-o.event)[..., rows]
    return Observation(value, o.operator, o.noise.select(rows)), operator[rows]


def _information(o: Observation, operator: Tensor, window: int) -> Tensor:
    """G^T R^-1 G of each step of a window, symmetric, (L, K, K)."""
    seen = o.seen[window]
    if bool((seen == seen[:1]).all()):
        one = o.noise.information(operator, o.noise.precision(seen[0]))
        matrix = one.expand(len(seen), *one.shape[-2:])
    else:
        matrix = o.noise.information(operator, o.noise.precision(seen))
    return (matrix + matrix.mT) / 2
