"""Changes of coordinates with an inverse: transforms, standardization, encoders."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError


@dataclass(frozen=True)
class Transform:
    """A pointwise change of a variable, y = f(x), before statistics and networks see it.

    Attributes:
        name: Name of the transform in recipes and files.
        forward: f, applied to an array in the unit of the file.
        inverse: f^-1.
        lower: Smallest valid y; None if every y is valid.
        text: Expression for y, with {} in place of x.
    """

    name: str
    forward: Callable[[np.ndarray], np.ndarray] = lambda x: x
    inverse: Callable[[np.ndarray], np.ndarray] = lambda y: y
    lower: float | None = None
    text: str = "{}"

    def label(self, x: str) -> str:
        """Expression for y, given a name or unit of x.

        >>> TRANSFORMS["log1p"].label("mm")
        'log(1 + mm)'
        """
        return self.text.format(x)


# The one table of transforms: an entry here is a choice in recipes, and all that readers, draws and reports need.
TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("none"),
        # amounts such as rain: what a draw gives below zero is no rain
        Transform(
            "log1p",
            lambda x: np.log1p(np.maximum(x, 0)),
            lambda y: np.expm1(np.maximum(y, 0)),
            0.0,
            "log(1 + {})",
        ),
    )
}


class Codec(nn.Module, abc.ABC):
    """An invertible change of coordinates x -> z."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, *Z)."""

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(*B, *Z) -> (*B, *S)."""


class IdentityCodec(Codec):
    """z = x."""

    def encode(self, x: Tensor) -> Tensor:  # noqa: D102
        return x

    def decode(self, z: Tensor) -> Tensor:  # noqa: D102
        return z


class SeasonalStandardize(nn.Module):
    """Anomalies from a seasonal mean, in units of one standard deviation a channel.

    z = (x - m(phase)) / s,  m(phase) = c_0 + sum_j [ c_{2j-1} cos(2 pi j phase) + c_{2j} sin(2 pi j phase) ],
    with the phase of the year in [0, 1). The statistics come from training data alone and travel with the
    weights.

    Args:
        coefficients: c, shape (1 + 2 J, *S) [unit of x]; J = 0 is a constant mean.
        std: s, broadcastable to (*S) [unit of x], positive.
        present: Mask of points with training data, bool (*S); all if None.
        low, high: Limits of credible anomalies z, (*S); infinite if None.
    """

    coefficients: Tensor
    std: Tensor
    present: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        coefficients: Tensor,
        std: Tensor,
        present: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> None:
        super().__init__()
        if present is None:
            present = torch.ones(coefficients.shape[1:], dtype=torch.bool)
        endless = torch.full_like(coefficients[0], torch.inf)
        self.register_buffer("present", present)
        self.register_buffer("low", -endless if low is None else low)
        self.register_buffer("high", endless if high is None else high)
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("std", std)

    @classmethod
    def fit(
        cls, x: Tensor, phase: Tensor, *, harmonics: int = 0, weights: Tensor | None = None
    ) -> "SeasonalStandardize":
        """Least-squares harmonics of each point and the weighted standard deviation of each channel.

        Args:
            x: Training fields (n, C, *space), NaN where missing [any unit].
            phase: Phase of the year of each field, shape (n).
            harmonics: J; needs more than 2 J values at every point.
            weights: Area weights broadcastable to (*space).

        Returns:
            The fitted codec; points without training data have mean 0.

        Raises:
            ValueError: If a channel has no variance.
        """
        basis = seasonal_basis(phase, harmonics).to(x.dtype)
        flat = x.reshape(len(x), -1)
        seen = torch.isfinite(flat)
        filled = torch.where(seen, flat, 0.0)
        if bool(seen.all()):
            inverse = torch.linalg.pinv(basis.double())
            # few points at a time, for the memory of their double precision
            solution = torch.cat([inverse @ part.double() for part in filled.split(4096, dim=1)], 1)
        else:
            # one normal matrix a point, because each point misses other days
            gram = torch.einsum("ni,nj,np->pij", basis, basis, seen.to(x.dtype)).double()
            gram += 1e-6 * torch.eye(gram.shape[-1], dtype=gram.dtype) * (1 + gram[:, :1, :1])
            solution = torch.linalg.solve(gram, (basis.mT @ filled).mT.double()[..., None]).squeeze(-1).mT
        coefficients = solution.to(x.dtype).reshape(-1, *x.shape[1:])
        anomaly = x - torch.einsum("nj,j...->n...", basis, coefficients)
        weight = torch.ones(()) if weights is None else weights
        weight = torch.where(torch.isfinite(anomaly), weight.to(x.dtype), 0.0)
        axes = [0, *range(2, x.ndim)]
        variance = (weight * torch.nan_to_num(anomaly) ** 2).sum(axes) / weight.sum(axes).clamp(min=1e-30)
        return cls.of(coefficients, variance, seen.any(0).reshape(x.shape[1:]))

    @classmethod
    def of(cls, coefficients: Tensor, variance: Tensor, present: Tensor) -> "SeasonalStandardize":
        """Statistics of estimated moments.

        Args:
            coefficients: c, (1 + 2 J, C, *space).
            variance: Variance of the anomalies of each channel, (C).
            present: Mask of points with training data, (C, *space).

        Raises:
            ValueError: If a channel has no variance.
        """
        if not bool((variance > 0).all()):
            raise InvalidValueError(
                f"channel {int(variance.argmin())} has no variance in the training data; "
                "drop it or check its files and dates."
            )
        return cls(coefficients, variance.sqrt().reshape(-1, *([1] * (present.ndim - 1))), present)

    def mean(self, phase: Tensor) -> Tensor:
        """m(phase), shape (*phase, *S)."""
        harmonics = (self.coefficients.shape[0] - 1) // 2
        basis = seasonal_basis(phase, harmonics).to(self.coefficients)
        return torch.tensordot(basis, self.coefficients, dims=1)

    def encode(self, x: Tensor, phase: Tensor) -> Tensor:
        """Physical (*B, *phase, *S) to standardized anomalies."""
        return (x - self.mean(phase)) / self.std

    def decode(self, z: Tensor, phase: Tensor) -> Tensor:
        """Standardized anomalies (*B, *phase, *S) to physical."""
        return z * self.std + self.mean(phase)

    def incredible(self, x: Tensor, phase: Tensor) -> Tensor:
        """Mask of physical values (*B, *phase, *S) outside the limits of this climate; missing ones are not."""
        z = self.encode(x, phase)
        return (z < self.low) | (z > self.high)

    def credible_range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest credible x of each channel, (C), of all its points with data and days of a year."""
        phase = torch.linspace(0, 1, 37)[:-1]
        ends = (self.decode(limit.expand(len(phase), *limit.shape), phase) for limit in (self.low, self.high))
        low, high = (
            torch.where(self.present, end, torch.nan).nan_to_num(
                nan=fill, posinf=torch.inf, neginf=-torch.inf
            )
            for end, fill in zip(ends, (torch.inf, -torch.inf), strict=True)
        )
        space = [axis for axis in range(low.ndim) if axis != 1]
        return low.amin(space), high.amax(space)

    def limited(self, x: Tensor, phase: Tensor, *, amount: bool) -> "SeasonalStandardize":
        """The same statistics with limits of credible anomalies, from training fields.

        With the quantiles q of a point's anomalies, the limits are q01 - 3 w and q99 + 3 w' with w = q50 - q01 and
        w' = q99 - q50, but at least their medians over the points of a channel: about 9 standard deviations of a
        normal distribution. A width more than three times the other one's, as of rain or sea ice, counts nine times
        instead of three. Points without a width have the medians of the others. Amounts, given as log(1 + x), have an
        upper limit only, ten times 1 + x at q99 of the values above 0 or at its median over the points, whichever is
        more.

        Args:
            x: Training fields (n, C, *space), NaN where missing.
            phase: Phase of the year of each field, (n).
            amount: Whether x is the logarithm of an amount such as rain.
        """
        z = self.encode(x, phase).flatten(2)
        if amount:  # deserts are dry at their 99th percentile too
            z = torch.where(x.flatten(2) > 0, z, torch.nan)
        # NumPy sorts contiguous columns several times faster than torch along the first axis; NaN last
        z = torch.from_numpy(np.sort(z.movedim(0, -1).contiguous().numpy(), -1)).movedim(-1, 0)
        last = (torch.isfinite(z).sum(0, keepdim=True) - 1).clamp(min=0)
        lower, middle, upper = (z.gather(0, (q * last).round().long())[0] for q in (0.01, 0.5, 0.99))
        if amount:
            low, high = (
                torch.full_like(upper, -torch.inf),
                _floored(upper) + math.log(10) / self.std.flatten(1),
            )
        else:
            below, above = middle - lower, upper - middle
            low = lower - torch.where(below > 3 * above, 9, 3) * _widened(below)
            high = upper + torch.where(above > 3 * below, 9, 3) * _widened(above)
        shape = self.present.shape
        low, high = (
            low.nan_to_num(-torch.inf, neginf=-torch.inf),
            high.nan_to_num(torch.inf, posinf=torch.inf),
        )
        return SeasonalStandardize(
            self.coefficients, self.std, self.present, low.reshape(shape), high.reshape(shape)
        )


def _floored(width: Tensor) -> Tensor:
    """(C, P), each at least the median of its channel."""
    return torch.fmax(width, width.nanmedian(-1, keepdim=True).values)


def _widened(width: Tensor) -> Tensor:
    """(C, P), each at least the median of its channel's widths above 0; infinite where there are none."""
    floored = torch.fmax(width, width.where(width > 0, torch.nan).nanmedian(-1, keepdim=True).values)
    return floored.where(floored > 0, torch.inf)


def seasonal_basis(phase: Tensor, harmonics: int) -> Tensor:
    """Columns 1, cos, sin, ... of the yearly harmonics, shape (*phase, 1 + 2 J).

    >>> seasonal_basis(torch.tensor([0.0]), 1)
    tensor([[1., 1., 0.]])
    """
    columns = [torch.ones_like(phase)]
    for order in range(1, harmonics + 1):
        columns += [torch.cos(2 * torch.pi * order * phase), torch.sin(2 * torch.pi * order * phase)]
    return torch.stack(columns, -1)
