"""The generative model of Lorenz-96 states given observations: network, training and weights on disk."""

import dataclasses
import functools
import math
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
from slams.diffusion.conditional import Encoded, context_of
from slams.diffusion.pseudo_ensemble import PseudoEnsemble
from slams.diffusion.schedule import VPCosine
from slams.networks.observed_unet import ObservedUNet
from slams.systems.lorenz import Lorenz96
from slams.training.fit import FitSettings, History, fit

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "asahi2023_l96"
FILE = "generator.safetensors"
FORCING, DT, NOISE = 8.0, 0.05, 1.0  # of the runs trained on and of what is observed of them
SPINUP = 400
FORGETTING = 0.85  # weight of an observation a step later, roughly; it only balances the loss


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of a generative model of the newest state given observations of it and of earlier states.

    Attributes:
        size: Number of sites.
        memory: Largest number m of observed times.
        features: Number of channels of the encoded observations.
        encoder: Channels of each level of the encoding network.
        hidden: Channels of each level of the denoising network.
        blocks: Residual blocks of each level, on the way down and on the way up.
        runs: Number of independent training runs.
        length: Number of states of each run.
        steps: Number of training steps.
        batch: Windows per step.
        draws: Number of noise levels per window and step.
        learning_rate: Peak learning rate.
        ema: Decay of the averaged weights.
        ratios: Bounds on sigma / alpha at training times.
        seed: Seed of runs, weights, batches, masks, times and noise.
    """

    size: int = 40
    memory: int = 16
    features: int = 32
    encoder: Sequence[int] = (64, 96, 128)
    hidden: Sequence[int] = (32, 48, 64)
    blocks: int = 1
    runs: int = 512
    length: int = 1500
    steps: int = 18_500
    batch: int = 96
    draws: int = 2
    learning_rate: float = 1.5e-3
    ema: float = 0.999
    ratios: Sequence[float] = (0.02, 30.0)
    seed: int = 0


def build(net: GeneratorSettings) -> Encoded:
    """An untrained family of denoisers of standardised states (*B, size)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net.seed)
        network = ObservedUNet(
            net.size,
            net.memory,
            features=net.features,
            encoder=net.encoder,
            hidden=net.hidden,
            blocks=net.blocks,
        )
        return Encoded(network, VPCosine(), trained=(net.ratios[0], net.ratios[1]))


def states(net: GeneratorSettings, runs: int, length: int, label: str, *, forcing: float = FORCING) -> Tensor:
    """Runs on the attractor, (runs, length, size).

    Args:
        net: Settings with size and seed.
        runs: Number of runs.
        length: Number of states of each run.
        label: Label of the random stream; runs of two labels are independent.
        forcing: Forcing F of the runs.
    """
    system = Lorenz96(net.size, forcing, DT)
    x = forcing / 4 + normal((runs, net.size), rng=fork(net.seed, "states", label))
    for _ in range(SPINUP):
        x = system(x)
    return system.trajectory(x, length - 1)


def windows(x: Tensor, count: int, memory: int, rng: torch.Generator) -> Tensor:
    """Random windows of runs, newest state first, each rotated by a random shift: (count, memory, d)."""
    rows = torch.randint(len(x), (count, 1, 1), generator=rng)
    newest = torch.randint(memory - 1, x.shape[1], (count, 1, 1), generator=rng)
    turn = torch.randint(x.shape[2], (count, 1, 1), generator=rng)
    sites = (torch.arange(x.shape[2]) + turn) % x.shape[2]
    return x[rows, newest - torch.arange(memory)[:, None], sites]


def masks(count: int, memory: int, size: int, rng: torch.Generator) -> Tensor:
    """Masks of given observations, (count, memory, size): strides 1, 2 and 4, times of five kinds.

    A quarter of the networks misses up to half of its values at random. Of the times are given, in equal parts but for
    the last: the newest few, the newest alone, all but the newest of a few, each by chance; and none for an eighth.
    """
    stride = 2 ** torch.randint(3, (count, 1, 1), generator=rng)
    offset = torch.randint(4, (count, 1, 1), generator=rng)
    network = (torch.arange(size) + offset) % stride == 0
    share = torch.rand(count, 1, 1, generator=rng)
    missing = torch.where(share < 0.25, 2 * share, 0.0)
    kept = torch.rand(count, memory, size, generator=rng) >= missing
    # the number of times is even in its logarithm: few are as common as many
    few = torch.exp(math.log(memory) * torch.rand(count, 1, generator=rng)).round().long()
    few = torch.where(torch.rand(count, 1, generator=rng) < 0.4, memory, few)
    age = torch.arange(memory)
    kinds = torch.stack(
        [
            age < few,
            (age < 1).expand(count, -1),
            (age > 0) & (age < few + 1),
            torch.rand(count, memory, generator=rng) < torch.rand(count, 1, generator=rng),
            torch.zeros(count, memory, dtype=torch.bool),
        ],
        1,
    )
    kind = torch.multinomial(torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0]), count, replacement=True, generator=rng)
    times = kinds[torch.arange(count), kind]
    return network & kept & times.unsqueeze(-1)


