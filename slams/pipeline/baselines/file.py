"""The fitted baselines of a run in one safetensors file: no training data is needed to use them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.core.files import atomic
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.pipeline.baselines.fit import Baselines, network_of, state_names
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.model import Model, anomalies

Networks = Mapping[str, list[Network]]

FILE_NAME = "baselines.safetensors"


def networks_of(model: Model, fields: Fields) -> dict[str, list[Network]]:
    """Points and climatological spread of the states and of what measures them directly, from training days.

    Args:
        model: Trained.
        fields: All days.

    Returns:
        One network a channel, by modality.
    """
    used = {m for group in model.recipe.data.direct.values() for m in group} | set(state_names(model))
    train = fields.part(model.recipe.data.train)
    # neighbouring days add little to a standard deviation
    given = anomalies(model.codec, fields, train[:: max(1, len(train) // 700)])
    return {name: network_of(model, name, given[name]) for name in sorted(used)}


def save_baselines(baselines: Baselines, networks: Networks, path: str | Path) -> None:
    """Write fitted baselines, whole or not at all.

    Args:
        baselines: From `slams.pipeline.baselines.fit.fit_gaussian`, with the interpolators that were tuned.
        networks: From `networks_of`.
        path: The .safetensors file.
    """
    gaussian = baselines.gaussian
    tensors = {f"prior.{k}": v for k, v in gaussian.prior.state_dict().items()}
    tensors |= {"decode": gaussian.decode, "rest": gaussian.rest, "present": baselines.present}
    tensors |= {f"operators.{k}": v for k, v in baselines.operators.items()}
    tensors |= {f"errors.{k}": v for k, v in baselines.errors.items()}
    tensors |= {f"std.{name}": torch.stack([n.std for n in each]) for name, each in networks.items()}
    meta = {
        "inflation": gaussian.inflation,
        "event": list(gaussian.prior.event),
        "splits": {name: [s.start, s.stop] for name, s in baselines.splits.items()},
        "interpolators": [
            [label, name, fitted.length, dict(fitted.ratios)]
            for (label, name), fitted in baselines.interpolators.items()
        ],
        "settings": baselines.settings,
    }
    with atomic(path) as temporary:
        save_file(
            {k: v.detach().contiguous().clone() for k, v in tensors.items()},
            temporary,
            {k: json.dumps(v) for k, v in meta.items()},
        )


def load_baselines(model: Model, path: str | Path) -> tuple[Baselines, dict[str, list[Network]]]:
    """Read what `save_baselines` wrote.

    Args:
        model: Of the same run: it knows where the values are.
        path: The .safetensors file.

    Returns:
        Baselines and networks.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it cannot be read, or does not fit the model.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there, so the run has no baselines: train again with experiment.sets in the "
            "recipe, or leave --baselines out."
        )
    try:
        with safe_open(path, "pt") as file:
            meta = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); restore it or train again."
        ) from error
    missing = {"inflation", "event", "splits", "interpolators", "settings"} - set(meta)
    size = sum(torch.Size(model.places[n].shape).numel() for n in state_names(model))
    if missing or tensors["present"].numel() != size:
        raise ValueError(
            f"{path} does not hold the baselines of this run; put the files of one run together."
        )
    networks = {}
    for name, std in _under(tensors, "std.").items():
        networks[name] = [Network(model.places[name].points(), channel) for channel in std]
    baselines = Baselines(
        ClosedFormGaussian(
            _prior(tensors, meta["event"]), tensors["decode"], tensors["rest"], meta["inflation"]
        ),
        _under(tensors, "operators."),
        _under(tensors, "errors."),
        tensors["present"],
        {name: slice(*ends) for name, ends in meta["splits"].items()},
        {
            (label, name): AnomalyInterp(length, ratios)
            for label, name, length, ratios in meta["interpolators"]
        },
        meta["settings"],
    )
    return baselines, networks


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _prior(tensors: Mapping[str, Tensor], event: list[int]) -> WindowGaussian:
    stored = _under(tensors, "prior.")
    prior = WindowGaussian(stored["basis"], torch.eye(len(stored["values"])), 1.0, event, VPCosine())
    prior.load_state_dict(stored)
    return prior
