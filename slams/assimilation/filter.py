"""The forecast-analysis cycle, written once: loop, memory, divergence, records, kill and resume."""

import abc
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams.assimilation import checks
from slams.assimilation.base import Assimilator, Explanation, Labels, Posterior
from slams.assimilation.checkpoint import Checkpoint
from slams.assimilation.keywords import Failure, signature_of
from slams.assimilation.memory import Memory
from slams.assimilation.records import Keep, Records, aside
from slams.core.errors import DivergenceWarning, InvalidValueError, NonFiniteError
from slams.core.random import Rng, generator, settled
from slams.core.renamed import old_keywords
from slams.observation.observation import Observation, Observations
from slams.systems.base import Dynamics

Monitor = Callable[[int, "FilterState"], dict[str, Tensor]]

_AVERAGED = 50  # analyses over which the innovations are averaged: their mean has a spread of 1/sqrt(25 O)
_DIVERGED = 2.0  # innovations twice as large, in variance, as forecast and observation error allow


@dataclass(frozen=True)
class FilterState:
    """The state of a method after one step, as a monitor sees it.

    Attributes:
        method: Whose it is.
        x: Ensemble, (*B, N, *S).
        memory: Variables of the method.
        size: Members asked for.
        rng: Generator for draws that do not disturb the run.
    """

    method: "Filter"
    x: Tensor
    memory: Memory
    size: int
    rng: Rng

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, each (*B, *S)."""
        return self.method.moments(self.x, self.memory)

    def members(self) -> Tensor:
        """Equally likely members, (*B, N, *S)."""
        return self.method.members(self.x, self.memory, self.size, rng=self.rng)


class Filter(Assimilator):
    """Sequential filter: a forecast with the dynamics and an analysis of the observation at each step.

    Args:
        dynamics: The model.
        failure: Treatment of members that are not finite or larger than `bound`: "stop" raises,
            "replace" puts copies of sound members of the same replicate in their place (fresh draws of
            `dynamics.initial` where none is sound) and counts them in the diagnostic "replaced".
        bound: Largest credible absolute value of a state.

    Raises:
        ValueError: If `failure` is neither.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Shows the settings that are handed on to a base class in the signature."""
        super().__init_subclass__(**keywords)
        cls.__signature__ = signature_of(cls)  # type: ignore[attr-defined]

    #: Fewest members the method works with; methods that carry a mean and a covariance set it to 1.
    least = 2
    #: Steps by which the output lags behind the newest observation (fixed-lag smoothers).
    delay = 0
    #: Whether the method means to follow the truth: a free run diverges by construction, without a warning.
    follows = True

    def __init__(self, dynamics: Dynamics, *, failure: Failure = "stop", bound: float = float("inf")) -> None:
        if failure not in ("stop", "replace"):
            raise InvalidValueError(f'failure must be "stop" or "replace", got {failure!r}.')
        checks.check_dynamics(dynamics)
        self.dynamics = dynamics
        self.failure = failure
        self.bound = bound

    @abc.abstractmethod
    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """Join forecast and observation at one time.

        Args:
            forecast: Forecast ensemble, (*B, N, *S).
            observation: Observation, values (*B, O).
            rng: Generator.
            memory: Variables of the method; a fresh `Memory` if None. Puts "innovation" into its diagnostics.

        Returns:
            Analysis ensemble, (*B, N, *S).
        """

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """Advance the ensemble by one step of the model; overridden by methods with further variables."""
        return checks.advanced(self.dynamics, x, memory.step - 1, rng)

    def cycle(
        self,
        x: Tensor,
        observation: Observation | None,
        *,
        rng: Rng = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """One step: forecast, then analyse if there is an observation; (*B, N, *S) -> (*B, N, *S)."""
        memory, rng = Memory() if memory is None else memory, generator(rng, "method")
        memory.coming = observation
        x = self.forecast(x, memory, rng=rng)
        return x if observation is None else self.analyse(x, observation, rng=rng, memory=memory)

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """Initialise the method's ensemble and variables from the first ensemble; (*B, N, *S) -> (*B, N', *S)."""
        return x

    def moments(self, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the estimate, each (*B, *S)."""
        axis = self._axis
        return x.mean(axis), x.var(axis, correction=1 if x.shape[axis] > 1 else 0)

    def members(self, x: Tensor, memory: Memory, size: int, *, rng: Rng = None) -> Tensor:
        """Equally weighted members of the estimate, (*B, N, *S)."""
        return x

    def emit(self, k: int, last: int, x: Tensor, memory: Memory) -> Iterable[tuple[int, Tensor]]:
        """Steps whose estimates are final after step k, with their ensembles; smoothers look back.

        Args:
            k: The step just done.
            last: The last step of the run.
            x: Its ensemble.
            memory: Variables of the method.

        Returns:
            (step, ensemble (*B, N, *S)) in order of time.
        """
        return [(k, x)]

    @old_keywords("method setting")
    def assimilate(
        self,
        observations: Observations,
        members: int,
        *,
        x0: Tensor | None = None,
        keep: Keep = "members",
        monitor: Monitor | None = None,
        explain: Sequence[int] = (),
        checkpoint: str | Path | None = None,
        every: int = 500,
        progress: Callable[[int], None] | None = None,
        rng: Rng = None,
    ) -> Posterior:
        """Run through all observations; slot 0 is the initial state, which is analysed where observed.

        Args:
            observations: Values (*B, L, *O).
            members: Number of members N.
            x0: First ensemble, (*B, N, *S); drawn from `dynamics.initial` if None.
            keep: Results of every step kept in memory: "members", "moments" or "scores" (diagnostics and what
                `monitor` returns).
            monitor: Called with the step and its estimate; its numbers (*B) join the diagnostics.
            explain: Steps to be explained.
            checkpoint: File to which the run is saved and from which it goes on; needs `rng`.
            every: Steps between two saves.
            progress: Called with every step done.
            rng: Generator or seed; a fresh seed, kept in the posterior, if None.

        Returns:
            The ensemble and diagnostics: "innovation" as in `Memory`, "innovation_ratio", its mean over about 50
            analyses, and "diverged", 1 where that exceeds 2 (more after few values): forecasts are then further from the
            observations than both spreads allow. A run that diverged by `diverged_fraction`, or whose members were
            replaced, is a `DivergenceWarning` with the step.

        Raises:
            ValueError: If the size, first ensemble or checkpoint does not fit.
            FloatingPointError: If members are not finite or exceed `bound` and `failure` is "stop".
        """
        checks.check_observations(observations)
        if checkpoint is not None and rng is None:
            raise InvalidValueError(
                "a run with a checkpoint needs a seed or a generator of its own; pass rng=0."
            )
        source, seed = settled(rng)
        state = _State.begin(self, observations, members, x0, generator(source, "first members"))
        rng = generator(source, "method")
        records = Records(observations, keep, monitor, explain)
        saved = None
        if checkpoint is not None:
            saved = Checkpoint.of(checkpoint, self, observations, size=members, keep=keep, x0=x0, rng=rng)
            state.restore(records, saved.load(), rng)
        for k in range(state.done, observations.steps):
            state.step(k, observations.step(k), records, rng)
            if saved is not None and (k + 1) % every == 0 and k + 1 < observations.steps:
                saved.save(state.tensors(records, rng))
            if progress is not None:
                progress(k)
        if saved is not None:
            saved.save(state.tensors(records, rng))
        records.warn(type(self).__name__, self.follows)
        return replace(records.posterior(), seed=seed, labels=Labels.of(self, self.dynamics))

    @property
    def _axis(self) -> int:
        """Axis of the members."""
        return -1 - len(self.dynamics.state_shape)

    def _check_start(self, observations: Observations, members: int, x0: Tensor | None, rng: Rng) -> Tensor:
        """The first ensemble, checked at the door."""
        if members < self.least:
            raise InvalidValueError(
                f"{type(self).__name__} needs at least {self.least} members, got {members}; an ensemble's "
                "spread is undefined below."
            )
        shape = (*observations.batch, members, *self.dynamics.state_shape)
        if x0 is None:
            return self.dynamics.initial(*observations.batch, members, rng=rng)
        event = len(self.dynamics.state_shape)
        if tuple(x0.shape[x0.ndim - event - 1 :]) != shape[len(observations.batch) :]:
            raise InvalidValueError(
                f"x0 has shape {tuple(x0.shape)}, expected {shape}: replicates, members, then a state of the "
                "dynamics."
            )
        if not bool(torch.isfinite(x0).all()):
            raise InvalidValueError("x0 has values that are not finite; start from `dynamics.initial`.")
        return x0.expand(shape)


