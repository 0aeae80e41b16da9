"""A training loop that resumes from its last checkpoint with identical results."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from slams.core.errors import NonFiniteError
from slams.core.files import atomic
from slams.core.random import fork


@dataclass(frozen=True)
class FitSettings:
    """Settings of the optimization.

    Attributes:
        steps: Number of optimizer steps.
        batch: Batch size.
        learning_rate: Peak rate of AdamW: linear warm-up over 2 % of the steps, then a cosine to zero.
        weight_decay: Weight decay of AdamW.
        ema: Decay per step of the exponential moving average of the weights; 0 for the last weights.
        clip: Largest norm of the gradient.
        every: Interval of validations and checkpoints [steps].
        patience: Number of validations without improvement before stopping; 0 for no early stopping.
    """

    steps: int = 1000
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    ema: float = 0.995
    clip: float = 1.0
    every: int = 100
    patience: int = 0


@dataclass
class History:
    """Losses along a training run: rows of (step, training loss, validation loss)."""

    rows: list[tuple[int, float, float]] = field(default_factory=list)
    best_step: int = 0
    best: float = math.inf


def fit(
    module: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    validate: Callable[[nn.Module], float],
    settings: FitSettings,
    *,
    seed: int,
    name: str,
    checkpoint: Path | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> History:
    """Train in place; the module ends with the averaged weights of the best validation.

    Every step draws from its own generator, made from the seed and the step's number, so that a run resumed
    from its last saved state is bit-identical to an uninterrupted run on the same machine.

    Args:
        module: Module to train.
        loss: Function (module, generator) -> scalar that draws its own batch.
        validate: Deterministic function module -> score, lower is better.
        settings: Settings of the optimization.
        seed: Seed of the run.
        name: Name of the module, for messages and the generator.
        checkpoint: File of the checkpoint; none is written if None.
        progress: Callback of (steps done, message).

    Returns:
        The losses.

    Raises:
        FloatingPointError: If a loss is not finite. The best weights so far are then in the module, and the
            last saved state in the checkpoint.
    """
    progress = progress or _silent
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = copy.deepcopy(module).eval()
    best = copy.deepcopy(module.state_dict())
    history, start, stale, running = History(), 0, 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        best, start, stale = state["best"], state["step"], state["stale"]
        history = History([tuple(row) for row in state["rows"]], state["best_step"], state["best_score"])
    if start == 0 and not history.rows:
        history.best = validate(average)
        history.rows.append((0, math.nan, history.best))
    done = bool(settings.patience) and stale >= settings.patience
    for step in range(start, 0 if done else settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        value = loss(module.train(), fork(seed, name, step))
        if not bool(torch.isfinite(value)):
            module.load_state_dict(best)
            raise _not_finite(float(value.detach()), step, settings, name, history)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        _follow(average, module, min(settings.ema, (1 + step) / (10 + step)) if settings.ema else 0.0)
        running += float(value.detach())
        progress(1, "")
        if (step + 1) % settings.every == 0 or step + 1 == settings.steps:
            score = validate(average)
            span = (step % settings.every) + 1
            history.rows.append((step + 1, running / span, score))
            running = 0.0
            stale += 1
            if score < history.best:
                history.best, history.best_step, stale = score, step + 1, 0
                best = copy.deepcopy(average.state_dict())
            progress(0, f"{history.rows[-1][1]:.4f} / {score:.4f}")
            if checkpoint is not None:
                _save(checkpoint, module, average, optimiser, best, step + 1, stale, history)
            if settings.patience and stale >= settings.patience:
                break
    module.load_state_dict(best)
    module.eval()
    progress(0, f"best {history.best:.4f} at step {history.best_step}")
    return history


def _silent(units: int, message: str) -> None:
    pass


def _not_finite(
    value: float, step: int, settings: FitSettings, name: str, history: History
) -> NonFiniteError:
    return NonFiniteError(
        f"training of the {name} met the loss {value} at step {step + 1} of {settings.steps}; the weights of step "
        f"{history.best_step} are kept. Lower the learning rate (now {settings.learning_rate:g}) or check the data for "
        "absurd values."
    )


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 50)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
    for slow_layer, fast_layer in zip(average.modules(), module.modules(), strict=True):
        if isinstance(fast_layer, nn.BatchNorm2d):  # running statistics of batch normalization are buffers
            for kept, seen in zip(slow_layer.buffers(), fast_layer.buffers(), strict=True):
                kept.copy_(seen)


def _save(
    path: Path,
    module: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    step: int,
    stale: int,
    history: History,
) -> None:
    state = {
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "best": best,
        "step": step,
        "stale": stale,
        "rows": [list(row) for row in history.rows],
        "best_step": history.best_step,
        "best_score": history.best,
    }
    with atomic(path) as temporary:
        torch.save(state, temporary)
