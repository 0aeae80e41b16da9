import errno
import hashlib
import resource
import shutil
import signal
import time
from email.utils import formatdate
from random import Random

import netCDF4
import numpy as np
import pytest

from slams.data.archives import REGISTRY
from slams.data.download import transfer
from slams.data.download.fetch import FetchError, Item
from tests.data import archive_files
from tests.data.server import (
    both,
    change,
    chunked,
    drop,
    endless,
    serving,
    stall,
    status,
    wrong_length,
)

CONTENT = Random(0).randbytes(300_000)
SHORT = CONTENT[:40]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", range(len(SHORT) + 1))
def test_a_connection_dropped_at_any_byte_loses_nothing(server, bring, after, reset):
    url = server.put("a.nc", SHORT)
    server.fail("a.nc", drop(after, reset))
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", SHORT)


def test_a_download_goes_on_from_where_it_broke(server, bring):
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", drop(100_000), drop(100_000), drop(50_000))
    bring(Item(url, "a.nc"), retries=0)  # an attempt that brings something isn't a failed one
    bring.assert_whole("a.nc", CONTENT)
    starts = [request.headers.get("range") for request in server.requests]
    assert starts == [None, "bytes=100000-", "bytes=200000-", "bytes=250000-"]
    assert [request.headers.get("if-range") for request in server.requests] == [None] + ['"1"'] * 3


def test_a_later_run_goes_on_from_where_an_earlier_one_gave_up(server, bring):
    url = server.put("a.nc", CONTENT, etag=None)  # Last-Modified, a day old, serves as well
    server.fail("a.nc", drop(120_000), *[status(503)] * 3)
    with pytest.raises(FetchError, match=r"a\.nc.*503.*Run the command again later"):
        bring(Item(url, "a.nc"), retries=2)
    assert bring.visible == [] and server.requests[-1].headers["range"] == "bytes=120000-"
    bring(Item(url, "a.nc"))
    assert server.requests[-1].status == 206
    bring.assert_whole("a.nc", CONTENT)


@pytest.mark.parametrize(
    "version",
    [
        {"ranges": False},
        {"etag": None, "modified": None},
        {"etag": 'W/"1"'},
        {"etag": None, "modified": 4e9},
    ],
    ids=["no ranges", "no version", "weak version", "just modified"],
)
def test_a_download_that_cannot_go_on_starts_anew(server, bring, version):
    url = server.put("a.nc", CONTENT, **version)
    server.fail("a.nc", drop(100_000), drop(200_000))
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", CONTENT)
    assert [request.status for request in server.requests] == [200, 200, 200]


@pytest.mark.parametrize("seed", range(25))
def test_any_sequence_of_faults_ends_with_the_file_that_the_server_has(server, bring, seed):
    chance = Random(seed)
    url = server.put("a.nc", chance.randbytes(50_000), ranges=chance.random() < 0.8)
    for _ in range(8):
        after = chance.choice([0, 1, 65_536, chance.randrange(90_000)])
        new = change(chance.randbytes(chance.randrange(90_000)), f'"{chance.random()}"')
        kinds = [
            drop(after),
            drop(after, True),
            status(chance.choice([500, 503, 429])),
            wrong_length(after + 1),
        ]
        kinds += [both(new, drop(after)), new, both(chunked, drop(after)), status(416)]
        server.fail("a.nc", chance.choice(kinds))
    bring(Item(url, "a.nc"), retries=20)
    bring.assert_whole("a.nc", server.files["/a.nc"].content)


@pytest.mark.parametrize("fault", [drop(1000), drop(1000, reset=True)])
def test_a_server_that_never_gets_further_is_given_up(server, bring, fault):
    url = server.put("a.nc", CONTENT, ranges=False)
    server.fail("a.nc", *[fault] * 50)
    with pytest.raises(FetchError, match="failed 4 times in a row"):
        bring(Item(url, "a.nc"), retries=3)
    assert len(server.requests) <= 5


@pytest.mark.parametrize("etag", ['"2"', '"1"'])
@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) // 2, 50_000])
def test_a_file_that_changes_between_two_requests_is_the_new_one(server, bring, etag, size):
    new = CONTENT[::-1][:size]
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", drop(100_000), change(new, etag))
    honest = etag == '"2"'  # one that doesn't say that it changed is found out by the checksum
    bring(Item(url, "a.nc", sha256=None if honest else hashlib.sha256(new).hexdigest()))
    bring.assert_whole("a.nc", new)


def test_a_server_that_ignores_if_range_is_found_out_by_its_version(server, bring):
    new = CONTENT[::-1]

    def careless(handler):
        handler.headers.replace_header("If-Range", '"2"')
        handler.seen.headers["if-range"] = '"2"'
        return change(new)(handler)

    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", drop(100_000), careless)
    bring(Item(url, "a.nc"))
    assert [request.status for request in server.requests] == [200, 206, 200]
    bring.assert_whole("a.nc", new)


def test_a_silent_server_is_asked_again(server, bring):
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", stall(0, 5.0), stall(150_000, 5.0))
    bring(Item(url, "a.nc"), timeout=0.3)
    bring.assert_whole("a.nc", CONTENT)
    assert server.requests[-1].status == 206


@pytest.mark.parametrize("lie", [1, 1000, -1, -1000])
def test_a_wrong_length_once_is_an_accident(server, bring, lie):
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", wrong_length(lie), status(416) if lie > 0 else None)
    bring(Item(url, "a.nc", sha256=hashlib.sha256(CONTENT).hexdigest()))
    bring.assert_whole("a.nc", CONTENT)


