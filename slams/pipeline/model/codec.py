"""Codec: physical fields of several modalities to one latent and back, and its file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slams import config
from slams.core.codec import SeasonalStandardize
from slams.core.days import Days, DaysWriter, Values, fits, write_days
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.tensorfile import fill, read_tensors, write_tensors
from slams.networks.autoencoder import MultimodalAutoencoder
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.large import by_days
from slams.pipeline.inputs.layout import Layout, read_layouts
from slams.pipeline.model.build import build_autoencoder
from slams.pipeline.recipe import Recipe, from_tree, to_tree

Anomalies = Mapping[str, Values]
_DAYS = 128  # encoded together
FILE_NAME = "codec.safetensors"
_STATISTICS = ("coefficients", "std", "present")
_LIMITS = ("low", "high")


class MultimodalCodec(nn.Module):
    """Physical fields of several modalities to one latent and back: standardization around the autoencoder.

    Args:
        recipe: Settings of the latent.
        layouts: Layouts by modality.
        statistics: Seasonal mean and spread by modality.
    """

    def __init__(
        self, recipe: Recipe, layouts: Mapping[str, Layout], statistics: Mapping[str, SeasonalStandardize]
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.layouts = dict(layouts)
        self.statistics: Mapping[str, SeasonalStandardize] = nn.ModuleDict(statistics)  # type: ignore[assignment]
        self.autoencoder = build_autoencoder(recipe, layouts)
        self.learning: dict[
            str, Any
        ] = {}  # reconstruction loss on validation days before and after the training

    @property
    def device(self) -> torch.device:
        """Device of the autoencoder; statistics, inputs and outputs are on the CPU."""
        return self.autoencoder.mean.device

    @property
    def periodic(self) -> bool:
        """Whether the latent's longitudes close the circle."""
        return next(iter(self.layouts.values())).is_global

    def anomaly(self, name: str, x: Tensor, phase: Tensor) -> Tensor:
        """Standardized anomalies of physical values (n, *S) on days of phase (n); NaN where training had no data."""
        return self.masked(name, self.statistics[name].encode(x, phase))

    def masked(self, name: str, x: Tensor) -> Tensor:
        """Values of a modality (*B, *S), NaN where training had no data."""
        return torch.where(self.statistics[name].present, x, torch.nan)

    def physical(self, name: str, anomaly: Tensor, phase: Tensor) -> Tensor:
        """Physical values of standardized anomalies (*B, n, *S)."""
        return self.statistics[name].decode(anomaly, phase)

    def possible(self, name: str, anomaly: Tensor, phase: Tensor) -> Tensor:
        """Physical values of drawn anomalies, bounded by the transform, NaN where training had no data."""
        x = self.physical(name, anomaly, phase)
        lower = self.recipe.modalities[name].transformed.lower
        return self.masked(name, x if lower is None else x.clamp(min=lower))

    @torch.no_grad()
    def complete(self, anomalies: Anomalies) -> Anomalies:
        """Anomalies (n, *S) whose gaps are estimated from what is known on the same day, 0 where training had no data.

        The published autoencoder and "pixel" take gaps as no anomaly, as published.
        """
        if not isinstance(self.autoencoder, MultimodalAutoencoder):
            return dict(anomalies)
        found: dict[str, Tensor | DaysWriter] = {
            m: torch.empty_like(x) if isinstance(x, Tensor) else DaysWriter() for m, x in anomalies.items()
        }
        for i in range(0, len(next(iter(anomalies.values()))), _DAYS):
            days = slice(i, i + _DAYS)
            part = {m: torch.where(self.statistics[m].present, x[days], 0.0) for m, x in anomalies.items()}
            part = self.autoencoder.complete({m: x.to(self.device) for m, x in part.items()})
            for m, x in part.items():
                kept = found[m]
                if isinstance(kept, Tensor):
                    kept[days] = x.cpu()
                else:
                    kept.append(x.cpu())
        return {m: kept if isinstance(kept, Tensor) else kept.days() for m, kept in found.items()}

    @torch.no_grad()
    def encoded(self, anomalies: Anomalies, *, complete: bool = True) -> Iterator[Tensor]:
        """`encode`, a part of consecutive days at a time."""
        for i in range(0, len(next(iter(anomalies.values()))), _DAYS):
            part: Anomalies = {m: x[i : i + _DAYS] for m, x in anomalies.items()}
            part = self.complete(part) if complete else part
            yield self.autoencoder.encode({m: x[:].to(self.device) for m, x in part.items()}).cpu()

    def encode(self, anomalies: Anomalies, *, complete: bool = True) -> Tensor:
        """Latents (n, *Z) of standardized anomalies of any subset of modalities.

        Args:
            anomalies: Anomalies by modality (n, *S), NaN where missing.
            complete: Whether gaps are estimated (see `complete`); else they are no anomaly.
        """
        return torch.cat(list(self.encoded(anomalies, complete=complete)))

    def latents(self, anomalies: Anomalies, path: Path | None = None) -> Values:
        """`encode` of many days; where they are too large for memory, in a file.

        Args:
            anomalies: Anomalies by modality (n, *S), NaN where missing.
            path: A .npy file to write; if None, a temporary one where one is needed.
        """
        count, event = len(next(iter(anomalies.values()))), self.autoencoder.event
        if path is not None:
            write_days(path, self.encoded(anomalies), count, event)
            return read_latents(path)
        if fits(count, event):
            return self.encode(anomalies)
        file = DaysWriter()
        for part in self.encoded(anomalies):
            file.append(part)
        return file.days()

    @torch.no_grad()
    def decode(self, z: Tensor, name: str) -> Tensor:
        """Standardized anomalies of one modality from latents (*B, *Z), in chunks of bounded memory."""
        event = len(self.autoencoder.event)
        flat = z.reshape(-1, *self.autoencoder.event)
        parts = (part.to(self.device) for part in flat.split(256))
        out = torch.cat([self.autoencoder.decode(part, name).cpu() for part in parts])
        return out.reshape(*z.shape[: z.ndim - event], *out.shape[1:])

    def save(self, path: Path) -> None:
        """Write weights, statistics, recipe and layouts to one file."""
        layouts = {name: asdict(layout) for name, layout in self.layouts.items()}
        facts: dict[str, Any] = {"recipe": to_tree(self.recipe), "places": layouts, "learning": self.learning}
        if isinstance(self.autoencoder, MultimodalAutoencoder):
            facts["spectrum"] = self.autoencoder.spectrum.cpu().tolist()
        write_tensors(path, self.state_dict(), facts)

    @classmethod
    def load(cls, path: Path) -> "MultimodalCodec":
        """Read a file of `save`.

        Raises:
            FileNotFoundError: If the file is not there.
            ValueError: If it is unreadable, or its weights do not fit its recipe.
        """
        tensors, facts = read_tensors(path)
        layouts = read_layouts(facts["places"])
        missing = [
            f"{n}.{part}" for n in layouts for part in _STATISTICS if f"statistics.{n}.{part}" not in tensors
        ]
        if missing:
            raise InvalidValueError(
                f"{path} lacks {missing[0]}; it was written by another version, train again."
            )
        statistics = {
            name: SeasonalStandardize(
                *(tensors[f"statistics.{name}.{part}"] for part in _STATISTICS),
                *(tensors.get(f"statistics.{name}.{part}") for part in _LIMITS),
            )
            for name in layouts
        }
        for name, one in statistics.items():  # a file of an earlier version has no limits
            tensors = {f"statistics.{name}.{part}": getattr(one, part) for part in _LIMITS} | tensors
        codec = cls(from_tree(facts["recipe"]), layouts, statistics)
        fill(codec, tensors, path)
        if (
            isinstance(codec.autoencoder, MultimodalAutoencoder) and "spectrum" in facts
        ):  # not in runs of versions before 0.2, which took gaps as no anomaly
            codec.autoencoder.spectrum.copy_(torch.tensor(facts["spectrum"]))
        codec.learning = facts.get("learning", {})
        return codec.eval()


