"""An encoder and a decoder per modality around one shared latent."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.networks.layers import SphereConv, zero


class GridCoder(nn.Module):
    """Encoder and decoder of one gridded modality to a coarser latent grid.

    Both are linear maps of patches (started from principal components, see `MultimodalAutoencoder.start`)
    plus a convolutional correction that starts at zero.

    Args:
        channels: Number of channels of the modality.
        latent: Number of channels of the latent.
        patch: Side of a patch [cells], the coarsening of the latent grid.
        hidden: Channels of the corrections.
        periodic: Whether longitude is periodic.
    """

    def __init__(self, channels: int, latent: int, patch: int, hidden: int, periodic: bool) -> None:
        super().__init__()
        self.linear_in = nn.Conv2d(channels, latent, patch, stride=patch, bias=False)
        self.linear_out = nn.ConvTranspose2d(latent, channels, patch, stride=patch, bias=False)
        self.net_in = nn.Sequential(
            nn.Conv2d(channels, hidden, patch, stride=patch),
            nn.SiLU(),
            SphereConv(hidden, hidden, periodic=periodic),
            nn.SiLU(),
            zero(SphereConv(hidden, latent, periodic=periodic)),
        )
        self.net_out = nn.Sequential(
            SphereConv(latent, hidden, periodic=periodic),
            nn.SiLU(),
            zero(SphereConv(hidden, channels * patch**2, periodic=periodic)),
            nn.PixelShuffle(patch),
        )

    def encode(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, Z, H / patch, W / patch)."""
        return self.linear_in(x) + self.net_in(x)

    def decode(self, z: Tensor) -> Tensor:
        """(b, Z, H / patch, W / patch) -> (b, C, H, W)."""
        return self.linear_out(z) + self.net_out(z)

    def start(self, loading: Tensor) -> None:
        """Set both linear maps from principal components, shape (C patch^2, Z)."""
        weight = loading.mT.reshape(self.linear_in.weight.shape)
        with torch.no_grad():
            self.linear_in.weight.copy_(weight)
            self.linear_out.weight.copy_(weight)

    def unfold(self, x: Tensor) -> Tensor:
        """Patches as rows: (b, C, H, W) -> (b h w, C patch^2)."""
        patch = self.linear_in.kernel_size[0]
        return F.unfold(x, int(patch), stride=int(patch)).movedim(1, 2).flatten(0, 1)


