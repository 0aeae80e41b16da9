"""Guidances by kind, and the runs of network, sampler and guidance that plans combine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from slams.assimilation.score.sda import GuidanceLike
from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.covariance_matching import CovarianceMatching, EventCovariance
from slams.diffusion.guidance.dps import PosteriorSampling
from slams.diffusion.guidance.moment_matching import MomentMatching, PseudoInverse
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.lattice import LatticeMatching, LatticeSystem
from slams.diffusion.precondition import Detached
from slams.diffusion.sampler import Sampler
from slams.observation.observation import Observations

Settings = Mapping[str, Any]


def _detached(**settings: Any) -> GuidanceLike:
    guidance = GaussianGuidance(**settings)

    def guided(denoiser: Denoiser, observations: Observations) -> Denoiser:
        return guidance(Detached(denoiser), observations)

    return guided


# kind -> guidance by its settings, and the backward passes of a guided mean
_KINDS: Mapping[str, tuple[Callable[..., GuidanceLike], int]] = {
    "sda": (GaussianGuidance, 1),
    "detached": (_detached, 0),
    "dps": (PosteriorSampling, 1),
    "pseudo": (PseudoInverse, 1),
    "moments": (MomentMatching, 1),
    "covariance": (CovarianceMatching, 0),
}


def guidance_of(
    settings: Settings, covariance: Tensor | EventCovariance, system: LatticeSystem | None = None
) -> GuidanceLike:
    """The guidance of a run.

    Args:
        settings: Settings of the guidance's class, and its "kind".
        covariance: Covariance of whole trajectories, for "covariance".
        system: Observations on a lattice, which "covariance" and "moments" then use; None for others.

    Raises:
        ValueError: If the kind is unknown (the nearest is named).
    """
    kind, given = settings["kind"], {key: value for key, value in settings.items() if key != "kind"}
    if kind not in _KINDS:
        raise InvalidValueError(unknown("guidance", kind, _KINDS))
    if system is not None and kind == "covariance":
        return LatticeMatching(system)
    if system is not None and kind == "moments":
        return LatticeMatching(system, iterations=given.get("iterations", 1))
    if kind == "covariance":
        given["covariance"] = covariance
    return _KINDS[kind][0](**given)


def cost_of(settings: Settings, *, lattice: bool = False) -> float:
    """Network evaluations of a guided one, a backward pass counted as two.

    Args:
        settings: Settings as of `guidance_of`.
        lattice: Whether the observations are on a lattice.
    """
    kind, solver = settings["kind"], 0
    if kind == "moments" and lattice:
        solver = settings.get("iterations", 1) - 1  # the last product is one of the solver's
    elif kind == "moments":
        solver = settings.get("iterations", 16)
    return 1.0 + 2.0 * (_KINDS[kind][1] + solver)


@dataclass(frozen=True, kw_only=True)
class SDAPlan:
    """Common settings of both reproductions.

    Attributes:
        title: Title of the study.
        source: Reference.
        nets: Settings of the networks by name.
        samplers: Settings of `Sampler` by name.
        guidances: Settings of `guidance_of` by name.
        runs: "net / sampler / guidance", for every process.
        replicates: Number of truths R of each process.
        members: Number of draws N of each method.
        rows: Number of draws at once.
        seed: Seed of all random draws.
        size: "quick", or a name in the plan's `sizes`.
    """

    title: str
    source: str
    nets: Mapping[str, Any]
    samplers: Mapping[str, Sampler]
    guidances: Mapping[str, Mapping[str, Any]]
    runs: Sequence[str] = ()
    replicates: int = 16
    members: int = 256
    rows: int = 1024
    seed: int = 0
    size: str = "quick"

    def parts(self, run: str) -> tuple[str, Sampler, dict[str, Any]]:
        """Name of the network, sampler, and settings of the guidance of a run.

        Raises:
            ValueError: If there are not three, or one is unknown (the nearest is named).
        """
        parts = [part.strip() for part in run.split("/")]
        if len(parts) != 3:
            raise InvalidValueError(f'a run is "net / sampler / guidance", got {run!r}.')
        for kind, part in zip(("net", "sampler", "guidance"), parts, strict=True):
            known = getattr(self, f"{kind}s")
            if part not in known:
                raise InvalidValueError(unknown(kind, part, known))
        net, sampler, guidance = parts
        return net, self.samplers[sampler], dict(self.guidances[guidance])

    def evaluations(self, run: str, *, lattice: bool = False) -> float:
        """Network evaluations of a draw, a backward pass counted as two."""
        _, sampler, guidance = self.parts(run)
        return sampler.evaluations * cost_of(guidance, lattice=lattice)
