"""Observation operators on fields, for any leading batch axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, permutation
from slams.core.settings import arguments, parameters, unknown
from slams.observation.grid import AvgPool, Box, FirstMinusLast, Vorticity
from slams.observation.interpolation import Interpolate, InterpolateLine, InterpolateTorus

__all__ = [
    "BY_NAME",
    "AvgPool",
    "Box",
    "Compose",
    "FirstMinusLast",
    "Flatten",
    "Identity",
    "Interpolate",
    "InterpolateLine",
    "InterpolateTorus",
    "Mask",
    "Operator",
    "Pointwise",
    "Select",
    "Stack",
    "Stride",
    "Vorticity",
    "by_name",
]

Operator = Callable[[Tensor], Tensor]


class Identity(nn.Module):
    """The whole event as it is.

    Args:
        event: Number of axes of the event.
    """

    def __init__(self, event: int = 1) -> None:
        super().__init__()
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, *S).

        Raises:
            ValueError: If the state has fewer axes than the event.
        """
        if x.ndim < self.event:
            raise InvalidValueError(
                f"expected an event of {self.event} axes, got a state of shape {tuple(x.shape)}."
            )
        return x


class Flatten(nn.Module):
    """The whole event as one vector: (*B, *S) -> (*B, prod(S)).

    Args:
        event: Number of axes of the event.
    """

    def __init__(self, event: int = 3) -> None:
        super().__init__()
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, prod(S))."""
        return x.flatten(-self.event)


class Select(nn.Module):
    """Components of the flattened event by index: stations, columns, a mask.

    Args:
        index: Positions in the flattened event, shape (P).
        event: Number of axes of the event.

    Raises:
        ValueError: If there is no index or one is negative.
    """

    index: Tensor

    def __init__(self, index: Tensor, event: int = 3) -> None:
        super().__init__()
        if index.numel() == 0 or int(index.min()) < 0:
            raise InvalidValueError(
                f"a selection needs at least one non-negative index, got {index.tolist()[:5]}."
            )
        self.register_buffer("index", index)
        self.event = event
        self.largest = int(index.max())

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, P).

        Raises:
            ValueError: If the event has fewer components than the largest index.
        """
        flat = x if self.event == 1 else x.flatten(-self.event)
        if self.largest >= flat.shape[-1]:
            raise InvalidValueError(
                f"the selection reads component {self.largest} of an event of {flat.shape[-1]} "
                f"(a state of shape {tuple(x.shape)} with {self.event} event axes); check index and `event`."
            )
        return flat.index_select(-1, self.index)


class Mask(Select):
    """The unmasked points of a grid as one vector, the same in every channel.

    Masked points are not returned, so that no noise is drawn for them and no method can use them.

    Args:
        keep: Mask, bool, True where observed, shape of the last axes of the state, such as (n) or (H, W).

    Raises:
        ValueError: If `keep` is not bool or has no True.

    >>> Mask.grid((4, 4), 3)(torch.arange(16).reshape(4, 4))
    tensor([ 0,  3, 12, 15])
    """

    def __init__(self, keep: Tensor) -> None:
        if keep.dtype != torch.bool or not bool(keep.any()):
            raise InvalidValueError(
                f"a mask is bool and leaves at least one point, got {keep.dtype} with {int(keep.sum())} left."
            )
        super().__init__(keep.flatten().nonzero().squeeze(-1), keep.ndim)
        self.shape = tuple(keep.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, P).

        Raises:
            ValueError: If the last axes of the state do not have the shape of the mask.
        """
        if tuple(x.shape[-self.event :]) != self.shape:
            raise InvalidValueError(f"the mask has shape {self.shape}, but the state {tuple(x.shape)}.")
        return super().forward(x)

    @classmethod
    def grid(cls, shape: Sequence[int], step: int, offset: int = 0) -> "Mask":
        """Every `step`-th point of each axis, from `offset` on."""
        _check_stride(step, offset)
        keep = torch.zeros(tuple(shape), dtype=torch.bool)
        keep[tuple(slice(offset, None, step) for _ in shape)] = True
        return cls(keep)

    @classmethod
    def centre(cls, shape: Sequence[int], fraction: float = 0.5) -> "Mask":
        """All but a central box whose sides are `fraction` of the grid's: in 2-D a quarter by default."""
        if not 0 < fraction < 1:
            raise InvalidValueError(
                f"the hidden box is a fraction between 0 and 1 of each side, got {fraction}."
            )
        keep = torch.ones(tuple(shape), dtype=torch.bool)
        sides = [max(1, round(fraction * size)) for size in shape]
        starts = [(size - side) // 2 for size, side in zip(shape, sides, strict=True)]
        box = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        keep[box] = False
        return cls(keep)

    @classmethod
    def ring(cls, shape: Sequence[int], inner: float, outer: float) -> "Mask":
        """The points at which inner < |r|^2 < outer, r the place in [-1, 1] along each axis, ends included."""
        axes = [torch.linspace(-1, 1, size, dtype=torch.float64).square() for size in shape]
        square = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)
        return cls((square > inner) & (square < outer))

    @classmethod
    def random(cls, shape: Sequence[int], hidden: float, rng: Rng = None) -> "Mask":
        """Points drawn once without replacement; the fraction `hidden` is not observed."""
        size = math.prod(shape)
        left = int(size * (1 - hidden) + 1e-9)  # 1 - 0.9 is a little less than 0.1
        if not 0 <= hidden < 1 or left < 1:
            raise InvalidValueError(
                f"hiding {hidden} of {size} points leaves none, or is not a fraction in [0, 1)."
            )
        keep = torch.zeros(size, dtype=torch.bool)
        keep[permutation(size, rng=rng)[:left]] = True
        return cls(keep.reshape(tuple(shape)))


