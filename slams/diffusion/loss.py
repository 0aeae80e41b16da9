"""Training loss of denoisers."""

from typing import Literal

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, uniform
from slams.diffusion.denoiser import Denoiser


def denoising_loss(
    denoiser: Denoiser,
    x: Tensor,
    *,
    target: Literal["eps", "x0", "v"] = "eps",
    weight: Tensor | None = None,
    times: Tensor | None = None,
    rng: Rng = None,
) -> Tensor:
    """Mean squared error of a denoiser on noisy data, with diffusion times uniform in [0, 1].

    With m = E[x | x_t], the error of the noise (x_t - alpha m) / sigma, of x itself, or of the velocity
    alpha eps - sigma x is (m - x) times

        eps: alpha / sigma,    x0: 1,    v: (alpha^2 + sigma^2) / sigma.

    Args:
        denoiser: Denoiser to train.
        x: Clean data (b, *S).
        target: Quantity whose error is averaged, "eps", "x0" or "v".
        weight: Weight of each element, non-negative, broadcasting to x; the loss is then
            mean(weight error) / mean(weight), and x may be anything where the weight is 0.
        times: Diffusion times (b), instead of uniform ones.
        rng: Generator of times and noise.

    Returns:
        A scalar.

    Raises:
        ValueError: If the target is unknown.

    Source:
        "eps": Rozet & Louppe (2023), arXiv:2306.10574, section 2; "v": Salimans & Ho (2022), arXiv:2202.00512, section 4.
    """
    if target not in ("eps", "x0", "v"):
        raise InvalidValueError(f"the target is 'eps', 'x0' or 'v', got {target!r}.")
    rng = generator(rng, "training")
    if weight is not None:
        x = torch.where(weight > 0, x, 0.0)
    if times is None:
        times = uniform((len(x),), like=x, dtype=x.dtype, rng=rng)
    t = times.to(x).reshape(-1, *([1] * (x.ndim - 1)))
    alpha, sigma = denoiser.schedule(t)
    x_t = alpha * x + sigma * normal(x.shape, like=x, rng=rng)
    scale = {"eps": alpha / sigma, "x0": torch.ones_like(sigma), "v": (alpha**2 + sigma**2) / sigma}[target]
    error = (scale * (denoiser(x_t, t) - x)).square()
    return error.mean() if weight is None else (error * weight).mean() / weight.expand_as(error).mean()
