"""Correction of a Gaussian prior of Kolmogorov flows: a U-Net over patches of cells."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from slams.networks.layers import zero
from slams.networks.score_unet import ScoreUNet, forcing_map


class FlowUNet(nn.Module):
    """f of fields on a doubly periodic square, (*B, groups L, N, N) to (*B, L, N, N), zero before training.

    Cells of a patch are stacked into channels, so that the first level of `ScoreUNet` runs on a grid `patch` times
    coarser and costs patch^2 times less, and no cell is lost.

    Args:
        size: Cells N along a side, a multiple of patch times 2 for each level but the first.
        length: Number of steps L.
        groups: Number of fields per step.
        hidden: Channels of each level.
        blocks: Residual blocks of each level, down and again up.
        patch: Side of a patch [cells].
        embedding: Number of features of time.
    """

    def __init__(
        self,
        size: int,
        length: int,
        *,
        groups: int = 5,
        hidden: Sequence[int] = (40, 80, 96),
        blocks: Sequence[int] = (1, 2, 2),
        patch: int = 2,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        self.length, self.patch = length, patch
        coarse = size // patch
        self.network = ScoreUNet(
            (patch**2, coarse, coarse),
            length=length,
            hidden=hidden,
            blocks=blocks,
            padding="circular",
            embedding=embedding,
            maps=F.pixel_unshuffle(forcing_map(size), patch),
            context=(groups - 1) * length * patch**2,
        )
        zero(self.network.last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(*B, groups L, N, N), () or (*b, 1, 1, 1, 1) -> (*B, L, N, N)."""
        patches = F.pixel_unshuffle(x, self.patch)
        count = self.length * self.patch**2
        first = patches[..., :count, :, :].unflatten(-3, (self.length, -1))
        out = self.network(first, t, patches[..., count:, :, :])
        return F.pixel_shuffle(out.flatten(-4, -3), self.patch)