class Stride(nn.Module):
    """Every `step`-th point of the last axes, from `offset` on.

    Args:
        step: Distance of two observed points.
        offset: First observed point.
        axes: Number of last axes that are thinned, 1 or 2.

    Raises:
        ValueError: If step, offset or axes are invalid.

    >>> Stride(2)(torch.arange(5))
    tensor([0, 2, 4])
    """

    def __init__(self, step: int, offset: int = 0, axes: int = 1) -> None:
        super().__init__()
        _check_stride(step, offset)
        if axes not in (1, 2):
            raise InvalidValueError(f"a stride runs along the last axis or the last two, got axes {axes}.")
        self.step, self.offset, self.axes = step, offset, axes

    def forward(self, x: Tensor) -> Tensor:
        """(*B, n) -> (*B, n'), or (*B, H, W) -> (*B, H', W')."""
        if self.axes == 1:
            return x[..., self.offset :: self.step]
        return x[..., self.offset :: self.step, self.offset :: self.step]


POINTWISE: Mapping[str, Operator] = {
    "arctan": torch.arctan,
    "exp": torch.exp,
    "cube": lambda x: x**3,
    "saturate": lambda x: x / (1 + x.abs()),
}


class Pointwise(nn.Module):
    """f(scale * x + shift), component by component.

    Args:
        name: Name of f: "arctan", "exp", "cube" (w^3) or "saturate" (w / (1 + |w|)).
        scale: Factor in front of x.
        shift: Term added to it: exp(x - 0.6) is `Pointwise("exp", shift=-0.6)`.

    Raises:
        ValueError: If the name is unknown.

    >>> Pointwise("saturate", scale=2.0)(torch.tensor([-0.5, 0.0, 1.5]))
    tensor([-0.5000,  0.0000,  0.7500])
    """

    def __init__(self, name: str, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        if name not in POINTWISE:
            raise InvalidValueError(unknown("function", name, POINTWISE))
        self.name, self.scale, self.shift = name, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, *S)."""
        if (self.scale, self.shift) != (1.0, 0.0):
            x = self.scale * x + self.shift
        return POINTWISE[self.name](x)


class Compose(nn.Module):
    """h_n after ... after h_1.

    Args:
        operators: Operators h_1, ..., h_n in the order of application.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        super().__init__()
        self.operators = tuple(operators)
        for number, operator in enumerate(operators):  # so that their buffers follow `to`
            if isinstance(operator, nn.Module):
                self.add_module(str(number), operator)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, *O)."""
        for operator in self.operators:
            x = operator(x)
        return x


class Stack(nn.Module):
    """Several operators on one state, their values concatenated.

    Args:
        operators: Operators, by name or in order.
        events: Number of value axes of each operator, or one for all.

    Raises:
        ValueError: If there is no operator, or `events` has another length.
    """

    def __init__(
        self, operators: Mapping[str, Operator] | Sequence[Operator], events: int | Sequence[int] = 1
    ) -> None:
        super().__init__()
        parts = list(operators.values()) if isinstance(operators, Mapping) else list(operators)
        self.events = (events,) * len(parts) if isinstance(events, int) else tuple(events)
        if not parts or len(self.events) != len(parts):
            raise InvalidValueError(
                f"a stack needs operators and one `events` each, got {len(parts)} and {len(self.events)}."
            )
        self.operators = tuple(parts)
        for number, operator in enumerate(parts):
            if isinstance(operator, nn.Module):
                self.add_module(str(number), operator)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, *S) -> (*B, sum of the prod(O))."""
        pairs = zip(self.operators, self.events, strict=True)
        return torch.cat([h(x).flatten(-event) for h, event in pairs], -1)


def _check_stride(step: int, offset: int) -> None:
    if step < 1 or not 0 <= offset < step:
        raise InvalidValueError(
            f"need step >= 1 and 0 <= offset < step, got step {step} and offset {offset}."
        )


def _select(index: Sequence[int], event: int = 1) -> Select:
    return Select(torch.tensor(index, dtype=torch.long), event)


def _points(
    points: Sequence[Sequence[float]], lat: Tensor, lon: Tensor, periodic: bool = False
) -> Interpolate:
    return Interpolate(lat, lon, torch.tensor(points, dtype=lat.dtype), periodic=periodic)


#: Operators as settings name them: in recipes, set-ups of twin experiments and plans of studies.
BY_NAME: Mapping[str, Callable[..., nn.Module]] = {
    "identity": Identity,
    "flatten": Flatten,
    "stride": Stride,
    "select": _select,
    "block_mean": AvgPool,
    "points": _points,
    "box": Box,
    "vorticity": Vorticity,
    **{name: partial(Pointwise, name) for name in POINTWISE},
}


def by_name(name: str, settings: Mapping[str, Any] | None = None, **context: Any) -> nn.Module:
    """An operator from its name and settings.

    Args:
        name: A key of `BY_NAME`.
        settings: Keywords of the operator, such as "step" of "stride" and "shift" of a pointwise function.
        context: Properties of the state, such as lat, lon, weights and event; each is passed to operators that
            take it.

    Raises:
        ValueError: If the name or a setting is unknown (the nearest is named), or a value is invalid.

    >>> by_name("stride", {"step": 2})(torch.arange(5))
    tensor([0, 2, 4])
    """
    if name not in BY_NAME:
        raise InvalidValueError(unknown("operator", name, BY_NAME))
    make, known = BY_NAME[name], parameters(BY_NAME[name])
    given = arguments(make, settings or {}, f"{name}.", leave=context)
    return make(**given, **{key: value for key, value in context.items() if key in known})
