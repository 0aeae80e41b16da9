"""What a training learnt: findings on validation days, and a note wherever it learnt nothing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.random import fork
from slams.diffusion.denoiser import NetworkDenoiser
from slams.evaluation.intervals import mean_interval
from slams.pipeline.model.calibrate import FACTORS
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import REPLACED
from slams.pipeline.model.spread import WIDEST

KEPT = "kept"
_BLOCK = 15  # days whose windows count as one value of an interval
_DRAWS = 8  # of the noise, for each window
_OVERFIT = 1.5  # loss of the closed form on validation days over that on training days


def judged(
    train: float, validation: float, closed: np.ndarray, corrected: np.ndarray, days: np.ndarray
) -> dict[str, Any]:
    """Whether the network is better than the closed form beyond doubt.

    The gain of the network is the share of the closed form's validation loss that it removes, with a 95 % interval paired
    over blocks of 15 days.

    Args:
        train: Loss of the closed form on training windows.
        validation: The same on validation windows.
        closed: Loss of the closed form in each validation window (m), of the task that the network was trained for.
        corrected: The same with the network.
        days: First day of each validation window, datetime64[D].

    Returns:
        "loss" of the closed form on training and validation windows; "gain" with lower and upper bound; "network",
        `REPLACED` if the interval reaches 0, else `KEPT`, also where there are too few blocks for an interval.
    """
    difference = closed - corrected
    block = (days - days[0]).astype(int) // _BLOCK
    interval = mean_interval([float(difference[block == each].mean()) for each in np.unique(block)])
    gain = [value / float(closed.mean()) for value in interval]
    return {
        "loss": [float(train), float(validation)],
        "gain": [None if math.isnan(value) else value for value in gain],
        "network": REPLACED if gain[1] <= 0 else KEPT,
    }


@torch.no_grad()
def noise_losses(
    denoiser: NetworkDenoiser, windows: Tensor, seed: int, *, corrected: bool = True, rows: int = 0
) -> np.ndarray:
    """Loss of each window (n), over several draws of noise that early stopping has not seen; `rows` at a time."""
    drawn = []
    for draw in range(_DRAWS):
        rng = fork(seed, "gain", draw)
        parts = [
            denoiser.errors(x, rng=rng, corrected=corrected) for x in windows.split(rows or len(windows))
        ]
        drawn.append(torch.cat([part.flatten(1).mean(1) for part in parts]))
    found: np.ndarray = torch.stack(drawn).mean(0).double().cpu().numpy()
    return found


def learning_notes(model: Model, out: Path) -> list[str]:
    """One line for each part of a training that learnt nothing, with what to try.

    Args:
        model: The trained model.
        out: Folder of the run, with history.json.
    """
    prior, recipe = model.prior, model.recipe
    path = out / "history.json"
    history = json.loads(path.read_text()) if path.exists() else {}
    notes = []
    for name, key, instead in (
        ("autoencoder", "latent", "principal components alone, which"),
        ("prior", "prior", "closed-form Gaussian, which"),
    ):
        rows = history.get(name, [])
        if len(rows) > 1 and min(rows, key=lambda row: row[2])[0] == 0:
            notes.append(
                f"training of the {name}: best validation loss at step 0, so that the network is the {instead} training "
                f"did not improve. Try a lower {key}.fit.learning_rate (now {getattr(recipe, key).fit.learning_rate:g}), "
                f"a smaller {key}.hidden, or more training days."
            )
    before, after = model.codec.learning.get("loss", (math.inf, 0.0))
    if after >= before:
        notes.append(
            f"autoencoder: its training raised the reconstruction loss on validation days from {before:.3g} to "
            f"{after:.3g}, so that it is left out: the latent is that of the principal components. Try a smaller "
            "latent.hidden or latent.fit.learning_rate, or more training days."
        )
    notes += _closed_form_notes(model)
    for name, factor in sorted(prior.factors.items()):
        used = any(name in names for names in recipe.experiment.sets.values())
        if used and factor in (FACTORS[0], FACTORS[-1]):
            small = factor == FACTORS[0]
            notes.append(
                f"calibration: the error of {name} is x {factor:g}, the {'lower' if small else 'upper'} end of its grid "
                f"({FACTORS[0]:g} to {FACTORS[-1]:g}). "
                + (
                    f"Its error may be stated too large: try a smaller data.modalities.{name}.error_std, or none."
                    if small
                    else f"The prior does not explain {name}: check its units, gaps and times, and try fewer "
                    "prior.patterns or latent.channels, or more training days."
                )
            )
    factors = prior.inflation if isinstance(prior.inflation, dict) else {"all sets": prior.inflation}
    widest = [label for label, factor in factors.items() if factor >= WIDEST]
    if widest:
        notes.append(
            f"calibration: the spread of {', '.join(widest)} is x {WIDEST:g}, the largest factor allowed, so that draws "
            "remain too narrow. Try more validation days, fewer prior.patterns or a larger prior.shrink."
        )
    return notes


def overfit_note(patterns: int, window: int, days: int, shrink: float, own: float, fresh: float) -> list[str]:
    """A line on a Gaussian with fewer days than coefficients, or 1.5 times the loss on new days; none on another.

    Args:
        patterns: Number of its patterns.
        window: Days of a window.
        days: Number of training days.
        shrink: Its shrinkage.
        own: Its loss on training windows.
        fresh: Its loss on validation windows.
    """
    if days >= patterns * window and fresh <= _OVERFIT * own:
        return []
    few = f", fewer than the {patterns} patterns" if days < patterns else ""
    return [
        f"closed-form Gaussian: {patterns} patterns over {window} days are {patterns * window} coefficients, fitted to "
        f"{days} days{few}; its loss is {fresh:.3g} on validation days and {own:.3g} on training days. Try fewer "
        f"prior.patterns, prior.shrink above {shrink:g} (up to 1), or more training days."
    ]


def _closed_form_notes(model: Model) -> list[str]:
    prior, settings, notes = model.prior, model.recipe.prior, []
    found = prior.learning
    if not found:  # a run of an earlier version
        return []
    shrink = (
        found.get("shrink", settings.shrink) or 0.0
    )  # in runs before it could be chosen, that of the recipe
    notes += overfit_note(
        prior.gaussian.basis.shape[1], settings.window, found["days"], shrink, *found["loss"]
    )
    gain, lower, upper = found["gain"]
    if found["network"] == REPLACED:
        kept = (
            "is kept, as it is your own" if settings.network else "is left out: the prior is the closed form"
        )
        notes.append(
            f"network of the prior: it lowers the closed form's validation loss by {gain:.1%}, and the 95 % interval "
            f"{lower:.1%} to {upper:.1%} reaches 0; it {kept}. Try more training days, more prior.fit.steps or a smaller "
            "prior.hidden."
        )
    elif lower is None:
        notes.append(
            "network of the prior: the validation period is too short to tell whether it improves on the closed form; "
            f"give at least {2 * _BLOCK} days."
        )
    return notes
