"""The rows that the analysis is compared with: the closed form of its latent, and its sampler without the network."""

from dataclasses import replace

import pytest
import torch

from slams.pipeline.baselines.file import FILE_NAME, load_baselines
from slams.pipeline.baselines.members import LatentGaussian
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import posterior

DAYS = 5


@pytest.fixture(scope="module")
def model(world) -> Model:
    return Model.load(world.run)


@pytest.fixture
def seen() -> dict[str, torch.Tensor]:
    """Five days of a coarse grid and of stations, one of which is missing and another is missing on a day."""
    rng = torch.Generator().manual_seed(1)
    seen = {
        "coarse": torch.randn(DAYS, 1, 2, 2, generator=rng),
        "stn": torch.randn(DAYS, 1, 5, generator=rng),
    }
    seen["stn"][:, 0, 3] = torch.nan
    seen["stn"][2, 0, 1] = torch.nan
    return seen


def conditioned(model: Model, seen: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of a state in one window, from the joint covariance of everything."""
    prior, window = model.prior, model.recipe.prior.window
    covariance = prior.statistics["covariance"].double()

    def over(matrices: list[torch.Tensor]) -> torch.Tensor:
        return torch.block_diag(*matrices)

    rows, noise, values = [], [], []
    for m, value in seen.items():
        error = prior.errors[m] * prior.factors[m]
        flat = value.flatten(1)
        known = torch.isfinite(flat)
        for k in range(window):
            rows.append((k, prior.operators[m][known[k]].double()))
            whole = error if error.ndim == 2 else torch.diag(error)
            noise.append(whole[known[k]][:, known[k]].double())
            values.append(flat[k, known[k]].double())
    patterns = prior.operators["temp"].shape[1]
    g = torch.cat([torch.nn.functional.pad(r, (k * patterns, (window - 1 - k) * patterns)) for k, r in rows])
    gain = torch.linalg.solve(g @ covariance @ g.mT + over(noise), g @ covariance).mT
    decode = over([prior.operators[name].double()] * window)
    mean = decode @ gain @ torch.cat(values)
    variance = ((decode @ (covariance - gain @ g @ covariance)) * decode).sum(1)
    variance = variance + prior.errors[name].double().repeat(window)
    shape = (window, *model.layouts[name].shape)
    return mean.reshape(shape), variance.sqrt().reshape(shape)


@pytest.mark.parametrize("name", ["temp", "rain"])
def test_the_latent_gaussian_is_the_conditional_normal_of_the_joint_one(name, world, model, seen):
    """Of one window, and of a record of five days from the windows in whose middle each day is."""
    method = LatentGaussian(model, load_baselines(model, world.run / FILE_NAME))
    absent = ~model.codec.statistics[name].present.expand(model.layouts[name].shape)
    windows = [{m: x[i : i + 3] for m, x in seen.items()} for i in range(3)]
    exact = [conditioned(model, window, name) for window in windows]
    alone = method.moments({m: x[None] for m, x in windows[0].items()}, composed=False)[name]
    composed = method.moments(seen, composed=True)[name]
    for part in (0, 1):
        first, second, third = (each[part] for each in exact)
        expected = torch.cat([first[:1], first[1:2], second[1:2], third[1:2], third[2:]])
        for found, truth in ((alone[part][0], first), (composed[part], expected)):
            assert bool(torch.isnan(found[:, absent]).all())
            torch.testing.assert_close(found[:, ~absent].double(), truth[:, ~absent], rtol=1e-3, atol=1e-3)


def test_without_its_network_a_model_denoises_as_the_closed_form(world):
    """Bit for bit; the model itself keeps its network, and both share everything else."""
    model = Model.load(world.run)
    torch.nn.init.ones_(
        model.prior.denoiser.network.last.bias
    )  # the training of so small a world learns nothing
    other = model.without_network()
    x = torch.randn(2, 3, *model.prior.gaussian.event, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.4)
    closed = model.prior.gaussian(x, t)
    assert torch.equal(other.prior.denoiser(x, t), closed)
    assert not torch.equal(model.prior.denoiser(x, t), closed)
    assert other.prior.gaussian is model.prior.gaussian and other.codec is model.codec
    assert other.prior.factors == model.prior.factors and other.prior.inflation == model.prior.inflation
    assert other.errors().keys() == model.errors().keys()


def with_sets(model: Model, sets: dict[str, tuple[str, ...]]) -> Model:
    """The model with other sets of observations in its recipe."""
    experiment = replace(model.recipe.experiment, sets=sets)
    return Model(model.codec, model.prior, replace(model.recipe, experiment=experiment))


def test_the_spread_of_draws_is_widened_by_the_factor_of_their_set(world, seen):
    """Of the set with the same modalities, else of the nearest; a single number is that of all sets."""
    model = with_sets(Model.load(world.run), {"few": ("stn",), "both": ("coarse", "stn")})

    def deviations(factors, names) -> torch.Tensor:
        model.prior.inflation = factors
        (z,) = posterior(model, [{n: seen[n] for n in names}], True, rng=torch.Generator().manual_seed(0))
        return z - z.mean(0)

    for names, factor in ((["stn"], 1.5), (["coarse", "stn"], 1.25), (["coarse"], 1.25)):
        plain = deviations(1.0, names)
        for factors in ({"few": 1.5, "both": 1.25, "gone": 3.0}, factor):
            torch.testing.assert_close(deviations(factors, names), factor * plain, rtol=1e-4, atol=1e-5)


def test_the_factor_of_a_gaussian_scales_what_is_not_its_residual(world, model, seen):
    method = LatentGaussian(model, load_baselines(model, world.run / FILE_NAME))
    mean, std = method.moments(seen)["temp"]
    method.fitted.spreads = {"latent_gaussian": {"both": 1.4}, "gaussian": {"both": 1.1}}
    same, wide = method.moments(seen)["temp"]
    rest = model.prior.errors["temp"].reshape(mean.shape[1:])
    expected = (1.4**2 * (std.square() - rest) + rest).sqrt()
    torch.testing.assert_close(same, mean, equal_nan=True)
    torch.testing.assert_close(wide, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
