"""Draws that diverged: how large a draw may be, and what an error says of those beyond."""

import contextlib
import warnings

import torch
from torch import Tensor, nn

from slams.core.errors import DivergenceWarning, NonFiniteError
from slams.diffusion.denoiser import Denoiser

# x_t = alpha x + sigma eps has deviation (alpha^2 s^2 + sigma^2)^1/2. Normal draws stay below 10 of these, heavy tails
# and outliers below 100; data of other units without their `std` (pressure in Pa) reach 1e5.
LARGEST = 1e6
DOUBTFUL = 100.0

_CAUSES = (
    "usual causes: a network that is not trained, or that was trained to predict something else than its wrapper takes "
    "it for (Preconditioned, NoisePrediction); data that are not standardized and whose std= is not given; guidance that "
    "is too strong (a larger gamma, larger observation errors, more steps)"
)


def data_scale(denoiser: nn.Module) -> float:
    """Standard deviation of the data of a denoiser, wrapped or not: the largest `std` its parts state, at least 1."""
    stated = (getattr(part, "std", None) for part in denoiser.modules())
    return max([1.0, *(float(std) for std in stated if isinstance(std, int | float))])


def is_sound(x: Tensor, scale: float) -> bool:
    """Whether all values are finite and at most `LARGEST` times `scale`; NaN compares as False."""
    return bool(x.abs().amax() <= LARGEST * scale) if x.numel() else True


def diverged_step(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, after: Tensor | None, reason: object, where: str
) -> NonFiniteError:
    """The error of a step of a sampler whose result is not sound.

    Args:
        denoiser: Denoiser of the step.
        x_t: Samples before it.
        t: Their diffusion time.
        after: Samples after it; None if the denoiser stopped.
        reason: Why it stopped.
        where: Number of the step, as in "step 3 of 64".
    """
    if after is None:
        what = f"in {where}: {str(reason).rstrip('.')}"
    elif bool(torch.isfinite(after).all()):
        what = (
            f"the draws diverged: they reach {float(after.abs().max()):.3g} after {where}, more than {LARGEST:.0e} "
            "standard deviations of data and noise"
        )
    else:
        what = f"the draws are not finite after {where}"
    return NonFiniteError(
        f"{what}; before it, at diffusion time {float(t.max()):.3f}, they were {extent([x_t])}, and "
        f"{_output(denoiser, x_t, t)}; {_CAUSES}."
    )


def refuse_diverged(draws: Tensor, prior: Denoiser, who: str) -> Tensor:
    """Draws of any sampler, if they are sound; a warning where they are doubtful.

    Raises:
        FloatingPointError: If a value is not finite or beyond `LARGEST` standard deviations of the data.
    """
    scale = data_scale(prior)
    if not is_sound(draws, scale):
        raise NonFiniteError(
            f"the draws of {who} are {extent([draws])}, but must be finite and at most {LARGEST:.0e} standard deviations "
            f"of the data, {scale:g}; {_CAUSES}."
        )
    networks = any(hasattr(part, "network") for part in prior.modules())
    if networks and draws.numel() and float(draws.abs().amax()) > DOUBTFUL * scale:
        warnings.warn(
            f"the draws of {who} are {extent([draws])}, more than {DOUBTFUL:g} times the standard deviation of the "
            f"data, {scale:g}, that the prior states; {_CAUSES}.",
            DivergenceWarning,
            stacklevel=3,
        )
    return draws


def finite(decoded: Tensor, z: Tensor, who: str) -> Tensor:
    """What a decoder made of latent draws, if it is finite.

    Raises:
        FloatingPointError: If a value is not; names the decoder and the range of the draws.
    """
    if not bool(torch.isfinite(decoded).all()):
        raise NonFiniteError(
            f"{who} makes values {extent([decoded])} of latent draws {extent([z])}; check that it was trained, and on "
            "latents of this size."
        )
    return decoded


def _output(denoiser: Denoiser, x_t: Tensor, t: Tensor) -> str:
    """Range of what the networks of a denoiser return, of its own mean where it has none."""
    found: list[Tensor] = []

    def note(_module: nn.Module, _given: object, result: object) -> None:
        if isinstance(result, Tensor):
            found.append(result.detach())

    networks = [getattr(part, "network", None) for part in denoiser.modules()]
    parts = [part for part in networks if isinstance(part, nn.Module)]
    handles = [part.register_forward_hook(note) for part in parts or [denoiser]]
    try:
        with contextlib.suppress(FloatingPointError):  # the error that is being explained
            denoiser(x_t, t)
    finally:
        for handle in handles:
            handle.remove()
    name = "the network's output" if parts else "the denoiser's mean"
    return f"{name} was {extent(found)}" if found else f"{name} was not reached"


def extent(values: list[Tensor]) -> str:
    """The range of the finite values in words, and how many are not.

    >>> extent([torch.tensor([1.0, -2.0, torch.nan])])
    'in [-2, 1], 1 of 3 not finite'
    """
    flat = torch.cat([value.flatten() for value in values])
    finite = flat[torch.isfinite(flat)]
    lost = len(flat) - len(finite)
    among = f"in [{float(finite.min()):.4g}, {float(finite.max()):.4g}]" if len(finite) else ""
    return ", ".join(part for part in (among, f"{lost} of {len(flat)} not finite" if lost else "") if part)
