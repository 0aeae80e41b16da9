"""Days in a file or still to be computed give what a tensor gives."""

import pytest
import torch

from slams.assimilation.baseline.gaussian import residual_variance, ridge
from slams.assimilation.baseline.ridge_sums import RidgeSums
from slams.core import days as budget
from slams.core.days import Days, DaysWriter, daywise, every, mean_of, memory_stride, over, total, write_days
from slams.core.eof import eof
from slams.diffusion.denoiser import window_moments
from slams.networks.conv_autoencoder import SharedGridCodec


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch) -> None:
    monkeypatch.setattr(budget, "IN_MEMORY", 4 * 12 * 30)
    monkeypatch.setattr(budget, "PIECE", 4 * 12 * 7)


@pytest.fixture
def x(rng) -> torch.Tensor:
    return torch.randn(100, 3, 4, generator=rng)


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(3, 80, 7), torch.tensor([[5, 4], [99, -1]]), torch.arange(100) % 3 == 0, [7, 7, 8]],
)
def test_rows_are_those_of_the_tensor(rows, x, tmp_path) -> None:
    write_days(tmp_path / "x.npy", x.split(9), 100, (3, 4))
    file = DaysWriter()
    for part in x.split(13):
        file.append(part)
    for days in (Days.of(x), Days.of_file(tmp_path / "x.npy"), file.days()):
        assert torch.equal(days[rows], x[rows])
    twice = (
        Days.of_file(tmp_path / "x.npy")
        .rows(slice(10, 90))
        .map(lambda part, rows: part * rows[:, None, None])
    )
    assert torch.equal(twice[5:8], x[15:18] * torch.arange(5, 8)[:, None, None])


def test_a_file_cut_short_is_refused(x, tmp_path) -> None:
    write_days(tmp_path / "x.npy", [x], 100, (3, 4))
    days = Days.of_file(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-40])
    with pytest.raises(OSError, match="ends before row 99"):
        days[90:]


def test_a_write_that_fails_leaves_no_file(x, tmp_path) -> None:
    def parts():
        yield x[:50]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_days(tmp_path / "x.npy", parts(), 100, (3, 4))
    assert not list(tmp_path.iterdir())


def test_sums_of_pieces_are_those_of_all(x) -> None:
    days = Days.of(x)
    torch.testing.assert_close(total(days, lambda part, rows: part.sum(0)), x.sum(0))
    torch.testing.assert_close(mean_of(days, (0, 2)), x.mean((0, 2)))
    assert torch.equal(over(daywise(days, torch.exp), lambda part: part[:, 0]), x.exp()[:, 0])
    assert torch.equal(every(days, 3)[:], x[::3]) and memory_stride(days) == 4


@pytest.mark.parametrize("columns", [12, 300])
def test_patterns_in_pieces_are_those_of_all(columns, rng) -> None:
    """Fewer columns than days and more; exact up to rounding: the same variance, and patterns that span the same."""
    x = torch.randn(100, 8, generator=rng) @ torch.randn(8, columns, generator=rng)
    x += 0.05 * torch.randn(x.shape, generator=rng)
    whole, pieces = (eof(values, fraction=0.98, most=6) for values in (x, Days.of(x)))
    torch.testing.assert_close(pieces.variance, whole.variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(pieces.remainder, whole.remainder, rtol=1e-3, atol=1e-4)
    spanned = (x @ pieces.basis).square().sum() / (x @ whole.basis).square().sum()
    assert abs(float(spanned) - 1) < 1e-5 and pieces.explained == pytest.approx(whole.explained, abs=1e-6)
    torch.testing.assert_close(
        pieces.basis @ pieces.basis.mT, whole.basis @ whole.basis.mT, rtol=0, atol=1e-3
    )


def test_the_gaussian_of_windows_in_pieces_is_that_of_all(x) -> None:
    """Of a Gaussian process of 12 independent values, all patterns: V C V^T is the same, whatever the signs of V."""
    starts = torch.arange(98)
    found = []
    for z in (x, Days.of(x)):
        basis, covariance, outside = window_moments(z, starts, 3, fraction=1.0, most=12, shrink=0.0)
        whole = torch.block_diag(basis, basis, basis)
        found.append((whole @ covariance @ whole.mT, outside))
    torch.testing.assert_close(*(each[0] for each in found), rtol=1e-3, atol=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


@pytest.mark.parametrize("penalty", [1e-3, 10.0, 1e4])
def test_a_regression_from_sums_is_that_of_all_days(penalty, rng) -> None:
    """With complete columns, two with the same gaps, one with others, and one never seen."""
    a = torch.randn(100, 5, generator=rng)
    y = a @ torch.randn(5, 12, generator=rng) + 0.3 * torch.randn(100, 12, generator=rng)
    y[20:50, 3:5], y[::3, 7], y[:, 9] = torch.nan, torch.nan, torch.nan
    sums = RidgeSums(a, Days.of(y.reshape(100, 3, 4)))
    operator, whole = sums.operator(penalty), ridge(a, y, penalty)
    torch.testing.assert_close(operator, whole, rtol=1e-4, atol=1e-4)
    residual = y - a @ whole.mT
    each = sums.residual_squares(operator) / sums.seen.clamp(min=1)
    torch.testing.assert_close(
        each + 1e-3 * each.mean() + 1e-6, residual_variance(residual), rtol=1e-3, atol=1e-4
    )


def test_latents_in_a_file_are_standardized_as_those_in_memory(rng) -> None:
    z = 3 + 2 * torch.randn(50, 2, 3, 4, generator=rng)
    one, two = (SharedGridCodec({"t": 2}, ["t"], (3, 4), ()) for _ in range(2))
    one.standardize(z)
    two.standardize(Days.of(z))
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.std, two.std)
