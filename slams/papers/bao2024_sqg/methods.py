"""Methods on surface quasi-geostrophic turbulence, trivial ones included, and their scores by lid."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams import assimilation
from slams.assimilation.base import Posterior
from slams.assimilation.baseline.filters import FreeRun
from slams.assimilation.filter import Filter, FilterState
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError, divergence_counted
from slams.core.geometry.torus import energy_spectrum
from slams.core.random import Rng, fork, normal
from slams.core.renamed import renamed
from slams.core.settings import known_settings, unknown
from slams.evaluation.metrics import covered, fair_crps
from slams.observation.observation import Observation
from slams.papers.bao2024_sqg.problem import SQGProblem, nearby
from slams.twin.experiment import Result, counted
from slams.twin.scores import Calls, TwinScores, summary

LIDS = ("lower", "upper")
SHELLS_EVERY = 5  # times between two spectra, which cost as much as a tenth of a forecast
DIVERGED = 0.7  # of the climate's standard deviation: a run with a larger error has diverged

Settings = Mapping[str, Any]


class HeldEnsemble(FreeRun):
    """The first ensemble, states of the climate, at all times."""

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; nothing moves."""
        return x


class RawObservation(HeldEnsemble):
    """The observation of this time, or of some times before, with draws of its error; no model.

    Temperatures are those that have these values exactly, of an arc tangent at most three standard deviations of the
    climate from its mean; where nothing is seen the climate's mean stands.

    Args:
        problem: Problem with its sensors and climate.
        age: Age of the observation [observation times].
    """

    def __init__(self, problem: SQGProblem, *, age: int = 0) -> None:
        super().__init__(problem.system)
        self.sensors, self.age = problem.sensors, age
        self.mean = problem.climate[0]
        self._retrieve = problem.retrieve

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        super().analyse(forecast, observation, rng=rng, memory=memory)
        kept = [memory.carry.get(f"seen_{k}", observation.value) for k in range(self.age)]
        kept = [observation.value, *kept]
        memory.carry |= {f"seen_{k}": value for k, value in enumerate(kept[:-1])}
        value = kept[-1].unsqueeze(-2)
        size = forecast.shape[self._axis]
        noise = normal((*value.shape[:-2], size, value.shape[-1]), like=value, rng=rng)
        values = value + self.sensors.std * (noise - noise.mean(-2, keepdim=True))
        x = torch.where(torch.isfinite(values), self._retrieve(values), self.mean.flatten())
        return x.reshape(forecast.shape)


class OptimalInterpolation(HeldEnsemble):
    """Each complete linear observation alone, joined with the climate: m + B (B + R)^-1 (y - m), and draws of its error.

    Args:
        problem: Problem with its sensors and climate, whose mean and covariance are the truth's own: an oracle.
    """

    def __init__(self, problem: SQGProblem) -> None:
        super().__init__(problem.system)
        if problem.sensors.operator != "identity" or problem.sensors.seen < 1:
            raise InvalidValueError(
                "OptimalInterpolation is for complete linear observations; leave its row out."
            )
        mean, B = problem.climate
        variance = problem.sensors.std**2
        s, V = torch.linalg.eigh(B.double())
        share = s.clamp(min=0) / (s.clamp(min=0) + variance)
        self.mean = mean.flatten()
        self.gain = ((V * share) @ V.mT).to(mean)
        self.root = (V * (variance * share).sqrt()).to(mean)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        super().analyse(forecast, observation, rng=rng, memory=memory)
        mean = self.mean + (observation.filled - self.mean) @ self.gain
        draws = normal((*forecast.shape[: self._axis + 1], len(self.root)), like=forecast, rng=rng)
        spread = (draws - draws.mean(-2, keepdim=True)) @ self.root.mT
        return (mean.unsqueeze(-2) + spread).reshape(forecast.shape)


