"""The published convolutional autoencoder and its pixel-space reference, with the interface of the package."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slams.core.days import Days, Values, mean_of
from slams.core.errors import InvalidValueError

LATENT_CHANNELS = (9, 8, 7, 6, 5)


class ConvAE(nn.Module):
    """Convolutional autoencoder at full resolution: fewer channels on the same grid.

    Five layers each way, stride 1, kernel 5, zero padding, batch normalization and ReLU between layers, none
    after the last. The decoder mirrors the encoder with transposed convolutions.

    Args:
        inputs: Number of encoded channels.
        outputs: Number of decoded channels.
        channels: Channels of the encoder's layers; the last is the latent's.
        kernel: Odd kernel width.

    Source:
        arXiv:2404.06665, released code.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int] = LATENT_CHANNELS, kernel: int = 5
    ) -> None:
        super().__init__()
        down, up = [inputs, *channels], [*channels[::-1], outputs]
        pad = kernel // 2
        self.encoder = _stack(
            [nn.Conv2d(a, b, kernel, padding=pad) for a, b in zip(down[:-1], down[1:], strict=True)]
        )
        self.decoder = _stack(
            [nn.ConvTranspose2d(a, b, kernel, padding=pad) for a, b in zip(up[:-1], up[1:], strict=True)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, H, W) -> (b, outputs, H, W)."""
        return self.decoder(self.encoder(x))


def _stack(layers: Sequence[nn.Conv2d | nn.ConvTranspose2d]) -> nn.Sequential:
    """Layers with normalization and ReLU between them."""
    parts: list[nn.Module] = []
    for layer in layers[:-1]:
        parts += [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]
    return nn.Sequential(*parts, layers[-1])


class SharedGridCodec(nn.Module):
    """States and auxiliary modalities of one grid, stacked by channel, to a latent of the same grid.

    z = ( E([x_1, ..., x_M]) - mean ) / std,   [x_1, ..., x_S] ~ D(std z + mean)

    The decoder returns the S states alone. An auxiliary modality is decoded by one convolution of its own, trained beside
    the autoencoder without gradients to it. A missing modality enters as zero anomaly.

    Args:
        channels: Channels of each modality, states and others.
        states: Names of the decoded modalities.
        grid: Shape of the grid, (H, W).
        latent: Channels of the encoder's layers, the last the latent's; empty for pixel space, where z is x itself.

    Raises:
        ValueError: If pixel space is used with an auxiliary modality.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: Mapping[str, int],
        states: Sequence[str],
        grid: tuple[int, int],
        latent: Sequence[int] = LATENT_CHANNELS,
    ) -> None:
        super().__init__()
        self.names, self.states = tuple(channels), tuple(states)
        self.channels, self.grid = dict(channels), grid
        others = [name for name in self.names if name not in self.states]
        if others and not latent:
            raise InvalidValueError(
                f"pixel space holds states only, but {', '.join(others)} are auxiliary; leave them out, or choose "
                "latent.kind: published."
            )
        outputs = sum(channels[name] for name in self.states)
        self.network = ConvAE(sum(channels.values()), outputs, latent) if latent else None
        depth = latent[-1] if latent else outputs
        self.readouts = nn.ModuleDict(
            {name: nn.Conv2d(depth, channels[name], 5, padding=2) for name in others}
        )
        self.event = (depth, *grid)
        self.register_buffer("mean", torch.zeros(depth, 1, 1))
        self.register_buffer("std", torch.ones(()))

    def encode(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Latent of a subset of modalities.

        Args:
            fields: Standardized anomalies by name, (b, C_m, H, W), missing values NaN (taken as no anomaly).

        Returns:
            (b, Z, H, W).

        Raises:
            ValueError: If no modality is given or one is unknown.
        """
        unknown = sorted(set(fields) - set(self.names))
        if not fields or unknown:
            raise InvalidValueError(f"can encode any subset of {list(self.names)}, got {sorted(fields)}.")
        return (self._latent(fields) - self.mean) / self.std

    def _latent(self, fields: Mapping[str, Tensor]) -> Tensor:
        some = next(iter(fields.values()))
        parts = [
            torch.nan_to_num(fields[name])
            if name in fields
            else some.new_zeros(len(some), self.channels[name], *self.grid)
            for name in self.names
        ]
        stacked = torch.cat(parts, 1)
        return stacked if self.network is None else self.network.encoder(stacked)

    def decode(self, z: Tensor, name: str) -> Tensor:
        """Standardized anomaly of one modality, (*B, Z, H, W) -> (*B, C_m, H, W)."""
        flat = z.reshape(-1, *self.event) * self.std + self.mean
        out = self.readouts[name](flat) if name in self.readouts else self._states(flat)[name]
        return out.reshape(*z.shape[:-3], *out.shape[1:])

    def _states(self, latent: Tensor) -> dict[str, Tensor]:
        out = latent if self.network is None else self.network.decoder(latent)
        parts = out.split([self.channels[name] for name in self.states], 1)
        return dict(zip(self.states, parts, strict=True))

    @torch.no_grad()
    def standardize(self, z: Values) -> None:
        """Store the mean of training latents (n, Z, H, W) and one standard deviation for all channels."""
        mean = mean_of(z, (0, 2, 3)).reshape(self.mean.shape).to(self.mean)
        self.mean.copy_(self.mean + mean * self.std)
        if isinstance(z, Days):
            own = mean.cpu()
            whole = mean_of(z.map(lambda part, rows: (part - own).square()), (0, 1, 2, 3))
            self.std.copy_(self.std * whole.to(self.std).sqrt().clamp(min=1e-6))
            return
        # by channel, because a copy of all latents with their mean removed needs as much memory again
        square = sum(((z[:, c] - m) ** 2).mean() for c, m in enumerate(mean.flatten())) / len(mean)
        self.std.copy_(self.std * torch.as_tensor(square).sqrt().clamp(min=1e-6))

    def loss(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of the decoded states, and of auxiliary modalities decoded from detached latents.

        Cells have equal weight, as published; missing ones have none.

        Args:
            fields: Anomalies of every modality (b, C_m, H, W), NaN where missing.

        Returns:
            A scalar, on average 1 per modality for a decoder that returns zero.
        """
        latent = self._latent(fields)
        found: dict[str, Tensor] = self._states(latent)
        found |= {name: readout(latent.detach()) for name, readout in self.readouts.items()}
        total, sizes = latent.new_zeros(()), 0
        for name, out in found.items():
            seen = torch.isfinite(fields[name])
            error = torch.where(seen, out - torch.nan_to_num(fields[name]), 0.0)
            mean = error.square().sum() / seen.sum().clamp(min=1)
            total, sizes = total + self.channels[name] * mean, sizes + self.channels[name]
        return total / sizes
