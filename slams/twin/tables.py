"""Common parts of the notebooks: coders of states, decoding errors, tables of scores, figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from slams.core.covariance import Diagonal
from slams.core.eof import eof
from slams.core.geometry.torus import clockwise_vorticity
from slams.evaluation import CRPS, RMSE, SPREAD, evaluate
from slams.evaluation.figures.style import INK, NOTE, RED_DOT, SMALL, heading, new_figure
from slams.networks.autoencoder import MultimodalAutoencoder, VectorCoder
from slams.observation.observation import Observations
from slams.training.fit import FitSettings, fit
from slams.twin.experiment import Result
from slams.twin.report import kernel_note
from slams.twin.scores import KERNEL


@dataclass(frozen=True)
class Coder:
    """A change of coordinates that need not be lossless.

    Attributes:
        encode: Encoder E, (*B, *S) -> (*B, d).
        decode: Decoder D, (*B, d) -> (*B, *S).
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruction D(E(x)), (*B, *S) -> (*B, *S)."""
        return self.decode(self.encode(x))


def autoencoder(
    x: Tensor, valid: Tensor, latent: int, *, hidden: int = 64, steps: int = 2000, seed: int = 0
) -> Coder:
    """An encoder and a decoder of vectors: principal components and a network that corrects them.

    Args:
        x: Training states (n, d), standardized.
        valid: Validation states for the choice of the weights, (m, d).
        latent: Size of the latent.
        hidden: Width of the networks.
        steps: Number of training steps, 256 states each.
        seed: Seed of weights and batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MultimodalAutoencoder(
            {"x": VectorCoder(x.shape[1:], latent, hidden)}, (latent,), {"x": 1.0}, hidden=8
        )
    net.start({"x": x})
    even = {"x": torch.ones(x.shape[1:])}

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (256,), generator=rng)
        return module.loss({"x": x[rows]}, ["x"], even)  # type: ignore[operator]

    @torch.no_grad()
    def validate(module: nn.Module) -> float:
        return float(module.loss({"x": valid}, ["x"], even))  # type: ignore[operator]

    settings = FitSettings(steps, 256, 3e-3, weight_decay=0.0, ema=0.99, every=max(steps // 10, 1))
    fit(net, loss, validate, settings, seed=seed, name="autoencoder")
    net.requires_grad_(False).eval()
    with torch.no_grad():
        net.standardize(net.encode({"x": x}))

    def encode(states: Tensor) -> Tensor:
        return net.encode({"x": states.reshape(-1, states.shape[-1])}).reshape(*states.shape[:-1], latent)

    return Coder(encode, lambda z: net.decode(z, "x"))


def components(x: Tensor, mean: Tensor, count: int) -> Coder:
    """Leading empirical orthogonal functions, of unit variance each: the best linear encoder and decoder.

    Args:
        x: Training states (n, *S).
        mean: Mean to subtract, *S.
        count: Largest size of the latent.
    """
    found = eof((x - mean).flatten(1), most=count)
    scale = found.variance.sqrt()

    def encode(states: Tensor) -> Tensor:
        return ((states - mean).flatten(-mean.ndim) @ found.basis) / scale

    def decode(z: Tensor) -> Tensor:
        return mean + ((z * scale) @ found.basis.mT).unflatten(-1, mean.shape)

    return Coder(encode, decode)


def seen_from_latent(observations: Observations, coder: Coder, x: Tensor) -> Observations:
    """Observations for a latent prior: the variance of the decoding error of h(x) is added to their errors.

    Args:
        observations: Observations of states, with independent errors.
        coder: Coder of states.
        x: States outside the coder's training data, (n, *S).

    Returns:
        The same values and operators with larger errors; `Latent` adds the decoder.
    """
    widened = {}
    for name, o in observations.items():
        residual = (o.operator(x) - o.operator(coder.reconstruct(x))).flatten(1)
        noise = o.noise
        assert isinstance(noise, Diagonal)
        widened[name] = replace(
            o, noise=Diagonal(noise.variance + residual.square().mean(0).to(noise.variance))
        )
    return Observations(widened)


def score_rows(
    draws: Mapping[str, Tensor],
    truth: Tensor,
    extra: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """A row of scores for each method, means over truths, the first with its 95 % interval.

    Args:
        draws: Members by method, (R, N, L, *S), or a single estimate (R, 1, L, *S), without spread.
        truth: Truths, (R, L, *S).
        extra: Further scores by name, functions from draws to one number per truth (R).

    Returns:
        Rows with "method", "rmse" of the mean, "crps", "spread / skill", and the extra scores.
    """
    rows = []
    for name, samples in draws.items():
        single = samples.shape[1] == 1
        both = samples.expand(-1, 2, *samples.shape[2:]) if single else samples
        found = evaluate(both, truth, metrics=(RMSE, SPREAD, CRPS), batch=1)
        error = found["rmse"]
        row: dict[str, Any] = {
            "method": name,
            "rmse": f"{error.value:.3f} [{error.lower:.3f}, {error.upper:.3f}]",
        }
        row["crps"] = f"{found['crps'].value:.3f}"
        row["spread / skill"] = "" if single else f"{found['spread'].value / error.value:.2f}"
        for label, score in (extra or {}).items():
            row[label] = f"{float(score(samples).mean()):.2f}"
        rows.append(row)
    return rows


def filter_rows(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row of scores for each filter, means over truths, the first with its 95 % interval.

    Args:
        results: Results of twin experiments by the name of the row.

    Returns:
        Rows with "method", "rmse" of the mean, "crps", "spread / skill", 90 % "coverage", processor time of one
        step, and where the truth jumps the steps until the sign is recovered.
    """
    rows = []
    for name, result in results.items():
        value, lower, upper = RMSE.interval(result.scores["rmse"].tolist())
        means = {key: float(score.mean()) for key, score in result.scores.items()}
        row: dict[str, Any] = {
            "method": name,
            "rmse": f"{value:.3f} [{lower:.3f}, {upper:.3f}]",
            "crps": f"{means['crps']:.3f}",
            "spread / skill": f"{means['spread_skill']:.2f}",
            "coverage": f"{means['coverage90']:.2f}",
            "ms a step": f"{1000 * means['cpu_seconds']:.2f}",
        }
        note = kernel_note(means.get(KERNEL, 0.0))
        row |= {"kernel": note} if note else {}
        if "recovery" in means:
            row["steps to the sign"] = f"{means['recovery']:.1f}"
        rows.append(row)
    return rows


def density_figure(
    points: Tensor,
    densities: Mapping[str, Tensor],
    truth: Tensor,
    *,
    seen: Tensor | None = None,
    title: str = "",
) -> Figure:
    """Posterior densities of one variable in time, one panel per filter, with truth and observations.

    Args:
        points: Grid points of the densities, evenly spaced, (G).
        densities: Densities (L, G), or members (N, L, 1), shown as their fraction in every cell, by name.
        truth: Truth, (L, 1).
        seen: Observations in units of the variable, (L, 1).
        title: Title of the figure.
    """
    figure = new_figure(8.5, 1.7 * len(densities) + 0.6)
    axes = figure.subplots(len(densities), 1, sharex=True, squeeze=False)[:, 0]
    low, high, length = float(points[0]), float(points[-1]), len(truth)
    for axis, (name, density) in zip(axes, densities.items(), strict=True):
        cells = density if density.ndim == 2 else _shares(density[..., 0], points)
        # each step in units of its own largest value: narrow densities would hide wide ones
        cells = (cells / cells.amax(-1, keepdim=True).clamp(min=1e-300)).sqrt()
        extent = (-0.5, length - 0.5, low, high)
        axis.imshow(cells.mT.numpy(), origin="lower", aspect="auto", cmap="Blues", extent=extent)
        if seen is not None:
            axis.plot(seen[:, 0].numpy(), ".", color=RED_DOT, markersize=3)
        axis.plot(truth[:, 0].numpy(), color=INK, linewidth=0.9)
        axis.set_ylim(low, high)
        axis.set_ylabel(name, fontsize=SMALL)
    axes[-1].set_xlabel("step", fontsize=NOTE)
    heading(figure, title)
    return figure


def _shares(members: Tensor, points: Tensor) -> Tensor:
    """Fraction of members (N, L) in cells of a few grid points, (L, G)."""
    width = (points[-1] - points[0]) / 75
    apart = (members.mT.unsqueeze(-1) - points).abs()
    return (apart < width / 2).to(members).mean(1)


def flow_figure(
    fields: Mapping[str, Tensor], steps: Sequence[int], *, title: str = "", limit: float = 6.0
) -> Figure:
    """Vorticity of velocities, one row per trajectory, one column per step.

    Args:
        fields: Trajectories (L, 2, N, N) by name.
        steps: Shown steps.
        title: Title of the figure.
        limit: Vorticity at the ends of the colours.
    """
    figure = new_figure(1.7 * len(steps) + 1.6, 1.75 * len(fields) + 0.5)
    axes = figure.subplots(len(fields), len(steps), squeeze=False)
    image = None
    for row, (name, x) in zip(axes, fields.items(), strict=True):
        for axis, k in zip(row, steps, strict=True):
            turning = -clockwise_vorticity(x[k]) * x.shape[-1] / (2 * torch.pi)
            # x to the right and y up
            image = axis.imshow(turning.mT.numpy(), origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=SMALL)
    for axis, k in zip(axes[0], steps, strict=True):
        axis.set_title(f"step {k}", fontsize=NOTE)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.4, label="vorticity")
    heading(figure, title)
    return figure
