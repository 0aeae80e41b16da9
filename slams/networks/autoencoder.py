"""An encoder and a decoder per modality around one shared latent."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slams.core.days import Values, daywise, mean_of
from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.networks.layers import SphereConv, zero

_SAMPLE = 2000  # rows by which `complete` is cross-validated
_AT_ONCE = 16  # rows completed together


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

    def fold(self, rows: Tensor, like: Tensor) -> Tensor:
        """Inverse of `unfold`, to the shape of `like`."""
        patch = int(self.linear_in.kernel_size[0])
        return F.fold(rows.unflatten(0, (len(like), -1)).movedim(2, 1), like.shape[-2:], patch, stride=patch)


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

    def fold(self, rows: Tensor, like: Tensor) -> Tensor:
        """Inverse of `unfold`, to the shape of `like`."""
        return rows.reshape(like.shape)


class MultimodalAutoencoder(nn.Module):
    """Any subset of modalities to one latent, and the latent to each of them.

    z = ( sum_{m seen} E_m(x_m) + F(sum, which were seen) - mean ) / std,   x_m ~ D_m(std z + mean)

    The sum makes a frame's latent independent of the order and of other items of a batch; F corrects for
    missing modalities. No layer uses batch statistics. Mean and std are those of the training
    latents, stored. Missing values are taken as no anomaly, unless `complete` has estimated them.

    Args:
        coders: Encoder and decoder of each modality.
        event: Event shape of the latent, (Z, h, w) or (D,).
        scales: Weight of each modality in the principal components and the loss.
        hidden: Width of F.
        periodic: Whether longitude is periodic.
    """

    mean: Tensor
    std: Tensor
    spectrum: Tensor  # variances of the principal components used by `complete`, and last that outside them

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
        self.register_buffer("spectrum", torch.zeros(event[0] + 1), persistent=False)

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
    def start(
        self,
        fields: Mapping[str, Values],
        weights: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Set the linear maps to the joint principal components of all modalities and freeze them.

        They are the optimal linear maps; trained, they would drift under the noise of small batches. A covariance
        is estimated from the days on which both values are known, so that gaps do not pass for days without anomaly.

        Args:
            fields: Training anomalies of every modality, on the same days (b, *S_m), NaN where missing.
            weights: Area weight of each row of the patches, shape (h w); equal if None.
            present: Masks of the values that are known on any day, by modality (*S_m); the others are no anomaly.

        Returns:
            Fraction of the weighted variance kept.
        """
        sums, sample, rows = list[Tensor](), list[Tensor](), 0
        total = len(next(iter(fields.values())))
        for chunk in range(0, total, 256):
            part = {m: fields[m][chunk : chunk + 256] for m in self.names}
            if present is not None:
                part = {m: torch.where(present[m], x, 0.0) for m, x in part.items()}
            x = self._rows(part)
            sample.append(x[:: max(1, len(x) * -(-total // 256) // _SAMPLE)])
            seen = torch.isfinite(x).to(x.dtype)
            x = torch.nan_to_num(x)
            if weights is not None:
                x = x * weights.sqrt().repeat(len(x) // len(weights))[:, None]
            new = x.mT @ x, seen.mT @ seen
            sums = [before + each for before, each in zip(sums, new, strict=True)] if sums else list(new)
            rows += len(x)
        gram, counts = sums
        if float(counts.min()) < rows:
            gram = gram / counts.clamp(min=1) * rows
        values, vectors = torch.linalg.eigh(gram.double())
        loading = vectors[:, -self.event[0] :].flip(1).to(gram.dtype)
        if loading.shape[1] < self.event[0]:  # fewer components than latents: the others stay unused
            loading = F.pad(loading, (0, self.event[0] - loading.shape[1]))
        sizes = [self.coders[m].unfold(fields[m][:1]).shape[1] for m in self.names]  # type: ignore[operator]
        for m, block in zip(self.names, loading.split(sizes), strict=True):
            self.coders[m].start(block)  # type: ignore[operator]
            self.coders[m].linear_in.requires_grad_(False)
            self.coders[m].linear_out.requires_grad_(False)
        self._choose_spectrum(values.flip(0).clamp(min=0) / rows, loading, torch.cat(sample))
        return float(values[-self.event[0] :].sum() / values.clamp(min=0).sum())

    def _choose_spectrum(self, variances: Tensor, loading: Tensor, rows: Tensor) -> None:
        """Keep for `complete` the components that best predict a tenth of the known values from the others."""
        hide = torch.rand(rows.shape, generator=fork(0, "hidden values")) < 0.1
        hidden = hide & torch.isfinite(rows)
        partly = torch.where(hide, torch.nan, rows)
        trials, count = [], min(int((variances > 0).sum()) - 1, self.event[0])
        while count > 0:
            spectrum = torch.zeros(self.event[0] + 1, dtype=variances.dtype)
            spectrum[:count], spectrum[-1] = variances[:count], variances[count:].mean()
            found = _completed(partly, loading, spectrum)
            trials.append((float((found - rows)[hidden].square().sum()), spectrum))
            count = int(0.8 * count)
        if trials:
            self.spectrum.copy_(min(trials, key=lambda trial: trial[0])[1])

    def _rows(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Scaled patches or events of several modalities, side by side."""
        return torch.cat(
            [self.coders[m].unfold(fields[m]) * self.scales[m] for m in self.names if m in fields],  # type: ignore[operator]
            1,
        )

    @torch.no_grad()
    def complete(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Missing values replaced by their expectation given the known values of the same day (and patch).

        For principal components V with variances Lambda and white noise of variance s outside them,

            x_missing = V_missing (s Lambda^-1 + V_known^T V_known)^-1 V_known^T x_known.

        Args:
            fields: Standardized anomalies of a subset of modalities (b, *S_m), NaN where missing.

        Returns:
            The same without NaN; unchanged before `start`.

        Source:
            Tipping & Bishop (1999), doi:10.1111/1467-9868.00196, with the number of components chosen by
            cross-validation as in Beckers & Rixen (2003), doi:10.1175/1520-0426(2003)020<1839:ECADFF>2.0.CO;2.
        """
        given = [m for m in self.names if m in fields]
        gaps = any(not bool(torch.isfinite(fields[m]).all()) for m in given)
        if not gaps or not bool(self.spectrum.any()):
            return dict(fields)
        loading = torch.cat([self.coders[m].linear_in.weight.flatten(1).mT for m in given])  # type: ignore[union-attr, operator]
        whole = _completed(self._rows({m: fields[m] for m in given}), loading, self.spectrum)
        parts = whole.split([self.coders[m].unfold(fields[m][:1]).shape[1] for m in given], 1)  # type: ignore[operator]
        found = {
            m: self.coders[m].fold(part / self.scales[m], fields[m])  # type: ignore[operator]
            for m, part in zip(given, parts, strict=True)
        }
        return {m: torch.where(torch.isfinite(fields[m]), fields[m], found[m]) for m in given}

    @torch.no_grad()
    def standardize(self, z: Values) -> None:
        """Store the mean of training latents (n, *Z) and one standard deviation for all channels.

        Channels keep their relative amplitudes, which reflect their variance in the fields; separate scales would
        amplify channels of noise.
        """
        axes = [0, *range(2, z.ndim)]
        mean = mean_of(z, axes).reshape(self.mean.shape)
        square = mean_of(daywise(z, lambda part: (part - mean).square()), range(z.ndim))
        self.mean.copy_(self.mean + mean.to(self.mean) * self.std)
        self.std.copy_(self.std * square.to(self.std).sqrt().clamp(min=1e-6))

    def loss(
        self,
        fields: Mapping[str, Tensor],
        given: Sequence[str],
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Weighted squared error of all modalities decoded from the latent of a subset.

        Args:
            fields: Anomalies of every modality (b, *S_m), NaN where missing.
            given: Names of the encoded modalities; the others are withheld.
            weights: Area weights, broadcastable to *S_m.
            inputs: What is encoded in place of `fields`, without gaps.

        Returns:
            A scalar; 1 for a decoder that returns zero.
        """
        inputs = fields if inputs is None else inputs
        z = self.encode({m: inputs[m] for m in given})
        total = torch.zeros((), device=z.device)
        for m, x in fields.items():
            weight = torch.where(torch.isfinite(x), weights[m], 0.0)
            error = (self.decode(z, m) - torch.nan_to_num(x)).square()
            total = total + self.scales[m] ** 2 * (weight * error).sum() / weight.sum().clamp(min=1e-12)
        return total / sum(scale**2 for scale in self.scales.values())


def _completed(rows: Tensor, loading: Tensor, spectrum: Tensor) -> Tensor:
    """Rows (n, D) with their NaN estimated by components (D, K) of a spectrum (K + 1), see `complete`."""
    used = spectrum[:-1] > 0
    basis = loading[:, used].double()
    prior = torch.diag(
        spectrum[-1].double().clamp(min=1e-9 * float(spectrum.max())) / spectrum[:-1][used].double()
    )
    whole = rows.clone()
    for index in (~torch.isfinite(rows)).any(1).nonzero().squeeze(1).split(_AT_ONCE):
        known = torch.isfinite(rows[index])
        outer = torch.einsum("rd,dk,dj->rkj", known.double(), basis, basis)
        coefficients = torch.linalg.solve(outer + prior, torch.nan_to_num(rows[index]).double() @ basis)
        whole[index] = torch.where(known, rows[index], (coefficients @ basis.mT).to(rows))
    return whole