TRIVIAL: Mapping[str, Callable[[SQGProblem], Filter]] = {
    "Climatology": lambda problem: HeldEnsemble(problem.system),
    "FreeRun": lambda problem: FreeRun(problem.system),
    "RawObservation": RawObservation,
    "Persistence": partial(RawObservation, age=1),
    "OptimalInterpolation": OptimalInterpolation,
}
FILTERS = ("LETKF", "EnSF", "ETKF", "DampedEnSF", "SingleMemberEnSF")
_NOT_SET = ("dynamics", "localization", "patch", "radius", "half_width")  # of a filter, made here
_GIVEN = ("error", "retrieved")


def build(problem: SQGProblem, name: str, settings: Settings) -> Filter:
    """A method for a problem.

    Args:
        problem: Problem with truths and observations.
        name: Name of the method in `TRIVIAL` or `FILTERS`.
        settings: Keywords of its class; `support` is where the taper vanishes [km], `reach` the distance up to which
            variables of both lids are in one patch [km]; for `error` and `retrieved` see `SQGProblem.given`.

    Raises:
        ValueError: If the method or a setting is unknown (the nearest is named).
    """
    if name in TRIVIAL:
        if settings:
            raise InvalidValueError(f"{name} has no settings, got {', '.join(settings)}.")
        return TRIVIAL[name](problem)
    if name not in FILTERS:
        raise InvalidValueError(unknown("method", name, (*TRIVIAL, *FILTERS)))
    cls = getattr(assimilation, name)
    keywords = inspect.signature(cls).parameters
    known = [key for key in keywords if key not in _NOT_SET]
    support = ("support",) if "localization" in keywords else ()
    reach = ("reach",) if name == "EnSF" else ()
    given = renamed("setting of a local filter", settings)
    known_settings(given, (*known, *_GIVEN, *support, *reach), kind=f"setting of {name}")
    made = {key: value for key, value in given.items() if key in known}
    if "support" in given:
        made["localization"] = nearby(problem.system.size, float(given["support"]))
    if "reach" in given:
        made["patch"] = nearby(problem.system.size, float(given["reach"]), vertical=False)
    bound = 10 * float(problem.states.abs().max())
    return cls(problem.system, failure="replace", bound=bound, **made)


class LidScores(TwinScores):
    """`TwinScores`, the same by lid, and the members' spread by wavenumber.

    Args:
        problem: Problem with the truth.
        calls: Counter of the model's calls.
    """

    def __init__(self, problem: SQGProblem, calls: Calls) -> None:
        super().__init__(problem.truth, event=3, calls=calls)
        self._system = problem.system

    def __call__(self, k: int, state: FilterState) -> dict[str, Tensor]:
        """The numbers of step k."""
        numbers = super().__call__(k, state)
        y, members = self._truth[k], state.members()
        mean, size = members.mean(-4), members.shape[-4]
        ahead = members.movedim(-4, 0)
        fields = {
            "squared_error": (mean - y).square(),
            "predictive_variance": members.var(-4) * ((size + 1) / size),
            "crps": fair_crps(ahead, y),
            "covered": covered(ahead, y),
        }
        for name, values in fields.items():
            for lid, value in zip(LIDS, values.mean((-2, -1)).unbind(-1), strict=True):
                numbers[f"{name}_{lid}"] = value
        if k % SHELLS_EVERY:
            self._clock = time.process_time()
            return numbers
        error = self._system.energy_spectrum(mean - y).mean(-2)
        spread = self._system.energy_spectrum(members - mean.unsqueeze(-4)).mean(-2).sum(-2)
        spread = spread * ((size + 1) / (size * (size - 1)))
        for name, shells in (("error", error), ("spread", spread)):
            for shell, value in enumerate(shells.unbind(-1)):
                numbers[f"{name}_{shell:03d}"] = value
        self._clock = time.process_time()
        return numbers


