import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slams.data.windows import WindowDataset, common_dates, runs, window_starts


def days(*texts):
    return np.array(texts, dtype="datetime64[D]")


def span(first, count):
    return np.datetime64(first, "D") + np.arange(count)


@st.composite
def broken_calendars(draw):
    """Runs of known lengths with known gaps between them."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    gaps = draw(st.lists(st.integers(1, 300), min_size=len(lengths), max_size=len(lengths)))
    day, parts = draw(st.integers(-20000, 20000)), []
    for length, gap in zip(lengths, gaps, strict=True):
        parts.append(np.arange(day, day + length))
        day += length + gap
    return np.concatenate(parts).astype("datetime64[D]"), lengths


@given(broken_calendars(), st.integers(1, 14))
def test_a_run_of_n_days_holds_n_minus_w_plus_1_windows(calendar, length):
    dates, lengths = calendar
    starts = window_starts(dates, length)
    assert starts.dtype == torch.int64
    assert len(starts) == sum(max(0, n - length + 1) for n in lengths)
    assert len(set(starts.tolist())) == len(starts)


@given(broken_calendars(), st.integers(1, 14), st.integers(1, 5))
def test_no_window_crosses_a_gap(calendar, length, stride):
    dates, _ = calendar
    for start in window_starts(dates, length, stride).tolist():
        window = dates[start : start + length]
        assert window.size == length
        assert window[-1] - window[0] == np.timedelta64(length - 1, "D")


@given(broken_calendars())
def test_runs_cover_every_day_once_and_are_as_long_as_made(calendar):
    dates, lengths = calendar
    found = runs(dates)
    assert [run.stop - run.start for run in found] == lengths
    assert np.array_equal(np.concatenate([dates[run] for run in found]), dates)


def test_stride_starts_anew_in_every_run():
    dates = np.concatenate([span("2000-12-01", 5), span("2001-12-01", 6)])
    assert window_starts(dates, 2, stride=3).tolist() == [0, 3, 5, 8]


@pytest.mark.parametrize("length, stride", [(0, 1), (3, 0), (-1, 1)])
def test_window_of_no_days_is_refused(length, stride):
    with pytest.raises(ValueError, match="at least 1 day"):
        window_starts(span("2000-01-01", 9), length, stride)


@pytest.mark.parametrize("wrong", [days("2000-01-02", "2000-01-01"), days("2000-01-01", "2000-01-01")])
def test_unsorted_or_repeated_days_are_refused(wrong):
    with pytest.raises(ValueError, match="rise strictly, but 2000-01-01 follows"):
        runs(wrong)


def test_common_dates_join_by_date_and_report_gaps():
    joined, report = common_dates(
        {
            "tas": days("2000-01-01", "2000-01-02", "2000-01-03", "2000-01-06", "2000-01-07"),
            "rain": days("2000-01-02", "2000-01-03", "2000-01-04", "2000-01-06", "2000-01-07"),
        }
    )
    assert joined.tolist() == days("2000-01-02", "2000-01-03", "2000-01-06", "2000-01-07").tolist()
    tas, rain = report.rows
    assert tas.gaps == ((np.datetime64("2000-01-04"), np.datetime64("2000-01-05")),)
    assert (tas.missing, tas.unused, rain.missing, rain.unused) == (2, 1, 1, 1)
    assert (report.days, report.runs) == (4, 2)
    text = report.text()
    assert "2000-01-04 to 2000-01-05" in text and "4 days in 2 runs" in text


def test_modalities_without_a_common_day_are_named_with_their_spans():
    with pytest.raises(ValueError, match=r"tas: 2000-01-01 to 2000-01-03.*rain: 2001-01-01 to 2001-01-02"):
        common_dates({"tas": span("2000-01-01", 3), "rain": span("2001-01-01", 2)})


def test_window_dataset_gives_the_same_days_of_every_modality():
    dates = np.concatenate([span("2000-02-27", 4), span("2000-12-01", 3)])
    number = torch.from_numpy(dates.astype(np.int64))
    dataset = WindowDataset({"a": number, "b": number[:, None, None].expand(-1, 2, 3)}, dates, length=3)
    assert len(dataset) == 3
    for index in range(len(dataset)):
        item, expected = dataset[index], torch.from_numpy(dataset.days(index).astype(np.int64))
        assert torch.equal(item["a"], expected)
        assert torch.equal(item["b"], expected[:, None, None].expand(3, 2, 3))
    with pytest.raises(IndexError):
        dataset[3]


def test_window_longer_than_every_run_is_refused_with_the_longest_run():
    with pytest.raises(ValueError, match="longest run of consecutive days has 4"):
        WindowDataset({}, np.concatenate([span("2000-01-01", 4), span("2001-01-01", 2)]), length=5)


def test_tensor_with_another_number_of_days_is_refused():
    with pytest.raises(ValueError, match="'a' has shape"):
        WindowDataset({"a": torch.zeros(4, 2)}, span("2000-01-01", 5), length=2)
