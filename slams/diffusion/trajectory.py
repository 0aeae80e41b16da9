"""Windows composed into trajectories of any length."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser


class MarkovBlanket(Denoiser):
    """A denoiser of windows as a denoiser of trajectories.

    Given its k neighbours on either side a step is taken to be independent of the rest, so that its
    E[x_i | x_t] comes from the window of 2 k + 1 steps around it; the first and last k steps come from the
    first and last window. The same holds of a posterior with observations local in time, so that the wrapped
    denoiser may be a guided one.

    With `chunk`, that many windows are evaluated at once, and what they keep for a gradient is recomputed on
    the way back: memory is that of one chunk whatever the length, for about a third more time where gradients
    are taken. Gradients are the same; torch.func.vjp and grad do not pass through the recomputation.

    Args:
        denoiser: Denoiser of windows (*B, W, L, *Z), L odd.
        length: Window length L [steps].
        chunk: Windows of a sample evaluated at once; all if None.

    Raises:
        ValueError: If the length is even or not the denoiser's, the chunk is not positive, or the denoiser
            holds observations of each window, so that windows have no chunks.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, algorithm 2.
    """

    def __init__(self, denoiser: Denoiser, length: int, *, chunk: int | None = None) -> None:
        super().__init__()
        if length < 1 or length % 2 == 0:
            raise InvalidValueError(f"windows to be composed need an odd number of steps, got {length}.")
        own = getattr(denoiser, "length", None)
        if own is not None and own != length:
            raise InvalidValueError(f"the denoiser is one of windows of {own} steps, got length {length}.")
        if chunk is not None and chunk < 1:
            raise InvalidValueError(f"chunk must be a positive number of windows, got {chunk}.")
        if chunk is not None and any(hasattr(part, "observations") for part in denoiser.modules()):
            raise InvalidValueError(
                "a guided denoiser holds observations of every window and does not support chunks of windows; "
                "guide the composed denoiser instead, or leave out the chunk."
            )
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.length = length
        self.event = getattr(denoiser, "event", None)
        self.chunk = chunk

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(N, T, *Z), () or (N, 1, ..., 1) -> (N, T, *Z).

        Raises:
            ValueError: If the trajectory is shorter than a window.
        """
        steps = x_t.shape[1]
        if steps < self.length:
            raise InvalidValueError(
                f"a trajectory of {steps} steps is shorter than the windows of {self.length}; "
                "pad it with unobserved steps."
            )
        if t.ndim:
            t = t.unsqueeze(1)
        count = steps - self.length + 1
        if self.chunk is None or count <= self.chunk:
            return self._compose(x_t, t, True, True)
        parts = []
        for start in range(0, count, self.chunk):
            stop = min(start + self.chunk, count)
            piece = x_t[:, start : stop + self.length - 1]
            ends = (start == 0, stop == count)
            if torch.is_grad_enabled():
                part = checkpoint(
                    self._compose, piece, t, *ends, use_reentrant=False, preserve_rng_state=False
                )
            else:
                part = self._compose(piece, t, *ends)
            parts.append(part)
        return torch.cat(parts, 1)

    def _compose(self, piece: Tensor, t: Tensor, first: bool, last: bool) -> Tensor:
        """Middles of the windows of a piece, with what stands before the first and after the last if wanted."""
        k = self.length // 2
        mean = self.denoiser(piece.unfold(1, self.length, 1).movedim(-1, 2), t)  # (N, W, L, *Z)
        before = mean[:, 0, : k if first else 0]
        after = mean[:, -1, self.length - (k if last else 0) :]
        return torch.cat([before, mean[:, :, k], after], 1)
