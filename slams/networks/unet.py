"""U-Net over windows of gridded latents."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.networks.layers import LayerNorm2d, SphereConv, TimeEmbedding, zero
from slams.networks.score_unet import ScoreUNet


class Block(nn.Module):
    """x + conv(silu(conv(norm(x + P t)))), the last convolution starting at zero."""

    def __init__(self, channels: int, embedding: int, periodic: bool) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, channels)
        self.layers = nn.Sequential(
            LayerNorm2d(),
            SphereConv(channels, channels, periodic=periodic),
            nn.SiLU(),
            zero(SphereConv(channels, channels, periodic=periodic)),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        return x + self.layers(x + self.project(t)[..., None, None])


class WindowUNet(nn.Module):
    """Correction of a closed-form denoiser on windows (*B, L, C, H, W).

    Steps and channels are stacked, with learned maps of position (such as latitude and coast) as further
    channels. Levels halve the grid; skip connections add. A height not divisible once per level, such as the 121 rows
    from pole to pole, is padded by repeating the southern edge and cropped at the end.

    Args:
        length: Number of steps L.
        event: Event shape (C, H, W).
        hidden: Channels of each level.
        blocks: Residual blocks of each level, on the way down and up.
        embedding: Size of the time embedding.
        places: Number of learned maps.
        periodic: Whether longitude is periodic.
        context: Channels a step of features of observations; 0 for a network that takes none.

    Raises:
        ValueError: If the width is not divisible by 2 once per level.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, appendix D, with places and per-axis padding.
    """

    def __init__(
        self,
        length: int,
        event: Sequence[int],
        *,
        hidden: Sequence[int] = (64, 96),
        blocks: int = 2,
        embedding: int = 64,
        places: int = 4,
        periodic: bool = True,
        context: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = event
        factor = 2 ** (len(hidden) - 1)
        if width % factor:
            raise InvalidValueError(
                f"a latent grid of {height} x {width} must have a width divisible by {factor}; "
                "use fewer levels (prior.hidden)."
            )
        self.rows = -height % factor
        self.time = TimeEmbedding(embedding)
        self.place = nn.Parameter(torch.zeros(places, height, width))
        nn.init.normal_(self.place, std=0.3)
        size = length * channels
        self.first = SphereConv(2 * size + places, hidden[0], periodic=periodic)
        self.last = zero(SphereConv(hidden[0], size, periodic=periodic))
        # by points: the blocks behind it look around, and most channels of a context are zero most of the time
        self.context = nn.Conv2d(length * context, hidden[0], 1, bias=False) if context else None
        self.down = nn.ModuleList(_stack(h, blocks, embedding, periodic) for h in hidden)
        self.up = nn.ModuleList(_stack(h, blocks, embedding, periodic) for h in hidden[:-1])
        pairs = list(zip(hidden[:-1], hidden[1:], strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.grow = nn.ModuleList(SphereConv(b, a, periodic=periodic) for a, b in pairs)

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(*B, L, C, H, W), the same, () or (b, 1, ..., 1), context (*B, L, C', H, W) -> (*B, L, C, H, W).

        A context without the first axes of *B is that of all members there.
        """
        lead = x_t.shape[:-4]
        stacked = (
            torch.cat([x_t, linear], -3)
            .flatten(-4, -3)
            .reshape(-1, 2 * x_t.shape[-4] * x_t.shape[-3], *x_t.shape[-2:])
        )
        x = torch.cat([stacked, self.place.expand(len(stacked), *self.place.shape)], 1)
        embedded = self.time(t)
        x = self.first(self._padded(x))
        if self.context is not None and context is not None:
            extra = self.context(self._padded(context.flatten(-4, -3).flatten(0, -4)))
            x = (x.unflatten(0, (-1, len(extra))) + extra).flatten(0, 1)
        kept = []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, embedded)
            if level < len(self.shrink):
                kept.append(x)
                x = self.shrink[level](x)
        for level in reversed(range(len(self.grow))):
            x = kept[level] + self.grow[level](F.interpolate(x, scale_factor=2.0))
            for block in self.up[level]:  # type: ignore[attr-defined]
                x = block(x, embedded)
        return self.last(F.silu(x))[..., : x_t.shape[-2], :].reshape(*lead, *x_t.shape[-4:])

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, self.rows), mode="replicate") if self.rows else x


class PublishedUNet(nn.Module):
    """`ScoreUNet` with the layers of the published latent system, as correction of a closed-form denoiser.

    Its inputs are x_t and the time alone, as published; its last layer starts at zero, so that the initial correction is
    zero. Longitude is periodic, and rows are padded as in `WindowUNet`.

    Args:
        length: Number of steps L.
        event: Event shape (C, H, W).
        hidden: Channels of each level.
        blocks: Residual blocks of each level, on the way down and up.
        embedding: Size of the time embedding.
        periodic: Whether longitude is periodic.

    Source:
        Qu et al. (2024), arXiv:2404.06665, released code.
    """

    def __init__(
        self,
        length: int,
        event: Sequence[int],
        *,
        hidden: Sequence[int] = (32, 64, 128),
        blocks: int = 3,
        embedding: int = 64,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = event
        self.rows = -height % 2 ** (len(hidden) - 1)
        self.network = ScoreUNet(
            (channels, height + self.rows, width),
            length=length,
            hidden=hidden,
            blocks=blocks,
            embedding=embedding,
            padding=("zero", "circular" if periodic else "zero"),
        )
        zero(self.network.last)

    def forward(self, x_t: Tensor, linear: Tensor, t: Tensor) -> Tensor:
        """x_t, the closed form (unused), both (*B, L, C, H, W), and t, () or (b, 1, ..., 1) -> (*B, L, C, H, W)."""
        filled = F.pad(x_t.flatten(0, -4), (0, 0, 0, self.rows), mode="replicate") if self.rows else x_t
        filled = filled.reshape(*x_t.shape[:-2], -1, x_t.shape[-1])
        return self.network(filled, t)[..., : x_t.shape[-2], :]


def _stack(channels: int, blocks: int, embedding: int, periodic: bool) -> nn.ModuleList:
    return nn.ModuleList(Block(channels, embedding, periodic) for _ in range(blocks))
