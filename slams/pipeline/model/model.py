"""What a run has learned: statistics, codec, prior and observation errors, and how it is kept on disk."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slams.assimilation.baseline.gaussian import residual_variance
from slams.assimilation.score.sda import SDA
from slams.core.codec import SeasonalStandardize
from slams.core.covariance import Covariance, Dense, Diagonal
from slams.core.tensorfile import fill, read_tensors, write_tensors
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from slams.pipeline.inputs.fields import Fields, Place, phase_of
from slams.pipeline.inputs.large import by_days
from slams.pipeline.inputs.operators import noise_gain, operators_of, through
from slams.pipeline.model.build import build_autoencoder, build_denoiser
from slams.pipeline.recipe import Recipe, from_tree, to_tree

Anomalies = dict[str, Tensor]
_PARTS = ("operators", "errors", "residuals", "profiles", "samples")
_STATISTICS = ("coefficients", "std", "present")
DENSE_UP_TO = 512  # values of a modality: beyond it a full error covariance cannot be estimated or kept


class Codec(nn.Module):
    """Physical fields of several modalities to one latent and back: standardization around the autoencoder.

    Args:
        recipe: Settings of the latent.
        places: Where each modality's values are.
        statistics: Seasonal mean and spread of each.
    """

    def __init__(
        self, recipe: Recipe, places: Mapping[str, Place], statistics: Mapping[str, SeasonalStandardize]
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.places = dict(places)
        self.statistics: Mapping[str, SeasonalStandardize] = nn.ModuleDict(statistics)  # type: ignore[assignment]
        self.autoencoder = build_autoencoder(recipe, places)

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes; statistics, and what goes in and comes out, are on the CPU."""
        return self.autoencoder.mean.device

    def anomaly(self, name: str, x: Tensor, phase: Tensor) -> Tensor:
        """Standardized anomalies of physical values (n, *S) on days of phase (n); NaN where training had none."""
        statistic = self.statistics[name]
        return torch.where(statistic.present, statistic.encode(x, phase), torch.nan)

    def physical(self, name: str, anomaly: Tensor, phase: Tensor) -> Tensor:
        """Physical values of standardized anomalies (*B, n, *S)."""
        return self.statistics[name].decode(anomaly, phase)

    @torch.no_grad()
    def encode(self, anomalies: Mapping[str, Tensor]) -> Tensor:
        """Latents (n, *Z) of standardized anomalies of any subset of modalities."""
        count = len(next(iter(anomalies.values())))
        parts = [
            self.autoencoder.encode({m: x[i : i + 128].to(self.device) for m, x in anomalies.items()}).cpu()
            for i in range(0, count, 128)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, z: Tensor, name: str) -> Tensor:
        """Standardized anomalies of one modality from latents (*B, *Z), in pieces of bounded memory."""
        event = len(self.autoencoder.event)
        flat = z.reshape(-1, *self.autoencoder.event)
        parts = (part.to(self.device) for part in flat.split(256))
        out = torch.cat([self.autoencoder.decode(part, name).cpu() for part in parts])
        return out.reshape(*z.shape[: z.ndim - event], *out.shape[1:])


def anomalies(codec: Codec, fields: Fields, index: np.ndarray) -> Anomalies:
    """Standardized anomalies of every modality on some days."""
    phase = phase_of(fields.dates[index])
    return {n: by_days(partial(codec.anomaly, n), x, index, phase) for n, x in fields.values.items()}