def run(
    problem: SQGProblem, name: str, settings: Settings, *, seed: int = 0, checkpoint: Path | None = None, every: int = 20,
    label: str = "", plain: Mapping[str, Any] | None = None, progress: Any = None,
) -> Result:  # fmt: skip
    """Run a method on all truths of a problem, or resume its run.

    Args:
        problem: Problem with truths and observations.
        name: Name of the method.
        settings: Settings of the method.
        seed: Seed of the method's random draws.
        checkpoint: File from which an interrupted run resumes.
        every: Steps between two saves.
        label: Label in tables; the name if empty.
        plain: The experiment as plain values, for the result.
        progress: Callback after every step.

    Returns:
        Scores of each truth, over all and by lid ("rmse_lower", "rmse_upper").

    Raises:
        FloatingPointError: If the ensemble collapses.
    """
    method = build(problem, name, settings)
    given = {key: float(settings[key]) for key in _GIVEN if key in settings}
    begun = time.perf_counter()
    size = problem.first.shape[1]
    with counted(method) as calls, divergence_counted():
        posterior = method.assimilate(
            problem.given(**given), size, x0=problem.first, keep="moments",
            monitor=LidScores(problem, calls), checkpoint=checkpoint, every=every, progress=progress,
            rng=fork(seed, "method", label or name),
        )  # fmt: skip
    scored = range(problem.burn_in, problem.truth.shape[1])
    scores = scores_of(posterior, scored, problem.deviation)
    facts = {"system": "surface_qg", "replicates": len(problem.seeds), "seed": problem.seeds[0]}
    return Result(
        label or name, {"members": size, **settings}, posterior, scores, dt=problem.system.dt, scored=tuple(scored),
        seconds=time.perf_counter() - begun, setup={**facts, **(plain or {})},
    )  # fmt: skip


def scores_of(posterior: Posterior, scored: Sequence[int], deviation: float) -> dict[str, Tensor]:
    """Scores of each truth, over all and by lid.

    A run diverges where its error is more than 0.7 standard deviations of the climate, or not finite:
    innovations are no criterion, since shocks enlarge those of every method.

    Args:
        posterior: Posterior with the diagnostics of `LidScores`.
        scored: Scored steps.
        deviation: Standard deviation of the climate [K].
    """
    numbers = {key: value for key, value in posterior.diagnostics.items() if key not in ("lost", "diverged")}
    scores = summary(numbers, scored)
    diverged = ~(scores["rmse"] < DIVERGED * deviation)
    scores["divergence_rate"] = diverged.to(scores["rmse"].dtype)
    scores["diverged_fraction"] = (
        (~(numbers["squared_error"][..., list(scored)].sqrt() < DIVERGED * deviation)).float().mean(-1)
    )
    for lid in LIDS:
        selected = {
            key: numbers[f"{key}_{lid}"][..., list(scored)].mean(-1)
            for key in ("squared_error", "crps", "covered")
        }
        spread = numbers[f"predictive_variance_{lid}"][..., list(scored)].mean(-1).sqrt()
        rmse = selected["squared_error"].sqrt()
        scores |= {f"rmse_{lid}": rmse, f"spread_{lid}": spread, f"spread_skill_{lid}": spread / rmse}
        scores |= {f"crps_{lid}": selected["crps"], f"coverage90_{lid}": selected["covered"]}
    return scores


def spectrum(posterior: Posterior, name: str, scored: Sequence[int]) -> Tensor:
    """Kinetic energy of "error" or "spread" by wavenumber, mean over lids, times and truths, (shells) [m^2/s^2]."""
    keys = sorted(key for key in posterior.diagnostics if key.startswith(f"{name}_") and key[-3:].isdigit())
    return torch.stack([posterior.diagnostics[key][..., list(scored)].nanmean() for key in keys])


def truth_spectrum(problem: SQGProblem) -> Tensor:
    """Kinetic energy of the truths by wavenumber, (shells) [m^2/s^2]."""
    shells = energy_spectrum(problem.system.velocity(problem.truth[:, problem.burn_in :: 5]))
    return shells.mean((0, 1, 2)) if shells.ndim == 4 else shells.flatten(0, -2).mean(0)