@dataclass
class _State:
    """State of a run."""

    method: Filter
    x: Tensor
    memory: Memory
    size: int
    analyses: int = 0
    done: int = 0
    far: str = ""

    @classmethod
    def begin(
        cls, method: Filter, observations: Observations, members: int, x0: Tensor | None, rng: Rng
    ) -> "_State":
        memory = Memory(observations=observations)
        x = method._check_start(observations, members, x0, rng)
        memory.carry["innovation_ratio"] = torch.ones(observations.batch, dtype=x.dtype, device=x.device)
        return cls(method, method.start(x, memory), memory, members)

    def step(self, k: int, observation: Observation | None, records: "Records", rng: torch.Generator) -> None:
        """Advance to step k and write down what is kept of it."""
        memory, method = self.memory, self.method
        memory.diagnostics, memory.step = {}, k
        explained = observation is not None and k in records.explain
        if k > 0:
            memory.coming = observation
            self.x = method.forecast(self.x, memory, rng=rng)
            self.replace_invalid_members(k, rng)  # before one spoilt member spoils the analysis of all
        if observation is not None:
            if not self.analyses:
                checks.check_operator(observation, self.x, len(method.dynamics.state_shape))
                if method.least > 1 and method.follows:
                    checks.check_spread(self.x, method._axis, type(method).__name__, k)
            forecast = self.x
            before = method.moments(self.x, memory)[0] if explained else None
            try:
                self.x = method.analyse(self.x, observation, rng=rng, memory=memory)
            except (torch.linalg.LinAlgError, FloatingPointError) as error:
                self.far = self.far or self._far_value(forecast, observation)
                where = (
                    "" if isinstance(error, FloatingPointError) else f"{type(method).__name__} at step {k}: "
                )
                raise NonFiniteError(
                    f"{where}{str(error).rstrip('.')}{self.far and '; '}{self.far}."
                ) from error
            self._follow(observation, forecast)
            if before is not None:
                records.explanations[k] = _explanation(method, self.x, memory, observation, before)
        self.replace_invalid_members(k, rng)
        for index, x in method.emit(k, records.steps - 1, self.x, memory):
            records.write(index, FilterState(method, x, memory, self.size, aside(rng, index)))
        records.note(k, memory.diagnostics)
        self.done = k + 1

    def _far_value(self, forecast: Tensor, observation: Observation) -> str:
        members = (
            forecast
            if forecast.shape[self.method._axis] > 1
            else self.method.moments(forecast, self.memory)[0]
        )
        return checks.far_value(members, observation, self.memory) if self.method.follows else ""

    def _follow(self, observation: Observation, forecast: Tensor) -> None:
        """Running mean of the innovations' size; a replicate that saw nothing keeps its own."""
        now = self.memory.diagnostics.get("innovation")
        self.analyses += 1
        if now is None:
            return
        if not self.far and bool(((now - 2) * observation.value.shape[-1] > checks.FAR**2).any()):
            self.far = self._far_value(forecast, observation)
            if self.far:
                warnings.warn(f"{type(self.method).__name__}: {self.far}.", DivergenceWarning, stacklevel=5)
        ratio = self.memory.carry["innovation_ratio"]
        moved = ratio + (now - ratio) / min(self.analyses, _AVERAGED)
        ratio = torch.where(torch.isfinite(now), moved, ratio)
        self.memory.carry["innovation_ratio"] = ratio
        self.memory.diagnostics["innovation_ratio"] = ratio
        # the mean of few values exceeds 2 by chance: six standard deviations of chi-square in any case
        count = observation.value.shape[-1] * min(self.analyses, _AVERAGED)
        limit = max(_DIVERGED, 1 + 6 * math.sqrt(2 / count))
        self.memory.diagnostics["diverged"] = (ratio > limit).to(ratio.dtype)

    def replace_invalid_members(self, k: int, rng: Rng) -> None:
        """Replace members that are not credible, or stop."""
        bound = self.method.bound
        if math.isfinite(bound):
            if bool(self.x.abs().amax() < bound):
                return
        elif math.isfinite(self.x.sum()):  # one pass over the ensemble in the usual case
            return
        event = len(self.method.dynamics.state_shape)
        members = self.x.flatten(-event) if event else self.x[..., None]
        sound = (members.abs() < bound).all(-1)  # (*B, N)
        if bool(sound.all()):
            return
        if self.method.failure == "stop":
            where = (~sound).any(-1).nonzero().squeeze(-1).tolist() if sound.dim() > 1 else "the only one"
            beyond = f"not finite or larger than {bound:g} " if math.isfinite(bound) else "not finite "
            raise NonFiniteError(
                f"{int((~sound).sum())} members of {type(self.method).__name__} are {beyond}"
                f"at step {k} (replicates: {where}); "
                f"{self.far or 'shorten the model step, localize, adjust the inflation'}, or pass "
                'failure="replace".'
            )
        fresh = self.method.dynamics.initial(*sound.shape, rng=rng).to(self.x)
        order = torch.argsort((~sound).to(torch.int8), dim=-1, stable=True)  # the sound ones first
        count = sound.sum(-1, keepdim=True)
        turn = torch.arange(sound.shape[-1], device=self.x.device).expand_as(order) % count.clamp(min=1)
        donor = torch.gather(order, -1, turn)
        shape = (*sound.shape, *(1,) * event)
        copies = torch.gather(self.x, sound.dim() - 1, donor.reshape(shape).expand_as(self.x))
        repaired = torch.where((count > 0).reshape(*count.shape, *(1,) * event), copies, fresh)
        self.x = torch.where(sound.reshape(shape), self.x, repaired)
        self.memory.diagnostics["replaced"] = (~sound).sum(-1).to(self.x.dtype)
        self.memory.diagnostics["diverged"] = torch.where(
            count[..., 0] == 0, 1.0, self.memory.diagnostics.get("diverged", torch.zeros(()).to(self.x))
        )

    def tensors(self, records: "Records", rng: torch.Generator) -> dict[str, Tensor]:
        """Everything a later process needs to go on."""
        out = {"x": self.x, "done": torch.tensor([self.done, self.analyses]), "rng": rng.get_state()}
        out |= {f"carry/{name}": value for name, value in self.memory.carry.items()}
        return out | records.tensors()

    def restore(self, records: "Records", saved: dict[str, Tensor] | None, rng: torch.Generator) -> None:
        """Go on from a save, if there is one."""
        if saved is None:
            return
        self.x = saved["x"]
        self.done, self.analyses = saved["done"].tolist()
        rng.set_state(saved["rng"])
        carry = {name.removeprefix("carry/"): v for name, v in saved.items() if name.startswith("carry/")}
        self.memory.carry = carry
        records.restore(saved)


def _explanation(
    method: Filter, x: Tensor, memory: Memory, observation: Observation, before: Tensor
) -> Explanation:
    """Compare the analysis with the forecast mean `before`, (*B, *S)."""
    size = x.shape[method._axis]
    members = method.members(x, memory, max(size, 64), rng=torch.Generator().manual_seed(0))
    carrying = torch.full(observation.value.shape[:-1], float(size)).to(x)
    return Explanation.of(
        before,
        method.moments(x, memory)[0],
        members,
        observation,
        memory.diagnostics.get("effective_size", carrying),
    )
