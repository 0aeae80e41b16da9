"""A network that corrects the Gaussian denoiser of windows of plane velocities without divergence."""

import math

import torch
from torch import Tensor, nn

from slams.diffusion.denoiser import Denoiser
from slams.diffusion.schedule import Schedule
from slams.diffusion.solenoidal import FlowCovariance


class SolenoidalDenoiser(Denoiser):
    """E[x | x_t] of velocities, wave by wave for the Gaussian, with what a network adds to it.

    With the amplitudes a of `Solenoidal`, C the covariance of a wave over the window, and W^2 = alpha_t^2 C + sigma_t^2,

        a_m = a_mu + alpha_t C W^-2 (a_t - alpha_t a_mu) + sigma_t C^1/2 W^-1 f,

    so that f = 0 is the denoiser of a homogeneous Gaussian field, and both the network's input of the noisy field,
    W^-1 (a_t - alpha_t a_mu), and its target have unit variance in all waves at every noise level. Roots are symmetric,
    so that neighbouring waves are scaled alike. Further inputs are the Gaussian's velocity, vorticity and advection
    u . grad w. The rest of the velocity is left to the Gaussian.

    Args:
        network: f, (fields (*B, 5 L, N, N), a time) -> (*B, L, N, N): whitened amplitude, u, v, w and advection of each
            step, the last two in units of the vorticity's standard deviation; None for the Gaussian alone.
        mean: Mean mu, (2, N, N).
        covariance: C over the L steps of a window.
        schedule: Noise schedule.
        interval: Model time between two steps; scales the advection.
        trained: Range of sigma / alpha in training; its logarithm is mapped to the network's time s in [0, 1], clamped
            outside.
        bound: Bound of the network's input and output [standard deviations].

    Source:
        The preconditioning of Karras et al. (2022), arXiv:2206.00364, table 1, wave by wave.
    """

    mean: Tensor
    mean_waves: Tensor
    shear: Tensor

    def __init__(
        self,
        network: nn.Module | None,
        mean: Tensor,
        covariance: FlowCovariance,
        schedule: Schedule,
        *,
        interval: float = 0.2,
        trained: tuple[float, float] = (5e-3, 50.0),
        bound: float = 10.0,
    ) -> None:
        super().__init__()
        self.covariance = covariance
        self.network = network
        self.schedule = schedule
        self.length = covariance.length
        self.interval, self.trained, self.bound = interval, trained, bound
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("mean_waves", covariance.frame.analysis(mean), persistent=False)
        square = covariance.frame.wave_numbers.square().sum(0)
        twice = torch.full((square.shape[-1],), 2.0)
        twice[0] = twice[-1] = 1.0
        variance = (covariance.values.mean(-1) + self.mean_waves.abs() ** 2) * twice * square
        self.register_buffer(
            "shear", (variance.sum().sqrt() / covariance.frame.size).to(mean), persistent=False
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, L, 2, N, N), () or (b, 1, ..., 1) -> (*B, L, 2, N, N).

        Raises:
            ValueError: If the windows have another shape.
        """
        self.covariance.axes(x_t)
        frame = self.covariance.frame
        alpha, sigma = self.schedule(t.squeeze(-1) if t.ndim else t)
        z = self.covariance.rotate(frame.analysis(x_t) - alpha * self.mean_waves)
        values = self.covariance.spectrum(z)
        width = (alpha**2 * values + sigma**2).sqrt()
        rest = alpha * self.covariance.rest / (alpha**2 * self.covariance.rest + sigma**2)
        guess = self.covariance.back(z * (alpha * values / width**2))
        if self.network is not None:
            white = frame.field(self.covariance.back(z / width)).clamp(-self.bound, self.bound)
            answer = self.network(self._shown(white, guess + self.mean_waves), self._place(t))
            part = self.covariance.rotate(frame.waves(answer.clamp(-self.bound, self.bound)))
            guess = guess + self.covariance.back(part * (sigma * values.sqrt() / width))
        own = frame.synthesis(guess - rest * self.covariance.back(z))
        if t.ndim:
            alpha, rest = alpha.unsqueeze(-1), rest.unsqueeze(-1)
        return self.mean + rest * (x_t - alpha * self.mean) + own

    def _place(self, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        low, high = (math.log(end) for end in self.trained)
        return (((sigma / alpha).log() - low) / (high - low)).clamp(0, 1)

    def _shown(self, white: Tensor, guess: Tensor) -> Tensor:
        """Channels of the network, (*B, 5 L, N, N)."""
        frame = self.covariance.frame
        velocity = frame.synthesis(guess)
        rotation = guess * (frame.wave_numbers.to(guess.real).square().sum(0).sqrt() / self.shear)
        kx, ky = frame.wave_numbers.to(guess.real)
        u, v = velocity.unbind(-3)
        advection = u * frame.field(1j * kx * rotation) + v * frame.field(1j * ky * rotation)
        shown = [white, u, v, frame.field(rotation), self.interval * advection]
        return torch.cat([field.clamp(-self.bound, self.bound) for field in shown], -3)
