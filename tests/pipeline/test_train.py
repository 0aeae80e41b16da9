"""Laws of the stages of a training: killed they resume, unchanged they are reused, wrong weights are refused."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slams.core.console import Console
from slams.core.settings import override
from slams.pipeline import train as stages
from slams.pipeline.inputs.fields import Fields, load_fields
from slams.pipeline.inputs.layout import read_layouts
from slams.pipeline.model import learn_codec
from slams.pipeline.model.calibrate import FACTORS, profile
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.train import train
from tests.pipeline.conftest import tiny_recipe, weather

WEIGHTS = ("codec.safetensors", "denoiser.safetensors")
QUIET = Console(quiet=True)


class Killed(BaseException):
    """What no `except Exception` holds up, as a signal."""


class Trap(Console):
    """Ends the process, as it were, once a stage has come so far.

    Args:
        stage: Title of its bar.
        after: Units that are done before.
    """

    def __init__(self, stage: str, after: int) -> None:
        super().__init__(quiet=True)
        self.stage, self.left = stage, after

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator:
        def advance(units: int = 1, message: str = "") -> None:
            self.left -= units if title == self.stage else 0
            if self.left < 0:
                raise Killed

        yield advance


@dataclasses.dataclass
class Trained:
    """An undisturbed run."""

    recipe: Recipe
    fields: Fields
    out: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    archive = folder / "archive.nc"
    weather(260).to_netcdf(archive)
    recipe = tiny_recipe(archive, folder / "store")
    fields = load_fields(recipe)
    (folder / "run").mkdir()
    train(recipe, fields, folder / "run", QUIET)
    return Trained(recipe, fields, folder / "run")


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """The run's folder, to be changed."""
    return Path(shutil.copytree(trained.out, tmp_path / "copy"))


@pytest.fixture
def fitted(monkeypatch) -> list[str]:
    """Names of what was trained, in order."""
    names: list[str] = []
    fit = learn_codec.fit

    def watched(*arguments, **settings):
        names.append(settings["name"])
        return fit(*arguments, **settings)

    monkeypatch.setattr(learn_codec, "fit", watched)
    return names


def content(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Tensors as bytes, and metadata."""
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k).numpy().tobytes() for k in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same(one: Path, other: Path) -> None:
    for name in WEIGHTS:
        assert content(one / name) == content(other / name), name
    assert json.loads((one / "history.json").read_text()) == json.loads((other / "history.json").read_text())


def with_settings(recipe: Recipe, *settings: str) -> Recipe:
    return from_tree(override(to_tree(recipe), settings))


@pytest.mark.parametrize(
    "kills",
    [
        [("training the autoencoder", 4)],
        [("training the autoencoder", 13), ("training the autoencoder", 3), ("training the prior", 17)],
        [("training the prior", 3)],
        [("calibrating observation errors", 1), ("calibrating the spread", 2)],
    ],
    ids=lambda kills: f"{len(kills)} from {kills[0][0].split()[-1]} {kills[0][1]}",
)
def test_killed_and_resumed_ends_with_the_same_weights_bit_for_bit(kills, trained, tmp_path):
    """Before the first saved state and after it, more than once, and after the training's end."""
    out = tmp_path / "run"
    out.mkdir()
    for number, (stage, after) in enumerate(kills):
        with pytest.raises(Killed):
            train(trained.recipe, trained.fields, out, Trap(stage, after))
        assert (out / WEIGHTS[1]).exists() == stage.startswith("calibrating")
        torch.manual_seed(number + 77)  # a new process is elsewhere in its global generator
    train(trained.recipe, trained.fields, out, QUIET)
    assert_same(out, trained.out)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in trained.out.iterdir())


def test_a_finished_training_is_reused_and_gives_the_same_model(trained, copy, fitted):
    model = train(trained.recipe, trained.fields, copy, QUIET)
    assert fitted == []
    assert_same(copy, trained.out)
    loaded = Model.load(trained.out)
    assert model.prior.factors == loaded.prior.factors and model.recipe == loaded.recipe == trained.recipe


