"""Choice between conditional and guided draws, on validation days."""

import copy
import math
from dataclasses import replace

import torch

from slams.core.console import Console
from slams.core.random import fork
from slams.evaluation.metrics import fair_crps
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.draws import window_draws
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import spread_windows

METHODS = ("guided", "conditional")
_MEMBERS = 8


@torch.no_grad()
def choose_method(model: Model, validation: Anomalies, starts: torch.Tensor, console: Console) -> None:
    """Set `LearntPrior.method` to that with the lower CRPS of the state, over the first and the last set.

    A run whose network was not trained on observations is guided; one whose recipe states a method has that one.

    Args:
        model: Model with calibrated errors.
        validation: Anomalies of validation days.
        starts: First day of each validation window.
        console: Console for the progress.
    """
    recipe, prior, sets = model.recipe, model.prior, model.recipe.experiment.sets
    prior.method = recipe.assimilation.method or ("conditional" if prior.trained else "guided")
    open_ = prior.trained and not recipe.assimilation.method and recipe.assimilation.guidance != "published"
    if not open_ or not sets or recipe.assimilation.members == 1:
        return
    rows, labels = (
        spread_windows(starts, recipe.prior.window),
        dict.fromkeys([next(iter(sets)), list(sets)[-1]]),
    )
    members = min(_MEMBERS, recipe.assimilation.members)
    log_ratio = 0.0
    with console.bar("choosing the method", 2 * len(labels) * recipe.assimilation.steps) as advance:
        for label in labels:
            seen = observe(
                model.layouts, recipe, {n: validation[n] for n in sets[label]}, sets[label], days=rows,
                std={n: s.std for n, s in model.codec.statistics.items()},
            )  # fmt: skip
            scores = []
            for method in METHODS:
                trial = copy.copy(model)
                settings = replace(recipe.assimilation, method=method, members=members)
                trial.recipe = replace(recipe, assimilation=settings)
                z = window_draws(
                    trial,
                    seen,
                    members=members,
                    rng=fork(recipe.seed, "method", label),
                    progress=lambda n: advance(n, ""),
                )
                total = 0.0
                for n in model.states:
                    truth, weight = validation[n][rows], model.layouts[n].weights()
                    weight = torch.where(torch.isfinite(truth), weight, 0.0)
                    crps = fair_crps(model.codec.decode(z, n), torch.nan_to_num(truth))
                    total += float((weight * crps).sum() / weight.sum())
                scores.append(total)
            log_ratio += math.log(scores[1] / scores[0]) / len(labels)
        prior.method = METHODS[log_ratio < 0]
        advance(
            0, f"{prior.method}: CRPS of conditional draws {math.expm1(log_ratio):+.1%} against guided ones"
        )
