"""Modalities seen as block means, at points or by a stride: exact where all is linear, and nothing else leaks."""

import numpy as np
import pytest
import torch
import xarray as xr

from slams.assimilation.baseline.gaussian import residual_variance
from slams.core.codec import SeasonalStandardize
from slams.core.console import Console
from slams.core.settings import override
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.guidance.sda import CovarianceGuidance
from slams.diffusion.schedule import VPCosine
from slams.evaluation.tables import read_metrics
from slams.pipeline import run as experiment
from slams.pipeline.assimilate import assimilate
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.operators import noise_gain, operator_of, thinned
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.codec import MultimodalCodec
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import LearntPrior
from slams.pipeline.recipe import OperatorRecipe, Recipe, from_tree, to_tree
from tests.pipeline.conftest import LAT, LON, tiny_recipe, weather
from tests.pipeline.test_assimilate import changed, group, root

QUIET = Console(quiet=True)
GRID = Layout(("level", "lat", "lon"), {"level": (1.0, 2.0), "lat": tuple(LAT), "lon": tuple(LON)}, "K", "t")
BLOCKS = OperatorRecipe("block_mean", size=2)
POINTS = OperatorRecipe("points", points=((43.0, -7.0), (40.5, 0.5), (38.0, 2.0)))
L, K = 3, 5


def linear_recipe(operator: str) -> Recipe:
    return from_tree(
        {
            "data": {
                "modalities": {"t": {"files": "a.nc", "variable": "t", "role": "state", "error_std": 0.6}}
            },
            "latent": {"kind": "vector", "channels": K, "hidden": 4},
            "prior": {"window": L, "hidden": [8]},
            "assimilation": {
                "operators": {
                    "t": {
                        "block_mean": {"kind": "block_mean", "size": 2},
                        "points": {"kind": "points", "points": [list(p) for p in POINTS.points]},
                    }[operator]
                }
            },
        }
    )


@pytest.fixture(params=["block_mean", "points"])
def linear(request, rng) -> Model:
    """An untrained network, hence a linear decoder and a Gaussian prior; a channel has spread 2 K, the other 5 K."""
    recipe = linear_recipe(request.param)
    std = torch.tensor([2.0, 5.0]).reshape(2, 1, 1)
    codec = MultimodalCodec(recipe, {"t": GRID}, {"t": SeasonalStandardize(torch.zeros(1, *GRID.shape), std)})
    root = torch.randn(L * K, L * K, generator=rng)
    gaussian = WindowGaussian(torch.eye(K), root @ root.mT / K + torch.eye(L * K), 1e-3, (K,), VPCosine())
    matrix = codec.autoencoder.decode(torch.eye(K), "t").detach().flatten(1).mT
    samples = 0.3 * torch.randn(40, *GRID.shape, generator=rng)
    nothing = torch.ones(len(matrix))
    prior = LearntPrior(
        build_denoiser(recipe, gaussian, False),
        {"t": matrix},
        {"t": nothing},
        {"t": nothing},
        {},
        {"t": samples},
    )
    prior.factors = {"t": 2.0}
    return Model(codec, prior)