@pytest.mark.parametrize(
    ("setting", "again"),
    [
        ("seed=1", ["autoencoder", "prior"]),
        ("latent.channels=5", ["autoencoder", "prior"]),
        ("latent.fit.steps=11", ["autoencoder", "prior"]),
        ("data.train=[2001-01-01, 2001-06-09]", ["autoencoder", "prior"]),
        ("prior.shrink=0.3", ["prior"]),
        ("prior.fit.steps=11", ["prior"]),
        ("assimilation.gamma=0.5", []),
        ("name=other", []),
        ("data.store=elsewhere", []),
    ],
)
def test_a_stage_is_redone_if_its_settings_changed_and_only_then(setting, again, trained, copy, fitted):
    recipe = with_settings(trained.recipe, setting)
    train(recipe, trained.fields, copy, QUIET)
    assert [name for name in fitted if name in ("autoencoder", "prior")] == again or (
        setting.startswith("assimilation")
        and fitted == ["prior"]  # whose calibration draws with these settings
    )
    fitted.clear()
    train(recipe, trained.fields, copy, QUIET)
    assert fitted == []


def test_changed_fields_are_trained_again(trained, copy, fitted):
    values = {name: x.clone() for name, x in trained.fields.values.items()}
    values["coarse"][::97] += 1.0
    train(trained.recipe, dataclasses.replace(trained.fields, values=values), copy, QUIET)
    assert fitted == ["autoencoder", "prior"]


@pytest.mark.parametrize("setting", ["assimilation.members=5", "name=other", "assimilation.residual=false"])
def test_the_model_and_its_files_have_the_settings_of_the_last_call(setting, trained, copy):
    """Weights are reused, but not the settings that do not concern them."""
    recipe = with_settings(trained.recipe, setting)
    assert train(recipe, trained.fields, copy, QUIET).recipe == recipe
    assert Model.load(copy).recipe == recipe
    for (a, _), (b, _) in [(content(trained.out / WEIGHTS[0]), content(copy / WEIGHTS[0]))]:
        assert a == b


@pytest.mark.parametrize("stage", ["latent", "prior"])
def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_last_good_training(stage, trained, copy):
    """A rate of 1e30 makes the second step's loss infinite or NaN; the message names the stage and the step."""
    before = {name: (copy / name).read_bytes() for name in WEIGHTS}
    recipe = with_settings(trained.recipe, f"{stage}.fit.learning_rate=1e30", f"{stage}.fit.clip=1e30")
    named = {"latent": "autoencoder", "prior": "prior"}[stage]
    with pytest.raises(FloatingPointError, match=f"training of the {named} met the loss .* at step .* of 20"):
        train(recipe, trained.fields, copy, QUIET)
    if stage == "prior":
        before[WEIGHTS[0]] = (copy / WEIGHTS[0]).read_bytes()  # only its recipe is new
        assert content(copy / WEIGHTS[0])[0] == content(trained.out / WEIGHTS[0])[0]
    assert {name: (copy / name).read_bytes() for name in WEIGHTS} == before
    train(trained.recipe, trained.fields, copy, QUIET)
    assert_same(copy, trained.out)


def rewritten(path: Path, change) -> None:
    """The same tensors under a changed recipe."""
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    meta["recipe"] = json.dumps(to_tree(change(from_tree(json.loads(meta["recipe"])))))
    save_file(tensors, path, meta)


@pytest.mark.parametrize("setting", ["latent.channels=5", "seed=4", "data.train=[2001-01-01, 2001-05-19]"])
def test_a_prior_of_another_recipes_latents_is_refused(setting, copy):
    """Also where the shapes agree: another seed makes other latents."""
    rewritten(copy / WEIGHTS[1], lambda recipe: with_settings(recipe, setting))
    with pytest.raises(
        ValueError, match=r"denoiser\.safetensors was trained on the latents of another recipe"
    ):
        Model.load(copy)


@pytest.mark.parametrize(
    ("name", "setting"), [(WEIGHTS[0], "latent.channels=5"), (WEIGHTS[1], "prior.hidden=[8]")]
)
def test_weights_that_do_not_fit_their_recipe_are_refused(name, setting, copy):
    rewritten(copy / name, lambda recipe: with_settings(recipe, setting))
    with pytest.raises(ValueError, match="does not hold the weights of its recipe .* train again"):
        Model.load(copy)


