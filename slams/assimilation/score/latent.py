"""Assimilation in a latent space: the wrapped method never learns that its state is encoded."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.core.random import Rng
from slams.core.renamed import old_keywords
from slams.diffusion.divergence import finite
from slams.observation.observation import Observations

Decoder = Callable[[Tensor], Tensor]


class Latent(Assimilator):
    """y_m = h_m(D_m(z)) + e_m, and the posterior of z decoded.

    Args:
        method: Assimilation method in latent space.
        decoders: Decoder D_m of every observed modality, (*B, *Z) -> (*B, *S_m).
        decode: Decoder of the posterior, (*B, *Z) -> (*B, *S); the identity if None.

    `assimilate` passes further options, such as `progress`, to the method.

    Raises:
        FloatingPointError: If decoded values are not finite; names their number and the range of the latent.
    """

    def __init__(
        self, method: Assimilator, decoders: Mapping[str, Decoder], decode: Decoder | None = None
    ) -> None:
        self.method = method
        self.decoders = dict(decoders)
        self.decode = decode or (lambda z: z)

    @old_keywords("method setting")
    def assimilate(  # noqa: D102
        self, observations: Observations, members: int, *, rng: Rng = None, **options: Any
    ) -> Posterior:
        seen = observations.pullback({name: self.decoders[name] for name in observations})
        posterior = self.method.assimilate(seen, members, rng=rng, **options)
        assert posterior.samples is not None  # methods keep their members by default
        decoded = finite(self.decode(posterior.samples), posterior.samples, "the decoder")
        return Posterior(decoded, posterior.diagnostics, seed=posterior.seed)
