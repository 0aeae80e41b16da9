"""Laws of kept work: taken where inputs and version agree and the file is whole, done again otherwise."""

from dataclasses import dataclass

import pytest
import torch

from slams.core.stages import Stage, Stages, claim, digest
from slams.core.tensorfile import read_facts, read_tensors, write_tensors


@dataclass(frozen=True)
class Before:
    steps: int = 5
    rate: float = 0.1


@dataclass(frozen=True)
class Later:
    """`Before` with a setting added since."""

    steps: int = 5
    rate: float = 0.1
    momentum: float = 0.0


def worker(calls: list[int]):
    def make():
        calls.append(1)
        return {"x": torch.arange(3.0)}, {"seconds": 2.5}

    return make


def test_a_setting_added_later_leaves_the_digest_alone():
    assert digest(Before(steps=7)) == digest(Later(steps=7))
    assert digest(Before(steps=7)) != digest(Later(steps=7, momentum=0.5))
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})


def test_a_stage_is_done_once_for_the_same_inputs(tmp_path):
    calls: list[int] = []
    for _ in range(2):
        tensors, facts = Stages(tmp_path).keep(Stage("a b", Before()), worker(calls))
        assert torch.equal(tensors["x"], torch.arange(3.0)) and facts == {"seconds": 2.5}
    assert len(calls) == 1
    Stages(tmp_path).keep(Stage("a b", Before(steps=6)), worker(calls))
    assert len(calls) == 2


def test_another_version_is_done_again_with_a_line(tmp_path):
    said: list[str] = []
    calls: list[int] = []
    Stages(tmp_path).keep(Stage("fit", 1, version=1), worker(calls))
    Stages(tmp_path, said.append).keep(Stage("fit", 1, version=2), worker(calls))
    assert len(calls) == 2 and "version 1, this is 2" in said[0]


def test_a_cut_result_is_done_again_with_a_line(tmp_path):
    said: list[str] = []
    calls: list[int] = []
    stages = Stages(tmp_path, said.append)
    stages.keep(Stage("fit"), worker(calls))
    path = stages.path(Stage("fit"))
    path.write_bytes(path.read_bytes()[:-4])
    stages.keep(Stage("fit"), worker(calls))
    assert len(calls) == 2 and "done again" in said[0] and str(path) in said[0]


@pytest.mark.parametrize("harm", ["delete", "cut"])
def test_a_stage_whose_file_is_gone_or_cut_is_not_done(tmp_path, harm):
    said: list[str] = []
    stages, stage, path = Stages(tmp_path, said.append), Stage("codec", {"a": 1}), tmp_path / "codec.bin"
    path.write_bytes(b"12345")
    stages.finish(stage, ["codec.bin"])
    assert stages.done(stage, ["codec.bin"]) and not stages.done(Stage("codec", {"a": 2}), ["codec.bin"])
    path.unlink() if harm == "delete" else path.write_bytes(b"123")
    assert not stages.done(stage, ["codec.bin"]) and "codec.bin is" in said[-1]


def test_a_folder_of_other_settings_is_refused_by_name(tmp_path):
    claim(tmp_path / "a.json", {"dt": 0.05, "start": {"std": 1}})
    claim(tmp_path / "a.json", {"dt": 0.05, "start": {"std": 1}})
    with pytest.raises(ValueError, match=r"start\.std: 1 there, 2 here"):
        claim(tmp_path / "a.json", {"dt": 0.05, "start": {"std": 2}})


def test_tensors_and_facts_travel(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "a.safetensors", {"t": whole.T, "same": whole.T}, {"n": 3, "names": ["é"]})
    tensors, facts = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["t"], whole.T) and torch.equal(tensors["same"], whole.T)
    assert facts == {"n": 3, "names": ["é"]} == read_facts(tmp_path / "a.safetensors")


def test_a_broken_file_of_tensors_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="a.safetensors; restore it"):
        read_tensors(path)
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="a.safetensors is not a valid safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("change", ["gone", "cut", "of the same size"])
def test_a_stage_whose_file_changed_is_done_again_with_a_line(change, tmp_path):
    said: list[str] = []
    path, stage = tmp_path / "result.bin", Stage("stage", 1)
    path.write_bytes(b"0123456789")
    Stages(tmp_path).finish(stage, ("result.bin",))
    assert Stages(tmp_path, said.append).done(stage, ()) and not said
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"01234" if change == "cut" else b"0123456780")
    assert not Stages(tmp_path, said.append).done(stage, ())
    assert "result.bin is " + ("gone" if change == "gone" else "cut or changed") in said[0]


def test_a_ledger_that_is_cut_is_told_and_everything_done_again(tmp_path):
    said: list[str] = []
    Stages(tmp_path).finish(Stage("stage", 1))
    (tmp_path / ".stages.json").write_text('{"stage": {"ke')
    assert not Stages(tmp_path, said.append).done(Stage("stage", 1))
    assert "can't be read" in said[0]
    Stages(tmp_path).finish(Stage("stage", 1))
    assert Stages(tmp_path).done(Stage("stage", 1))
