"""What a network conditioned on observations owes to each of its parts, on a trained run.

    python -m benchmarks.conditional logs/planet [--windows 16] [--part validation]

Draws of the run, from the same noise: as they are; guided; with the encoders' features at zero; with the closed form
of the prior in place of that of the posterior (the network alone, which was not trained for it); without the network;
and with weights of classifier-free guidance from 0 to 2. Printed for each set of observations: RMSE, RMSE corrected to
infinitely many members, CRPS, the change of both against the draws as they are with a 95 % interval paired by window,
and CPU seconds of a draw.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.core.random import fork
from slams.data.windows import window_starts
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser
from slams.diffusion.exact.window_posterior import Systems, WindowPosterior
from slams.diffusion.guidance.conditional import ConditionalDenoiser, ConditionalGuidance
from slams.evaluation import Scores, window_statistics
from slams.evaluation.tables import markdown_table
from slams.observation.observation import Observations
from slams.pipeline.inputs.fields import load_fields, phase_of
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded

Guide = Callable[[Denoiser, Observations], Denoiser]


def without_features(whole: ConditionalGuidance) -> Guide:
    """The encoders' features at zero; the closed form's spread stays."""

    def features(observations: Observations, posterior: WindowPosterior) -> Tensor:
        found = whole.features(observations, posterior)
        channels = posterior.event[0]
        return torch.cat([found[:, :, :channels], torch.zeros_like(found[:, :, channels:])], 2)

    return replace(whole, features=features)


def alone(whole: ConditionalGuidance) -> Guide:
    """The network with the closed form of the prior."""

    def guide(prior: Denoiser, observations: Observations) -> Denoiser:
        assert isinstance(prior, NetworkDenoiser)
        posterior = WindowPosterior.given(prior.gaussian, observations, whole.jacobians)
        context = whole.features(observations, posterior)
        free, count = Systems(prior.gaussian).none(), len(posterior.index)
        closed = WindowPosterior(prior.gaussian, [free], [0] * count, torch.zeros_like(posterior.pulled))
        return ConditionalDenoiser(prior, closed, context)

    return guide


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    given = parser.parse_args()
    model = Model.load(given.run)
    if not model.prior.trained:
        parser.error(f"the network of {given.run} was not trained on observations (prior.networks).")
    fields = load_fields(model.recipe)
    index = fields.part(getattr(model.recipe.data, given.part))
    starts = window_starts(fields.dates[index], model.recipe.prior.window)
    spacing = max(model.recipe.experiment.spacing, len(starts) // given.windows)
    rows = starts[::spacing][: given.windows, None] + torch.arange(model.recipe.prior.window)
    values = anomalies(model.codec, fields, index)
    std = {n: s.std for n, s in model.codec.statistics.items()}
    for label, names in model.recipe.experiment.sets.items():
        seen = observe(model.layouts, model.recipe, {n: values[n] for n in names}, names, days=rows, std=std)
        print(f"\n{label}, {len(rows)} windows, {model.recipe.assimilation.members} members\n")
        table = _rows(model, seen, fields.values[model.states[0]][index], rows, fields.dates[index])
        print(markdown_table(table))


def _rows(
    model: Model, seen: dict[str, Tensor], truth: Tensor, rows: Tensor, dates: object
) -> list[dict[str, str]]:
    """One row for each way to draw."""
    recipe, name = model.recipe, model.states[0]

    def by(method: str) -> Model:
        return Model(
            model.codec,
            model.prior,
            replace(recipe, assimilation=replace(recipe.assimilation, method=method)),
        )

    whole = by("conditional").sda().guidance
    assert isinstance(whole, ConditionalGuidance)
    ways: dict[str, tuple[Model, Guide]] = {
        "conditional": (model, whole),
        "guided": (model, by("guided").sda().guidance),
        "without the encoders' features": (model, without_features(whole)),
        "network alone": (model, alone(whole)),
        "closed form alone": (model.without_network(), whole),
        **{f"weight {w:g}": (model, replace(whole, weight=w)) for w in (0.0, 0.5, 1.5, 2.0)},
    }
    scores, seconds = Scores(apart=15), dict[str, float]()
    for way, (own, guide) in ways.items():
        sda = own.sda()
        sda.guidance = guide
        observations = own.seen(seen, own.errors(), own.device).pullback(own.decoders)
        start = time.process_time()
        z = sda.windows(observations, recipe.assimilation.members, rng=fork(recipe.seed, "ways"))
        seconds[way] = (time.process_time() - start) / len(rows) / recipe.assimilation.members
        for window, days in enumerate(rows):
            phase = phase_of(dates[days.numpy()])  # type: ignore[index]
            x = decoded(own, z[:, window], name, phase, rng=fork(recipe.seed, "residual", window))
            layout = own.layouts[name]
            statistics = window_statistics(x, truth[days], layout.weights())
            scores.add(way, name, str(dates[int(days[0])]), statistics)  # type: ignore[index]
    return [_row(scores, way, name, seconds[way]) for way in ways]


def _row(scores: Scores, way: str, name: str, seconds: float) -> dict[str, str]:
    found = {"draws": way}
    for metric in ("rmse", "rmse_inf", "crps"):
        found[metric] = f"{scores.value(way, metric, variable=name):.3f}"
    for metric in ("rmse_inf", "crps"):
        if way != "conditional":
            gain = scores.paired_gain(way, "conditional", metric, variable=name)
            found[f"change of {metric}"] = f"{-gain.mean:+.1%} [{-gain.upper:+.1%}, {-gain.lower:+.1%}]"
    return {**found, "CPU s a draw": f"{seconds:.2f}"}


if __name__ == "__main__":
    main()