def by_hand(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """H as a matrix from the cells of both levels, and its error variances."""
    settings = model.recipe.assimilation.operators["t"]
    if settings.kind == "block_mean":
        area = torch.cos(torch.deg2rad(torch.tensor(LAT, dtype=torch.float32)))
        rows = []
        for i in (0, 2):
            for j in (0, 2, 4):
                weight = torch.zeros(4, 6)
                weight[i : i + 2, j : j + 2] = area[i : i + 2, None]
                rows.append((weight / weight.sum()).flatten())
    else:
        a, b, c = (torch.zeros(4, 6) for _ in range(3))
        a[:2, :2] = 0.25  # half way between the first rows and columns
        b[1:3, 4] = torch.tensor([0.25, 0.75]) * 0.75
        b[1:3, 5] = torch.tensor([0.25, 0.75]) * 0.25
        c[3, 5] = 1.0
        rows = [x.flatten() for x in (a, b, c)]
    one = torch.stack(rows)
    h = torch.block_diag(one, one)
    left = residual_variance(model.prior.samples["t"].flatten(1) @ h.mT)
    instrument = torch.cat([torch.full((24,), (0.6 / s) ** 2) for s in (2.0, 5.0)])
    return h, 2.0 * left + h.square() @ instrument


@pytest.mark.parametrize("t", [0.02, 0.4, 0.9])
def test_guided_denoiser_is_the_exact_posterior_mean(linear, rng, t):
    """E[z | z_t, y] of the linear-Gaussian model by dense matrices, float64 against float32."""
    h, error = by_hand(linear)
    y = torch.randn(1, L, *GRID.shape, generator=rng)
    guidance = CovarianceGuidance(linear.prior.gaussian, linear.jacobians())
    guided = guidance(linear.prior.denoiser, linear.observations({"t": y}).pullback(linear.decoders))
    x_t = torch.randn(2, 1, L, K, generator=rng)
    alpha, sigma = (float(s) for s in VPCosine()(torch.tensor(t)))
    gaussian = linear.prior.gaussian
    vectors = gaussian.vectors.double()
    prior = (vectors / gaussian.values.double()) @ vectors.mT
    g = torch.block_diag(*[(h @ linear.prior.operators["t"]).double()] * L)
    weight = g.mT / error.double().repeat(L)
    seen = y.flatten(2).double() @ h.double().mT
    pulled = seen.flatten(1) @ weight.mT + alpha / sigma**2 * x_t.flatten(2).double()
    precision = prior + weight @ g + (alpha / sigma) ** 2 * torch.eye(L * K)
    expected = torch.linalg.solve(precision, pulled.reshape(-1, L * K).mT).mT
    found = guided(x_t, torch.tensor(t)).reshape(-1, L * K)
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)


def test_draws_have_the_exact_posterior_mean(linear, rng):
    """800 draws: 6 standard errors, and 2 % of the posterior's spread for 40 steps of the sampler."""
    h, error = by_hand(linear)
    recipe = from_tree(override(to_tree(linear.recipe), ["assimilation.steps=40"]))
    linear = Model(linear.codec, linear.prior, recipe)
    y = torch.randn(1, L, *GRID.shape, generator=rng)
    z = (
        linear.sda()
        .windows(linear.observations({"t": y}).pullback(linear.decoders), 800, rng=rng)
        .flatten(2)[:, 0]
        .double()
    )
    gaussian = linear.prior.gaussian
    vectors = gaussian.vectors.double()
    g = torch.block_diag(*[(h @ linear.prior.operators["t"]).double()] * L)
    weight = g.mT / error.double().repeat(L)
    covariance = torch.linalg.inv((vectors / gaussian.values.double()) @ vectors.mT + weight @ g)
    mean = covariance @ weight @ (y.flatten(2).double() @ h.double().mT).flatten()
    std = covariance.diagonal().sqrt()
    assert bool(((z.mean(0) - mean).abs() < (6 / 800**0.5 + 0.02) * std).all())
    assert bool(((z.std(0) / std - 1).abs() < 6 / (2 * 800) ** 0.5 + 0.05).all())


def test_noise_of_blocks_and_points_is_that_of_their_cells():
    """Equal cells would give 1/4 a block; a point on a cell keeps all of its noise."""
    for settings in (BLOCKS, POINTS):
        operator = operator_of(settings, GRID)
        cells = torch.eye(48).reshape(48, 2, 4, 6)
        expected = operator(cells).square().sum(0)  # through both levels at once
        torch.testing.assert_close(noise_gain(operator, GRID), expected)
    assert noise_gain(operator_of(POINTS, GRID), GRID)[2] == pytest.approx(1.0)
    assert noise_gain(operator_of(BLOCKS, GRID), GRID)[0] == pytest.approx(0.25, abs=1e-3)


