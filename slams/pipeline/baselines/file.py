"""Fitted baselines of a run in one file, usable without training data."""

from pathlib import Path

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.tensorfile import flat, grouped, read_tensors, write_tensors
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import restored, square, triangle

FILE_NAME = "baselines.safetensors"


def save_baselines(baselines: Baselines, path: str | Path) -> None:
    """Write fitted baselines atomically, without derived tensors.

    Args:
        baselines: Baselines of `slams.pipeline.baselines.fit.fit_gaussian`, with the tuned interpolators.
        path: Path of the .safetensors file.
    """
    gaussian = baselines.gaussian
    prior = dict(gaussian.prior.state_dict())
    if baselines.covariance is not None:
        prior = {"basis": prior["basis"], "remainder": prior["remainder"]}
        prior["covariance"] = triangle(baselines.covariance)
    std = {name: torch.stack([n.std for n in each]) for name, each in baselines.networks.items()}
    groups = {"prior": prior, "operators": baselines.operators, "errors": baselines.errors, "std": std}
    facts = {
        "inflation": gaussian.inflation,
        "event": list(gaussian.prior.event),
        "interpolators": [
            [label, name, fitted.length, dict(fitted.ratios)]
            for (label, name), fitted in baselines.interpolators.items()
        ],
        "settings": baselines.settings,
        "spreads": baselines.spreads,
    }
    write_tensors(path, flat(groups, ".") | {"rest": gaussian.rest, "present": baselines.present}, facts)


def load_baselines(model: Model, path: str | Path) -> Baselines:
    """Read a file of `save_baselines`, of this version or an earlier one.

    Args:
        model: Model of the same run, with the layouts.
        path: Path of the .safetensors file.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is unreadable, or does not fit the model.
    """
    if not Path(path).exists():
        raise MissingFileError(
            f"{path} is not there, so the run has no baselines: train again with experiment.sets in the "
            "recipe, or leave --baselines out."
        )
    tensors, facts = read_tensors(path)
    missing = {"inflation", "event", "interpolators", "settings"} - set(facts)
    size = sum(model.layouts[name].size for name in model.states)
    if missing or tensors["present"].numel() != size:
        raise InvalidValueError(
            f"{path} does not hold the baselines of this run; put the files of one run together."
        )
    rest, present = tensors.pop("rest"), tensors.pop("present")
    groups = grouped(tensors, ".")
    prior, covariance = _prior(groups["prior"], tuple(facts["event"]))
    return Baselines(
        ClosedFormGaussian(prior, prior.basis, rest, facts["inflation"]),
        covariance,
        present,
        groups.get("operators", {}),
        groups.get("errors", {}),
        {n: [Network(model.layouts[n].points(), c) for c in std] for n, std in groups["std"].items()},
        {
            (label, name): AnomalyInterp(length, ratios)
            for label, name, length, ratios in facts["interpolators"]
        },
        facts["settings"],
        facts.get("spreads", {}),
    )


def _prior(state: dict[str, Tensor], event: tuple[int, ...]) -> tuple[WindowGaussian, Tensor | None]:
    """The Gaussian, from its covariance or, in files of versions before 0.2, from eigenvectors."""
    if "covariance" not in state:
        return restored(state, event), None
    covariance = square(state["covariance"])
    remainder = float(state["remainder"])
    return WindowGaussian(state["basis"], covariance, remainder, event, VPCosine()), covariance