class VectorCoder(nn.Module):
    """Encoder and decoder of one modality to a latent vector: for small or irregular grids and for stations.

    Args:
        event: Shape of the modality.
        latent: Size of the latent.
        hidden: Width of the corrections.
    """

    def __init__(self, event: Sequence[int], latent: int, hidden: int) -> None:
        super().__init__()
        self.event = tuple(event)
        size = torch.Size(event).numel()
        self.linear_in = nn.Linear(size, latent, bias=False)
        self.linear_out = nn.Linear(latent, size, bias=False)
        self.net_in = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), zero(nn.Linear(hidden, latent)))
        self.net_out = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), zero(nn.Linear(hidden, size)))

    def encode(self, x: Tensor) -> Tensor:
        """(b, *S) -> (b, D)."""
        return self.linear_in(x.flatten(1)) + self.net_in(x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        """(b, D) -> (b, *S)."""
        return (self.linear_out(z) + self.net_out(z)).unflatten(1, self.event)

    def start(self, loading: Tensor) -> None:
        """Set both linear maps from principal components, shape (prod(S), D)."""
        with torch.no_grad():
            self.linear_in.weight.copy_(loading.mT)
            self.linear_out.weight.copy_(loading)

    def unfold(self, x: Tensor) -> Tensor:
        """Events as rows: (b, *S) -> (b, prod(S))."""
        return x.flatten(1)


class MultimodalAutoencoder(nn.Module):
    """Any subset of modalities to one latent, and the latent to each of them.

    z = ( sum_{m seen} E_m(x_m) + F(sum, which were seen) - mean ) / std,   x_m ~ D_m(std z + mean)

    The sum makes a frame's latent independent of the order and of other items of a batch; F corrects for
    missing modalities. No layer uses batch statistics. Mean and std are those of the training
    latents, stored.

    Args:
        coders: Encoder and decoder of each modality.
        event: Event shape of the latent, (Z, h, w) or (D,).
        scales: Weight of each modality in the principal components and the loss.
        hidden: Width of F.
        periodic: Whether longitude is periodic.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        coders: Mapping[str, GridCoder | VectorCoder],
        event: Sequence[int],
        scales: Mapping[str, float],
        *,
        hidden: int = 32,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        self.coders = nn.ModuleDict(coders)
        self.names = tuple(coders)
        self.event = tuple(event)
        self.scales = dict(scales)
        count = len(self.names)
        if len(event) == 1:
            self.fuse: nn.Module = nn.Sequential(
                nn.Linear(event[0] + count, 2 * hidden), nn.SiLU(), zero(nn.Linear(2 * hidden, event[0]))
            )
        else:
            self.fuse = nn.Sequential(
                SphereConv(event[0] + count, 2 * hidden, periodic=periodic),
                nn.SiLU(),
                zero(SphereConv(2 * hidden, event[0], periodic=periodic)),
            )
        shape = (event[0], *([1] * (len(event) - 1)))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(()))

    def encode(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Latent of a subset of modalities.

        Args:
            fields: Standardized anomalies by name, (b, *S_m), missing values NaN (taken as no anomaly).

        Returns:
            (b, *Z).

        Raises:
            ValueError: If no modality is given or one is unknown.
        """
        unknown = sorted(set(fields) - set(self.names))
        if not fields or unknown:
            raise InvalidValueError(f"can encode any subset of {list(self.names)}, got {sorted(fields)}.")
        parts = [
            self.coders[m].encode(torch.nan_to_num(fields[m])) * self.scales[m]  # type: ignore[operator]
            for m in self.names  # in one order, because floating-point sums depend on it
            if m in fields
        ]
        total = torch.stack(parts).sum(0)
        seen = torch.tensor([float(m in fields) for m in self.names], device=total.device, dtype=total.dtype)
        flags = seen.reshape(1, -1, *([1] * (len(self.event) - 1))).expand(len(total), -1, *self.event[1:])
        # no correction if all modalities are present
        total = total + (1 - seen.mean()) * self.fuse(torch.cat([total, flags], 1))
        return (total - self.mean) / self.std

    def decode(self, z: Tensor, name: str) -> Tensor:
        """Standardized anomaly of one modality, (*B, *Z) -> (*B, *S_m)."""
        flat = z.reshape(-1, *self.event) * self.std + self.mean
        out = self.coders[name].decode(flat) / self.scales[name]  # type: ignore[operator]
        return out.reshape(*z.shape[: z.ndim - len(self.event)], *out.shape[1:])

    @torch.no_grad()
    def start(self, fields: Mapping[str, Tensor], weights: Tensor | None = None) -> float:
        """Set the linear maps to the joint principal components of all modalities and freeze them.

        They are the optimal linear maps; trained, they would drift under the noise of small batches.

        Args:
            fields: Training anomalies of every modality, on the same days (b, *S_m).
            weights: Area weight of each row of the patches, shape (h w); equal if None.

        Returns:
            Fraction of the weighted variance kept.
        """
        gram: Tensor | None = None
        rows = 0
        for chunk in range(0, len(next(iter(fields.values()))), 256):
            parts = [
                self.coders[m].unfold(torch.nan_to_num(fields[m][chunk : chunk + 256])) * self.scales[m]  # type: ignore[operator]
                for m in self.names
            ]
            x = torch.cat(parts, 1)
            if weights is not None:
                x = x * weights.sqrt().repeat(len(x) // len(weights))[:, None]
            gram = x.mT @ x if gram is None else gram + x.mT @ x
            rows += len(x)
        assert gram is not None
        values, vectors = torch.linalg.eigh(gram.double())
        loading = vectors[:, -self.event[0] :].flip(1).to(gram.dtype)
        if loading.shape[1] < self.event[0]:  # fewer components than latents: the others stay unused
            loading = F.pad(loading, (0, self.event[0] - loading.shape[1]))
        sizes = [self.coders[m].unfold(fields[m][:1]).shape[1] for m in self.names]  # type: ignore[operator]
        for m, part in zip(self.names, loading.split(sizes), strict=True):
            self.coders[m].start(part)  # type: ignore[operator]
            self.coders[m].linear_in.requires_grad_(False)
            self.coders[m].linear_out.requires_grad_(False)
        return float(values[-self.event[0] :].sum() / values.sum())

    @torch.no_grad()
    def standardize(self, z: Tensor) -> None:
        """Store the mean of training latents (n, *Z) and one standard deviation for all channels.

        Channels keep their relative amplitudes, which reflect their variance in the fields; separate scales would
        amplify channels of noise.
        """
        axes = [0, *range(2, z.ndim)]
        mean = z.mean(axes).reshape(self.mean.shape)
        self.mean.copy_(self.mean + mean * self.std)
        self.std.copy_(self.std * (z - mean).square().mean().sqrt().clamp(min=1e-6))

    def loss(
        self, fields: Mapping[str, Tensor], given: Sequence[str], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Weighted squared error of all modalities decoded from the latent of a subset.

        Args:
            fields: Anomalies of every modality (b, *S_m), NaN where missing.
            given: Names of the encoded modalities; the others are withheld.
            weights: Area weights, broadcastable to *S_m.

        Returns:
            A scalar; 1 for a decoder that returns zero.
        """
        z = self.encode({m: fields[m] for m in given})
        total = torch.zeros((), device=z.device)
        for m, x in fields.items():
            weight = torch.where(torch.isfinite(x), weights[m], 0.0)
            error = (self.decode(z, m) - torch.nan_to_num(x)).square()
            total = total + self.scales[m] ** 2 * (weight * error).sum() / weight.sum().clamp(min=1e-12)
        return total / sum(scale**2 for scale in self.scales.values())
