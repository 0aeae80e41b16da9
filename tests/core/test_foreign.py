"""A user's own network by import path: nothing is imported unless its package is named as trusted."""

import sys

import pytest
from torch import nn

from slams.core import foreign

HOSTILE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
NET = "from torch import nn\nclass Net(nn.Linear):\n    pass\nclass Other:\n    pass\n"


def network(path, settings, trust, where):
    with foreign.trusting(trust):
        return foreign.network(path, settings, where)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package beside the tests, on the path; forgets its modules afterwards."""

    def write(name: str, text: str):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(text)
        return tmp_path / "site" / name

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mynets", "hostile")]:
        del sys.modules[name]


def test_a_trusted_class_is_built_from_plain_keywords(package):
    package("mynets", NET)
    made = network("mynets:Net", {"in_features": 2, "out_features": 3}, ["mynets"], "prior.network")
    assert isinstance(made, nn.Linear) and made.weight.shape == (3, 2)


@pytest.mark.parametrize("trust", [[], ["mynets"], ["hostil"]])
def test_code_that_is_not_trusted_does_not_run(package, trust):
    place = package("hostile", HOSTILE)
    with pytest.raises(PermissionError, match=r"trust=\['hostile'\] or --trust hostile"):
        network("hostile:Net", {}, trust, "recipe.yaml, prior.network")
    assert not (place / "ran").exists() and "hostile" not in sys.modules


def test_a_package_of_the_working_folder_is_imported_only_if_asked(package, tmp_path, monkeypatch):
    place = package("hostile", HOSTILE + NET)
    monkeypatch.chdir(tmp_path / "site")
    with pytest.raises(PermissionError, match="lies in the working folder"):
        network("hostile:Net", {"in_features": 1, "out_features": 1}, ["hostile"], "prior.network")
    assert not (place / "ran").exists()
    network("hostile:Net", {"in_features": 1, "out_features": 1}, [".", "hostile"], "prior.network")


@pytest.mark.parametrize(
    "path", ["os:system", "os.path", "mynets:Net()", "__import__('os'):x", "mynets:Net:more", "", "../a:B"]
)
def test_other_paths_are_refused(package, path):
    package("mynets", NET)
    with pytest.raises((ValueError, PermissionError, TypeError)):
        network(path, {}, ["mynets"], "prior.network")


def test_only_networks_are_built(package):
    package("mynets", NET)
    with pytest.raises(TypeError, match=r"no subclass of torch\.nn\.Module"):
        network("mynets:Other", {}, ["mynets"], "prior.network")
    with pytest.raises(TypeError, match=r"no subclass of torch\.nn\.Module"):
        network("os:system", {}, ["os"], "prior.network")


def test_trust_ends_with_its_block(package):
    package("hostile", HOSTILE)
    with foreign.trusting(["hostile"]):
        pass
    with pytest.raises(PermissionError):
        foreign.network("hostile:Net", {}, "prior.network")
    with pytest.raises(TypeError, match=r"pass trust=\['hostile'\]"), foreign.trusting("hostile"):
        pass


def test_settings_are_plain(package):
    package("mynets", NET)
    with pytest.raises(ValueError, match="plain numbers"):
        network("mynets:Net", {"in_features": object()}, ["mynets"], "prior.network")
    with pytest.raises(TypeError, match="does not take these settings"):
        network("mynets:Net", {"width": 1}, ["mynets"], "prior.network")
