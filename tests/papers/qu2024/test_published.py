"""Published mode with the shipped weights, the U-Nets' parametrization, and which networks are shipped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from slams.core.console import Console
from slams.core.random import fork, normal
from slams.core.settings import read_tree
from slams.diffusion.sampler import Sampler
from slams.diffusion.trajectory import MarkovBlanket
from slams.evaluation.metrics import fair_crps
from slams.papers.qu2024.archive import STATE, truths
from slams.papers.qu2024.demo import FOLDER
from slams.papers.qu2024.plan import MODELS, read_plan
from slams.papers.qu2024.prior import build_unet, load_prior, unet_error
from slams.papers.qu2024.published import sampled
from slams.papers.qu2024.right import Analyst, observe
from slams.papers.qu2024.run import prepare
from slams.papers.qu2024.scores import FRAMES, RIGHT, Outcome
from slams.papers.qu2024.training import CLIMATE, load_shared, settle, train
from tests.papers.qu2024.conftest import FILE, tiny_plan

QUIET = Console(quiet=True)
EVENT = 3, 16, 32
CONFIGS = Path(__file__).parents[3] / "slams" / "configs"


def test_the_planets_years_are_those_of_its_recipe():
    """Years in other groups are simulated with other rounding, and would replace the files of the recipe."""
    assert list(read_plan(FILE).archive.years) == read_tree(CONFIGS / "planet.yaml")["planet"]["years"]


def test_an_untrained_unet_is_the_denoiser_of_white_latents(plan, rng):
    """Its error is the posterior variance, in units of which the loss is 1: within 5 standard errors."""
    unet = build_unet(plan.prior, "sda_0", EVENT)
    x = normal((64, plan.prior.window, *EVENT), rng=rng)
    t = torch.tensor(0.6)
    alpha, sigma = unet.schedule(t)
    torch.testing.assert_close(unet(x, t), alpha / (alpha**2 + sigma**2) * x)
    loss = float(unet_error(unet, x, fork(0, "loss")).detach())
    assert abs(loss - 1) < 5 * (2 / x.numel()) ** 0.5


@pytest.mark.parametrize(("preconditioned", "largest"), [(True, 0.1), (False, 100.0)])
def test_an_error_of_the_network_is_amplified_only_as_published(preconditioned, largest):
    """An output that is .1 off moves the mean by sigma / (alpha^2 + sigma^2)^1/2 of it, or by sigma / alpha."""
    plan = tiny_plan(f"prior.preconditioned={str(preconditioned).lower()}").prior
    unet = build_unet(plan, "sda_0", EVENT)
    x = torch.zeros(1, plan.window, *EVENT)
    times = torch.linspace(0.02, 1, 20)
    with torch.no_grad():
        before = [unet(x, t) for t in times]
        unet.network.last.conv.bias += 0.1
        moved = [(unet(x, t) - m).abs().max() for t, m in zip(times, before, strict=True)]
    assert float(max(moved)) == pytest.approx(largest, rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_shipped_unets_draw_latents_of_the_size_of_the_data(name):
    """Standard deviation 1 by construction; the noise prediction shipped before drew 100 and more."""
    plan = read_plan(FILE)
    prior = load_prior(FOLDER / f"{name}.safetensors", plan.prior, name, plan.cells)
    noise = normal((1, 5, *prior.codec.event), rng=fork(0, "noise"))
    draws = Sampler(8)(MarkovBlanket(prior.unet, plan.prior.window), noise)
    assert 0.5 < float(draws.std()) < 1.5 and float(draws.abs().max()) < 10


@pytest.mark.filterwarnings(
    "ignore:the draws of Sampler are"
)  # in pixels guidance overshoots at sparse cells
@pytest.mark.parametrize(("model", "largest"), [("sda_0", 0.2), ("lsda_2", 0.1)])
def test_published_samples_stay_with_the_data(model, largest, tmp_path):
    """W1 of each setting in deviations of all values: 28 and more with the U-Nets that predicted the noise."""
    study = prepare(FILE, tmp_path, ["size=reduced", "mode=published", f"models={model}"], QUIET)
    for setting in study.plan.chosen:
        values = study.outcome("published", model, setting).values
        assert float(values["sample", FRAMES, "w1"][:, 0].mean()) < largest, setting


@pytest.mark.parametrize("metric", RIGHT, ids=lambda metric: metric.name)
def test_intervals_of_all_levels_are_those_of_each(metric, rng):
    x = 0.2 + 0.5 * torch.rand(8, 3, generator=rng, dtype=torch.float64)
    values = {("analysis", FRAMES, metric.name): x}
    lines = Outcome("right", "sda_0", "coarse_4", values, {}).lines(("500", "850"))
    for column, line in zip(x.T.tolist(), lines, strict=True):
        expected = [f"{v:.6g}" for v in metric.interval(column)]
        assert [line["value"], line["lower"], line["upper"]] == expected


def test_a_network_that_is_behind_on_validation_days_is_left_out(plan, weights, test_days):
    """One with weights at random is; a closed form beside itself is not counted as ahead."""
    climate = load_shared(weights / CLIMATE, plan.cells).climate
    held = truths(plan, test_days, climate, (2004,))
    prior = load_prior(weights / "lsda_2.safetensors", plan.prior, "lsda_2", plan.cells)
    torch.manual_seed(0)
    nn.init.normal_(prior.denoiser.network.last.weight, std=1.0)
    assert not prior.idle
    found = settle(plan, prior, plan.chosen, held)
    assert found["analysis"] > found["latent_gaussian"] and prior.idle
    again = settle(plan, prior, plan.chosen, held)
    assert again["analysis"] == again["latent_gaussian"] == found["latent_gaussian"]


def test_sixteen_bits_on_disk_change_scores_by_less_than_half_a_percent(
    plan, archive, weights, test_days, tmp_path
):
    """CRPS of analyses in closed form, and the distance of published samples, trained once more in 32 bits."""
    one = replace(plan, models=("lsda_2",))
    train(one, archive, tmp_path, QUIET, half=False)
    sizes = [(folder / "lsda_2.safetensors").stat().st_size for folder in (weights, tmp_path)]
    assert sizes[0] < 0.7 * sizes[1]
    truth = truths(plan, test_days, load_shared(weights / CLIMATE, plan.cells).climate, (2004,))
    priors = [
        load_prior(folder / "lsda_2.safetensors", plan.prior, "lsda_2", plan.cells)
        for folder in (weights, tmp_path)
    ]
    for setting in plan.chosen:
        seen = observe(plan, setting, truth, "lsda_2")
        crps, samples = [], []
        for prior in priors:
            draws = Analyst.of(prior, truth, setting.kind).draws(seen, 8, seed=0)
            exact = truth.anomalies[STATE]
            crps.append(sum(float(fair_crps(x, e).mean()) for x, e in zip(draws, exact, strict=True)))
            samples.append(sampled(plan, prior, setting, truth))
        assert crps[0] == pytest.approx(crps[1], rel=5e-3)
        rmse = [float((x - truth.anomalies[STATE]).square().mean().sqrt()) for x in samples]
        assert rmse[0] == pytest.approx(rmse[1], rel=5e-3)
