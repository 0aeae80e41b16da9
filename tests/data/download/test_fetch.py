import io
import os
import threading
from pathlib import Path

import pytest
from rich.console import Console

from slams.data.download.bars import download_bars
from slams.data.download.fetch import FetchError, Item, fetch
from slams.data.store.manifest import read_manifest, sha256_of
from tests.data.download.test_transfer import CONTENT, SHORT, has_precip, netcdf
from tests.data.server import (
    serving,
    status,
)


def test_files_come_whole_with_their_rows_and_a_second_run_asks_nothing(server, bring):
    items = [Item(server.put(f"y/{i}.nc", CONTENT[i:]), f"{i % 2}/{i}.nc") for i in range(7)]
    got = bring(*items)
    assert [f.item for f in got] == items and all(f.fresh for f in got)
    for i, one in enumerate(got):
        assert one.path.read_bytes() == CONTENT[i:]
        bring.assert_whole(items[i].name, CONTENT[i:])
    rows = read_manifest(bring.folder)["files"]
    assert [row["url"] for row in rows] == [item.url for item in sorted(items, key=lambda item: item.name)]
    server.requests.clear()
    again = bring(*items)
    assert server.requests == [] and not any(f.fresh for f in again)


def test_jobs_run_in_parallel_up_to_their_number(bring):
    with serving(pace=0.005) as server:
        items = [Item(server.put(f"{i}.nc", SHORT), f"{i}.nc") for i in range(12)]
        bring(*items, jobs=3)
        assert server.most_busy == 3


def test_offline_uses_what_is_there_and_says_what_is_missing(server, bring):
    here, gone = Item(server.put("a.nc", CONTENT), "a.nc"), Item(server.put("b.nc", CONTENT), "b.nc")
    bring(here)
    server.requests.clear()
    assert [f.path.name for f in bring(here, offline=True)] == ["a.nc"]
    with pytest.raises(
        FetchError, match=r"1 of 2 files are missing.*without --offline.*\n +b\.nc: it isn't at"
    ):
        bring(here, gone, offline=True)
    (bring.folder / "a.nc").write_bytes(CONTENT[::-1])
    with pytest.raises(FetchError, match="a.nc isn't the file expected"):
        bring(here, offline=True)
    assert server.requests == []


def test_a_changed_file_is_brought_again_and_a_touched_one_is_not(server, bring):
    item = Item(server.put("a.nc", CONTENT), "a.nc")
    bring(item)
    os.utime(bring.folder / "a.nc", (1, 1))
    server.requests.clear()
    assert not bring(item)[0].fresh and server.requests == []
    (bring.folder / "a.nc").write_bytes(CONTENT[::-1])
    bring(item)
    bring.assert_whole("a.nc", CONTENT)


def test_a_file_put_there_by_hand_is_taken_if_it_passes_the_checks(server, bring, tmp_path):
    content = netcdf(tmp_path / "x.nc")
    item = Item(server.put("a.nc", content), "a.nc", check=has_precip)
    bring.folder.mkdir()
    (bring.folder / "a.nc").write_bytes(content)
    bring(item)
    assert server.requests == []
    bring.assert_whole("a.nc", content)
    os.remove(bring.folder / "manifest.json")
    (bring.folder / "a.nc").write_bytes(content[:-100])
    bring(item)
    assert len(server.requests) == 1
    bring.assert_whole("a.nc", content)


def test_a_file_that_grows_is_asked_for_each_time_and_brought_when_it_has(server, bring):
    for version in ({}, {"etag": None}):
        name = f"{len(version)}.nc"
        item = Item(server.put(name, SHORT, **version), name, grows=True)
        assert bring(item)[0].fresh
        assert not bring(item)[0].fresh and server.requests[-1].status == 304
        server.put(name, CONTENT, etag='"2"' if not version else None, modified=1.1e9)
        assert bring(item)[0].fresh
        bring.assert_whole(name, CONTENT)
        assert not bring(item, offline=True)[0].fresh


