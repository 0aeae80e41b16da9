"""Laws of recipes: what is written is what is built, and what is wrong is told with its remedy."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from slams.core.codec import TRANSFORMS, Transform
from slams.core.settings import override
from slams.pipeline.recipe import AssimilationRecipe, Recipe, from_tree, load, to_tree

CONFIGS = Path(__file__).resolve().parents[2] / "slams" / "configs"


def tree(**changes: Any) -> dict[str, Any]:
    """The smallest recipe that is whole."""
    modality = {"files": "t.nc", "variable": "t", "role": "state"}
    return {"data": {"modalities": {"t": modality}}, **changes}


def built(*overrides: str) -> Recipe:
    return from_tree(override(tree(), overrides))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_is_read_back_the_same(path):
    """Its data need not be there. Read back from YAML too, as a run's recipe.yaml is."""
    recipe = load(path)
    assert recipe.name == path.stem
    assert from_tree(to_tree(recipe)) == recipe
    assert from_tree(yaml.safe_load(yaml.safe_dump(to_tree(recipe)))) == recipe
    written = yaml.safe_load(path.read_text())
    assert set(recipe.modalities) == set(written["data"]["modalities"])
    part = "prior" if "prior" in written else "latent"
    assert getattr(recipe, part).fit.steps == written[part]["fit"]["steps"]
    assert [str(day) for day in written["data"]["test"]] == list(recipe.data.test)


def test_a_tree_of_a_recipe_holds_plain_values_only():
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else isinstance(value, (str, int, float, type(None)))
        )

    assert plain(to_tree(load(CONFIGS / "planet.yaml")))


