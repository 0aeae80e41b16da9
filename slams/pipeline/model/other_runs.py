"""An autoencoder that another run has trained."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from slams import config
from slams.pipeline.inputs.fields import Place
from slams.pipeline.model.model import Codec, load_codec
from slams.pipeline.recipe import Recipe

_NAME = "codec.safetensors"


def run_folder(name: str) -> Path:
    """Where a run is: a path as it is, a bare name in the folder of logs."""
    return Path(name) if Path(name).is_dir() or "/" in name else config.LOG_DIR / name


def codec_digest(folder: str) -> str:
    """What names the codec of a run, so that a later training of it is noticed.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    path = run_folder(folder) / _NAME
    if not path.exists():
        raise FileNotFoundError(
            f"latent.trained: {path} is not there; train it first with `slams train {Path(folder).name}`, or leave "
            "latent.trained empty to train an autoencoder here."
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def take_codec(recipe: Recipe, places: Mapping[str, Place]) -> Codec:
    """The codec of the run `latent.trained`, as one of this recipe.

    Args:
        recipe: Whose latent names the run.
        places: Where the values of this recipe's modalities are.

    Returns:
        The codec, its weights and statistics unchanged.

    Raises:
        ValueError: If it was made for other modalities, days, grids or a latent of another kind.
    """
    codec = load_codec(run_folder(recipe.latent.trained) / _NAME)
    other = codec.recipe

    def latent(of: Recipe) -> tuple[object, ...]:
        return of.latent.kind, of.latent.channels, of.latent.patch, of.latent.hidden, of.latent.scales

    differs = {
        "modalities": other.modalities() != recipe.modalities(),
        "data": replace(other.data, store="", test=("", ""), direct={}, modalities={})
        != replace(recipe.data, store="", test=("", ""), direct={}, modalities={}),
        "grids": codec.places != dict(places),
        "latent": latent(other) != latent(recipe),
    }
    wrong = [name for name, different in differs.items() if different]
    if wrong:
        raise ValueError(
            f"the autoencoder of {recipe.latent.trained} was trained for other {', '.join(wrong)} than this recipe has "
            f"({other.name!r}, {recipe.name!r}); make these settings equal, or train one for this recipe."
        )
    codec.recipe = recipe
    return codec
