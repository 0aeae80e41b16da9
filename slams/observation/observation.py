"""Observations with their operator and noise, and the likelihood they give a state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from slams.core.covariance import Covariance
from slams.observation.operators import Operator


@dataclass(frozen=True)
class Observation:
    """Values seen through an operator: y = h(x) + e, e ~ N(0, R).

    Attributes:
        value: y, shape (*B, *O), NaN where missing.
        operator: h: (*B, *S) -> (*B, *O).
        noise: R over the flattened (*O).
        event: Number of axes of *O.

    Raises:
        ValueError: If R has another size than the values.
    """

    value: Tensor
    operator: Operator
    noise: Covariance
    event: int = 1

    def __post_init__(self) -> None:
        size = self.value.shape[-self.event :].numel()
        if size != self.noise.size:
            raise ValueError(
                f"the observation has {size} values but its noise covariance {self.noise.size}; "
                "give one error a value."
            )

    @cached_property
    def precision(self) -> Tensor:
        """Inverse noise covariance of what was seen (see `Covariance.precision`)."""
        return self.noise.precision(self.seen)

    @cached_property
    def seen(self) -> Tensor:
        """Which values are there, bool, shape (*B, prod(O))."""
        return torch.isfinite(self.value).flatten(-self.event)

    def residual(self, x: Tensor) -> Tensor:
        """y - h(x) with 0 where y is missing, shape (*B, prod(O)).

        Raises:
            ValueError: If the operator's output does not have the shape of the values.
        """
        predicted = self.operator(x)
        if predicted.shape[-self.event :] != self.value.shape[-self.event :]:
            raise ValueError(
                f"the operator gives values of shape {tuple(predicted.shape[-self.event :])}, but "
                f"{tuple(self.value.shape[-self.event :])} were observed; check the operator and the file."
            )
        return torch.where(self.seen, (torch.nan_to_num(self.value) - predicted).flatten(-self.event), 0.0)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """-1/2 r^T R^-1 r over what was seen, up to a constant of x: (*B, *S) -> (*B)."""
        return -0.5 * self.noise.quadratic(self.residual(x), self.precision)


class Observations(Mapping[str, Observation]):
    """Everything seen along a trajectory: one `Observation` a modality, its values (*B, L, *O).

    A modality may be dropped, thinned or made noisier on its own; a step at which a modality saw nothing is
    all NaN.

    Args:
        modalities: Observations by name, all of the same length L.

    Raises:
        ValueError: If there are none, or their lengths differ.
    """

    def __init__(self, modalities: Mapping[str, Observation]) -> None:
        self._modalities = dict(modalities)
        lengths = {name: o.value.shape[-1 - o.event] for name, o in self._modalities.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"observations need one common number of steps, got {lengths}; align them by date."
            )
        self.steps = next(iter(lengths.values()))
        first = next(iter(self._modalities.values()))
        self.batch = first.value.shape[: -1 - first.event]

    def __getitem__(self, name: str) -> Observation:
        return self._modalities[name]

    def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        return iter(self._modalities)

    def __len__(self) -> int:
        return len(self._modalities)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Sum over modalities and steps: (*B, L, *S) -> (*B)."""
        terms = [observation.log_likelihood(x).sum(-1) for observation in self.values()]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def windows(self, length: int) -> "Observations":
        """Overlapping windows of a trajectory: values (T, *O) to (T - L + 1, L, *O).

        Raises:
            ValueError: If the trajectory is shorter than a window.
        """
        if self.steps < length:
            raise ValueError(
                f"observations of {self.steps} steps are shorter than a window of {length}; "
                "pad them with missing ones."
            )
        index = torch.arange(self.steps - length + 1)[:, None] + torch.arange(length)
        return Observations({name: replace(o, value=o.value[index]) for name, o in self.items()})

    def patterns(self) -> tuple[list[int], list[int]]:
        """Which windows of a batch (W, L, *O) saw the same values.

        Returns:
            For each window the number of its pattern, and for each pattern the first window with it.
        """
        numbers: dict[bytes, int] = {}
        index, first = [], []
        for w in range(self.batch[0]):
            key = b"".join(o.seen[w].cpu().numpy().tobytes() for o in self.values())
            if key not in numbers:
                numbers[key] = len(numbers)
                first.append(w)
            index.append(numbers[key])
        return index, first

    def information(self, jacobians: Mapping[str, Tensor], window: int) -> Tensor:
        """Gauss-Newton matrix of each step of one window of a batch, sum_m G_m^T R_m^-1 G_m.

        Args:
            jacobians: G_m, shape (prod(O_m), K).
            window: Its number.

        Returns:
            Shape (L, K, K).
        """
        total = torch.zeros(())
        for name, o in self.items():
            total = total + o.noise.information(jacobians[name], o.noise.precision(o.seen[window]))
        size = next(iter(jacobians.values())).shape[-1]
        return total.expand(self.steps, size, size)

    def widened(self, variance: float) -> "Observations":
        """The same observations with `variance` added to the variance of every error."""
        return Observations({name: replace(o, noise=o.noise.widened(variance)) for name, o in self.items()})

    def pullback(self, decode: Mapping[str, Callable[[Tensor], Tensor]]) -> "Observations":
        """The same observations as seen from a latent: h_m becomes h_m after decode_m."""
        return Observations(
            {name: replace(o, operator=_After(o.operator, decode[name])) for name, o in self.items()}
        )


@dataclass(frozen=True)
class _After:
    """h(decode(z)), as an object so that an observation can be inspected and copied."""

    operator: Operator
    decode: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        return self.operator(self.decode(z))