def test_a_file_cut_short_or_missing_is_told(copy):
    data = (copy / WEIGHTS[1]).read_bytes()
    (copy / WEIGHTS[1]).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"denoiser\.safetensors is not a valid safetensors file"):
        Model.load(copy)
    (copy / WEIGHTS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"no trained run: denoiser\.safetensors is not there"):
        Model.load(copy)


def test_calibrated_factors_are_of_the_grid_and_the_spread_is_bounded(trained):
    prior = Model.load(trained.out).prior
    assert set(prior.factors) == {"temp", "rain", "coarse", "stn"}
    assert set(prior.factors.values()) <= set(FACTORS)
    assert prior.factors["temp"] == prior.factors["rain"] == 1.0  # in no set
    assert prior.inflation.keys() == trained.recipe.experiment.sets.keys()
    assert all(1.0 <= factor <= 1.5 for factor in prior.inflation.values())


def test_residual_of_rain_is_drawn_with_the_spread_it_has_at_that_amount(trained, rng):
    """Residuals of spread 0.3 (1 + |value|) come back in every class, and with the variance they had on the whole.

    10 classes of 4000 values: the relative error of a mean square is (2 / 4000)^1/2 = 2.2 %, of their mix 0.8 %; the
    bounds add what a straight line between classes misses, and are 5 of these wide.
    """
    prior = Model.load(trained.out).prior
    assert set(prior.profiles) == {"rain"}
    value = torch.rand(2000, 20, generator=rng) * 4 - 1
    spread = 0.3 * (1 + value.abs())
    residual = spread * torch.randn(value.shape, generator=rng)
    residual[::9, 3] = torch.nan
    variance = residual.nan_to_num().square().sum(0) / torch.isfinite(residual).sum(0)
    prior.residuals["rain"], prior.profiles["rain"] = variance, profile(value, residual, variance)
    found = prior.unresolved("rain", value)
    assert float(found.mean() / variance.mean()) == pytest.approx(1, abs=0.05)
    for low in (0.25, 1.0, 2.0):
        here = (value > low) & (value < low + 0.5)
        assert float(found[here].mean() / spread[here].square().mean()) == pytest.approx(1, abs=0.15)
    prior.profiles.clear()
    assert torch.equal(prior.unresolved("rain", value), variance.expand_as(value))


def test_latents_are_kept_and_made_again_for_another_codec(trained, copy):
    """The file is what the codec makes of the training days; one cut short with no mark is not taken."""
    model = Model.load(copy)
    index = trained.fields.part(trained.recipe.data.train)
    given = stages.anomalies(model.codec, trained.fields, index)
    expected = model.codec.encode(given)
    assert torch.equal(stages.latents(model.codec, copy, given), expected)
    (copy / "latents.npy").write_bytes(b"half")
    assert torch.equal(stages.latents(model.codec, copy, given), expected)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("whole", [0, 0.5])
def test_weights_that_are_gone_or_cut_short_are_trained_again(name, whole, trained, copy):
    """A ledger alone is not believed: a stage is done while its files are there and whole."""
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(whole * len(data))])
    if not whole:
        (copy / name).unlink()
    train(trained.recipe, trained.fields, copy, QUIET)
    assert_same(copy, trained.out)


def test_a_run_keeps_statistics_and_makes_what_follows_from_them_on_opening(trained, copy):
    """Neither eigenvectors nor operators are in the file; the file beside it may be deleted, or spoilt."""
    tensors, _ = content(copy / WEIGHTS[1])
    assert not [
        name for name in tensors if name.startswith("operators.") or name.endswith("gaussian.vectors")
    ]
    expected = Model.load(copy).prior
    cache = copy / "derived.safetensors"
    for spoil in (cache.unlink, lambda: cache.write_bytes(cache.read_bytes()[:100])):
        spoil()
        found = Model.load(copy).prior
        assert torch.equal(found.gaussian.vectors, expected.gaussian.vectors)
        for name, operator in expected.operators.items():
            assert torch.equal(found.operators[name], operator), name
        assert cache.exists()


