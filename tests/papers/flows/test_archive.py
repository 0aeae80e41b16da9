"""Laws of the archive of Kolmogorov flows: killed or not, in whatever batches, the same trajectories."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file

from slams.core.geometry.torus import coarsen
from slams.papers.flows import archive as flow_archive
from slams.papers.flows.archive import FlowArchive, flow, simulate, statistics, trajectories
from slams.papers.study import SPLITS, rows_of

SMALL = FlowArchive(count=12, length=3, spin_up=3, adjusted=2, fine=32, coarse=16, batch=4)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    whole = {split: trajectories(tmp_path / "whole", SMALL, split) for split in SPLITS}
    done = []

    def dying(settings, rows):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(rows)
        return simulate(settings, rows)

    monkeypatch.setattr(flow_archive, "simulate", dying)
    with pytest.raises(KeyboardInterrupt):
        trajectories(tmp_path / "killed", SMALL, "train")
    made = list(done)
    monkeypatch.setattr(
        flow_archive, "simulate", lambda settings, rows: done.append(rows) or simulate(settings, rows)
    )
    for split, x in whole.items():
        assert torch.equal(trajectories(tmp_path / "killed", SMALL, split), x)
    assert not set(made) & set(done[2:])  # nothing twice
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert names[0] == "test_00010.safetensors" and len(names) == 5
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_the_batches_that_are_asked_for_are_simulated(tmp_path):
    few = trajectories(tmp_path, SMALL, "train", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["train_00000.safetensors"]
    assert torch.equal(trajectories(tmp_path, SMALL, "train")[:2], few)
    with pytest.raises(ValueError, match="valid has 1 trajectories, 2 were asked for"):
        trajectories(tmp_path, SMALL, "valid", 2)


def test_files_of_another_archive_or_torn_ones_are_made_anew(tmp_path):
    # copies, as tensors lie in the mapped files, which are overwritten here
    first = {split: trajectories(tmp_path, SMALL, split).clone() for split in SPLITS}
    (tmp_path / "valid_00009.safetensors").write_bytes(b"torn")
    assert torch.equal(trajectories(tmp_path, SMALL, "valid"), first["valid"])
    other = trajectories(tmp_path, dataclasses.replace(SMALL, seed=1), "train")
    assert not torch.allclose(other, first["train"])
    assert torch.equal(load_file(tmp_path / "train_00004.safetensors")["x"], other[4:8])


def test_a_trajectory_is_its_own_start_followed_by_the_flow():
    """Independent of its batch; each state, on the fine grid, follows from the one before by one transition."""
    x = simulate(SMALL, range(4, 8))
    torch.testing.assert_close(simulate(SMALL, range(6, 7))[0], x[2], rtol=0, atol=1e-5)
    alike = dataclasses.replace(SMALL, coarse=32)
    fine = simulate(alike, range(4, 8))
    system = flow(alike, 32)
    torch.testing.assert_close(fine[:, 1], system(fine[:, 0]), rtol=0, atol=1e-4)
    assert (fine[0, 0] - fine[1, 0]).abs().max() > 0.5
    # the first state has had the whole spin-up and one transition more
    start = simulate(dataclasses.replace(alike, spin_up=2, adjusted=2, length=2), range(4, 8))
    torch.testing.assert_close(start[:, 1], fine[:, 0], rtol=0, atol=1e-4)
    assert coarsen(fine, 2).shape == x.shape


def test_parts_are_disjoint_and_in_order():
    rows = [i for split in SPLITS for i in rows_of(split, SMALL.count)]
    assert rows == list(range(12))
    assert [len(rows_of(split, FlowArchive().count)) for split in SPLITS] == [128, 16, 16]


def test_statistics_of_a_travelling_wave():
    """u = sin(y - c t): deviation 1 / sqrt(2), persistence sqrt((1 - cos(c l)) / 2), vorticity h cos(y)."""
    y = 2 * torch.pi * (torch.arange(64) + 0.5) / 64
    phase = y - 0.3 * torch.arange(64)[:, None, None]
    x = torch.zeros(1, 64, 2, 64, 64)
    x[0, :, 0] = phase.sin()
    found = statistics(x, (1, 5))
    assert found["std_u"] == pytest.approx(0.5**0.5, rel=1e-4)
    assert found["std_v"] == 0
    assert found["persistence_1"] == pytest.approx(((1 - math.cos(0.3)) / 2) ** 0.5, rel=1e-3)
    assert found["persistence_5"] == pytest.approx(((1 - math.cos(1.5)) / 2) ** 0.5, rel=1e-3)
    assert found["std_w"] == pytest.approx(2 * torch.pi / 64 * 0.5**0.5, rel=5e-3)


def test_settings_that_cannot_be_are_told():
    with pytest.raises(ValueError, match="at least 10"):
        FlowArchive(count=9)
    with pytest.raises(ValueError, match="between one and all"):
        FlowArchive(spin_up=4, adjusted=5)
    with pytest.raises(ValueError, match="multiple"):
        FlowArchive(fine=100)
