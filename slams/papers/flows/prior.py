"""Score priors of Kolmogorov flows: networks, their training and their weights on disk."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.random import fork, normal
from slams.core.tensorfile import read_tensors, write_tensors
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.precondition import NoisePrediction
from slams.diffusion.schedule import VPCosine
from slams.diffusion.solenoidal import FlowCovariance, FlowMoments, flow_moments
from slams.diffusion.solenoidal_denoiser import SolenoidalDenoiser
from slams.diffusion.trajectory import MarkovBlanket
from slams.networks.score_flow import FlowUNet
from slams.networks.score_unet import ScoreUNet, forcing_map
from slams.papers.study import draw_pieces, load_denoiser, stratified_times, train_denoiser
from slams.training.fit import History

RATIOS = (5e-3, 50.0)  # sigma / alpha between which training times lie
WAVES = 4  # of the force along y: fields a quarter turn apart are alike


@dataclass(frozen=True)
class FlowNet:
    """Settings of a score network of windows of velocities and of its training.

    Attributes:
        order: Order k; windows have 2 k + 1 states.
        size: Cells along a side.
        hidden: Channels of each level; empty for the Gaussian alone.
        blocks: Residual blocks of each level, on the way down and on the way up.
        patch: Cells along the side of a patch of the first level.
        embedding: Number of features of diffusion time.
        published: Whether to use the published network, which predicts the noise from the noisy velocities and
            the force: channels (96, 192, 384), 3 blocks a level, 22.9 million parameters.
        lags: Number of states in the kept covariance, for guidance of longer trajectories.
        steps: Number of training steps.
        batch: Windows per step.
        learning_rate: Peak learning rate.
        ema: Decay of the averaged weights.
        balance: Weighting of noise levels, from 0, equal in the error of the noise, to 1, relative to the Gaussian's.
        seed: Seed of weights, batches, times and noise.
    """

    order: int = 2
    size: int = 64
    hidden: Sequence[int] = (40, 80, 96)
    blocks: Sequence[int] = (1, 2, 2)
    patch: int = 2
    embedding: int = 32
    published: bool = False
    lags: int = 12
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 1.5e-3
    ema: float = 0.995
    balance: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order < 1 or self.lags < self.window:
            raise InvalidValueError(
                f"a network needs order >= 1 and a covariance of at least a window of states; got {self.order} and "
                f"{self.lags} states."
            )

    @property
    def window(self) -> int:
        """Steps of a window."""
        return 2 * self.order + 1


def build(net: FlowNet, moments: FlowMoments) -> Denoiser:
    """An untrained denoiser of trajectories (N, T, 2, size, size) of any length T >= 2 k + 1.

    Args:
        net: Settings of the network.
        moments: Moments of `net.lags` states.
    """
    schedule = VPCosine()
    network: nn.Module | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net.seed)
        if net.published:
            network = ScoreUNet(
                (2, net.size, net.size),
                length=net.window,
                hidden=(96, 192, 384),
                padding="circular",
                embedding=64,
                maps=forcing_map(net.size),
            )
            return MarkovBlanket(NoisePrediction(network, schedule), net.window)
        if net.hidden:
            network = FlowUNet(
                net.size,
                net.window,
                hidden=net.hidden,
                blocks=net.blocks,
                patch=net.patch,
                embedding=net.embedding,
            )
    covariance = FlowCovariance(moments, net.window)
    return MarkovBlanket(
        SolenoidalDenoiser(network, moments.mean, covariance, schedule, trained=RATIOS), net.window
    )


def moments_of(x: Tensor, lags: int) -> FlowMoments:
    """Mean velocity, by symmetry u as a function of y, and covariances of `lags` states.

    Args:
        x: Velocities (n, T, 2, N, N).
        lags: Number of states.
    """
    profile = x[:, :, 0].double().mean((0, 1, 2)).reshape(WAVES, 2, -1).mean(0)
    wave = (profile[0] - profile[1]) / 2  # half a wave on, all is mirrored
    wave = (wave + wave.flip(0)) / 2
    mean = torch.zeros_like(x[0, 0])
    mean[0] = torch.cat([wave, -wave]).repeat(WAVES).to(x)
    return flow_moments(x, mean, lags)


def symmetric(x: Tensor, rng: torch.Generator) -> Tensor:
    """Equally likely fields: each shifted, mirrored and rotated at random.

    The force sin(4 y) along x allows any shift along x, shifts of a quarter turn along y, half a turn of the plane, and
    (u, v)(x, y) -> (-u, v)(-x, y + 1/8 turn).

    Args:
        x: Velocities (b, *S, 2, N, N), N a multiple of 8.
        rng: Generator of the random transformations.
    """
    size = x.shape[-1]
    draws = torch.stack([torch.randint(n, (len(x),), generator=rng) for n in (size, WAVES, 2, 2)], 1).tolist()
    moved = []
    for field, (shift, quarter, turned, mirrored) in zip(x, draws, strict=True):
        y = quarter * size // WAVES
        if turned:
            field = -field.flip(-1, -2)
        if mirrored:
            field = field.flip(-2) * field.new_tensor([-1.0, 1.0])[:, None, None]
            y += size // (2 * WAVES)
        moved.append(field.roll((shift, y), (-2, -1)))
    return torch.stack(moved)


class FlowObjective:
    """Error of the noise at times uniform in log(sigma / alpha), see `FlowNet.balance`.

    Args:
        net: Settings of the network.
        moments: Moments of the Gaussian with the expected error.
    """

    def __init__(self, net: FlowNet, moments: FlowMoments) -> None:
        self.balance = net.balance
        self.schedule = VPCosine()
        values = FlowCovariance(moments, net.window, torch.float64).values
        values = torch.cat([values, values[:, 1:-1]], 1).flatten()
        self.values = torch.cat(
            [values[values > 0], values.new_full((2 * len(values) - int((values > 0).sum()),), moments.rest)]
        )

    def gaussian(self, t: Tensor) -> Tensor:
        """Expected mean squared error of the noise under the Gaussian, shape of t."""
        alpha, sigma = (v.double().reshape(-1, 1) for v in self.schedule(t))
        share = (alpha**2 * self.values / (alpha**2 * self.values + sigma**2)).mean(1)
        return share.reshape(t.shape).to(t)

    def times(self, rows: int, rng: torch.Generator) -> Tensor:
        """One in each of `rows` intervals, (rows)."""
        low, high = torch.tensor(RATIOS).log().tolist()
        return stratified_times(self.schedule, low, high, rows, rng)

    def errors(self, denoiser: nn.Module, x: Tensor, times: Tensor, rng: torch.Generator) -> Tensor:
        """Mean squared error of the noise of each window, (b)."""
        t = times.to(x).reshape(-1, *([1] * (x.ndim - 1)))
        alpha, sigma = self.schedule(t)
        noisy = alpha * x + sigma * normal(x.shape, like=x, rng=rng)
        return ((alpha / sigma) * (denoiser(noisy, t) - x)).square().flatten(1).mean(1)

    def __call__(self, denoiser: nn.Module, x: Tensor, rng: torch.Generator) -> Tensor:
        """Loss, a scalar; about 1 for the Gaussian where `balance` is 1."""
        times = self.times(len(x), rng).to(x)
        weight = self.gaussian(times) ** -self.balance
        return (weight * self.errors(denoiser, x, times, rng)).mean()


def train_prior(
    net: FlowNet,
    data: dict[str, Tensor],
    checkpoint: Path | None = None,
    *,
    name: str = "net",
    console: Console | None = None,
    snapshot: Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Denoiser, FlowMoments, History]:
    """Train a network on velocities; an interrupted run resumes from its checkpoint.

    Args:
        net: Settings of the network and of its training.
        data: Velocities of "train" and "valid", (n, T, 2, size, size).
        checkpoint: File of the resume state.
        name: Name in messages and in the seeds of random draws.
        console: Console for the progress.
        snapshot: File of the averaged weights, written at each validation.
        device: Device of the training.

    Returns:
        The denoiser, the tensors to save with it, and the losses.
    """
    moments = moments_of(data["train"], net.lags)
    denoiser = build(net, moments).to(device)
    objective = FlowObjective(net, moments)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        x = symmetric(draw_pieces(data["train"], net.batch, net.window, rng), rng)
        return objective(module, x.to(device), rng)

    fixed = draw_pieces(data["valid"], 64, net.window, fork(net.seed, "valid"))

    @torch.no_grad()
    def validate(module: nn.Module) -> float:
        value = sum(
            float(objective(module, part.to(device), fork(net.seed, "validation", i)))
            for i, part in enumerate(fixed.split(16))
        )
        if snapshot is not None:
            save_prior(snapshot, net, module, moments, valid=value / 4)
        return value / 4

    history = train_denoiser(denoiser, loss, validate, net, name=name, checkpoint=checkpoint, console=console)
    return denoiser, moments, history


@torch.no_grad()
def share_of_gaussian(
    net: FlowNet,
    denoiser: Denoiser,
    moments: FlowMoments,
    x: Tensor,
    *,
    ratios: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
) -> dict[float, float]:
    """Mean squared error of a network relative to the Gaussian's on the same noise.

    Args:
        net: Settings of the network.
        denoiser: Trained denoiser.
        moments: Moments of the Gaussian.
        x: Velocities outside the training data, (n, T, 2, size, size); one window of each is used.
        ratios: Noise levels sigma / alpha.

    Returns:
        Ratios by noise level.
    """
    gaussian = build(dataclasses.replace(net, hidden=(), published=False), moments)
    objective = FlowObjective(net, moments)
    windows = draw_pieces(x, 32, net.window, fork(net.seed, "share"))
    shares = {}
    for ratio in ratios:
        time = objective.schedule.time(torch.tensor(1 / ratio)).expand(len(windows))
        errors = [
            float(objective.errors(d, windows, time, fork(net.seed, "share", str(ratio))).mean())
            for d in (denoiser, gaussian)
        ]
        shares[ratio] = errors[0] / errors[1]
    return shares


def save_prior(path: Path, net: FlowNet, denoiser: nn.Module, moments: FlowMoments, **facts: Any) -> None:
    """Weights in half precision and moments, with settings and facts (numbers and words) in the metadata."""
    tensors = {name: value.detach().cpu().half() for name, value in denoiser.state_dict().items()}
    rows, columns = torch.triu_indices(net.lags, net.lags)
    tensors |= {
        "moments.mean": moments.mean[0, 0],
        "moments.covariance": moments.quarter[:, :, rows, columns],
        "moments.rest": torch.tensor(moments.rest, dtype=torch.float64),
    }
    write_tensors(path, tensors, {"net": dataclasses.asdict(net), **facts})


def load_prior(path: Path) -> tuple[Denoiser, dict[str, Any]]:
    """A trained denoiser of trajectories (N, T, 2, size, size), and the facts in its file.

    Args:
        path: File of `save_prior`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fit the settings in the file.
    """

    def make(tensors: dict[str, Tensor], settings: Any) -> Denoiser:
        net = FlowNet(**settings)
        denoiser = build(net, _moments(tensors, net))
        denoiser.load_state_dict({k: v.float() for k, v in tensors.items() if not k.startswith("moments.")})
        return denoiser

    return load_denoiser(path, make)


def load_covariance(path: Path, length: int) -> FlowCovariance:
    """Covariance of trajectories for the guidance of a trained denoiser.

    Args:
        path: File of `save_prior`.
        length: Length of the trajectories.
    """
    tensors, meta = read_tensors(path, remedy="train it with --train, or check the path")
    return FlowCovariance(_moments(tensors, FlowNet(**meta["net"])), length)


def _moments(tensors: dict[str, Tensor], net: FlowNet) -> FlowMoments:
    rows, columns = torch.triu_indices(net.lags, net.lags)
    upper = tensors["moments.covariance"]
    quarter = upper.new_zeros(*upper.shape[:2], net.lags, net.lags)
    quarter[:, :, rows, columns] = upper
    quarter[:, :, columns, rows] = upper
    mean = torch.zeros(2, net.size, net.size)
    mean[0] = tensors["moments.mean"]
    return FlowMoments(mean, quarter, float(tensors["moments.rest"]))