def test_a_stride_leaves_every_other_cell_and_replaces_the_columns(rng):
    recipe = from_tree(
        override(
            to_tree(linear_recipe("points")),
            ["assimilation.operators={t: {kind: stride, step: 2, offset: 1}}"],
        )
    )
    x = torch.randn(3, *GRID.shape, generator=rng)
    expected = torch.full_like(x, torch.nan)
    expected[..., 1::2, 1::2] = x[..., 1::2, 1::2]
    torch.testing.assert_close(thinned(recipe, "t", x), expected, equal_nan=True)
    seen = observe({"t": GRID}, recipe, {"t": x}, ["t"], days=torch.arange(3))["t"]
    torch.testing.assert_close(seen, expected, equal_nan=True)


@pytest.mark.parametrize(
    "settings",
    [OperatorRecipe("block_mean", size=2, std=(0.5, 3.0)), OperatorRecipe("stride", step=2, std=(0.5, 3.0))],
    ids=["block_mean", "stride"],
)
def test_the_stated_errors_are_those_of_what_an_operator_returns(settings, rng):
    """Of 400 days and at least 6 values a level, whatever error_std says; 5 standard errors of a deviation."""
    recipe = override(to_tree(linear_recipe("block_mean")), [])
    recipe["assimilation"]["operators"]["t"] = to_tree(settings)
    recipe = from_tree(recipe)
    x = torch.randn(400, *GRID.shape, generator=rng)
    std = {"t": torch.tensor([2.0, 5.0]).reshape(2, 1, 1)}
    pair = [
        observe({"t": GRID}, recipe, {"t": x}, ["t"], days=torch.arange(400)[:, None], std=each)["t"][:, 0]
        for each in (std, None)
    ]
    operator = operator_of(settings, GRID)
    seen, plain = (value if operator is None else operator(value).unflatten(1, (2, -1)) for value in pair)
    assert torch.equal(torch.isfinite(seen), torch.isfinite(plain))
    for level, wanted in enumerate(settings.std):
        error = (seen - plain)[:, level]
        error = error[torch.isfinite(error)]
        assert len(error) == 400 * 6
        assert abs(float(error.std()) / wanted - 1) < 5 / (2 * len(error)) ** 0.5


def test_the_stated_errors_enter_the_likelihood_in_place_of_the_instruments(linear):
    """R = factor x residual + std^2, level by level; the same for a Gaussian's own residuals."""
    if linear.recipe.assimilation.operators["t"].kind == "points":
        pytest.skip("the errors of points are the modality's")
    tree = to_tree(linear.recipe)
    tree["assimilation"]["operators"]["t"]["std"] = [0.5, 3.0]
    model = Model(linear.codec, linear.prior, from_tree(tree))
    y = torch.zeros(1, L, *GRID.shape)
    (found,) = model.seen({"t": y}, model.errors()).values()
    left = 2.0 * residual_variance(model.operators["t"](model.prior.samples["t"]))
    expected = left + torch.tensor([0.25, 9.0]).repeat_interleave(6)
    torch.testing.assert_close(found.noise.variance, expected)


BLOCK_SETTING = "assimilation.operators.temp={kind: block_mean, size: 2}"


def test_only_the_mean_of_a_block_is_seen(world, tmp_path):
    """Cells of one row of a block exchanged: the same analysis up to rounding; another block mean: another."""

    def exchanged(d: xr.Dataset) -> xr.Dataset:
        order = [0, 1, 3, 2, 5, 4]  # blocks of the first two columns hold the corner that is missing
        return d.assign(temp=(d.temp.dims, d.temp.values[..., order], d.temp.attrs))

    def analysis(file, name: str) -> np.ndarray:
        arguments = {"members": 4, "modalities": ["temp"], "overrides": [BLOCK_SETTING], "console": QUIET}
        return root(assimilate(world.run, [str(file)], tmp_path / name, **arguments))["temp"].values

    plain = analysis(world.new, "a.nc")
    same = analysis(changed(world, tmp_path / "b_in.nc", exchanged), "b.nc")
    np.testing.assert_allclose(same, plain, rtol=0, atol=2e-3)
    other = analysis(changed(world, tmp_path / "c_in.nc", lambda d: d.assign(temp=d.temp + 2)), "c.nc")
    assert np.nanmean(other - plain) > 1.5
    assert not group(tmp_path / "a.nc", "observed_temp")["observed"].any()  # no cell was seen as it is


