"""Twin experiments: a simulated truth, its observations, and the posterior of a method with its scores."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.assimilation.filter import Filter, Keep
from slams.core.errors import InvalidValueError, divergence_counted
from slams.core.files import atomic
from slams.core.random import Rng, fork
from slams.core.renamed import old_keywords, renamed
from slams.observation.observation import Observations
from slams.observation.survey import Survey
from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics
from slams.twin.scores import Calls, TwinScores, summary

if TYPE_CHECKING:
    import xarray as xr


class TwinExperiment:
    """A system that the truth follows, a survey that observes it, and the model that methods forecast with.

    Args:
        system: Dynamics of the truth.
        survey: Operators, errors and times of the observations.
        length: Number of states L, the first included.
        model: Dynamics of the methods; the system itself if None. Model error is where they differ.
        replicates: Number of independent truths; None for one without an axis of its own.
        burn_in: Number of unscored analyses at the beginning.

    Raises:
        ValueError: If states of model and system differ in shape, or a number is invalid.
    """

    def __init__(
        self,
        system: Dynamics,
        survey: Survey,
        length: int,
        *,
        model: Dynamics | None = None,
        replicates: int | None = None,
        burn_in: int = 0,
    ) -> None:
        if length < 1 or burn_in < 0 or (replicates is not None and replicates < 1):
            raise InvalidValueError(
                f"need length >= 1, burn_in >= 0 and replicates >= 1, got {length}, {burn_in}, {replicates}."
            )
        model = system if model is None else model
        if tuple(model.state_shape) != tuple(system.state_shape):
            raise InvalidValueError(
                f"the model has states of shape {tuple(model.state_shape)}, the truth of "
                f"{tuple(system.state_shape)}; a twin experiment needs the same state in both."
            )
        self.system, self.survey, self.length, self.model = system, survey, length, model
        self.replicates, self.burn_in = replicates, burn_in

    def simulate(self, rng: Rng = None) -> tuple[Tensor, Observations]:
        """Draw a truth and its observations.

        Args:
            rng: Generator of truth and observations.

        Returns:
            Truth, (L, *S) or (B, L, *S) with `replicates`, and its observations.

        Raises:
            ValueError: If the truth is not finite.
        """
        batch = () if self.replicates is None else (self.replicates,)
        truth = self.system.trajectory(self.system.initial(*batch, rng=rng), self.length - 1, rng=rng)
        return truth, self._observe(truth, rng)

    def simulate_seeds(self, seeds: Sequence[int]) -> tuple[Tensor, Observations]:
        """One truth for each seed, independent of the other seeds.

        Args:
            seeds: Seeds of the replicates.

        Returns:
            Truths (B, L, *S) and their observations.

        Raises:
            ValueError: If `seeds` is empty or a truth is not finite.
        """
        if not seeds:
            raise InvalidValueError("`seeds` is empty; give at least one.")
        sources = [fork(seed, "truth") for seed in seeds]
        starts = [self.system.initial(rng=source) for source in sources]
        if _is_stochastic(self.system, starts[0]):
            paths = [
                self.system.trajectory(start, self.length - 1, rng=source)
                for start, source in zip(starts, sources, strict=True)
            ]
            truth = torch.stack(paths)
        else:
            truth = self.system.trajectory(torch.stack(starts), self.length - 1)
        seen = [self._observe(x, fork(seed, "errors")) for x, seed in zip(truth, seeds, strict=True)]
        first = seen[0]
        values = {name: torch.stack([each[name].value for each in seen]) for name in first}
        return truth, Observations({name: replace(first[name], value=v) for name, v in values.items()})

    @old_keywords("method setting")
    def run(
        self,
        method: Assimilator,
        members: int,
        truth: Tensor,
        observations: Observations,
        *,
        rng: torch.Generator,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        keep: Keep = "scores",
        detail: bool = True,
        checkpoint: str | Path | None = None,
        every: int = 500,
        progress: Callable[[int], None] | None = None,
    ) -> "Result":
        """Assimilate and score every step online, without storing trajectories.

        Args:
            method: The method.
            members: Ensemble size N.
            truth: States, (*B, L, *S).
            observations: Observations of that truth.
            rng: Generator of the method.
            name: Name of the method in tables; its class if None.
            settings: Settings of the method, for the result.
            keep: Kept parts of the posterior, as in `Filter.assimilate`.
            detail: Whether to score CRPS, coverage and ranks besides error and spread.
            checkpoint: File from which an interrupted run resumes.
            every: Steps between two saves.
            progress: Callback after every step.

        Returns:
            Posterior and scores.

        Raises:
            ValueError: If the truth does not fit, or the checkpoint is of another set-up.
        """
        event = len(self.system.state_shape)
        shape = (*observations.batch, observations.steps, *self.system.state_shape)
        if tuple(truth.shape) != shape:
            raise InvalidValueError(
                f"the truth has shape {tuple(truth.shape)}, but observations and system require {shape}; "
                "pass both as `simulate` returned them."
            )
        begun = time.perf_counter()
        with counted(method) as calls, divergence_counted():
            model = getattr(method, "dynamics", None)
            monitor = TwinScores(truth, event=event, calls=calls, detail=detail, model=model)
            if isinstance(model, AugmentedParameters):
                observations = observations.pullback(dict.fromkeys(observations, model.state))
            if isinstance(method, Filter):
                posterior = method.assimilate(
                    observations,
                    members,
                    keep=keep,
                    monitor=monitor,
                    checkpoint=checkpoint,
                    every=every,
                    progress=progress,
                    rng=rng,
                )
            else:
                posterior = _scored(method.assimilate(observations, members, rng=rng), monitor, keep)
        scored = observations.seen_steps[self.burn_in :]
        if not scored:
            raise InvalidValueError(
                f"a burn-in of {self.burn_in} analyses leaves none of {len(observations.seen_steps)}; shorten it."
            )
        return Result(
            name or type(method).__name__,
            dict(settings or {}) | {"members": members},
            posterior,
            summary(posterior.diagnostics, scored, self.burn_in),
            dt=self.system.dt,
            scored=tuple(scored),
            seconds=time.perf_counter() - begun,
        )

    def _observe(self, truth: Tensor, rng: Rng) -> Observations:
        return self.survey.observe(truth, event=len(self.system.state_shape), rng=rng)


@contextmanager
def counted(method: Assimilator) -> Iterator[Calls]:
    """Context that counts states advanced by the method's model, with noise or by its `mean`."""
    calls = Calls()
    dynamics = getattr(method, "dynamics", None)
    if not isinstance(dynamics, Dynamics):
        yield calls
        return
    event = len(dynamics.state_shape)
    depth = [0]

    def enter(module: object, given: tuple[Tensor, ...]) -> None:
        depth[0] += 1

    def leave(module: object, given: tuple[Tensor, ...], result: Tensor) -> None:
        depth[0] -= 1
        calls.model += result.shape[: result.ndim - event].numel()

    handles = [dynamics.register_forward_pre_hook(enter), dynamics.register_forward_hook(leave)]
    mean = getattr(dynamics, "mean", None)

    def counted_mean(x: Tensor, **settings: Any) -> Tensor:
        result: Tensor = mean(x, **settings)  # type: ignore[misc]
        if not depth[0]:  # else it is a part of a step that is counted
            calls.model += result.shape[: result.ndim - event].numel()
        return result

    if callable(mean):
        vars(dynamics)["mean"] = counted_mean
    try:
        yield calls
    finally:
        vars(dynamics).pop("mean", None)
        for handle in handles:
            handle.remove()


