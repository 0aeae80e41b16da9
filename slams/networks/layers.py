"""Layers shared by the networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Diffusion time as features: [cos(pi j t), sin(pi j t)], j = 1..16, through a small MLP.

    Args:
        size: Number of features E.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, released code.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, size))

    def forward(self, t: Tensor) -> Tensor:
        """Any shape with b elements -> (b, E)."""
        angle = torch.pi * t.reshape(-1, 1) * torch.arange(1, 17, dtype=t.dtype, device=t.device)
        return self.layers(torch.cat([angle.cos(), angle.sin()], -1))


class SphereConv(nn.Conv2d):
    """Convolution on a latitude-longitude grid: circular in longitude, edge values repeated beyond the poles.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Odd width.
        periodic: Whether longitude closes; a regional grid repeats its edges on all sides.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, periodic: bool = True) -> None:
        super().__init__(inputs, outputs, kernel)
        self.pad = kernel // 2
        self.periodic = periodic

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.pad:
            x = F.pad(x, (self.pad, self.pad, 0, 0), mode="circular" if self.periodic else "replicate")
            x = F.pad(x, (0, 0, self.pad, self.pad), mode="replicate")
        return super().forward(x)


def zero(layer: nn.Module) -> nn.Module:
    """The layer with weights and bias set to zero, so that what it is added to is left alone at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class LayerNorm2d(nn.Module):
    """Normalization over channels at each grid point: no statistics over the batch or the grid."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        mean = x.mean(-3, keepdim=True)
        return (x - mean) * torch.rsqrt((x - mean).square().mean(-3, keepdim=True) + 1e-5)