def test_an_operator_that_training_did_not_know_leaves_the_gaussian_out(world, tmp_path):
    """`slams assimilate` takes it without training; the baselines that were fitted to cells are left out, not wrong."""
    path = assimilate(
        world.run, [str(world.new)], tmp_path / "a.nc", members=2, baselines=True, console=QUIET,
        overrides=["assimilation.operators={coarse: {kind: points, points: [[41, -4]]}}"],
        modalities=["coarse"],
    )  # fmt: skip
    with xr.open_datatree(path) as tree:
        assert {"baseline_climatology", "baseline_prior"} <= set(tree.children)
        assert not {"baseline_gaussian", "baseline_interpolation"} & set(tree.children)


def test_a_test_through_operators_scores_every_method_that_can_use_them(tmp_path, monkeypatch):
    """Better than climatology from 6 block means; no interpolation of what has no points; nothing is observed."""
    monkeypatch.setattr(experiment, "write_summary", lambda *arguments: None)
    weather(260).to_netcdf(tmp_path / "archive.nc")
    settings = [
        "experiment.sets={blocks: [temp], both: [temp, stn]}", "experiment.withhold={}", BLOCK_SETTING,
        f"out={tmp_path / 'run'}", "data.modalities.temp.error_std=1.0",
    ]  # fmt: skip
    recipe = from_tree(override(to_tree(tiny_recipe(tmp_path / "archive.nc", tmp_path / "store")), settings))
    rows = read_metrics(experiment.run(recipe, console=QUIET) / "metrics.csv")
    score = {
        (r["method"], r["part"]): float(r["value"])
        for r in rows
        if (r["metric"], r["variable"], r["level"]) == ("rmse", "temp", "all")
    }
    for method in ("analysis", "gaussian", "ridge"):
        assert score[method, "all"] < 0.5 * score["climatology", "all"]
        assert score[f"{method}:blocks", "all"] < 0.7 * score["climatology", "all"]
    assert ("interpolation:blocks", "all") not in score
    assert not [key for key in score if key[1] != "all"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{temp: {kind: blocks}}", "kind is 'block_mean', 'points' or 'stride', got 'blocks'"),
        ("{temp: {kind: points}}", "'points' has 0 points"),
        ("{temp: {kind: stride, step: 2, offset: 2}}", "offset < step"),
        ("{temp: {kind: block_mean, sise: 2}}", "did you mean .*size"),
        ("{tmep: {kind: block_mean, size: 2}}", "names 'tmep', which is no modality"),
        ("{temp: {kind: block_mean, size: 3}}", "do not divide .* temp, 4 x 6.*--grid 1.5deg-published"),
        ("{temp: {kind: block_mean, size: 2, std: [1, 2]}}", "one for each of the 1 levels of temp, got 2"),
        ("{temp: {kind: block_mean, size: 2, std: [0]}}", "std must be positive"),
        ("{temp: {kind: points, points: [[41, -4]], std: [1]}}", "state the error of points as .*error_std"),
        ("{temp: {kind: points, points: [[60, 0]]}}", "lie outside the grid's latitudes"),
        ("{stn: {kind: block_mean, size: 2}}", "is at stations; withhold"),
    ],
)
def test_an_operator_that_cannot_be_is_told(world, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        assimilate(
            world.run, [str(world.new)], tmp_path / "a.nc", members=2, console=QUIET,
            overrides=[f"assimilation.operators={setting}"], modalities=["temp", "stn"],
        )  # fmt: skip


def test_published_guidance_through_an_operator_and_an_old_run_are_told(linear):
    with pytest.raises(ValueError, match="guidance 'published' encodes grids"):
        from_tree(override(to_tree(linear.recipe), ["assimilation.guidance=published"]))
    linear.prior.samples = {}
    with pytest.raises(ValueError, match="train it again with this version"):
        linear.errors()
