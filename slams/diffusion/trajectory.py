"""Windows composed into trajectories of any length."""

import torch
from torch import Tensor

from slams.diffusion.denoiser import Denoiser


class MarkovBlanket(Denoiser):
    """A denoiser of windows as a denoiser of trajectories.

    Given its k neighbours on either side a step is taken to be independent of the rest, so that its
    E[x_i | x_t] comes from the window of 2 k + 1 steps around it; the first and last k steps come from the
    first and last window. The same holds of a posterior with observations local in time, so that the wrapped
    denoiser may be a guided one.

    Args:
        denoiser: Of windows (*B, W, L, *Z), L odd.
        length: L.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, algorithm 2.
    """

    def __init__(self, denoiser: Denoiser, length: int) -> None:
        super().__init__()
        if length < 1 or length % 2 == 0:
            raise ValueError(f"windows to be composed need an odd number of steps, got {length}.")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.length = length

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(N, T, *Z), () -> (N, T, *Z).

        Raises:
            ValueError: If the trajectory is shorter than a window.
        """
        steps = x_t.shape[1]
        if steps < self.length:
            raise ValueError(
                f"a trajectory of {steps} steps is shorter than the windows of {self.length}; "
                "pad it with unobserved steps."
            )
        k = self.length // 2
        windows = x_t.unfold(1, self.length, 1).movedim(-1, 2)  # (N, W, L, *Z)
        mean = self.denoiser(windows, t)
        return torch.cat([mean[:, 0, :k], mean[:, :, k], mean[:, -1, self.length - k :]], 1)
