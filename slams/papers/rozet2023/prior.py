"""Score priors of trajectories: networks, their training and their weights on disk."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.core.tensorfile import write_tensors
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.loss import denoising_loss
from slams.diffusion.precondition import NoisePrediction
from slams.diffusion.schedule import Schedule, VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.whitened import WhitenedDenoiser
from slams.networks.score_gated import ScoreGated
from slams.networks.score_mlp import ScoreMLP
from slams.networks.score_unet import ScoreUNet
from slams.papers.study import draw_pieces, load_denoiser, stratified_times, train_denoiser
from slams.training.fit import History


@dataclass(frozen=True)
class NetSettings:
    """Settings of a score network and of its training.

    Attributes:
        kind: Receptive field: "local", windows of 2 `order` + 1 states, or "global", neighbouring windows too.
        order: Order k of the windows.
        width: Features of a `ScoreGated` network, or the widths of the published one.
        gates: Number of products in a block of it.
        dilations: Dilation of each block; all 0 in a local network.
        published: Whether to use the published networks, `ScoreMLP` of five layers of `width` and `ScoreUNet`
            of one level, which predict the noise; without, networks correct the Gaussian of the windows, see
            `WhitenedDenoiser`.
        steps: Number of training steps.
        batch: Trajectories or windows per step.
        span: Length of the training trajectories of a global network.
        learning_rate: Peak learning rate.
        ratios: Bounds on sigma / alpha at training times.
        ema: Decay of the averaged weights.
        seed: Seed of weights, batches, times and noise.
    """

    kind: Literal["local", "global"] = "local"
    order: int = 4
    width: int = 96
    gates: int = 128
    dilations: Sequence[int] = (0, 0, 0, 0, 0)
    published: bool = False
    steps: int = 10_000
    batch: int = 512
    span: int = 32
    learning_rate: float = 1e-3
    ratios: Sequence[float] = (2e-3, 60.0)
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("local", "global") or self.order < 1:
            raise InvalidValueError(
                f"a network must be local or global and of order 1 or more; got {self.kind!r}, {self.order}."
            )
        if not 0 < self.ratios[0] < self.ratios[1]:
            raise InvalidValueError(f"ratios must be two positive, increasing numbers; got {self.ratios}.")
        if self.kind == "local" and any(self.dilations):
            raise InvalidValueError(
                f"windows of a local network are independent: its dilations must be 0, got {self.dilations}."
            )

    @property
    def window(self) -> int:
        """Steps of a window."""
        return 2 * self.order + 1

    @property
    def span_trained(self) -> int:
        """Number of steps of one item of a training batch."""
        return self.window if self.kind == "local" else self.span


def build(net: NetSettings, mean: Tensor, covariance: Tensor, schedule: Schedule | None = None) -> Denoiser:
    """An untrained denoiser of trajectories (N, T, *Z) of any length T >= 2 k + 1.

    Args:
        net: Settings of the network.
        mean: Mean of windows, (2 k + 1, *Z).
        covariance: Covariance of windows, (n, n).
        schedule: Noise schedule; SDA's cosine if None.
    """
    schedule = schedule or VPCosine()
    trained = (net.ratios[0], net.ratios[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net.seed)
        network: nn.Module
        if not net.published:
            network = ScoreGated(mean.numel(), width=net.width, gates=net.gates, dilations=net.dilations)
            return MarkovBlanket(
                WhitenedDenoiser(network, mean, covariance, schedule, trained=trained), net.window
            )
        if net.kind == "local":
            network = ScoreMLP(net.window, mean.shape[1:], hidden=(net.width,) * 5)
            return MarkovBlanket(NoisePrediction(network, schedule), net.window)
        network = ScoreUNet(mean.shape[1:], hidden=(net.width,))
        return NoisePrediction(network, schedule)


def moments(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mean (L, *Z) and covariance (n, n) of the windows of trajectories (b, T, *Z)."""
    windows = x.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1)
    size, count = windows[0].numel(), len(windows)
    total, square = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for part in windows.split(65536):
        flat = part.flatten(1).double()
        total, square = total + flat.sum(0), square + flat.mT @ flat
    mean = total / count
    covariance = square / count - mean[:, None] * mean
    return mean.reshape(windows.shape[1:]).to(x), covariance


def train_net(
    net: NetSettings,
    data: dict[str, Tensor],
    checkpoint: Path | None = None,
    *,
    name: str = "net",
    console: Console | None = None,
) -> tuple[Denoiser, History]:
    """Train a network on normalised trajectories; an interrupted run resumes from its checkpoint.

    Times are spread evenly over log(sigma / alpha), stratified in each batch, and the error is that of the noise: the
    mean is then the likelihood's bound, up to a constant.

    Args:
        net: Settings of the network and of its training.
        data: Trajectories of "train" and "valid", (b, T, *Z).
        checkpoint: File of the resume state.
        name: Name in messages and in the seeds of random draws.
        console: Console for the progress.
    """
    denoiser = build(net, *moments(data["train"], net.window))
    low, high = (math.log(ratio) for ratio in net.ratios)

    def times(rows: int, rng: torch.Generator) -> Tensor:
        return stratified_times(denoiser.schedule, low, high, rows, rng)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        x = draw_pieces(data["train"], net.batch, net.span_trained, rng)
        return denoising_loss(module, x, times=times(len(x), rng), rng=rng)  # type: ignore[arg-type]

    fixed = draw_pieces(
        data["valid"], 65536 // net.span_trained // 8, net.span_trained, fork(net.seed, "valid")
    )

    @torch.no_grad()
    def validate(module: nn.Module) -> float:
        rng = fork(net.seed, "validation noise")
        return float(denoising_loss(module, fixed, times=times(len(fixed), rng), rng=rng))  # type: ignore[arg-type]

    history = train_denoiser(denoiser, loss, validate, net, name=name, checkpoint=checkpoint, console=console)
    return denoiser, history


def save_net(path: Path, net: NetSettings, denoiser: Denoiser, **facts: Any) -> None:
    """Weights, with settings and facts (numbers and words) in the metadata."""
    write_tensors(path, denoiser.state_dict(), {"net": dataclasses.asdict(net), **facts})


def load_net(path: Path, channels: int = 3) -> tuple[Denoiser, dict[str, Any]]:
    """A trained denoiser of trajectories, and the facts in its file.

    Args:
        path: File of `save_net`.
        channels: Number of channels of a state.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fit the settings in the file.
    """

    def make(tensors: dict[str, Tensor], settings: Any) -> Denoiser:
        net = NetSettings(**settings)
        denoiser = build(net, torch.zeros(net.window, channels), torch.eye(net.window * channels))
        denoiser.load_state_dict(tensors)
        return denoiser

    return load_denoiser(path, make)