def test_a_prior_in_the_layout_of_earlier_versions_is_read_as_it_was(trained, copy):
    """Results instead of statistics, as versions before 0.2 wrote them; written again, they stay."""
    model = Model.load(copy)
    model.prior.statistics = {}
    model.save(copy)
    assert {"operators.temp", "denoiser.gaussian.vectors"} <= set(content(copy / WEIGHTS[1])[0])
    (copy / "derived.safetensors").unlink()
    again = Model.load(copy)
    assert not (copy / "derived.safetensors").exists()
    assert torch.equal(again.prior.gaussian.vectors, model.prior.gaussian.vectors)
    assert all(torch.equal(x, model.prior.operators[name]) for name, x in again.prior.operators.items())


def test_errors_of_operators_and_days_observed_leave_codec_and_prior_alone(trained, copy):
    """They are calibrated for, and need no other training."""
    plan = stages.stages_of(trained.recipe, trained.fields, copy)
    for setting in (
        "assimilation.operators={temp: {kind: block_mean, size: 2, std: [0.5]}}",
        "experiment.every=4",
    ):
        other = stages.stages_of(with_settings(trained.recipe, setting), trained.fields, copy)
        same = {name for name, stage in other.items() if stage.key == plan[name].key}
        assert same == {"codec", "prior"}


def test_a_ledger_of_earlier_versions_is_believed_and_then_brought_up_to_date(trained, copy, fitted):
    """If settings and climate are those of the files; a later setting that changes rewrites the file they follow from."""
    plan = stages.stages_of(trained.recipe, trained.fields, copy)
    ledger = copy / ".stages.json"
    ledger.write_text(json.dumps(dict.fromkeys(("codec", "prior", "calibration"), "0123456789abcdef")))
    for settings, kept in (
        ("seed=9", ()),
        ("prior.window=5", ("codec",)),
        ("assimilation.steps=7", ("codec", "prior")),
    ):
        other = stages.stages_of(with_settings(trained.recipe, settings), trained.fields, copy)
        assert tuple(name for name, stage in other.items() if stage.earlier) == kept
    warmer = {**trained.fields.values, "temp": trained.fields.values["temp"] + 0.5}
    other = stages.stages_of(trained.recipe, dataclasses.replace(trained.fields, values=warmer), copy)
    assert not any(stage.earlier for stage in other.values())
    train(trained.recipe, trained.fields, copy, QUIET)
    assert fitted == [] and all(isinstance(row, str) for row in json.loads(ledger.read_text()).values())
    renamed = with_settings(trained.recipe, "name=other")
    train(renamed, trained.fields, copy, QUIET)
    rows = json.loads(ledger.read_text())
    assert fitted == [] and {name: row["key"] for name, row in rows.items()} == {n: plan[n].key for n in rows}


@pytest.mark.parametrize(
    "unit, reason",
    [("hPa", "'hPa', from which 'degC' can't be reached"), ("0.1 degC", "0.1 times the unit of")],
)
def test_direct_modalities_of_other_units_are_refused(tmp_path, unit, reason):
    whole = weather(260)
    whole["coarse"].attrs["units"] = unit
    whole.to_netcdf(tmp_path / "archive.nc")
    with pytest.raises(ValueError, match=f"data.direct.temp lists 'coarse', which .*{reason}"):
        load_fields(tiny_recipe(tmp_path / "archive.nc", tmp_path / "store"))


def test_direct_modalities_in_kelvin_and_celsius_are_one_quantity(tmp_path):
    whole = weather(260)
    whole["coarse"] = (whole["coarse"].dims, whole["coarse"].values + 273.15, {"units": "K"})
    whole.to_netcdf(tmp_path / "archive.nc")
    assert (
        load_fields(tiny_recipe(tmp_path / "archive.nc", tmp_path / "store")).layouts["coarse"].units == "K"
    )


def test_names_of_stations_travel_from_file_to_run(tmp_path):
    """Through the store, read again, and through the layouts of a codec as JSON."""
    weather(260).assign_coords(stn_name=("station", ["a", "b", "c", "d", "e"])).to_netcdf(
        tmp_path / "archive.nc"
    )
    recipe = tiny_recipe(tmp_path / "archive.nc", tmp_path / "store")
    for fields in (load_fields(recipe), load_fields(recipe)):
        layout = fields.layouts["stn"]
        assert layout.names == ("a", "b", "c", "d", "e") and layout.array().station.values.tolist() == list(
            layout.names
        )
        kept = read_layouts(json.loads(json.dumps({"stn": dataclasses.asdict(layout)})))["stn"]
        assert kept == layout and kept.names == layout.names
