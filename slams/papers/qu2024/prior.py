"""Codec, closed form and networks of one model, their training and their file."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slams.assimilation.baseline.gaussian import ridge
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.random import fork, normal
from slams.core.settings import plain
from slams.core.tensorfile import fill, flat, grouped, read_tensors, write_tensors
from slams.data.windows import window_starts
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian, window_moments
from slams.diffusion.precondition import Contextual, NoisePrediction, Preconditioned
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser
from slams.networks.conv_autoencoder import LATENT_CHANNELS, SharedGridCodec
from slams.networks.layers import zero
from slams.networks.mlp import WindowMLP
from slams.networks.score_unet import ScoreUNet
from slams.papers.qu2024.archive import STATE
from slams.papers.qu2024.plan import MODELS, PriorPlan
from slams.training.fit import FitSettings, fit

_DRAWS = 400  # of coefficients, to which the decoder's linear operator is fitted
_HALF = torch.float16


@dataclass
class ModelPrior:
    """What is learnt of one model.

    Attributes:
        name: Name in `MODELS`.
        codec: Autoencoder; the identity of pixels.
        basis: Orthonormal patterns of a day's latent, (prod(Z), K).
        covariance: Covariance of the coefficients over a window, (L K, L K).
        denoiser: Network around the closed form of windows of coefficients (L, K).
        unet: The U-Net alone, of whole latents, with which published mode samples.
        rest: Variance of what decoded patterns leave of each modality, by level and latitude, (C, H).
        facts: Length of the state's rest, calibrated factors and inflations, learning curves.
        fingerprint: Digest of the file.
    """

    name: str
    codec: SharedGridCodec
    basis: Tensor
    covariance: Tensor
    denoiser: NetworkDenoiser
    unet: Contextual
    rest: Mapping[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.operators = {name: self._linear(name) for name in MODELS[self.name]}

    @property
    def idle(self) -> bool:
        """Whether training did not improve on the closed form, so that the network was left at zero."""
        last = self.denoiser.network.last
        return not any(bool(parameter.any()) for parameter in last.parameters())  # type: ignore[union-attr]

    def silence(self) -> None:
        """Set the network to zero, which leaves the closed form."""
        zero(self.denoiser.network.last)  # type: ignore[arg-type]

    def trajectories(self, steps: int, *, network: bool) -> TrajectoryDenoiser:
        """Prior of the coefficients of T days, (*B, T, K), with the network or in closed form."""
        return TrajectoryDenoiser(
            self.denoiser if network and not self.idle else self.denoiser.gaussian, steps
        )

    @torch.no_grad()
    def _linear(self, name: str) -> Tensor:
        """G from coefficients to cells of a modality, (prod(S), K), by ridge on draws of the prior."""
        count = self.basis.shape[1]
        root = torch.linalg.cholesky(self.covariance[:count, :count].double()).float()
        a = normal((_DRAWS, count), rng=fork(0, "operator", name)) @ root.mT
        return ridge(a, self.decoded(a, name).flatten(1), 1e-3)

    @torch.no_grad()
    def decoded(self, a: Tensor, name: str) -> Tensor:
        """Anomalies of a modality (*B, C, H, W) from coefficients (*B, K)."""
        rows = (a.reshape(-1, a.shape[-1]) @ self.basis.mT).unflatten(-1, self.codec.event)
        out = torch.cat([self.codec.decode(part, name) for part in rows.split(256)])
        return out.reshape(*a.shape[:-1], *out.shape[1:])

    @torch.no_grad()
    def encoded(self, anomalies: Mapping[str, Tensor]) -> Tensor:
        """Latents (*B, *Z) of the model's modalities (*B, C, H, W), missing values as no anomaly."""
        return encoded(self.codec, self.name, anomalies)


def encoded(codec: SharedGridCodec, name: str, anomalies: Mapping[str, Tensor]) -> Tensor:
    """Latents of a model's modalities, see `ModelPrior.encoded`."""
    lead = anomalies[STATE].shape[:-3]
    rows = {m: anomalies[m].reshape(-1, *anomalies[m].shape[-3:]) for m in MODELS[name]}
    count = len(rows[STATE])
    parts = [codec.encode({m: x[i : i + 256] for m, x in rows.items()}) for i in range(0, count, 256)]
    return torch.cat(parts).reshape(*lead, *codec.event)