class GeneratorObjective:
    """Squared error of x at noise levels uniform in log(sigma / alpha), relative to an estimate of its optimum.

    The estimate is 1 / (1 / v + alpha^2 / sigma^2) with the variance v given observations weighted by `FORGETTING` per
    step of age; it is approximate and balances the kinds of observations.

    Args:
        net: Settings of the model.
        mean: Mean of the states.
        scale: Standard deviation of the states.
    """

    def __init__(self, net: GeneratorSettings, mean: float, scale: float) -> None:
        self.net = net
        self.mean = mean
        self.scale = scale
        self.schedule = VPCosine()

    def __call__(self, denoiser: Encoded, x: Tensor, seen: Tensor, rng: torch.Generator) -> Tensor:
        """Mean error of the newest state given the observations, over windows (b, m, d), newest first."""
        return self.errors(denoiser, x, seen, rng).mean()

    def errors(self, denoiser: Encoded, x: Tensor, seen: Tensor, rng: torch.Generator) -> Tensor:
        """Errors of each window and noise level, (b, draws)."""
        z = (x - self.mean) / self.scale
        noisy = z + NOISE / self.scale * normal(z.shape, like=z, rng=rng)
        context = context_of(noisy, seen, self.net.memory)
        levels = self._times(len(x), rng)[..., None]
        alpha, sigma = self.schedule(levels)
        clean = z[:, None, 0].expand(-1, self.net.draws, -1)
        x_t = alpha * clean + sigma * normal(clean.shape, like=clean, rng=rng)
        error = (denoiser.given(context.unsqueeze(1))(x_t, levels) - clean).square().mean(-1)
        weight = FORGETTING ** torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        given = (seen * weight).sum(1) * (self.scale / NOISE) ** 2
        # sites on their own, and all of them sharing what is known: the truth lies between
        left = ((1 / (1 + given)).mean(-1) / (1 + given.mean(-1))).sqrt()
        return error * (1 / left[:, None] + (alpha / sigma).squeeze(-1) ** 2)

    def _times(self, rows: int, rng: torch.Generator) -> Tensor:
        """Times stratified for each window, (rows, draws)."""
        low, high = (math.log(ratio) for ratio in self.net.ratios)
        place = torch.arange(self.net.draws) + torch.rand(rows, self.net.draws, generator=rng)
        return self.schedule.time(torch.exp(-(low + (high - low) * place / self.net.draws)))


def train_generator(
    folder: Path,
    net: GeneratorSettings | None = None,
    console: Console | None = None,
) -> PseudoEnsemble:
    """Train the model; an interrupted run resumes from its checkpoint in `folder`, beside the weights.

    Args:
        folder: Folder of the checkpoint and of the weights, written at each validation.
        net: Settings of the model and of its training.
        console: Console for the progress.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    net, console = net or GeneratorSettings(), console or Console(quiet=True)
    folder.mkdir(parents=True, exist_ok=True)
    data = states(net, net.runs, net.length, "train")
    mean, scale = float(data.mean()), float(data.std())
    denoiser, objective = build(net), GeneratorObjective(net, mean, scale)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        x = windows(data, net.batch, net.memory, rng)
        return objective(module, x, masks(net.batch, net.memory, net.size, rng), rng)  # type: ignore[arg-type]

    rng = fork(net.seed, "validation windows")
    count = min(512, 16 * net.batch)
    validation = windows(states(net, 64, 200, "valid"), count, net.memory, rng)
    seen = masks(count, net.memory, net.size, rng)

    @torch.no_grad()
    def validate(module: nn.Module) -> float:
        value = float(objective(module, validation, seen, fork(net.seed, "validation noise")))  # type: ignore[arg-type]
        save_generator(folder / FILE, net, module, mean, scale, valid=value)
        return value

    settings = FitSettings(
        net.steps,
        net.batch,
        net.learning_rate,
        weight_decay=1e-3,
        ema=net.ema,
        clip=1.0,
        every=max(net.steps // 40, 1),
    )
    with console.bar("train generator", net.steps) as advance:
        history = fit(
            denoiser,
            loss,
            validate,
            settings,
            seed=net.seed,
            name="generator",
            checkpoint=folder / "generator.pt",
            progress=advance,
        )
    save_generator(folder / FILE, net, denoiser, mean, scale, valid=history.best, **_facts(history))
    return load_generator(folder / FILE)


def _facts(history: History) -> dict[str, Any]:
    return {"best_step": history.best_step, "untrained": history.rows[0][2]}


def save_generator(
    path: Path, net: GeneratorSettings, denoiser: nn.Module, mean: float, scale: float, **facts: Any
) -> None:
    """Weights in half precision, with settings and facts (numbers and words) in the metadata."""
    tensors = {name: value.detach().cpu().half() for name, value in denoiser.state_dict().items()}
    write_tensors(path, tensors, {"net": dataclasses.asdict(net), "mean": mean, "scale": scale, **facts})


def load_generator(path: Path | None = None, **settings: Any) -> PseudoEnsemble:
    """Pseudo-ensembles of the trained model; weights are read once.

    Args:
        path: File of `save_generator`; the shipped weights if None.
        settings: Settings of `PseudoEnsemble`, such as steps, eta, guidance, depth and mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fit the settings in the file.
    """
    path = path or WEIGHTS / FILE
    denoiser, meta = _read(path, path.stat().st_mtime_ns if path.exists() else 0)
    memory = int(meta["net"]["memory"])
    return PseudoEnsemble(denoiser, mean=meta["mean"], scale=meta["scale"], memory=memory, **settings)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> tuple[Encoded, dict[str, Any]]:
    tensors, meta = read_tensors(path, remedy="train it with --train, or check the path")
    try:
        denoiser = build(GeneratorSettings(**meta["net"]))
        denoiser.load_state_dict({name: value.float() for name, value in tensors.items()})
        float(meta["mean"]), float(meta["scale"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise InvalidValueError(
            f"{path} holds weights that do not fit its settings ({error}); restore it or train again."
        ) from error
    return denoiser.eval().requires_grad_(False), meta
