"""What a reproduction with score priors of a chain does: nets, samplers, guidances, runs and bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor

from slams.assimilation.score.sda import Guidance
from slams.core.settings import override, unknown
from slams.diffusion.guidance.covariance_matching import Covariance, CovarianceMatching
from slams.diffusion.guidance.dps import PosteriorSampling
from slams.diffusion.guidance.moment_matching import MomentMatching, PseudoInverse
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.precondition import Detached
from slams.diffusion.sampler import Sampler
from slams.papers.rozet2023.lorenz63.archive import Archive
from slams.papers.rozet2023.lorenz63.problem import Process
from slams.papers.rozet2023.prior import NetSettings

Tree = dict[str, Any]
GRIDS = ("quick", "curves", "reduced", "full")
# backward passes of a guided mean
_BACKWARD = {"sda": 1, "dps": 1, "pseudo": 1, "moments": 1, "detached": 0, "covariance": 0}


@dataclass(frozen=True)
class Bar:
    """What a number must be.

    Attributes:
        process: Of the observations.
        run: "net / sampler / guidance".
        metric: "w1_ratio" to the floor, the difference from the smoother's "log_prior" or "log_likelihood", or
            "absolute_log_prior", the number itself.
        against: Another run, instead of the smoother: metrics are then "w1_ratio" to its W1, "log_prior_gap", how much
            further from the smoother's log p(x) than it, and "saved", its network evaluations over ours.
        low: Least value.
        high: Largest value.
        published: The paper's, at 64 observations and 1024 samples.
    """

    process: str
    run: str
    metric: str
    against: str = ""
    low: float = -math.inf
    high: float = math.inf
    published: float = math.nan


@dataclass(frozen=True)
class Plan:
    """A reproduction.

    Attributes:
        title: What it is.
        source: Where it is from.
        seed: Of everything.
        observations: Truths R of each process.
        samples: Draws N of each method: W1 and its floor depend on it.
        particles: Of the smoothers.
        rows: Draws at once.
        archive: Trajectories to learn from and to test on.
        processes: What is seen.
        nets: To be trained, or shipped.
        samplers: Settings of `Sampler`.
        guidances: "kind" (sda, detached, dps, pseudo, moments, covariance) and its settings.
        runs: "net / sampler / guidance", for each process.
        curves: Runs that `grid=curves` makes besides.
        reduced: Runs that `grid=reduced` and `grid=full` make besides.
        full: Runs that only `grid=full` makes.
        bars: Judged where their runs were made.
        grid: "quick", "curves", "reduced" or "full".
    """

    title: str
    source: str
    archive: Archive
    processes: Mapping[str, Process]
    nets: Mapping[str, NetSettings]
    samplers: Mapping[str, Sampler]
    guidances: Mapping[str, Tree]
    runs: Sequence[str]
    bars: Sequence[Bar]
    curves: Sequence[str] = ()
    reduced: Sequence[str] = ()
    full: Sequence[str] = ()
    seed: int = 0
    observations: int = 16
    samples: int = 256
    particles: int = 2**16
    rows: int = 1024
    grid: str = "quick"

    @property
    def chosen(self) -> list[str]:
        """Runs to be made."""
        more = {
            "quick": (),
            "curves": self.curves,
            "reduced": self.reduced,
            "full": (*self.reduced, *self.full),
        }
        return list(dict.fromkeys((*self.runs, *more[self.grid])))


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """A plan from its file.

    Raises:
        ValueError: If a key or a name is unknown (the nearest is named).
    """
    tree = override(yaml.safe_load(path.read_text(encoding="utf-8")), overrides)
    made = {"archive": Archive, "processes": Process, "nets": NetSettings, "samplers": Sampler, "bars": Bar}
    for key in tree:
        if key not in Plan.__dataclass_fields__:
            raise ValueError(f"{path.name}: {unknown('key', key, Plan.__dataclass_fields__)}")
    try:
        tree["archive"] = Archive(**tree.get("archive", {}))
        for key in ("processes", "nets", "samplers"):
            tree[key] = {name: made[key](**tuples(values)) for name, values in tree[key].items()}
        tree["bars"] = [Bar(**bar) for bar in tree["bars"]]
        plan = Plan(**tree)
    except TypeError as error:
        raise ValueError(f"{path.name} has a setting that there is not, or lacks one: {error}.") from error
    if plan.grid not in GRIDS or min(plan.observations, plan.samples) < 2:
        raise ValueError(
            f"grid is one of {', '.join(GRIDS)}, observations and samples at least 2; got {plan.grid!r}, "
            f"{plan.observations} and {plan.samples}."
        )
    for name in (*plan.runs, *plan.curves, *plan.reduced, *plan.full):
        parts_of(plan, name)
    return plan


class Runs(Protocol):
    """A plan whose runs combine what it names."""

    @property
    def nets(self) -> Mapping[str, Any]:
        """Nets by name."""

    @property
    def samplers(self) -> Mapping[str, Sampler]:
        """Samplers by name."""

    @property
    def guidances(self) -> Mapping[str, Tree]:
        """Settings of guidances by name."""


def parts_of(plan: Runs, name: str) -> tuple[str, str, str]:
    """Net, sampler and guidance of a run."""
    parts = tuple(part.strip() for part in name.split("/"))
    if len(parts) != 3:
        raise ValueError(f'a run is "net / sampler / guidance", got {name!r}.')
    for kind, part, known in zip(
        ("net", "sampler", "guidance"), parts, (plan.nets, plan.samplers, plan.guidances), strict=True
    ):
        if part not in known:
            raise ValueError(unknown(kind, part, known))
    return parts[0], parts[1], parts[2]


def guidance_of(settings: Tree, covariance: Tensor | Covariance) -> Guidance:
    """Makes a guided denoiser.

    Args:
        settings: "kind", and the settings of its class.
        covariance: Of whole trajectories, for "covariance".

    Raises:
        ValueError: If the kind is unknown.
    """
    given = dict(settings)
    kind = given.pop("kind")
    if kind == "sda":
        return partial(GaussianGuidance, **given)
    if kind == "detached":
        return lambda denoiser, seen: GaussianGuidance(Detached(denoiser), seen, **given)
    simple = {"dps": PosteriorSampling, "pseudo": PseudoInverse, "moments": MomentMatching}
    if kind in simple:
        return partial(simple[kind], **given)
    if kind == "covariance":
        return partial(CovarianceMatching, covariance=covariance, **given)
    raise ValueError(unknown("guidance", kind, tuple(_BACKWARD)))


def cost_of(settings: Tree) -> float:
    """Network evaluations of a guided one, a backward pass counted as two."""
    solver = settings.get("iterations", 16) if settings["kind"] == "moments" else 0
    return 1.0 + 2.0 * (_BACKWARD[settings["kind"]] + solver)


def tuples(values: Tree) -> Tree:
    """Lists of YAML as tuples, which settings compare by."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
