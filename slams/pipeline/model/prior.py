"""The prior over windows of latents, the observation errors, and their file.

A file holds parameters and statistics; eigenvectors and the decoders' operators on the patterns follow from them. They
are made when a run is opened, and kept beside it in a file that may be deleted.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slams.assimilation.baseline.gaussian import ridge
from slams.assimilation.baseline.ridge_sums import RidgeSums
from slams.core.days import Days, Values, fits
from slams.core.errors import InvalidValueError
from slams.core.stages import Stage, Stages
from slams.core.tensorfile import fill, flat, grouped, read_tensors, write_tensors
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.pipeline.model.amounts import AmountDecoder
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.recipe import Recipe, from_tree, to_tree

FILE_NAME = "denoiser.safetensors"
REPLACED = "closed form"  # of a network that was left out after its training
_PARTS = ("operators", "errors", "residuals", "profiles", "samples")
_EIGEN = ("gaussian.values", "gaussian.vectors")


class LearntPrior(nn.Module):
    """Prior over latent windows, and observation errors.

    Attributes:
        denoiser: Denoiser of Gaussian and network.
        operators: Linearized decoders on the patterns, (prod(S), K) by name.
        errors: Standardized residual covariance (P, P) or variances (P) of the patterns, by modality.
        residuals: Residual variance of a decoder on the whole latent, (P).
        profiles: For bounded variables such as rain, that variance as a function of the decoded value: values and
            factors, (2, K).
        samples: Residuals of gridded modalities on some validation days, (n, *S), from which
            the errors of operators are estimated.
        statistics: Inputs of eigenvectors and operators: the Gaussian's `covariance` (L K, L K), and training
            `coefficients` (n, K); empty in runs of versions before 0.2, whose files hold the results.
        factors: Calibrated factor on each error covariance.
        inflation: Calibrated factors on the deviations of the draws from their mean, by label of the set of
            observations; one number for all sets before the calibration and in runs of earlier versions.
        trained: Names of the modalities that the network was trained on as observations.
        method: Method of draws with the lower CRPS on validation days, "conditional" or "guided".
        amounts: Stochastic decoders of amounts, by name; they have a file of their own.
        biases: Sizes of the yearly biases of observed modalities, of `slams.pipeline.model.bias.bias_sizes`; empty in
            runs that did not estimate them.
        learning: Findings of `slams.pipeline.model.learning.judged`; empty in runs of versions before 0.2.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        operators: Mapping[str, Tensor],
        errors: Mapping[str, Tensor],
        residuals: Mapping[str, Tensor],
        profiles: Mapping[str, Tensor] | None = None,
        samples: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.operators, self.errors, self.residuals = dict(operators), dict(errors), dict(residuals)
        self.profiles, self.samples = dict(profiles or {}), dict(samples or {})
        self.statistics = dict(statistics or {})
        self.factors = dict.fromkeys(errors, 1.0)
        self.inflation: float | dict[str, float] = 1.0
        self.trained: list[str] = []
        self.method = "guided"
        self.amounts: dict[str, AmountDecoder] = {}
        self.biases: dict[str, dict[str, float]] = {}
        self.learning: dict[str, Any] = {}
        self.error_is_least = True  # the stated one; versions before 0.2 calibrated with it on top

    @property
    def gaussian(self) -> WindowGaussian:
        """The closed form of the prior."""
        return self.denoiser.gaussian

    def unresolved(self, name: str, decoded: Tensor) -> Tensor:
        """Standardized residual variance of a decoder with output `decoded` (*B, P)."""
        if name not in self.profiles:
            return self.residuals[name].expand_as(decoded)
        at, factor = self.profiles[name]
        upper = torch.bucketize(decoded, at).clamp(1, len(at) - 1)
        share = ((decoded - at[upper - 1]) / (at[upper] - at[upper - 1]).clamp(min=1e-9)).clamp(0, 1)
        return self.residuals[name] * torch.lerp(factor[upper - 1], factor[upper], share)

    def save(self, recipe: Recipe, path: Path) -> None:
        """Write parameters and statistics to one file."""
        groups = {part: getattr(self, part) for part in _PARTS}
        groups["denoiser"] = self.denoiser.state_dict()
        if self.statistics:
            del groups["operators"]
            groups["denoiser"] = {k: v for k, v in groups["denoiser"].items() if k not in _EIGEN}
            covariance = triangle(self.statistics["covariance"])
            groups["statistics"] = {**self.statistics, "covariance": covariance}
        facts = {
            "recipe": to_tree(recipe),
            "factors": self.factors,
            "inflation": self.inflation,
            "trained": self.trained,
            "method": self.method,
            "biases": self.biases,
            "learning": self.learning,
        }
        write_tensors(path, flat(groups, "."), facts)

    @classmethod
    def load(cls, codec: MultimodalCodec, path: Path) -> "LearntPrior":
        """Read a file of `save`, for the codec of its training.

        Raises:
            FileNotFoundError: If the file is not there.
            ValueError: If it is unreadable, or the prior belongs to a codec of another recipe.
        """
        tensors, facts = read_tensors(path)
        recipe = from_tree(facts["recipe"])
        if _origin(recipe) != _origin(codec.recipe):
            raise InvalidValueError(
                f"{path} was trained on the latents of another recipe ({recipe.name!r}) than the codec beside it "
                f"({codec.recipe.name!r}); put the two files of one run together or train again."
            )
        groups = grouped(tensors, ".")
        weights, statistics = groups["denoiser"], groups.get("statistics", {})
        if statistics:
            statistics["covariance"] = square(statistics["covariance"])
            derived, _ = _kept(codec, weights, statistics, path.parent)
            weights |= {name: derived.pop(name) for name in _EIGEN}
            groups["operators"] = derived
        gaussian = restored(
            {k.removeprefix("gaussian."): v for k, v in weights.items()}, codec.autoencoder.event
        )
        denoiser = build_denoiser(recipe, gaussian, codec.periodic)
        fill(denoiser, weights, path)
        prior = cls(denoiser, **{part: groups.get(part, {}) for part in (*_PARTS, "statistics")})
        prior.factors, prior.inflation = facts["factors"], facts["inflation"]
        prior.trained, prior.method = facts.get("trained", []), facts.get("method", "guided")
        prior.biases = facts.get("biases", {})
        prior.learning = facts.get("learning", {})
        prior.error_is_least = "learning" in facts
        return prior.eval()


