"""Runs of methods on one set-up, all replicates at once, resumed where a killed run stopped."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.assimilation.filter import Keep
from slams.assimilation.variational.linearized import tangents
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import fork
from slams.core.renamed import renamed
from slams.core.settings import known_settings
from slams.core.stages import claim
from slams.observation.observation import Observations
from slams.twin.exact import exact
from slams.twin.experiment import Result, TwinExperiment
from slams.twin.methods import ClimateStatistics, Factory, MethodEntry, build, entry
from slams.twin.scores import summary
from slams.twin.setup import Setup

Progress = Callable[[int], None]


class Runner:
    """Truths and observations of one set-up, and runs of methods on them.

    Args:
        setup: The experiment.
        folder: Folder of the runs; nothing is stored if None.
        detail: Whether to score CRPS, coverage and ranks.
        every: Steps between two saves of a run.
        own: Methods of the user's by name: an `Assimilator`, or a class or function that takes the model first.

    Raises:
        ValueError: If the folder holds runs of another set-up (the differences are named).
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path | None = None,
        *,
        detail: bool = True,
        every: int = 500,
        own: Mapping[str, Factory | Assimilator] | None = None,
    ) -> None:
        self.setup, self.folder, self.detail, self.every = setup, folder, detail, every
        self.own = dict(own or {})
        if folder is not None:
            claim(folder / "setup.json", setup.plain())

    @cached_property
    def experiment(self) -> TwinExperiment:
        """Systems and survey."""
        return self.setup.experiment()

    @cached_property
    def simulated(self) -> tuple[Tensor, Observations]:
        """Truths (B, L, *S) and their observations."""
        return self.experiment.simulate_seeds(self.setup.seeds)

    @cached_property
    def climate(self) -> ClimateStatistics:
        """The truth's own long run.

        Raises:
            ValueError: If the truth is not finite.
        """
        _ = self.simulated  # raises for a non-finite truth, before its covariance of NaN does
        return ClimateStatistics.of(self.experiment.system)

    def entry(self, name: str) -> MethodEntry:
        """Entry of a method in the table; empty settings for a method of the user's."""
        return MethodEntry() if name in self.own else entry(name)

    def method(self, name: str, settings: Mapping[str, Any]) -> tuple[Assimilator, int]:
        """A validated method and its ensemble size.

        Args:
            name: Name of the method.
            settings: Settings of the method, `members` among them.

        Raises:
            ValueError: If a setting is unknown or invalid, or there are too few members.
        """
        own = self.own.get(name)
        if isinstance(own, Assimilator):
            known_settings(settings, ["members"], kind=f"setting of {name}")
            made: Assimilator = own
        else:
            made = build(name, self.experiment, settings, self.climate, own)
            if not isinstance(made, Assimilator):
                raise InvalidTypeError(
                    f"{name} made a {type(made).__name__}, but a method is an slams.assimilation.Assimilator; derive it "
                    "from that class."
                )
        least, members = getattr(made, "least", 1), settings.get("members", self.entry(name).members)
        if not isinstance(members, int) or members < least:
            raise InvalidValueError(
                f"{name} needs a whole number of at least {least} members, got {members}."
            )
        return made, members

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        label: str | None = None,
        keep: Keep = "scores",
        progress: Progress | None = None,
    ) -> Result:
        """Run a method, or resume its run.

        Args:
            name: Name of the method.
            settings: Settings of the method, `members` among them.
            label: Name of the run in `folder`; the method's if None.
            keep: Kept parts of the posterior, as in `Filter.assimilate`.
            progress: Callback after every step.

        Returns:
            Scores of all replicates.

        Raises:
            ValueError: If a setting is unknown, or differs from those of the interrupted run (the differences are named).
        """
        given = renamed("method setting", settings)
        method, members = self.method(name, given)
        checkpoint = None
        if self.folder is not None:
            stem = self.folder / "runs" / (label or name)
            claim(Path(f"{stem}.json"), {"method": name, **given}, "method setting")
            checkpoint = Path(f"{stem}.safetensors")
        truth, observations = self.simulated
        _warm_up()
        result = self.experiment.run(
            method,
            members,
            truth,
            observations,
            rng=fork(self.setup.seed, "method", name),
            name=label or name,
            settings=given,
            keep=keep,
            detail=self.detail,
            checkpoint=checkpoint,
            every=self.every,
            progress=progress,
        )
        return _with_setup(result, self.setup)

    def exact(self) -> Result:
        """Result of the model's exact filter, a lower bound on the expected error.

        Raises:
            ValueError: If the model has none.
        """
        truth, observations = self.simulated
        begun, clock = time.perf_counter(), time.process_time()
        name, mean, variance, numbers = exact(self.experiment.model, truth, observations)
        spent = (time.process_time() - clock) / truth.shape[1] / len(truth)
        numbers["cpu_seconds"] = torch.full_like(numbers["variance"], spent)
        scored = observations.seen_steps[self.setup.burn_in :]
        result = Result(
            name,
            {},
            Posterior(None, numbers, mean, variance),
            summary(numbers, scored, self.setup.burn_in),
            dt=self.experiment.model.dt,
            scored=tuple(scored),
            seconds=time.perf_counter() - begun,
        )
        return _with_setup(result, self.setup)


@cache
def _warm_up() -> None:
    """Load torch's forward-mode derivatives once, outside of any method's cost."""
    tangents(lambda x: 1.0 - 2.0 * x, torch.zeros(1, 1), torch.ones(1, 1), 1)


def _with_setup(result: Result, setup: Setup) -> Result:
    """The result with its experiment and, for a truth that jumps, the scores of the recovery."""
    every, numbers = int(setup.truth.get("flip_every", 0)), result.posterior.diagnostics
    if every:
        jumps = [k for k in range(every, numbers["variance"].shape[-1], every) if k >= result.scored[0]]
        result = replace(result, scores=summary(numbers, result.scored, setup.burn_in, jumps))
    return replace(result, setup=setup.plain())
