"""Observed values through the encoders of their modalities, for a conditional network."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.core.errors import InvalidTypeError
from slams.diffusion.exact.window_posterior import WindowPosterior
from slams.networks.autoencoder import MultimodalAutoencoder
from slams.observation.observation import Observations
from slams.pipeline.model.codec import MultimodalCodec


class ObservationFeatures:
    """Observed values through the encoders of their modalities, for a conditional network.

    For each step: the logarithm of the closed-form posterior's spread in units of the prior's; and for each modality, its
    encoder's output of the observed values (the posterior's own where there are none), how much this exceeds that of the
    posterior's values alone, the share of observed values, and the logarithm of their error. All are 0 where nothing is
    observed.

    Args:
        codec: Codec with an encoder for each modality.
        jacobians: Linear operators on the patterns, (prod(S), K) by modality.

    Raises:
        TypeError: If one encoder serves all modalities.
    """

    def __init__(self, codec: MultimodalCodec, jacobians: Mapping[str, Tensor]) -> None:
        if not isinstance(codec.autoencoder, MultimodalAutoencoder):
            raise InvalidTypeError(
                "features of observations need an encoder for each modality; use latent.kind 'grid' or 'vector'."
            )
        self.codec, self.coder, self.jacobians = codec, codec.autoencoder, jacobians

    @torch.no_grad()
    def __call__(self, observations: Observations, posterior: WindowPosterior) -> Tensor:
        """Observations (W, L, *O) and their posterior -> (W, L, C, ...)."""
        spread = posterior.relative_spread()
        coefficients, parts = posterior.coefficients(), [spread.log()]
        for name in self.coder.names:
            if name in observations:
                parts.append(self._of(name, observations, coefficients))
            else:
                shape = (*spread.shape[:2], 2 * spread.shape[2] + 2, *spread.shape[3:])
                parts.append(spread.new_zeros(shape))
        return torch.cat(parts, 2)

    def _of(self, name: str, observations: Observations, coefficients: Tensor) -> Tensor:
        o, shape = observations[name], self.codec.layouts[name].shape
        closed = coefficients @ self.jacobians[name].mT
        filled = torch.where(o.seen, o.filled, closed)
        noise = o.noise
        variance = noise.variance if isinstance(noise, Diagonal) else noise.dense().diagonal()
        encoded, alone = (self._encoded(name, x.unflatten(-1, shape)) for x in (filled, closed))
        share = self._pooled(o.seen.to(closed).unflatten(-1, shape))
        error = self._pooled((o.seen * 0.5 * variance.log()).to(closed).unflatten(-1, shape))
        any_seen = o.seen.any(-1).reshape(*o.seen.shape[:2], *[1] * (encoded.ndim - 2))
        return torch.cat([torch.where(any_seen, encoded, 0.0), encoded - alone, share, error], 2)

    def _encoded(self, name: str, x: Tensor) -> Tensor:
        """(W, L, *S) -> (W, L, *Z)."""
        z = self.coder.coders[name].encode(x.flatten(0, 1)) * self.coder.scales[name] / self.coder.std  # type: ignore[operator]
        return z.unflatten(0, x.shape[:2])

    def _pooled(self, x: Tensor) -> Tensor:
        """Mean of each patch and step, (W, L, *S) -> (W, L, 1, ...)."""
        if len(self.coder.event) == 1:
            return x.flatten(2).mean(-1, keepdim=True)
        patch = x.shape[-1] // self.coder.event[-1]
        return F.avg_pool2d(x.flatten(0, 1).mean(1, keepdim=True), patch).unflatten(0, x.shape[:2])
