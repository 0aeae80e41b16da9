"""Double well: one variable between two stable states."""

import math

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, uniform
from slams.systems.flow import Coefficient, Flow, Gaussian


class DoubleWell(Flow):
    """Overdamped motion in U(x) = x^4 - 2 x^2: x_{k+1} = x_k - dt U'(x_k) + noise sqrt(dt) N(0, 1).

    The wells are at -1 and 1, the barrier of height 1 between them.

    Args:
        dt: Model time between two states.
        noise: Standard deviation of the noise per square root of model time.
        flip_every: A `trajectory` jumps to -x after every so many steps, as a truth with jumps
            that the model, `forward`, lacks; 0 for never.
        flip_chance: Probability that a step of `forward` ends at -x: a model with jumps at random times.
        substeps: Steps of the method in `dt`.
        method: "euler", "heun" or "rk4".
        start: Distribution of initial states; N(-1, 0.15^2) if None.
        dtype: Dtype of initial states.

    Raises:
        ValueError: If a setting is out of range or the method unknown.

    Source:
        Ding et al. (2024), arXiv:2411.13443, section 4.1.
    """

    def __init__(
        self,
        *,
        dt: float = 0.1,
        noise: float = 0.3,
        flip_every: int = 0,
        flip_chance: float = 0.0,
        substeps: int = 1,
        method: str = "euler",
        start: Gaussian | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            1,
            {},
            dt=dt,
            substeps=substeps,
            method=method,
            noise=noise,
            start=start or Gaussian(-1.0, std=0.15),
            dtype=dtype,
        )
        if flip_every < 0:
            raise InvalidValueError(f"flip_every must be at least 0 (never), got {flip_every}.")
        if not 0 <= flip_chance <= 1:
            raise InvalidValueError(f"flip_chance is a probability, got {flip_chance}.")
        self.flip_every, self.flip_chance = flip_every, flip_chance

    def tendency(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """-U'(x) = 4 x (1 - x^2); see `Flow.tendency`."""
        return 4 * x * (1 - x.square())

    def potential(self, x: Tensor) -> Tensor:
        """U(x) = x^4 - 2 x^2, (*B, 1) to (*B)."""
        square = x.squeeze(-1).square()
        return square * (square - 2)

    def log_stationary(self, x: Tensor) -> Tensor:
        """log of the stationary density up to a constant, -2 U(x) / noise^2, exact as dt goes to 0.

        Args:
            x: States, (*B, 1).

        Returns:
            (*B).

        Raises:
            ValueError: If there is no noise.

        Source:
            Risken (1996), The Fokker-Planck Equation, section 5.2.
        """
        if self.noise == 0:
            raise InvalidValueError(
                "without noise there is no stationary density; give the system noise > 0."
            )
        return -2 * self.potential(x) / self.noise**2

    def forward(self, x: Tensor, *, rng: Rng = None, **coefficients: Coefficient) -> Tensor:
        """See `Flow.forward`; with the jumps of `flip_chance`, which `mean` leaves out."""
        rng = generator(rng, "model noise")
        after = super().forward(x, rng=rng, **coefficients)
        if not self.flip_chance:
            return after
        return torch.where(uniform(after.shape, like=after, rng=rng) < self.flip_chance, -after, after)

    def log_transition(self, x: Tensor, after: Tensor) -> Tensor:
        """See `Flow.log_transition`; with the jumps of `flip_chance`."""
        stay = super().log_transition(x, after)
        if not self.flip_chance:
            return stay
        jump = super().log_transition(x, -after) + math.log(self.flip_chance)
        return torch.logaddexp(stay + math.log1p(-self.flip_chance), jump) if self.flip_chance < 1 else jump

    def trajectory(self, x: Tensor, steps: int, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.trajectory`; with the jumps of `flip_every`."""
        rng = generator(rng, "trajectory")
        if not self.flip_every:
            return super().trajectory(x, steps, rng=rng)
        pieces, done = [super().trajectory(x, min(steps, 0))], 0
        while done < steps:
            length = min(self.flip_every, steps - done)
            piece = super().trajectory(pieces[-1][..., -1, :], length, rng=rng)[..., 1:, :]
            if length == self.flip_every:
                piece = torch.cat([piece[..., :-1, :], -piece[..., -1:, :]], -2)
            pieces.append(piece)
            done += length
        return torch.cat(pieces, -2)

    def extra_repr(self) -> str:
        """See `Flow.extra_repr`."""
        return f"{super().extra_repr()}, flip_every={self.flip_every}, flip_chance={self.flip_chance}"
