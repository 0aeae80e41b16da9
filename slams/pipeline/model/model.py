"""An opened run: its codec and its prior, joined for assimilation."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from slams.assimilation.baseline.gaussian import residual_variance
from slams.assimilation.score.sda import SDA
from slams.core.covariance import Covariance, Dense, Diagonal
from slams.core.errors import InvalidValueError, MissingFileError
from slams.diffusion.denoiser import NetworkDenoiser, NoCorrection
from slams.diffusion.guidance.base import Guidance
from slams.diffusion.guidance.conditional import ConditionalGuidance
from slams.diffusion.guidance.sda import CovarianceGuidance, GaussianGuidance
from slams.diffusion.sampler import Sampler, ends_for
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from slams.pipeline.inputs.operators import instrument_std, noise_gain, operators_of, through
from slams.pipeline.model import amounts
from slams.pipeline.model import codec as codecs
from slams.pipeline.model import prior as priors
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.model.features import ObservationFeatures
from slams.pipeline.model.prior import LearntPrior
from slams.pipeline.recipe import Recipe


class Model:
    """Codec and prior, joined for assimilation; settings of the recipe are resolved once.

    Args:
        codec: Codec of all modalities.
        prior: Prior and observation errors.
        recipe: Recipe; that of the codec if None.

    Attributes:
        layouts: Layouts by modality.
        states: Names of the state variables.
        operators: Operators of modalities not observed cell by cell, by name.
    """

    def __init__(self, codec: MultimodalCodec, prior: LearntPrior, recipe: Recipe | None = None) -> None:
        self.codec = codec.eval()
        self.prior = prior.eval()
        self.recipe = recipe or codec.recipe
        self.layouts = codec.layouts
        self.states = self.recipe.states
        self.operators = operators_of(self.recipe, self.layouts)

    @property
    def device(self) -> torch.device:
        """Device of the networks and of posterior draws."""
        return self.prior.gaussian.basis.device

    def on(self, device: torch.device) -> "Model":
        """The model with its networks moved to a device; statistics and errors stay on the CPU."""
        self.codec.autoencoder.to(device)
        self.prior.denoiser.to(device)
        return self

    @property
    def idle(self) -> bool:
        """Whether the prior is its closed form, because its network was left out after the training."""
        return self.prior.learning.get("network") == priors.REPLACED and not self.recipe.prior.network

    def without_network(self) -> "Model":
        """The model whose prior is its closed form; everything else is shared."""
        kept = self.prior
        prior = LearntPrior(
            NetworkDenoiser(kept.gaussian, NoCorrection()),
            kept.operators,
            kept.errors,
            kept.residuals,
            kept.profiles,
            kept.samples,
            kept.statistics,
        )
        prior.factors, prior.inflation = kept.factors, kept.inflation
        prior.trained, prior.method, prior.biases = kept.trained, self.method, kept.biases
        prior.learning, prior.error_is_least = kept.learning, kept.error_is_least
        prior.amounts = kept.amounts
        return Model(self.codec, prior, self.recipe)

    def seen(
        self,
        anomalies: Mapping[str, Tensor],
        errors: Mapping[str, Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> Observations:
        """Observations from anomalies (*B, L, *S), NaN where unobserved, through the recipe's operators.

        Args:
            anomalies: Anomalies by modality.
            errors: Covariance (P, P) or variances (P) of the residual of an estimate, by modality. The
                instrument's own, where stated, is independent in each cell. It comes on top of a state variable's,
                whose training values are exact; the residuals of an observation contain it, so that it is their least.
            device: Device of the observations.

        Returns:
            One standardized observation per modality.
        """
        found = {}
        for name, value in anomalies.items():
            error, shape = errors[name], self.layouts[name].shape
            operator: nn.Module = self.operators.get(name, Flatten(len(shape)))
            stated = self.recipe.modalities[name].error_std
            settings = self.recipe.assimilation.operators.get(name)
            std = instrument_std(settings, self.layouts[name]) if settings is not None else None
            extra = None
            if std is not None:
                extra = (std**2).repeat_interleave(len(error) // shape[0])
            elif stated is not None:
                extra = (stated / self.codec.statistics[name].std.expand(shape).flatten()) ** 2
                if name in self.operators:
                    each = extra.reshape(shape[0], -1)[:, 0].repeat_interleave(len(error) // shape[0])
                    extra = each * noise_gain(self.operators[name], self.layouts[name])
            if extra is not None:
                if name not in self.states and self.prior.error_is_least:
                    own = error.diagonal() if error.ndim == 2 else error
                    extra = (extra - own).clamp(min=0)
                error = error + (torch.diag(extra) if error.ndim == 2 else extra)
            error = error.to(device)
            noise: Covariance = Dense(error) if error.ndim == 2 else Diagonal(error)
            found[name] = Observation(operator(value).to(device), copy.deepcopy(operator).to(device), noise)
        return Observations(found)

    def errors(self) -> dict[str, Tensor]:
        """Calibrated error covariances of the patterns at the observed points, by modality.

        Raises:
            ValueError: If the run was trained by a version that did not keep what operators need.
        """
        errors = dict(self.prior.errors)
        for name, operator in self.operators.items():
            if name not in self.prior.samples:
                raise InvalidValueError(
                    f"this run has no residuals of {name} on the whole grid, which "
                    "assimilation.operators need; train it again with this version."
                )
            errors[name] = residual_variance(operator(self.prior.samples[name]))
        return {name: error * self.prior.factors[name] for name, error in errors.items()}

    def jacobians(self) -> dict[str, Tensor]:
        """Linearized operators from the patterns to the observations of each modality, (prod(O), K)."""
        found = dict(self.prior.operators)
        for name, operator in self.operators.items():
            found[name] = through(operator, found[name], self.layouts[name])
        return found

    def observations(self, anomalies: Mapping[str, Tensor]) -> Observations:
        """Observations from anomalies (*B, L, *S), NaN where unobserved, with the errors of `decoders`, by modality.

        With guidance "published", one pseudo-observation of the latent.
        """
        if self.recipe.assimilation.guidance == "published":
            return self.published(anomalies)
        return self.seen(anomalies, self.errors(), self.device)

    @property
    def decoders(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Decoders of every modality, and of the latent itself, for `Latent`."""
        decode = self.codec.autoencoder.decode
        return {name: partial(decode, name=name) for name in self.layouts} | {"latent": lambda z: z}

    @property
    def method(self) -> str:
        """Method of the draws, "conditional" or "guided": the recipe's, or the one chosen on validation days."""
        return self.recipe.assimilation.method or self.prior.method

    def sda(self, *, trajectories: bool = False) -> SDA:
        """The assimilation method with this prior and the recipe's settings.

        Args:
            trajectories: Whether it draws many trajectories longer than a window at once, as version 0.1 could not; other
                draws of its runs stay as they were.
        """
        a, old = self.recipe.assimilation, not (self.prior.error_is_least or trajectories)
        sampler = Sampler(
            a.steps,
            a.eta,
            a.corrections,
            a.tau,
            order=a.order,
            time_grid="snr" if a.grid == "snr" else "time",
            ends=(0.05, 60.0) if old else ends_for(self.prior.gaussian),
        )
        operators = {name: operator.to(self.device) for name, operator in self.jacobians().items()}
        operators["latent"] = self.prior.gaussian.basis
        closed = CovarianceGuidance(self.prior.gaussian, operators, derivative=old)
        guidance: Guidance = GaussianGuidance(a.gamma) if a.guidance == "sda" else closed
        if self.method == "conditional":
            known = {n: operators[n] for n in self.prior.trained if n not in self.operators}
            features = ObservationFeatures(self.codec, known)
            guidance = ConditionalGuidance(known, features, a.weight, others=guidance)
        idle = NetworkDenoiser(self.prior.gaussian, NoCorrection())
        return SDA(idle if self.idle else self.prior.denoiser, sampler, guidance=guidance)

    def published(self, anomalies: Mapping[str, Tensor]) -> Observations:
        """The published system's pseudo-observation: the encoded observations, with noise in the latent.

        Args:
            anomalies: Anomalies by modality (*B, L, *S); a step is observed if any modality has a value.

        Returns:
            One observation named "latent".
        """
        lead = next(iter(anomalies.values()))
        event = len(self.layouts[next(iter(anomalies))].shape)
        shape = lead.shape[: lead.ndim - event]
        flat = {m: x.reshape(-1, *self.layouts[m].shape) for m, x in anomalies.items()}
        z = self.codec.encode(flat, complete=False).flatten(1)
        seen = torch.stack([torch.isfinite(x).flatten(1).any(1) for x in flat.values()]).any(0)
        z = torch.where(seen[:, None], z, torch.nan).reshape(*shape, -1).to(self.device)
        variance = torch.full((z.shape[-1],), self.recipe.assimilation.published_std**2, device=self.device)
        return Observations(
            {"latent": Observation(z, Flatten(len(self.prior.gaussian.event)), Diagonal(variance))}
        )

    def save(self, folder: Path) -> None:
        """Write codec.safetensors and denoiser.safetensors, recipe and layouts in their metadata."""
        self.codec.save(folder / codecs.FILE_NAME)
        self.prior.save(self.recipe, folder / priors.FILE_NAME)

    @classmethod
    def load(cls, folder: str | Path) -> "Model":
        """Open a trained run.

        Raises:
            FileNotFoundError: If the folder holds no trained run.
            ValueError: If the weights do not fit the recipe in their metadata or belong to another codec.
        """
        folder = Path(folder)
        for name in (codecs.FILE_NAME, priors.FILE_NAME):
            if not (folder / name).exists():
                raise MissingFileError(
                    f"{folder} is no trained run: {name} is not there; train one with `slams train` or check the path."
                )
        codec = MultimodalCodec.load(folder / codecs.FILE_NAME)
        prior = LearntPrior.load(codec, folder / priors.FILE_NAME)
        prior.amounts = amounts.load_amounts(codec.recipe, codec, folder / amounts.FILE_NAME)
        return cls(codec, prior)