def test_a_local_source_is_read_where_it_lies(bring, tmp_path):
    there = tmp_path / "mirror" / "x.nc"
    there.parent.mkdir()
    content = netcdf(there)
    daily = tmp_path / "mirror" / "day.zarr"
    (daily / "t").mkdir(parents=True)
    (daily / ".zgroup").write_text('{"zarr_format": 2}')
    (daily / "t" / "0.0").write_bytes(SHORT)
    items = Item(str(there), "x.nc", check=has_precip), Item(str(daily), "day.zarr")
    got = bring(*items)
    assert [f.path for f in got] == [there, daily] and all(f.fresh for f in got)
    assert bring.visible == ["manifest.json"]
    rows = {row["path"]: row for row in read_manifest(bring.folder)["files"]}
    assert rows[str(there)]["sha256"] == sha256_of(there) and there.read_bytes() == content
    assert not any(f.fresh for f in bring(*items, offline=True))
    (daily / "t" / "0.0").write_bytes(SHORT[::-1])
    assert [f.fresh for f in bring(*items)] == [False, True]
    there.write_bytes(content[:-50])
    with pytest.raises(FetchError, match=r"x\.nc isn't the file expected: it can't be opened"):
        bring(*items)
    with pytest.raises(FetchError, match=r"there is no .*nowhere\.nc"):
        bring(Item(str(tmp_path / "nowhere.nc"), "y.nc"))


def test_local_files_of_one_name_are_read_and_nothing_beside_them_is_touched(bring, tmp_path):
    """The note of an unfinished file belongs to the folder that fetches it, which may be the source."""
    for year in ("1999", "2000"):
        (tmp_path / year).mkdir()
        netcdf(tmp_path / year / "t.nc")
        (tmp_path / year / ".t.nc.part.json").write_text("theirs")
    got = bring(*(Item(str(tmp_path / year / "t.nc"), "t.nc") for year in ("1999", "2000")))
    assert [one.path.parent.name for one in got] == ["1999", "2000"]
    assert all((tmp_path / year / ".t.nc.part.json").read_text() == "theirs" for year in ("1999", "2000"))


def test_two_runs_at_once_bring_each_file_once(tmp_path):
    with serving(pace=0.01) as server:
        items = [Item(server.put(f"{i}.nc", CONTENT), f"{i}.nc") for i in range(3)]
        runs = [threading.Thread(target=fetch, args=(items, tmp_path)) for _ in range(3)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert len(server.requests) == 3
    assert len(read_manifest(tmp_path)["files"]) == 3


def test_an_error_of_one_that_ends_all_stops_the_others(tmp_path):
    def explode(path: Path) -> None:
        raise RuntimeError("a fault of the program")

    with serving(pace=0.05) as server:
        bad = Item(server.put("bad.nc", SHORT), "bad.nc", check=explode)
        slow = [Item(server.put(f"{i}.nc", CONTENT * 9), f"{i}.nc") for i in range(9)]
        with pytest.raises(RuntimeError, match="a fault of the program"):
            fetch([bad, *slow], tmp_path, jobs=2, sleep=lambda seconds: None)
        assert len(server.requests) < 10


def test_a_password_in_an_address_is_neither_kept_nor_told(server, bring):
    server.put("a.nc", CONTENT)
    url = server.url.replace("//", "//user:secret@") + "/a.nc"
    bring(Item(url, "a.nc"))
    assert "secret" not in (bring.folder / "manifest.json").read_text()
    with pytest.raises(FetchError) as caught:
        bring(Item(url.replace("a.nc", "b.nc"), "b.nc"))
    assert "secret" not in str(caught.value) and "/b.nc" in str(caught.value)


def test_bars_show_rate_and_remaining_time_and_leave_a_line_a_file(server, bring):
    server.fail("a.nc", status(503))
    screen = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=150)
    with download_bars(screen) as progress:
        bring(Item(server.put("a.nc", CONTENT), "a.nc"), progress=progress)
        progress("b.nc", 1000, 5000, "")
        progress("b.nc", 2000, 5000, "")
        shown = "".join(segment.text for segment in screen.render(progress.progress))
    assert "2.0/5.0 kB" in shown and "left" in shown and "b.nc" in shown and "a.nc" not in shown
    output = screen.file.getvalue()
    assert "503" in output and "again in 1 s" in output and "300.0 kB in 0 s" in output
    log = Console(file=io.StringIO(), force_terminal=False)
    with download_bars(log) as progress:
        bring(Item(server.put("c.nc", CONTENT), "c.nc"), progress=progress)
    assert log.file.getvalue().splitlines() == ["c.nc: 300.0 kB in 0 s"]
