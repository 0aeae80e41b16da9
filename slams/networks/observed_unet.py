"""U-Net of states on a ring, conditioned on their present and past observations."""

from collections.abc import Sequence

from torch import Tensor, nn

from slams.networks.layers import zero
from slams.networks.score_unet import ScoreUNet


class ObservedUNet(nn.Module):
    """f(x_t, t, h) of states on a ring, with features h = g(y, mask) of the observations at the last times.

    Both f and g are a `ScoreUNet` with a periodic axis. A draw evaluates f at many noise levels and g once, so that g
    may be the larger of the two.

    Args:
        size: Number d of sites, a multiple of 2^(levels - 1); other multiples are accepted as well.
        memory: Number m of observation times.
        features: Number of channels of h.
        encoder: Channels of each level of g.
        hidden: Channels of each level of f.
        blocks: Residual blocks of each level, down and again up.
        kernel: Odd width of all convolutions.
        embedding: Number of features of t.
    """

    def __init__(
        self,
        size: int = 40,
        memory: int = 16,
        *,
        features: int = 32,
        encoder: Sequence[int] = (64, 96, 128),
        hidden: Sequence[int] = (32, 48, 64),
        blocks: int = 1,
        kernel: int = 5,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        self.features = features
        self.encoder = ScoreUNet(
            (features, size),
            length=1,
            hidden=encoder,
            blocks=blocks,
            kernel=kernel,
            padding="circular",
            embedding=1,
            time=1,
            context=2 * memory,
        )
        self.unet = ScoreUNet(
            (1, size),
            length=1,
            hidden=hidden,
            blocks=blocks,
            kernel=kernel,
            padding="circular",
            embedding=embedding,
            time=128,
            context=features,
        )
        zero(self.unet.last)

    def encode(self, context: Tensor) -> Tensor:
        """h of observations and masks: (*b, 2 m, d) -> (*b, features, d)."""
        blank = context.new_zeros(*context.shape[:-2], 1, self.features, context.shape[-1])
        return self.encoder(blank, context.new_zeros(()), context).squeeze(-3)

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """(*B, d), () or (*b, 1), (*b, features, d) -> (*B, d)."""
        t = t if t.ndim == 0 else t[..., None, None]
        return self.unet(x_t[..., None, None, :], t, features)[..., 0, 0, :]
