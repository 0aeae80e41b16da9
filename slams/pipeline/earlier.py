"""Stages of runs of versions before 0.2, recognised by their settings and data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from slams.core.settings import plain
from slams.core.stages import digest
from slams.core.tensorfile import read_facts
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.large import fit_statistics
from slams.pipeline.model import codec as codecs
from slams.pipeline.model import prior as priors
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.recipe import Recipe


def earlier_keys(recipe: Recipe, fields: Fields, out: Path) -> dict[str, tuple[str]]:
    """Keys in a ledger of versions before 0.2, of the stages that rest on these settings and data.

    Those versions hashed sums of the data to the last digit, which differs between processors. The settings are those in
    the files of the run instead, and the data are the same where the climate of the training days is the codec's.
    """
    try:
        ledger = json.loads((out / ".stages.json").read_text(encoding="utf-8"))
        old = {name: key for name, key in ledger.items() if isinstance(key, str) and ":" not in key}
        codec = MultimodalCodec.load(out / codecs.FILE_NAME) if old else None
        if codec is None or not _same_climate(codec, fields):
            return {}
        first = read_facts(out / codecs.FILE_NAME)["recipe"]
        later = read_facts(out / priors.FILE_NAME)["recipe"] if (out / priors.FILE_NAME).exists() else None
    except (FileNotFoundError, ValueError):
        return {}
    found: dict[str, tuple[str]] = {}
    for name, tree, parts in (
        ("codec", first, {"data": ("store", "test", "direct"), "latent": (), "seed": ()}),
        ("prior", later, {"prior": ()}),
        ("calibration", later, {"assimilation": (), "experiment": ("windows", "spacing", "shuffled", "withhold")}),
        ("report", later, {"data": ("store",), "experiment": ()}),
    ):  # fmt: skip
        if name not in old or tree is None or not _same_settings(recipe, tree, parts):
            break  # each stage rests on those before it
        found[name] = (old[name],)
    return found


def _same_settings(recipe: Recipe, earlier: Mapping[str, Any], parts: Mapping[str, Sequence[str]]) -> bool:
    """Whether some parts of a recipe are those of an earlier one, apart from keys that don't count."""
    now = _restricted(recipe, earlier)

    def counting(tree: Mapping[str, Any], part: str) -> Any:
        value = tree[part]
        return (
            {k: v for k, v in value.items() if k not in parts[part]} if isinstance(value, Mapping) else value
        )

    return all(digest(counting(now, part)) == digest(counting(earlier, part)) for part in parts)


def _same_climate(codec: MultimodalCodec, fields: Fields) -> bool:
    """Whether the statistics of the training days are the codec's, to a thousandth of a standard deviation."""
    if set(codec.statistics) != set(fields.values):
        return False
    rows = fields.part(codec.recipe.data.train)
    phase = phase_of(fields.dates[rows])
    for name, x in fields.values.items():
        one, weights = codec.statistics[name], fields.layouts[name].weights()
        now = fit_statistics(x, rows, phase, codec.recipe.data.harmonics, weights)
        if now.coefficients.shape != one.coefficients.shape:
            return False
        apart = (now.coefficients - one.coefficients).abs() / one.std
        if not bool((apart < 1e-3).all()) or not bool((now.std / one.std - 1).abs().max() < 1e-3):
            return False
    return True


def _restricted(settings: Any, earlier: Mapping[str, Any]) -> Any:
    """Plain settings without those that are newer than `earlier` and at their default."""
    kept = {}
    for field in fields_of(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in earlier or value != default:
            own = earlier.get(field.name, {})
            kept[field.name] = _restricted(value, own) if is_dataclass(value) else plain(value)
    return kept
