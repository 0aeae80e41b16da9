"""Gradient and curvature of an observation's likelihood over the members of an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.observation.observation import Observation


@dataclass(frozen=True)
class Likelihood:
    """l(z) = log p(y | shift + unit z), up to a constant, of flat members z (*B, N, d).

    Attributes:
        observation: Observation, values (*B, O).
        state_shape: *S, of d elements.
        shift: (*B, 1, d), or what broadcasts to members.
        unit: The same, factors of single variables.
    """

    observation: Observation
    state_shape: Sequence[int]
    shift: Tensor
    unit: Tensor

    def value(self, z: Tensor) -> Tensor:
        """l, (*B, N)."""
        return -0.5 * self._misfit(z).square().sum(-1)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """l, (*B, N), and grad l, (*B, N, d)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.value(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope

    def curvature(self, z: Tensor) -> Tensor:
        """Row sums of J^T R^-1 J with J the derivative of the operator, at least 0, (*B, N, d).

        They are the diagonal where each value depends on one variable, and bound the matrix where J has no negative
        elements.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            misfit = self._misfit(z)
            probe = torch.zeros_like(misfit, requires_grad=True)
            (back,) = torch.autograd.grad((misfit * probe).sum(), z, create_graph=True)
            (forward,) = torch.autograd.grad(back.sum(), probe, retain_graph=True)
            (rows,) = torch.autograd.grad((misfit * forward.detach()).sum(), z)
        return rows.clamp(min=0)

    def _misfit(self, z: Tensor) -> Tensor:
        """Whitened y - h, (*B, N, O)."""
        x = self.shift + self.unit * z
        states = x.unflatten(-1, tuple(self.state_shape)) if len(self.state_shape) > 1 else x
        residual = self.observation.innovation(states, members=True)
        return self.observation.whiten(residual, members=True)