def anomalies(codec: MultimodalCodec, fields: Fields, index: np.ndarray) -> Anomalies:
    """Standardized anomalies of every modality on some days."""
    phase = phase_of(fields.dates[index])
    return {n: by_days(partial(codec.anomaly, n), x, index, phase) for n, x in fields.values.items()}


def read_latents(path: Path) -> Values:
    """Latents (n, *Z) of a .npy file, mapped as a tensor if they fit in memory."""
    mapped = np.load(path, mmap_mode="c")
    return torch.from_numpy(mapped) if fits(len(mapped), mapped.shape[1:]) else Days.of_file(path)


def trained_codec(run: str) -> Path:
    """The codec of another run, named by its folder or, in the folder of logs, by its name.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = (Path(run) if Path(run).is_dir() or "/" in run else config.LOG_DIR / run) / FILE_NAME
    if not path.exists():
        raise MissingFileError(
            f"latent.trained: {path} is not there; train it first with `slams train {Path(run).name}`, or leave "
            "latent.trained empty to train an autoencoder here."
        )
    return path


def take_codec(recipe: Recipe, layouts: Mapping[str, Layout]) -> MultimodalCodec:
    """The codec of the run `latent.trained`, as one of this recipe.

    Args:
        recipe: Recipe with `latent.trained`.
        layouts: Layouts of this recipe's modalities.

    Returns:
        The codec, its weights and statistics unchanged.

    Raises:
        ValueError: If its modalities, days, grids or kind of latent differ.
    """
    codec = MultimodalCodec.load(trained_codec(recipe.latent.trained))
    other = codec.recipe

    def days(of: Recipe) -> object:
        return replace(of.data, store="", test=("", ""), direct={}, modalities={})

    def latent(of: Recipe) -> object:
        return of.latent.kind, of.latent.channels, of.latent.patch, of.latent.hidden, of.latent.scales

    differs = {
        "modalities": other.modalities != recipe.modalities,
        "data": days(other) != days(recipe),
        "grids": codec.layouts != dict(layouts),
        "latent": latent(other) != latent(recipe),
    }
    wrong = [name for name, different in differs.items() if different]
    if wrong:
        raise InvalidValueError(
            f"the autoencoder of {recipe.latent.trained} was trained for other {', '.join(wrong)} than this recipe has "
            f"({other.name!r}, {recipe.name!r}); make these settings equal, or train one for this recipe."
        )
    codec.recipe = recipe
    return codec