def test_a_length_that_is_not_the_published_one_is_refused(server, bring):
    url = server.put("a.nc", CONTENT)
    with pytest.raises(FetchError, match=r"300000 bytes, but 299999 were published.*another source"):
        bring(Item(url, "a.nc", size=len(CONTENT) - 1))
    assert bring.visible == []


def test_a_body_without_a_length_is_taken_only_if_its_end_is_marked_or_known(server, bring):
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", chunked)
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", CONTENT)
    server.put("b.nc", CONTENT)
    server.fail("b.nc", both(chunked, drop(1000)), chunked)
    bring(Item(f"{server.url}/b.nc", "b.nc"))
    bring.assert_whole("b.nc", CONTENT)
    server.put("c.nc", CONTENT)
    server.fail("c.nc", endless, both(endless, drop(1000)), endless)
    with pytest.raises(FetchError, match="without a length"):
        bring(Item(f"{server.url}/c.nc", "c.nc"))
    bring(Item(f"{server.url}/c.nc", "c.nc", size=len(CONTENT)))
    bring.assert_whole("c.nc", CONTENT)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_waited_out_longer_each_time(server, bring, code):
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", *[status(code)] * 4)
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", CONTENT)
    assert len(bring.waits) == 4
    for n, pause in enumerate(bring.waits):
        assert 0.5 * 2**n <= pause <= 2**n


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    "after, lowest, highest", [("7", 7, 7), ("99999", 120, 120), ("date", 20, 31), ("soon", 0.5, 1)]
)
def test_retry_after_is_honoured_up_to_a_cap(server, bring, code, after, lowest, highest):
    text = formatdate(time.time() + 30, usegmt=True) if after == "date" else after
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", status(code, Retry_After=text))
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", CONTENT)
    assert lowest <= bring.waits[0] <= highest


@pytest.mark.parametrize(
    "code, remedy", [(404, "correct the address"), (403, "log in"), (410, "gone"), (400, "")]
)
def test_a_final_answer_names_address_status_and_remedy_at_once(server, bring, code, remedy):
    good = Item(server.put("b.nc", CONTENT), "b.nc")
    url = server.put("a.nc", CONTENT)
    server.fail("a.nc", status(code))
    with pytest.raises(FetchError, match=rf"1 of 2 files.*\n.*{server.url}/a\.nc answered {code}.*{remedy}"):
        bring(Item(url, "a.nc"), good)
    assert bring.waits == []
    bring.assert_whole("b.nc", CONTENT)  # the others are there all the same


def test_nobody_listening_is_told_with_the_address(bring):
    with serving() as gone:
        url = f"{gone.url}/a.nc"
    with pytest.raises(
        FetchError, match=rf"{url} failed 3 times in a row: the connection failed .Connection refused."
    ):
        bring(Item(url, "a.nc"), retries=2)


def netcdf(path, days=4):
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", days)
        file.createVariable("precip", "f4", ("time",))[:] = np.arange(days)
    return path.read_bytes()


def has_precip(path):
    with netCDF4.Dataset(path) as file:
        if "precip" not in file.variables:
            raise ValueError(f"expected a variable precip, found {list(file.variables)}")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_netcdf_is_not_taken(server, bring, tmp_path, share):
    content = netcdf(tmp_path / "x.nc", 5000)
    cut = content[: int(share * len(content))]
    url = server.put("a.nc", cut)
    item = Item(url, "a.nc", check=has_precip)
    with pytest.raises(FetchError, match="came twice and isn't the file expected"):
        bring(item)
    assert bring.visible == [] and bring.partial == []
    server.put("a.nc", content, etag='"2"')
    bring(item)
    bring.assert_whole("a.nc", content)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999])
def test_a_truncated_file_of_an_archive_fails_its_own_check(server, bring, tmp_path, share):
    rain = np.random.default_rng(0).gamma(0.5, 4.0, size=(1, 360, 720))
    archive_files.cpc_psl(tmp_path / "x.nc", archive_files.days_from("1998-07-09", 1), rain)
    content = (tmp_path / "x.nc").read_bytes()
    server.put("precip.1998.nc", content[: int(share * len(content))])
    items = REGISTRY["cpc"].items([1998], server.url)
    with pytest.raises(FetchError, match=r"precip\.1998\.nc came twice and isn't the file expected"):
        bring(*items)
    server.put("precip.1998.nc", content, etag='"2"')
    bring(*items)
    bring.assert_whole("precip.1998.nc", content)


def test_a_checksum_that_differs_once_is_fetched_again(server, bring):
    url = server.put("a.nc", CONTENT[::-1])
    server.fail("a.nc", None, change(CONTENT))
    bring(Item(url, "a.nc", md5=hashlib.md5(CONTENT).hexdigest()))
    bring.assert_whole("a.nc", CONTENT)


def test_a_full_disk_is_told_and_the_next_run_goes_on(server, bring, monkeypatch):
    url = server.put("a.nc", CONTENT)
    real = transfer.shutil.disk_usage
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1000))
    with pytest.raises(OSError, match=r"disk is full.*300000 bytes are to come.*Nothing is lost") as caught:
        bring(Item(url, "a.nc"))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(transfer.shutil, "disk_usage", real)
    bring(Item(url, "a.nc"))
    bring.assert_whole("a.nc", CONTENT)


def test_a_disk_that_fills_up_under_way_keeps_what_came(server, bring):
    """/dev/full can't be a partial file, but a limit on file sizes stops a write in the middle as well."""
    url = server.put("a.nc", CONTENT)
    old, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
        with pytest.raises(OSError, match="disk is full"):
            bring(Item(url, "a.nc"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    bring(Item(url, "a.nc"))
    assert server.requests[-1].headers["range"] == "bytes=150000-"
    bring.assert_whole("a.nc", CONTENT)