def build_codec(name: str, channels: Mapping[str, int], grid: tuple[int, int]) -> SharedGridCodec:
    """The untrained autoencoder of a model."""
    own = {m: channels[m] for m in MODELS[name]}
    return SharedGridCodec(own, [STATE], grid, () if name == "sda_0" else LATENT_CHANNELS)


def build_unet(plan: PriorPlan, name: str, event: tuple[int, ...]) -> Contextual:
    """The untrained U-Net of a model as a denoiser of windows of latents.

    As published it predicts the noise, m = (x_t - sigma f) / alpha: an error of f of .1 is one of 100 in m where alpha is
    .001. Preconditioned, the same error is at most .1 at every time, and untrained it is the denoiser of white latents.
    """
    network = ScoreUNet(
        event,
        length=plan.window,
        hidden=plan.width(name),
        blocks=plan.blocks,
        embedding=plan.embedding,
        time=plan.time,
        padding=("zero", "circular"),
    )
    if not plan.preconditioned:
        return NoisePrediction(network, VPCosine())
    zero(network.last)
    return Preconditioned(network, VPCosine())


def build_denoiser(plan: PriorPlan, covariance: Tensor) -> NetworkDenoiser:
    """The untrained denoiser of windows of coefficients."""
    event = (len(covariance) // plan.window,)
    gaussian = WindowGaussian(torch.eye(*event, *event), covariance, 1.0, event, VPCosine())
    network = WindowMLP(plan.window, event, hidden=plan.correction, blocks=1, embedding=plan.embedding)
    return NetworkDenoiser(gaussian, network)


def smooth(x: Tensor, wavenumbers: int) -> Tensor:
    """Fields (*B, H, W) without zonal wavenumbers above a bound."""
    spectrum = torch.fft.rfft(x)
    spectrum[..., wavenumbers + 1 :] = 0
    return torch.fft.irfft(spectrum, x.shape[-1])


def train_codec(
    plan: PriorPlan,
    name: str,
    days: Mapping[str, Mapping[str, Tensor]],
    *,
    seed: int,
    folder: Path,
    console: Console,
) -> SharedGridCodec:
    """The autoencoder of a model, trained on anomalies of days by part ("train", "validation")."""
    x, valid = days["train"], days["validation"]
    torch.manual_seed(seed)
    grid = tuple(x[STATE].shape[-2:])
    codec = build_codec(name, {m: each.shape[1] for m, each in x.items()}, grid)  # type: ignore[arg-type]
    names = MODELS[name]
    if name != "sda_0":
        some = {m: valid[m][:: max(1, len(valid[m]) // 64)] for m in names}

        def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
            rows = torch.randint(len(x[STATE]), (plan.autoencoder.batch,), generator=rng)
            return module.loss({m: x[m][rows] for m in names})  # type: ignore[operator]

        def validate(module: nn.Module) -> float:
            with torch.no_grad():
                return float(module.loss(some))  # type: ignore[operator]

        _fit(codec, loss, validate, plan.autoencoder, f"{name} autoencoder", seed, folder, console)
    codec.eval()
    with torch.no_grad():
        codec.standardize(encoded(codec, name, {m: x[m] for m in names}))
    return codec


def train_prior(
    plan: PriorPlan, name: str, codec: SharedGridCodec, days: Mapping[str, Mapping[str, Tensor]],
    dates: Mapping[str, Any], *, seed: int, folder: Path, console: Console,
) -> ModelPrior:  # fmt: skip
    """Closed form and both networks of a model.

    Args:
        plan: Shape and trainings.
        name: Name of the model.
        codec: Its trained autoencoder.
        days: Anomalies by part ("train", "validation") and modality, (n, *S).
        dates: Days of each part.
        seed: Seed of the run.
        folder: Folder of the resume states.
        console: Console for the progress.
    """
    with torch.no_grad():
        z, z_valid = (encoded(codec, name, days[part]) for part in ("train", "validation"))
    starts, starts_valid = (window_starts(dates[part], plan.window) for part in ("train", "validation"))
    basis, covariance, _ = window_moments(
        smooth(z, plan.wavenumbers), starts, plan.window, fraction=1.0, most=plan.patterns, shrink=0.0
    )
    a, a_valid = (x.flatten(1) @ basis for x in (z, z_valid))
    torch.manual_seed(seed)
    denoiser = build_denoiser(plan, covariance)
    unet = build_unet(plan, name, codec.event)
    curves = {}
    for label, module, own, own_valid, error, settings in (
        ("correction", denoiser, a, a_valid, lambda m, x, rng: m.loss(x, rng=rng), plan.coefficients),
        ("unet", unet, z, z_valid, unet_error, plan.network),
    ):
        curves[label] = _train_network(
            plan.window, settings, f"{name} {label}", module, (own, starts), (own_valid, starts_valid), error,
            seed=seed, folder=folder, console=console,
        )  # fmt: skip
    rest = {m: torch.zeros(days["train"][m].shape[1:3]) for m in MODELS[name]}
    prior = ModelPrior(name, codec, basis, covariance, denoiser.eval(), unet.eval(), rest, {"curves": curves})
    prior.rest = {m: _variance(days["validation"][m] - prior.decoded(a_valid, m)) for m in MODELS[name]}
    return prior


def unet_error(denoiser: Contextual, x: Tensor, rng: torch.Generator) -> Tensor:
    """Loss of a U-Net on clean windows (b, L, *Z), t uniform.

    Of a noise prediction the published one, mean |f(x_t, t) - e|^2; preconditioned, mean |m(x_t, t) - x|^2 in units of
    the posterior variance of white data, sigma^2 / (alpha^2 + sigma^2), so that all times count alike.
    """
    t = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=rng)
    alpha, sigma = denoiser.schedule(t)
    noise = normal(x.shape, like=x, rng=rng)
    x_t = alpha * x + sigma * noise
    if isinstance(denoiser, NoisePrediction):
        return (denoiser.output(x_t, t) - noise).square().mean()
    return ((denoiser(x_t, t) - x).square() * (alpha**2 + sigma**2) / sigma**2).mean()


def _variance(residual: Tensor) -> Tensor:
    """Variance by level and latitude (C, H) of (n, C, H, W), NaN where unknown; the level's where there is none."""
    each = residual.square().nanmean((0, 3))
    level = residual.square().nanmean((0, 2, 3))
    return torch.where(each.isfinite(), each, level[:, None]) + 1e-4


def _train_network(
    window: int, settings: FitSettings, label: str, module: nn.Module, train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor], error: Callable[[Any, Tensor, torch.Generator], Tensor], *, seed: int, folder: Path,
    console: Console,
) -> list[list[float]]:  # fmt: skip
    """Train on random windows; the validation losses along the way."""
    (z, starts), (z_valid, starts_valid), steps = train, valid, torch.arange(window)
    some = z_valid[starts_valid[:: max(1, len(starts_valid) // 32), None] + steps]

    def loss(each: nn.Module, rng: torch.Generator) -> Tensor:
        rows = starts[torch.randint(len(starts), (settings.batch,), generator=rng)]
        return error(each, z[rows[:, None] + steps], rng)

    def validate(each: nn.Module) -> float:
        with torch.no_grad():
            return float(error(each, some, fork(seed, "validation noise")))

    return _fit(module, loss, validate, settings, label, seed, folder, console)


def _fit(
    module: nn.Module, loss: Any, validate: Any, settings: FitSettings, label: str, seed: int, folder: Path,
    console: Console,
) -> list[list[float]]:  # fmt: skip
    checkpoint = folder / f"resume_{label.replace(' ', '_')}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with console.bar(f"train {label}", settings.steps) as advance:
        history = fit(
            module, loss, validate, settings, seed=seed, name=label, checkpoint=checkpoint, progress=advance
        )
    return [[step, valid] for step, _, valid in history.rows]


def save_prior(path: Path, prior: ModelPrior, plan: PriorPlan, *, half: bool) -> None:
    """Write what was learnt; patterns as their zonal spectra.

    Args:
        path: The file.
        prior: The model.
        plan: Shape of its networks.
        half: Whether to write 16 bits a number, but for the covariance.
    """
    event = prior.codec.event
    patterns = prior.basis.mT.reshape(-1, *event) * prior.basis.shape[0] ** 0.5
    spectrum = torch.view_as_real(torch.fft.rfft(patterns)[..., : plan.wavenumbers + 1])
    count = prior.basis.shape[1]
    groups = {
        "codec": prior.codec.state_dict(),
        "correction": prior.denoiser.network.state_dict(),
        "unet": prior.unet.network.state_dict(),
        "rest": prior.rest,
        "prior": {"spectrum": spectrum},
    }
    tensors = flat(groups, "|")
    if half:
        tensors = {k: x.to(_HALF) if x.is_floating_point() else x for k, x in tensors.items()}
    tensors["prior|covariance"] = prior.covariance[:, :count].contiguous()  # of a stationary process
    facts = {
        "model": prior.name, "shape": _shape(plan, prior.name), "grid": list(event[-2:]),
        "channels": dict(prior.codec.channels), "learnt": prior.facts,
    }  # fmt: skip
    write_tensors(path, tensors, facts)


def _shape(plan: PriorPlan, name: str) -> dict[str, Any]:
    """What the tensors of a model depend on."""
    keys = (
        "window",
        "patterns",
        "wavenumbers",
        "blocks",
        "embedding",
        "time",
        "correction",
        "preconditioned",
    )
    return {key: plain(plan)[key] for key in keys} | {"width": list(plan.width(name))}


def load_prior(path: Path, plan: PriorPlan, name: str, grid: tuple[int, int]) -> ModelPrior:
    """Read a file of `save_prior`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another model, size or capacity.
    """
    tensors, facts = read_tensors(path, remedy="train it with --train, or check the path")
    if facts["model"] != name or tuple(facts["grid"]) != tuple(grid):
        raise InvalidValueError(
            f"{path} holds {facts['model']} on {facts['grid'][0]} x {facts['grid'][1]}, and {name} on {grid[0]} x "
            f"{grid[1]} was asked for; name the size it was trained for (size=planet or full), or train with --train."
        )
    wanted = _shape(plan, name)
    apart = [key for key in wanted if facts["shape"].get(key) != wanted[key]]
    if apart:
        kept, asked = ({key: shape.get(key) for key in apart} for shape in (facts["shape"], wanted))
        raise InvalidValueError(
            f"{path} holds networks with {kept}, and the plan has {asked}; train anew with --train, or take back the "
            "override."
        )
    groups = grouped({key: x.float() if x.dtype == _HALF else x for key, x in tensors.items()}, "|")
    codec = build_codec(name, facts["channels"], grid)
    fill(codec, groups["codec"], path)
    basis, covariance = _patterns(groups["prior"], codec.event)
    denoiser = build_denoiser(plan, covariance)
    unet = build_unet(plan, name, codec.event)
    fill(denoiser.network, groups["correction"], path)
    fill(unet.network, groups["unet"], path)
    codec.eval()
    learnt = copy.deepcopy(facts["learnt"])
    return ModelPrior(name, codec, basis, covariance, denoiser.eval(), unet.eval(), groups["rest"], learnt)


def _patterns(kept: Mapping[str, Tensor], event: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """V (D, K) from its spectrum, orthonormal again, and C (L K, L K) from its first block of columns."""
    fields = torch.fft.irfft(torch.view_as_complex(kept["spectrum"].contiguous()), event[-1])
    rough = fields.flatten(1).mT.double()
    gram = rough.mT @ rough
    values, vectors = torch.linalg.eigh(gram)
    basis = (rough @ (vectors / values.sqrt()) @ vectors.mT).float()  # the nearest orthonormal one
    column = kept["covariance"]
    count = column.shape[1]
    lags = column.unflatten(0, (-1, count))
    length = len(lags)
    rows = [[lags[i - j] if i >= j else lags[j - i].mT for j in range(length)] for i in range(length)]
    return basis, torch.cat([torch.cat(row, 1) for row in rows])
