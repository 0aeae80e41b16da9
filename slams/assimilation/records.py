"""Stored results of a filter run, and their serialization."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from slams.assimilation.base import Explanation, Posterior
from slams.core.errors import DivergenceWarning, InvalidValueError, warn_diverged
from slams.observation.observation import Observations

Keep = Literal["scores", "moments", "members"]
_REPLACED = {
    "replaced": "members that were not finite or beyond the bound were replaced by copies of others",
    "draws_lost": "draws of the generator that were not finite or beyond the bound were left out",
}


class StepEstimate(Protocol):
    """The state of a method after one step."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (*B, *S)."""

    def members(self) -> Tensor:
        """Equally likely members, (*B, N, *S)."""


class Records:
    """Results of a run, each a tensor with the axis of steps after the replicates.

    Args:
        observations: Assimilated observations.
        keep: Stored results, "scores", "moments" or "members".
        monitor: Called with every step and its estimate; its numbers (*B) join the diagnostics.
        explain: Steps to be explained.

    Raises:
        ValueError: If `keep` is unknown.
    """

    def __init__(
        self,
        observations: Observations,
        keep: Keep,
        monitor: Callable[[int, Any], dict[str, Tensor]] | None,
        explain: Sequence[int],
    ) -> None:
        if keep not in ("scores", "moments", "members"):
            raise InvalidValueError(f'keep must be "scores", "moments" or "members", got {keep!r}.')
        self.keep = keep
        self.monitor = monitor
        self.steps = observations.steps
        self.batch = observations.batch
        self.explain = frozenset(explain)
        self.explanations: dict[int, Explanation] = {}
        self.kept: dict[str, Tensor] = {}

    def write(self, k: int, estimate: StepEstimate) -> None:
        """Store the final estimate of step k."""
        if self.keep != "scores":
            mean, variance = estimate.moments()
            self._put("mean", k, mean, len(self.batch))
            self._put("variance", k, variance, len(self.batch))
        if self.keep == "members":
            self._put("samples", k, estimate.members(), len(self.batch) + 1)
        if self.monitor is not None:
            self.note(k, self.monitor(k, estimate))

    def note(self, k: int, numbers: dict[str, Tensor]) -> None:
        """Numbers (*B) of step k."""
        for name, value in numbers.items():
            self._put(f"diagnostics/{name}", k, value, len(self.batch))

    def _put(self, name: str, k: int, value: Tensor, axis: int) -> None:
        store = self.kept.get(name)
        if store is None:
            shape = (*value.shape[:axis], self.steps, *value.shape[axis:])
            store = self.kept[name] = torch.full(shape, torch.nan, dtype=value.dtype, device=value.device)
        store.select(axis, k).copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The records, and the explanations as tensors."""
        out = {f"kept/{name}": value for name, value in self.kept.items()}
        for k, explanation in self.explanations.items():
            out |= {f"explained/{k}/{name}": value for name, value in vars(explanation).items()}
        return out

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Records of a save."""
        self.kept = {n.removeprefix("kept/"): v for n, v in saved.items() if n.startswith("kept/")}
        parts: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.items():
            if name.startswith("explained/"):
                _, k, attribute = name.split("/")
                parts.setdefault(int(k), {})[attribute] = value
        self.explanations = {k: Explanation(**part) for k, part in parts.items()}

    def warn(self, who: str, follows: bool) -> None:
        """Warn once of what makes the results doubtful: divergence, replaced members, rejected draws of a generator."""
        diverged = self.kept.get("diagnostics/diverged")
        if diverged is not None and follows:
            warn_diverged(diverged, who, stacklevel=4)
        for name, what in _REPLACED.items():
            number = self.kept.get(f"diagnostics/{name}")
            steps = (
                []
                if number is None
                else (number > 0).reshape(-1, self.steps).any(0).nonzero().flatten().tolist()
            )
            if steps:
                warnings.warn(
                    f"{who}: {what} at {len(steps)} of {self.steps} steps, first at step {steps[0]}; see the diagnostic "
                    f"{name!r}.",
                    DivergenceWarning,
                    stacklevel=4,
                )

    def posterior(self) -> Posterior:
        """The result."""
        numbers = {
            n.removeprefix("diagnostics/"): v for n, v in self.kept.items() if n.startswith("diagnostics/")
        }
        kept = self.kept.get
        return Posterior(kept("samples"), numbers, kept("mean"), kept("variance"), self.explanations)


def aside(rng: torch.Generator, k: int) -> torch.Generator:
    """A generator for draws that are only looked at: what is kept must not change the run."""
    return torch.Generator(rng.device).manual_seed((rng.initial_seed() * 1_000_003 + k + 1) % 2**63)
