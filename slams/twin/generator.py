"""The generative model of Lorenz-96 states given observations: what it is, how it is trained and kept."""

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
    """A generative model of the newest state given observations of it and of the states before.

    Attributes:
        size: Sites.
        memory: m, times observed at most.
        features: Channels that the observations are made into.
        encoder: Channels of each level of the network that does so.
        hidden: Channels of each level of the network that denoises.
        blocks: Residual blocks of each level, down and again up.
        runs: Independent runs trained on.
        length: States of each.
        steps: Training steps.
        batch: Windows a step.
        draws: Noise levels at which each window is denoised in a step.
        learning_rate: Peak of it.
        ema: Decay of the averaged weights.
        ratios: sigma / alpha between which training times lie.
        seed: Of runs, weights, batches, masks, times and noise.
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
        net: Size and seed.
        runs: How many.
        length: States of each.
        label: Of the random numbers: runs of two labels have nothing in common.
        forcing: F of the runs.
    """
    system = Lorenz96(net.size, forcing, DT)
    x = forcing / 4 + normal((runs, net.size), rng=fork(net.seed, "states", label))
    for _ in range(SPINUP):
        x = system(x)
    return system.trajectory(x, length - 1)


def windows(x: Tensor, count: int, memory: int, rng: torch.Generator) -> Tensor:
    """Random windows of runs, newest state first, each turned by a random angle: (count, memory, d)."""
    rows = torch.randint(len(x), (count, 1, 1), generator=rng)
    newest = torch.randint(memory - 1, x.shape[1], (count, 1, 1), generator=rng)
    turn = torch.randint(x.shape[2], (count, 1, 1), generator=rng)
    sites = (torch.arange(x.shape[2]) + turn) % x.shape[2]
    return x[rows, newest - torch.arange(memory)[:, None], sites]


def masks(count: int, memory: int, size: int, rng: torch.Generator) -> Tensor:
    """Which observations are given, (count, memory, size): networks of strides 1, 2 and 4, times of five kinds.

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
    """Squared error of x at noise levels even in log(sigma / alpha), over a guess of what can be reached.

    The guess is 1 / (1 / v + alpha^2 / sigma^2) with the variance v left by observations that forget by `FORGETTING` a
    step; it is wrong by up to a few times and lets no kind of observations drown the others.

    Args:
        net: What is trained.
        mean: Of the states.
        scale: Their standard deviation.
    """

    def __init__(self, net: GeneratorSettings, mean: float, scale: float) -> None:
        self.net = net
        self.mean = mean
        self.scale = scale
        self.schedule = VPCosine()

    def __call__(self, denoiser: Encoded, x: Tensor, seen: Tensor, rng: torch.Generator) -> Tensor:
        """Mean over windows (b, m, d), newest first, of the error of the newest state given what is seen."""
        return self.errors(denoiser, x, seen, rng).mean()

    def errors(self, denoiser: Encoded, x: Tensor, seen: Tensor, rng: torch.Generator) -> Tensor:
        """Of each window and noise level, (b, draws)."""
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
        """Stratified for each window, (rows, draws)."""
        low, high = (math.log(ratio) for ratio in self.net.ratios)
        place = torch.arange(self.net.draws) + torch.rand(rows, self.net.draws, generator=rng)
        return self.schedule.time(torch.exp(-(low + (high - low) * place / self.net.draws)))


def train_generator(
    folder: Path,
    net: GeneratorSettings | None = None,
    console: Console | None = None,
) -> PseudoEnsemble:
    """Train the model anew; a killed run goes on from its checkpoint in `folder`, where the weights end up too.

    Args:
        folder: Of the checkpoint and of the weights, written at each validation.
        net: What and how.
        console: Where progress is shown.

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
    held = windows(states(net, 64, 200, "valid"), count, net.memory, rng)
    seen = masks(count, net.memory, net.size, rng)

    @torch.no_grad()
    def validate(module: nn.Module) -> float:
        value = float(objective(module, held, seen, fork(net.seed, "validation noise")))  # type: ignore[arg-type]
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
        path: Written by `save_generator`; the weights that are shipped if None.
        settings: Of `PseudoEnsemble`, such as steps, eta, guidance, depth and mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds other weights than its settings ask for.
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
        raise ValueError(
            f"{path} does not hold the weights that its settings ask for ({error}); restore it or train again."
        ) from error
    return denoiser.eval().requires_grad_(False), meta