class Belief(nn.Module):
    """Prior over latent windows, and what is known of observation errors.

    Attributes:
        denoiser: Gaussian and network.
        operators: Linearized decoders on the patterns, (prod(S), K) by name.
        errors: Covariance of what the patterns cannot tell of a modality: (P, P) or variances (P), standardized.
        residuals: Variance of what a decoder cannot tell with the whole latent, (P).
        profiles: For rain, how that variance goes with the decoded value: values and factors, (2, K).
        samples: What the patterns cannot tell of gridded modalities on some validation days, (n, *S), of which
            operators make their own errors.
        factors: Calibrated factor on each error covariance.
        inflation: Calibrated factor on the deviations of the draws from their mean.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        operators: Mapping[str, Tensor],
        errors: Mapping[str, Tensor],
        residuals: Mapping[str, Tensor],
        profiles: Mapping[str, Tensor] | None = None,
        samples: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.profiles = dict(profiles or {})
        self.residuals = dict(residuals)
        self.samples = dict(samples or {})
        self.denoiser = denoiser
        self.operators = dict(operators)
        self.errors = dict(errors)
        self.factors = dict.fromkeys(errors, 1.0)
        self.inflation = 1.0

    @property
    def gaussian(self) -> WindowGaussian:
        """The closed form of the prior."""
        return self.denoiser.gaussian

    def unresolved(self, name: str, decoded: Tensor) -> Tensor:
        """Variance of what a decoder cannot tell where it says `decoded` (*B, P), standardized."""
        if name not in self.profiles:
            return self.residuals[name].expand_as(decoded)
        at, factor = self.profiles[name]
        upper = torch.bucketize(decoded, at).clamp(1, len(at) - 1)
        share = ((decoded - at[upper - 1]) / (at[upper] - at[upper - 1]).clamp(min=1e-9)).clamp(0, 1)
        return self.residuals[name] * torch.lerp(factor[upper - 1], factor[upper], share)


class Model:
    """Codec and belief, joined for assimilation.

    Args:
        codec: Of all modalities.
        belief: Prior and errors.
    """

    def __init__(self, codec: Codec, belief: Belief) -> None:
        self.codec = codec.eval()
        self.belief = belief.eval()
        self.recipe = codec.recipe
        self.places = codec.places

    @property
    def device(self) -> torch.device:
        """Where networks compute and posteriors are drawn."""
        return self.belief.gaussian.basis.device

    def on(self, device: torch.device) -> "Model":
        """The model with its networks moved to a device; statistics and errors stay on the CPU."""
        self.codec.autoencoder.to(device)
        self.belief.denoiser.to(device)
        return self

    def seen(
        self,
        anomalies: Mapping[str, Tensor],
        errors: Mapping[str, Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> Observations:
        """Anomalies (*B, L, *S), NaN where not seen, as observations of themselves, or of what operators make of them.

        Args:
            anomalies: By modality.
            errors: Covariance (P, P) or variances (P) of what an estimate of each leaves of what is seen; the
                instrument's own, where stated, comes on top, independent in each cell.
            device: Where the observations are wanted.

        Returns:
            One observation a modality, standardized.
        """
        found = {}
        operators = operators_of(self.recipe, self.places)
        for name, value in anomalies.items():
            error, shape = errors[name], self.places[name].shape
            operator: nn.Module = operators.get(name, Flatten(len(shape)))
            stated = self.recipe.modalities()[name].error_std
            if stated is not None:
                extra = (stated / self.codec.statistics[name].std.expand(shape).flatten()) ** 2
                if name in operators:
                    each = extra.reshape(shape[0], -1)[:, 0].repeat_interleave(len(error) // shape[0])
                    extra = each * noise_gain(operator, self.places[name])
                error = error + (torch.diag(extra) if error.ndim == 2 else extra)
            error = error.to(device)
            noise: Covariance = Dense(error) if error.ndim == 2 else Diagonal(error)
            found[name] = Observation(operator(value).to(device), operator.to(device), noise)
        return Observations(found)

    def errors(self) -> dict[str, Tensor]:
        """What the patterns cannot tell of what is seen of each modality, calibrated.

        Raises:
            ValueError: If the run was trained by a version that did not keep what operators need.
        """
        errors = dict(self.belief.errors)
        for name, operator in operators_of(self.recipe, self.places).items():
            if name not in self.belief.samples:
                raise ValueError(
                    f"this run does not know how far {name} is from its decoder on the whole grid, which "
                    "assimilation.operators need; train it again with this version."
                )
            errors[name] = residual_variance(operator(self.belief.samples[name]))
        return {name: error * self.belief.factors[name] for name, error in errors.items()}

    def jacobians(self) -> dict[str, Tensor]:
        """Linearized operators from the patterns to what is seen of each modality, (prod(O), K)."""
        found = dict(self.belief.operators)
        for name, operator in operators_of(self.recipe, self.places).items():
            found[name] = through(operator, found[name], self.places[name])
        return found

    def observations(self, anomalies: Mapping[str, Tensor]) -> Observations:
        """Anomalies (*B, L, *S), NaN where not seen, as observations of the latent, one a modality."""
        seen = self.seen(anomalies, self.errors(), self.device)
        return seen.pullback({m: self._decoder(m) for m in anomalies})

    def _decoder(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return lambda z: self.codec.autoencoder.decode(z, name)

    def sda(self) -> SDA:
        """The assimilation method with this prior and the recipe's settings."""
        a = self.recipe.assimilation
        sampler = Sampler(
            a.steps, a.eta, a.corrections, a.tau, order=a.order, grid="snr" if a.grid == "snr" else "time"
        )
        operators = {name: operator.to(self.device) for name, operator in self.jacobians().items()}
        operators["latent"] = self.belief.gaussian.basis
        return SDA(
            self.belief.denoiser,
            self.belief.gaussian,
            operators,
            sampler,
            guidance="sda" if a.guidance == "sda" else "covariance",
            gamma=a.gamma,
        )

    def published(self, anomalies: Mapping[str, Tensor]) -> Observations:
        """The published system's pseudo-observation: what was seen, encoded and taken as noisy in the latent.

        Args:
            anomalies: By modality (*B, L, *S); a step counts as seen where any modality has a value.

        Returns:
            One observation named "latent".
        """
        lead = next(iter(anomalies.values()))
        event = len(self.places[next(iter(anomalies))].shape)
        shape = lead.shape[: lead.ndim - event]
        flat = {m: x.reshape(-1, *self.places[m].shape) for m, x in anomalies.items()}
        z = self.codec.encode(flat).flatten(1)
        seen = torch.stack([torch.isfinite(x).flatten(1).any(1) for x in flat.values()]).any(0)
        z = torch.where(seen[:, None], z, torch.nan).reshape(*shape, -1).to(self.device)
        variance = torch.full((z.shape[-1],), self.recipe.assimilation.published_std**2, device=self.device)
        return Observations(
            {"latent": Observation(z, Flatten(len(self.belief.gaussian.event)), Diagonal(variance))}
        )

    def save(self, folder: Path) -> None:
        """Write codec.safetensors and denoiser.safetensors, recipe and places in their metadata."""
        save_codec(self.codec, folder / "codec.safetensors")
        save_belief(self.belief, self.recipe, folder / "denoiser.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> "Model":
        """Open a trained run.

        Raises:
            FileNotFoundError: If the folder holds no trained run.
            ValueError: If the weights do not fit the recipe in their metadata or belong to another codec.
        """
        folder = Path(folder)
        for name in ("codec.safetensors", "denoiser.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(
                    f"{folder} is no trained run: {name} is not there; train one with `slams train` or check the path."
                )
        codec = load_codec(folder / "codec.safetensors")
        return cls(codec, load_belief(codec, folder / "denoiser.safetensors"))


def save_codec(codec: Codec, path: Path) -> None:
    """Weights, statistics, recipe and places in one file."""
    places = {name: asdict(place) for name, place in codec.places.items()}
    write_tensors(path, codec.state_dict(), {"recipe": to_tree(codec.recipe), "places": places})


def load_codec(path: Path) -> Codec:
    """Read what `save_codec` wrote."""
    tensors, meta = read_tensors(path)
    places = {
        name: Place(**p | {"dims": tuple(p["dims"]), "coords": {k: tuple(v) for k, v in p["coords"].items()}})
        for name, p in meta["places"].items()
    }
    lost = [f"{n}.{part}" for n in places for part in _STATISTICS if f"statistics.{n}.{part}" not in tensors]
    if lost:
        raise ValueError(f"{path} lacks {lost[0]}; it was written by another version, train again.")
    statistics = {
        name: SeasonalStandardize(*(tensors[f"statistics.{name}.{part}"] for part in _STATISTICS))
        for name in places
    }
    codec = Codec(from_tree(meta["recipe"]), places, statistics)
    fill(codec, tensors, path)
    return codec.eval()


def save_belief(belief: Belief, recipe: Recipe, path: Path) -> None:
    """Prior, operators and errors in one file."""
    tensors = {f"denoiser.{k}": v for k, v in belief.denoiser.state_dict().items()}
    for part in _PARTS:
        tensors |= {f"{part}.{k}": v for k, v in getattr(belief, part).items()}
    facts = {"recipe": to_tree(recipe), "factors": belief.factors, "inflation": belief.inflation}
    write_tensors(path, tensors, facts)


def load_belief(codec: Codec, path: Path) -> Belief:
    """Read what `save_belief` wrote, for the codec it was trained with.

    Raises:
        ValueError: If the prior belongs to a codec of another recipe.
    """
    tensors, meta = read_tensors(path)
    recipe = from_tree(meta["recipe"])
    if _origin(recipe) != _origin(codec.recipe):
        raise ValueError(
            f"{path} was trained on the latents of another recipe ({recipe.name!r}) than the codec beside it "
            f"({codec.recipe.name!r}); put the two files of one run together or train again."
        )
    basis = tensors["denoiser.gaussian.basis"]
    size = len(tensors["denoiser.gaussian.values"])
    gaussian = WindowGaussian(basis, torch.eye(size), 1.0, codec.autoencoder.event, VPCosine())
    periodic = next(iter(codec.places.values())).is_global
    denoiser = build_denoiser(recipe, gaussian, periodic)
    fill(denoiser, {k[9:]: v for k, v in tensors.items() if k.startswith("denoiser.")}, path)
    belief = Belief(
        denoiser,
        **{
            part: {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
            for part in _PARTS
        },
    )
    belief.factors, belief.inflation = meta["factors"], meta["inflation"]
    return belief.eval()


def _origin(recipe: Recipe) -> tuple[Any, ...]:
    """The settings that make a codec."""
    return recipe.seed, recipe.latent, replace(recipe.data, store="")


def dense(name: str, places: Mapping[str, Place], recipe: Recipe) -> bool:
    """Whether a modality's errors get a full covariance."""
    small = torch.Size(places[name].shape).numel() <= DENSE_UP_TO
    return small and recipe.modalities()[name].role == "observation"
