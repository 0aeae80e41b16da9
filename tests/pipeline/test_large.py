"""Fields beyond memory give what small ones give."""

import numpy as np
import pytest
import torch

from slams.core.codec import SeasonalStandardize
from slams.pipeline.inputs import fields as reading
from slams.pipeline.inputs import large
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.inputs.large import by_days, fit_statistics
from slams.pipeline.recipe import from_tree
from tests.data.store.test_mapped import SNAPSHOT, store

DAYS = 150


@pytest.fixture
def x(rng) -> torch.Tensor:
    field = 280 + torch.randn(DAYS, 3, 4, 5, generator=rng)
    field[::7, :, 1, 2] = torch.nan
    return field


def test_statistics_channel_by_channel_are_those_of_all(x, monkeypatch) -> None:
    """Only the order of sums differs."""
    index, phase, weights = np.arange(5, 140), torch.linspace(0, 0.9, 135), torch.rand(4, 5) + 0.5
    whole = fit_statistics(x, index, phase, 2, weights)
    assert isinstance(whole, SeasonalStandardize)
    monkeypatch.setattr(large, "IN_MEMORY", 100)
    parts = fit_statistics(x, index, phase, 2, weights)
    for one, two in zip(whole.buffers(), parts.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def test_days_in_pieces_are_those_at_once(x, monkeypatch) -> None:
    index, phase = np.r_[3:70, 80:149], torch.rand(136)

    def anomaly(part: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        return part * when[:, None, None, None] + 1

    whole = by_days(anomaly, x, index, phase)
    monkeypatch.setattr(large, "IN_MEMORY", 100)
    torch.testing.assert_close(by_days(anomaly, x, index, phase), whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("gap", [False, True])
def test_fields_mapped_from_a_file_are_those_read(gap: bool, tmp_path, monkeypatch) -> None:
    """With and without a missing day in another modality, which leaves no slice of the file."""
    days = np.datetime64("2000-01-01") + np.arange(30)
    store(tmp_path / "t.zarr", days, SNAPSHOT, 2)
    store(tmp_path / "s.zarr", np.delete(days, 9) if gap else days, SNAPSHOT)
    modalities = {
        name: {"files": str(tmp_path / f"{name}.zarr"), "variable": name, "role": "state"}
        for name in ("t", "s")
    }
    recipe = from_tree({"data": {"modalities": modalities, "store": str(tmp_path / "made")}})
    read = load_fields(recipe)
    monkeypatch.setattr(reading, "IN_MEMORY", 0)
    mapped = load_fields(recipe)
    np.testing.assert_array_equal(read.dates, mapped.dates)
    assert len(read.dates) == 30 - gap
    for name, values in read.values.items():
        assert torch.equal(values, mapped.values[name])
