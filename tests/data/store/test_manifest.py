import json
import multiprocessing
import threading

import pytest

from slams.data.store.manifest import (
    file_row,
    measure,
    read_manifest,
    record_files,
    record_history,
    sha256_of,
    write_manifest,
)
from slams.data.store.store import FieldStore
from tests.data.store.test_store import field


def add(folder, worker, count):
    """What one of several processes records."""
    for i in range(count):
        (folder / f"{worker}-{i}.nc").write_bytes(bytes([worker, i]))
        record_files(
            folder, [file_row(folder / f"{worker}-{i}.nc", f"{worker}-{i}.nc", "https://example.org")]
        )
        record_history(folder, f"{worker}-{i}", {})


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_writers_at_once_lose_no_row(tmp_path, kind):
    start = threading.Thread if kind == "threads" else multiprocessing.get_context("fork").Process
    workers = [start(target=add, args=(tmp_path, worker, 8)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    manifest = read_manifest(tmp_path)
    names = sorted(f"{worker}-{i}" for worker in range(3) for i in range(8))
    assert [row["path"] for row in manifest["files"]] == [f"{name}.nc" for name in names]
    assert sorted(row["what"] for row in manifest["history"]) == names


def test_stores_files_and_history_share_one_manifest(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"1")
    record_files(tmp_path, [file_row(tmp_path / "a.nc", "a.nc", "https://example.org/a.nc", etag='"1"')])
    record_history(tmp_path, "a.zarr: 2000", {"grid": "1.5deg", "levels": (850, 500)})
    store = FieldStore.create(tmp_path / "a.zarr", field(), {"url": "https://example.org"})
    (file,), (row,), (line,) = read_manifest(tmp_path).values()
    assert set(row) == {"path", "url", "date", "size", "sha256", "version"} <= set(file)
    assert row["sha256"] == store.fingerprint and row["size"] == measure(tmp_path / "a.zarr")[0]
    assert file["sha256"] == sha256_of(tmp_path / "a.nc") and file["etag"] == '"1"'
    assert line["what"] == "a.zarr: 2000" and line["settings"] == {"grid": "1.5deg", "levels": [850, 500]}


def test_what_was_said_is_not_repeated_and_what_is_unchanged_keeps_its_date(tmp_path):
    FieldStore.create(tmp_path / "a.zarr", field())
    record_history(tmp_path, "1979", {"levels": (1, 2)})
    record_history(tmp_path, "1980", {"levels": (1, 2)})
    old = json.loads((tmp_path / "manifest.json").read_text())
    old["stores"][0]["date"] = old["history"][0]["date"] = "1999-01-01T00:00:00+00:00"
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    write_manifest(tmp_path)
    record_history(tmp_path, "1979", {"levels": [1, 2]})
    assert read_manifest(tmp_path) == old
    record_history(tmp_path, "1979", {"levels": [1]})
    assert [line["what"] for line in read_manifest(tmp_path)["history"]] == ["1979", "1980", "1979"]


def test_an_older_list_of_stores_is_read_as_such(tmp_path):
    (tmp_path / "manifest.json").write_text('[{"path": "a.zarr", "sha256": "x"}]')
    assert read_manifest(tmp_path) == {
        "files": [],
        "stores": [{"path": "a.zarr", "sha256": "x"}],
        "history": [],
    }


@pytest.mark.parametrize(
    "text",
    ["", "{", "7", '{"files": 3}', '{"files": [{"url": "x"}]}', '{"files": [1]}', '{"icons": []}', "\xff"],
)
def test_a_manifest_that_is_not_ours_is_left_alone_and_told(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    for use in (read_manifest, write_manifest, lambda folder: record_history(folder, "x", {})):
        with pytest.raises(
            ValueError, match=r"manifest\.json isn't a manifest of this package.*move it away"
        ):
            use(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == text.encode("latin-1")


def test_the_checksum_of_a_folder_depends_on_names_and_contents_only(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "t").mkdir(parents=True)
        for file in ("x", "y") if name == "a" else ("y", "x"):
            (tmp_path / name / "t" / file).write_text(file)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    (tmp_path / "b" / "t" / "x").rename(tmp_path / "b" / "t" / "z")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")