@pytest.mark.parametrize(
    ("changes", "came", "nearest"),
    [
        ({"sed": 1}, "sed", "did you mean seed?"),
        ({"prior": {"windw": 3}}, "prior.windw", "did you mean prior.window?"),
        ({"prior": {"fit": {"learning_rat": 0.1}}}, "prior.fit.learning_rat", "prior.fit.learning_rate?"),
        ({"assimilation": {"member": 3}}, "assimilation.member", "did you mean assimilation.members?"),
        ({"latent": {"zzz": 3}}, "latent.zzz", "there are kind, channels, patch"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(changes, came, nearest):
    with pytest.raises(ValueError) as told:
        from_tree(tree(**changes))
    assert f"unknown key '{came}';" in str(told.value) and nearest in str(told.value)


def test_an_unknown_key_of_a_modality_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"data\.modalities\.t\.transfrm'; did you mean .*\.transform\?"):
        built("data.modalities.t.transfrm=log1p")


def test_overrides_are_read_as_yaml_of_the_type_of_the_setting():
    recipe = built(
        "prior.fit.learning_rate=1e-3",
        "prior.fit.weight_decay=1",
        "prior.fit.steps=2e2",
        "assimilation.gamma=2.5E-2",
        "prior.hidden=[8, 16]",
        "name=1997",
        "data.train=[1997-12-01, 1998-02-28]",
        "assimilation.residual=false",
        "experiment.sets.all=[t]",
        "data.modalities.t.error_std=1e-1",
        "out=a=b",
    )
    fit = recipe.prior.fit
    assert (fit.learning_rate, fit.weight_decay, fit.steps) == (1e-3, 1.0, 200)
    assert isinstance(fit.weight_decay, float) and isinstance(fit.steps, int)
    assert recipe.assimilation.gamma == 0.025 and recipe.prior.hidden == (8, 16)
    assert recipe.name == "1997" and recipe.data.train == ("1997-12-01", "1998-02-28")
    assert recipe.assimilation.residual is False and recipe.experiment.sets == {"all": ("t",)}
    assert recipe.modalities["t"].error_std == 0.1 and recipe.out == "a=b"


def test_what_is_not_overridden_stays(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree(prior={"window": 5, "fit": {"steps": 7, "learning_rate": 0.5}})))
    before, after = load(path), load(path, ["prior.fit.steps=9"])
    expected = dataclasses.replace(before.prior, fit=dataclasses.replace(before.prior.fit, steps=9))
    assert after == dataclasses.replace(before, prior=expected)


def test_numbers_without_a_point_are_numbers_in_files_too(tmp_path):
    """YAML 1.1 reads 1e-3 as text."""
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(tree()) + "latent: {fit: {learning_rate: 1e-3}}\n")
    assert load(path).latent.fit.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("prior.fit.steps=many", "prior.fit.steps must be int, got 'many'"),
        ("prior.fit.steps=2.5", "prior.fit.steps must be int, got 2.5"),
        ("prior.fit.steps=true", "prior.fit.steps must be int, got True"),
        ("latent.fit.learning_rate=fast", "latent.fit.learning_rate must be float, got 'fast'"),
        ("assimilation.residual=1", "assimilation.residual must be bool, got 1"),
        ("prior.hidden=64", "prior.hidden is a list, got 64"),
        ("prior.hidden=[64, wide]", r"prior.hidden\[1\] must be int, got 'wide'"),
        ("data.train=[1997-12-01]", "data.train needs 2 entries"),
        ("experiment.sets=[t]", "experiment.sets is a mapping"),
        ("latent.fit=3", "latent.fit must be a mapping of settings, got 3"),
        ("name=[a]", r"name must be str, got \['a'\]"),
        ("out=", "out must be str, got None"),
        ("data.modalities.t.error_std=small", "error_std must be float, got 'small'"),
        ("data.modalities.t.levels=[top]", r"levels\[0\] must be float, got 'top'"),
        ("data.modalities.t.role=guess", "modalities.t.role is 'state' or 'observation', got 'guess'"),
        ("latent.kind=tree", "latent.kind is 'grid', 'vector', 'published' or 'pixel', got 'tree'"),
        ("assimilation.guidance=none", "assimilation.guidance is 'covariance'"),
        ("assimilation.grid=even", "assimilation.grid is 'time' or 'snr', got 'even'"),
        ("assimilation.corrections=2", "set eta and corrections to 0, or order to 1"),
        ("assimilation.order=4", "order is 1, 2 or 3"),
        ("prior.window=4", "prior.window must be odd .* got 4"),
        ("seed.a=1", "seed must be int, got {'a': 1}"),
        ("nothing", "an override looks like a.b=c, got 'nothing'"),
        ("=3", "an override looks like a.b=c, got '=3'"),
        ("prior.hidden=[64", r"prior.hidden=\[64 is invalid YAML"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_came(setting, told):
    with pytest.raises(ValueError, match=told):
        built(setting)


def test_a_setting_inside_a_value_is_refused():
    with pytest.raises(ValueError, match="leads into 'window', which is a plain value"):
        override(tree(prior={"window": 3}), ["prior.window.days=3"])


@pytest.mark.parametrize(
    "setting", ["assimilation.members=0", "assimilation.steps=0", "assimilation.members=-3"]
)
def test_members_and_steps_of_zero_are_refused(setting):
    with pytest.raises(ValueError, match="at least one member and one step, got members="):
        built(setting)


@pytest.mark.parametrize("stage", ["latent", "prior"])
@pytest.mark.parametrize("key", ["steps", "batch", "every"])
def test_a_training_of_nothing_is_refused(stage, key):
    with pytest.raises(ValueError, match=f"{stage}.fit.{key} must be at least 1, got 0"):
        built(f"{stage}.fit.{key}=0")


@pytest.mark.parametrize(
    ("setting", "group"),
    [
        ("experiment.sets.t=[rain]", "experiment.sets.t"),
        ("data.direct.t=[rain]", "data.direct.t"),
        ("data.direct.rain=[t]", "data.direct.rain"),
        ("latent.scales.rain=1", "latent.scales"),
        ("experiment.withhold.rain=[1]", "experiment.withhold"),
    ],
)
def test_a_name_of_no_modality_is_told_with_those_that_are(setting, group):
    """Also where a set is called as a modality that has direct measurements."""
    with pytest.raises(ValueError, match=rf"^{group} names 'rain', which is no modality; there are \['t'\]"):
        built(setting, *([] if "direct" in setting else ["data.direct.t=[t]"]))


def test_a_recipe_without_a_state_or_with_half_a_modality_is_refused():
    with pytest.raises(ValueError, match="at least one modality with role: state"):
        from_tree({})
    with pytest.raises(ValueError, match="at least one modality with role: state"):
        built("data.modalities.t.role=observation")
    half = tree()
    del half["data"]["modalities"]["t"]["variable"]
    with pytest.raises(ValueError, match=r"data\.modalities\.t needs variable too"):
        from_tree(half)


def test_files_that_are_no_recipe_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="shipped in slams/configs: convae_0, .*planet"):
        load(tmp_path / "nothing.yaml")
    path = tmp_path / "a.yaml"
    path.write_text("- just\n- a list\n")
    with pytest.raises(ValueError, match="expected keys and values, got list"):
        load(path)
    path.write_text("prior: {window: [}\n")
    with pytest.raises(ValueError, match=r"a\.yaml is invalid YAML"):
        load(path)


def test_building_leaves_the_tree_alone():
    given = tree(prior={"hidden": [1, 2]})
    before = copy.deepcopy(given)
    from_tree(given)
    assert given == before


def test_the_defaults_are_a_valid_choice():
    assert from_tree(tree()).assimilation == AssimilationRecipe()


def test_a_transform_is_added_in_one_place(monkeypatch):
    """An entry of the table is a choice of recipes, and the modality holds the transform itself."""
    root = Transform("sqrt", np.sqrt, np.square, 0.0, "sqrt({})")
    with pytest.raises(ValueError, match="transform of modality 't' must be one of none, log1p, got 'sqrt'"):
        built("data.modalities.t.transform=sqrt")
    monkeypatch.setitem(TRANSFORMS, "sqrt", root)
    modality = built("data.modalities.t.transform=sqrt").modalities["t"]
    assert modality.transformed is root and root.label("mm") == "sqrt(mm)"
    x = np.array([0.0, 4.0])
    np.testing.assert_array_equal(root.inverse(root.forward(x)), x)


def test_a_recipe_holds_its_modalities():
    recipe = built()
    assert recipe.modalities is recipe.modalities and recipe.states == ["t"]