class _Scores(dict[str, Tensor]):
    """Scores of each replicate by metric, (*B) each; old names of metrics work, with a `FutureWarning`."""

    def __missing__(self, metric: str) -> Tensor:
        (new,) = renamed("metric", {metric: None})
        if new == metric:
            raise KeyError(metric)
        return self[new]


@dataclass(frozen=True)
class Result:
    """Posterior and scores of a method in a twin experiment.

    Attributes:
        method: Name of the method.
        settings: Settings of the method, `members` among them.
        posterior: The kept parts of the posterior.
        scores: Scores of each replicate, (*B), by metric.
        dt: Model time between two steps.
        scored: Scored steps.
        seconds: Wall time of this process [s].
        setup: The experiment, as plain values.
    """

    method: str
    settings: Mapping[str, Any]
    posterior: Posterior
    scores: Mapping[str, Tensor]
    dt: float = 1.0
    scored: Sequence[int] = ()
    seconds: float = 0.0
    setup: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", _Scores(renamed("metric", self.scores)))

    def to_dataset(self) -> "xr.Dataset":
        """The kept arrays with labels: dims [replicate,] time, member, state (state_0, … if several)."""
        import xarray as xr

        post = self.posterior
        front = ("replicate",) if next(iter(self.scores.values())).ndim else ()
        data: dict[str, Any] = {}
        for name, value in (("mean", post.mean), ("variance", post.variance)):
            if value is not None:
                data[name] = ((*front, "time", *_state_axes(value.ndim - len(front) - 1)), _plain(value))
        if post.samples is not None:
            members = post.samples.movedim(len(front), len(front) + 1)
            axes = _state_axes(members.ndim - len(front) - 2)
            data["members"] = ((*front, "time", "member", *axes), _plain(members))
        for name, value in post.diagnostics.items():
            data[f"step_{name}"] = ((*front, "time"), _plain(value))
        for name, value in self.scores.items():
            data[name] = (front, _plain(value))
        steps = next(iter(post.diagnostics.values())).shape[-1]
        attributes = {
            "method": self.method,
            "settings": str(dict(self.settings)),
            "setup": str(dict(self.setup)),
        }
        return xr.Dataset(
            data, {"time": ("time", _plain(torch.arange(steps).double() * self.dt))}, attributes
        )

    def to_netcdf(self, path: str | Path) -> None:
        """Write `to_dataset` to a file atomically."""
        with atomic(path) as temporary:
            self.to_dataset().to_netcdf(temporary)


def _scored(posterior: Posterior, monitor: TwinScores, keep: Keep) -> Posterior:
    """A posterior of a method without steps, with scores among its diagnostics."""
    if posterior.samples is None:
        raise InvalidValueError("a method without steps must return members to be scored; it returned none.")
    numbers = {**posterior.diagnostics, **monitor.afterwards(posterior.samples)}
    return replace(posterior, samples=posterior.samples if keep == "members" else None, diagnostics=numbers)


def _plain(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


def _state_axes(count: int) -> tuple[str, ...]:
    return ("state",) if count == 1 else tuple(f"state_{i}" for i in range(count))


def _is_stochastic(system: Dynamics, x: Tensor) -> bool:
    """Whether a step draws random numbers."""
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    system(x, rng=rng)
    return not torch.equal(before, rng.get_state())
