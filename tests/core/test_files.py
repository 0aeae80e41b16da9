"""Laws of files that are written whole, where an open file can't be replaced too."""

import os
import socket

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
        for path in map(str, (source, target)):
            if opened.get(path):
                opened[path] -= 1
                raise PermissionError(13, "Access is denied", path)
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


def test_a_folder_that_stays_open_keeps_its_content(tmp_path, windows, monkeypatch):
    """Without an exchange of folders the old one is moved aside first; that may fail as well."""
    target = tmp_path / "a.zarr"
    target.mkdir()
    (target / "x").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    windows[str(target)] = 99
    with pytest.raises(PermissionError, match="another program"), atomic(target) as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("new")
    assert (target / "x").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_windows_flushes_what_is_opened_for_writing(tmp_path, monkeypatch, windows):
    """There os.fsync of a file opened for reading fails with a bad file descriptor."""
    fcntl = pytest.importorskip("fcntl")
    fsync, modes = os.fsync, []

    def flush(descriptor):
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", flush)
    write_text(tmp_path / "a.txt", "new")
    assert modes == [os.O_RDWR]


def test_leftovers_go_with_their_process_and_an_old_folder_only_once_a_new_one_stands(tmp_path, monkeypatch):
    """A replacement killed between its two renames leaves the old content under another name only."""
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid == 222)
    host = "".join(filter(str.isalnum, socket.gethostname()))[:32]
    dead, alive = (tmp_path / f".a.{host}-{pid}-0123abcd.partial.zarr" for pid in (111, 222))
    aside = dead.with_name(f"{dead.name}.old")
    for path in (dead, alive, aside):
        path.mkdir()
    files.remove_leftovers(tmp_path / "a.zarr")
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, aside.name}
    (tmp_path / "a.zarr").mkdir()
    files.remove_leftovers(tmp_path / "a.zarr")
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, "a.zarr"}
