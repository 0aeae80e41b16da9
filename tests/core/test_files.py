"""Laws of files that are written whole, where an open file can't be replaced too."""

import os

import psutil
import pytest

from slams.core import files
from slams.core.files import atomic, write_text


@pytest.fixture
def windows(monkeypatch):
    """A pretended Windows: a file that somebody has open can't be replaced. Yields who has which file open."""
    opened: dict[str, int] = {}
    replace = os.replace

    def guarded(source, target):
        left = opened.get(str(target), 0)
        if left:
            opened[str(target)] = left - 1
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(files, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(files.os, "replace", guarded)
    return opened


def test_an_open_file_is_replaced_once_its_reader_is_done(tmp_path, windows):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    windows[str(target)] = 2
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_stays_open_is_an_error_with_the_remedy_and_keeps_its_content(tmp_path, windows):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    windows[str(target)] = 99
    with pytest.raises(PermissionError, match="another program has it open; close it"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_elsewhere_a_refused_replacement_is_an_error_at_once(tmp_path, windows, monkeypatch):
    monkeypatch.setattr(files, "_WINDOWS", False)
    windows[str(tmp_path / "a.txt")] = 1
    with pytest.raises(PermissionError, match="Access is denied"):
        write_text(tmp_path / "a.txt", "new")


def test_a_folder_is_replaced_where_two_names_cannot_be_exchanged(tmp_path, windows, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for content in ("old", "new"):
        with atomic(tmp_path / "store.zarr") as temporary:
            temporary.mkdir()
            (temporary / "c").write_text(content)
    assert (tmp_path / "store.zarr" / "c").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]


def test_whether_a_process_lives_is_asked_without_a_signal(monkeypatch):
    """On Windows `os.kill(pid, 0)` is CTRL_C_EVENT and would interrupt the process."""

    def refuse(pid, signal):
        raise AssertionError(f"signal {signal} was sent to {pid}")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid == 12)
    assert files._alive(12) and not files._alive(13)