def operators_on_patterns(
    codec: MultimodalCodec, basis: Tensor, a: Tensor, name: str
) -> tuple[Tensor, Values]:
    """A decoder linearized by ridge regression on training days, and its output on them.

    Args:
        codec: Codec of all modalities.
        basis: Patterns, (prod(Z), K).
        a: Coefficients of training days, (n, K).
        name: Name of the modality.

    Returns:
        G, (prod(S), K), and the decoded anomalies of those days (n, *S), still to be decoded if they are too large for
        memory.
    """

    def decode(part: Tensor) -> Tensor:
        return codec.decode((part @ basis.mT).reshape(-1, *codec.autoencoder.event), name)

    if fits(len(a), basis.shape[:1]) and fits(len(a), codec.layouts[name].shape):
        decoded = decode(a)
        return ridge(a, decoded.flatten(1), 1e-3), decoded
    days = Days.of(a).map(lambda part, rows: decode(part))
    return RidgeSums(a, days).operator(1e-3), days


def restored(state: Mapping[str, Tensor], event: tuple[int, ...]) -> WindowGaussian:
    """The Gaussian whose buffers are among these, without decomposing its covariance again."""
    gaussian = WindowGaussian(state["basis"], torch.eye(len(state["values"])), 1.0, event, VPCosine())
    gaussian.load_state_dict({name: state[name] for name in gaussian.state_dict()})
    return gaussian


def triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of a symmetric matrix (n, n), row by row, (n (n + 1) / 2)."""
    return matrix[tuple(torch.tril_indices(*matrix.shape))]


def square(lower: Tensor) -> Tensor:
    """Inverse of `triangle`.

    >>> square(triangle(torch.tensor([[1.0, 2.0], [2.0, 3.0]])))
    tensor([[1., 2.],
            [2., 3.]])
    """
    size = int((2 * lower.numel()) ** 0.5)
    matrix = lower.new_zeros(size, size)
    rows, columns = torch.tril_indices(size, size)
    matrix[rows, columns] = matrix[columns, rows] = lower
    return matrix


def _kept(
    codec: MultimodalCodec, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Eigenvectors and operators that follow from a run's statistics, from the file beside it where it has one."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        basis, a = weights["gaussian.basis"], statistics["coefficients"]
        gaussian = WindowGaussian(basis, statistics["covariance"], 1.0, codec.autoencoder.event, VPCosine())
        eigen = {name: gaussian.state_dict()[name.removeprefix("gaussian.")] for name in _EIGEN}
        return eigen | {name: operators_on_patterns(codec, basis, a, name)[0] for name in codec.layouts}, {}

    if not os.access(folder, os.W_OK):
        return make()
    inputs = hashlib.sha256()
    for tensor in (*statistics.values(), weights["gaussian.basis"], *codec.autoencoder.state_dict().values()):
        inputs.update(tensor.detach().cpu().numpy().tobytes())
    return Stages(folder).keep(Stage("derived", inputs.hexdigest()), make)


def _origin(recipe: Recipe) -> tuple[Any, ...]:
    """The settings that a codec depends on."""
    return recipe.seed, recipe.latent, replace(recipe.data, store="")
