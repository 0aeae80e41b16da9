"""Observations with their operator and noise, and the likelihood of a state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from slams.core.covariance import Covariance, stack
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import Rng, generator, permutation
from slams.observation.operators import Compose, Flatten, Operator, Stack


@dataclass(frozen=True)
class Observation:
    """Observed values y = h(x) + e, e ~ N(0, R).

    Attributes:
        value: Values y, shape (*B, *O), NaN where missing.
        operator: Observation operator h: (*B, *S) -> (*B, *O).
        noise: Error covariance R over the flattened (*O); an `Isotropic` one takes the number of values.
        event: Number of axes of *O.
        columns: Indices of its values among those of all modalities, shape (prod(O)); None if it has all.

    Raises:
        ValueError: If R has another size than the values.
    """

    value: Tensor
    operator: Operator
    noise: Covariance
    event: int = 1
    columns: Tensor | None = None

    def __post_init__(self) -> None:
        size = self.value.shape[-self.event :].numel()
        object.__setattr__(self, "noise", self.noise.sized(size, self.value))
        if bool(torch.isinf(self.value).any()):
            raise InvalidValueError(
                f"{int(torch.isinf(self.value).sum())} observed values are infinite; NaN marks a missing value, so "
                "replace them by NaN or correct them."
            )

    @cached_property
    def precision(self) -> Tensor:
        """Inverse noise covariance of the observed values (see `Covariance.precision`)."""
        return self.noise.precision(self.seen)

    @cached_property
    def seen(self) -> Tensor:
        """Mask of the values that are not missing, bool, shape (*B, prod(O))."""
        return torch.isfinite(self.value).flatten(-self.event)

    @cached_property
    def all_seen(self) -> bool:
        """Whether no value is missing, in any replicate."""
        return bool(self.seen.all())

    @cached_property
    def filled(self) -> Tensor:
        """The values with 0 where missing, shape (*B, prod(O))."""
        flat = self.value.flatten(-self.event)
        return flat if self.all_seen else torch.where(self.seen, flat, 0.0)

    def predict(self, x: Tensor) -> Tensor:
        """h(x) as a vector: (*B, *S) -> (*B, prod(O)).

        Raises:
            ValueError: If the operator's output does not have the shape of the values.
        """
        predicted = self.operator(x)
        if not isinstance(predicted, Tensor):
            raise InvalidTypeError(
                f"the operator {self.operator} returns a {type(predicted).__name__}, expected a tensor; use torch "
                "functions, through which gradients pass."
            )
        event = self.event
        if predicted.shape[-event:] != self.value.shape[-event:]:
            raise InvalidValueError(
                f"the operator {self.operator} gives values of shape {tuple(predicted.shape[-event:])}, but "
                f"{tuple(self.value.shape[-event:])} were observed; check the operator and the file."
            )
        return predicted if event == 1 else predicted.flatten(-event)

    def residual(self, x: Tensor) -> Tensor:
        """y - h(x) with 0 where y is missing, shape (*B, prod(O)); members in front of the axes of y.

        Raises:
            ValueError: If the operator's output does not have the shape of the values.
        """
        difference = self.filled - self.predict(x)
        return difference if self.all_seen else torch.where(self.seen, difference, 0.0)

    def innovation(self, x: Tensor, *, members: bool | None = None) -> Tensor:
        """y - h(x) with 0 where y is missing, for a state or for an ensemble.

        Args:
            x: (*B, *S), or (*B, N, *S).
            members: Whether x has an axis of members after those of y; by default, whether it has more axes.

        Returns:
            (*B, prod(O)), or (*B, N, prod(O)).

        Raises:
            ValueError: If the operator's output does not have the shape of the values.
        """
        predicted = self.predict(x)
        between = self._between(predicted, members)
        difference = (self.filled.unsqueeze(-2) if between else self.filled) - predicted
        if self.all_seen:
            return difference
        return torch.where(self.seen.unsqueeze(-2) if between else self.seen, difference, 0.0)

    def whiten(self, residual: Tensor, *, members: bool | None = None) -> Tensor:
        """W r with W^T W the precision of the observed values, exactly 0 for missing ones.

        Args:
            residual: Residual r in the space of the values, (*B, prod(O)) or (*B, N, prod(O)): innovations, h of members,
                their anomalies.
            members: Whether r has an axis of members after those of y; by default, whether it has more axes.

        Returns:
            Shape of `residual`.
        """
        if self.all_seen:
            return self.noise.whiten(residual)
        between = self._between(residual, members)
        return self.noise.whiten(residual, self.seen.unsqueeze(-2) if between else self.seen)

    def _between(self, vector: Tensor, members: bool | None) -> bool:
        return vector.ndim > self.value.ndim + 1 - self.event if members is None else members

    def log_likelihood(self, x: Tensor) -> Tensor:
        """-1/2 r^T R^-1 r over the observed values, up to a constant in x: (*B, *S) -> (*B)."""
        return -0.5 * self.noise.quadratic(self.residual(x), self.precision)

    def part(self, replicates: slice) -> "Observation":
        """Observation of some of the replicates, the first axis of the values; for vectors of values only."""
        return Observation._known(self, self.value[replicates], self.all_seen)

    @classmethod
    def _known(cls, like: "Observation", value: Tensor, all_seen: bool) -> "Observation":
        """A copy of `like` with other values of the same shape, without checks, for the cycles of a filter."""
        made = object.__new__(cls)
        made.__dict__.update(
            value=value,
            operator=like.operator,
            noise=like.noise,
            event=1,
            columns=like.columns,
            all_seen=all_seen,
        )
        return made


class Observations(Mapping[str, Observation]):
    """All observations along a trajectory: one `Observation` per modality, values (*B, L, *O).

    A modality may be dropped, thinned or made noisier on its own; a step without values of a modality is
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
            raise InvalidValueError(
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

    def step(self, k: int) -> Observation | None:
        """All values observed at step k, as one observation with a vector of values.

        Modalities without values at that step in all replicates are left out; `columns` holds the indices of the
        remaining values.

        Args:
            k: Number of the step, 0 <= k < L.

        Returns:
            Values (*B, O), all modalities one after the other, noise of independent modalities, an operator
            (*B, *S) -> (*B, O); None if there are no values.
        """
        names, complete = self._agenda[k]
        if not names:
            return None
        like = self._joined.get(names)
        if like is None:
            like = self._joined[names] = self._join(names)
        values = [self._flat[name].select(-2, k) for name in names]
        return Observation._known(like, values[0] if len(values) == 1 else torch.cat(values, -1), complete)

    @property
    def seen_steps(self) -> list[int]:
        """Steps with at least one value, in ascending order."""
        return [k for k, (names, _) in enumerate(self._agenda) if names]

    @cached_property
    def _flat(self) -> dict[str, Tensor]:
        return {name: o.value.flatten(-o.event) for name, o in self.items()}

    @cached_property
    def _joined(self) -> dict[tuple[str, ...], Observation]:
        return {}

    @cached_property
    def _agenda(self) -> list[tuple[tuple[str, ...], bool]]:
        """The observed modalities of each step, and whether their values are complete."""
        anything, everything = {}, {}
        for name, o in self.items():
            seen = o.seen.movedim(-2, 0).flatten(1)
            anything[name], everything[name] = seen.any(1).tolist(), seen.all(1).tolist()
        names = [tuple(name for name in self if anything[name][k]) for k in range(self.steps)]
        return [(part, all(everything[name][k] for name in part)) for k, part in enumerate(names)]

    def _join(self, names: tuple[str, ...]) -> Observation:
        """The joint observation of these modalities, common to all steps that have exactly these."""
        batches = {name: tuple(self._flat[name].shape[:-2]) for name in names}
        if len(set(batches.values())) > 1:
            raise InvalidValueError(
                f"modalities observed together need the same replicates, got {batches}; expand them."
            )
        operators = {}
        for name in names:
            o = self[name]
            operators[name] = o.operator if o.event == 1 else Compose([o.operator, Flatten(o.event)])
        operator = next(iter(operators.values())) if len(names) == 1 else Stack(operators)
        noise = stack([self[name].noise for name in names])
        sizes = [self[name].noise.size for name in self]
        places = dict(zip(self, torch.arange(sum(sizes)).split(sizes), strict=True))
        columns = None if len(names) == len(self) else torch.cat([places[name] for name in names])
        value = torch.cat([self._flat[name].select(-2, 0) for name in names], -1)
        return Observation(value, operator, noise, columns=columns)

    def withhold(self, fraction: float, rng: Rng = None) -> tuple["Observations", "Observations"]:
        """Split the observed locations at random, for verification with what was not assimilated.

        A location is one component of a modality's values; it goes to one side at all steps and in all replicates.

        Args:
            fraction: Fraction of each modality's locations to withhold, between 0 and 1.
            rng: Generator or seed; a fresh seed if None.

        Returns:
            Observations to assimilate and to verify with, in the same shape, NaN where the other has a value.

        Raises:
            ValueError: If `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise InvalidValueError(f"the share to withhold must lie between 0 and 1, got {fraction}.")
        kept, withheld, rng = {}, {}, generator(rng, "withheld locations")
        for name, o in self.items():
            places = o.seen.flatten(0, -2).any(0).nonzero().squeeze(-1)
            drawn = permutation(len(places), rng=rng).to(places.device)
            hidden = torch.zeros(o.seen.shape[-1], dtype=torch.bool, device=places.device)
            hidden[places[drawn[: round(fraction * len(places))]]] = True
            hidden = hidden.reshape(o.value.shape[-o.event :])
            kept[name] = replace(o, value=o.value.masked_fill(hidden, torch.nan))
            withheld[name] = replace(o, value=o.value.masked_fill(~hidden, torch.nan))
        return Observations(kept), Observations(withheld)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Sum over modalities and steps: (*B, L, *S) -> (*B)."""
        terms = [observation.log_likelihood(x).sum(-1) for observation in self.values()]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def windows(self, length: int) -> "Observations":
        """Overlapping windows of a trajectory: values (T, *O) to (T - L + 1, L, *O).

        Raises:
            ValueError: If the trajectory is shorter than a window, or there are replicates.
        """
        if self.batch:
            raise InvalidValueError(
                f"windows are those of one record, got replicates {tuple(self.batch)}; cut each."
            )
        if self.steps < length:
            raise InvalidValueError(
                f"observations of {self.steps} steps are shorter than a window of {length}; "
                "pad them with missing ones."
            )
        index = torch.arange(self.steps - length + 1)[:, None] + torch.arange(length)
        return Observations({name: replace(o, value=o.value[index]) for name, o in self.items()})

    def patterns(self) -> tuple[list[int], list[int]]:
        """Groups of windows of a batch (W, L, *O) with the same pattern of missing values.

        Returns:
            The pattern number of each window, and the first window of each pattern.
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
            jacobians: Jacobians G_m by modality, shape (prod(O_m), K).
            window: Number of the window.

        Returns:
            Shape (L, K, K).
        """
        total = torch.zeros(())
        for name, o in self.items():
            total = total + o.noise.information(jacobians[name], o.noise.precision(o.seen[window]))
        size = next(iter(jacobians.values())).shape[-1]
        return total.expand(self.steps, size, size)

    def widened(self, variance: float | Mapping[str, float | Tensor]) -> "Observations":
        """The observations with `variance` added to every error variance, or to each modality its own (prod(O))."""
        added = variance if isinstance(variance, Mapping) else dict.fromkeys(self, variance)
        return Observations(
            {name: replace(o, noise=o.noise.widened(added[name])) for name, o in self.items()}
        )

    def pullback(self, decode: Mapping[str, Callable[[Tensor], Tensor]]) -> "Observations":
        """The observations as functions of a latent: h_m becomes h_m after decode_m."""
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
