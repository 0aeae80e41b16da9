import json
import os
from pathlib import Path

import pytest

from slams.data.archives import REGISTRY
from slams.data.archives.local import is_local
from slams.data.download.fetch import FetchError, Item, fetch
from slams.data.files.opening import open_dataset
from slams.data.safety import contained, is_address, refuse_pickles
from slams.data.store.store import FieldStore
from tests.data.download.test_unpack import as_zip, evil_files
from tests.data.server import serving, status
from tests.data.store.test_store import field

SCHEMES = [
    "ftp://x.org/a",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "s3://b/a",
    "gopher://x",
    "data:,x",
    "jar:http://x",
]
NAMES = [
    "/etc/passwd",
    "../x.nc",
    "a/../../x.nc",
    "",
    ".",
    "..",
    ".x.nc.part",
    "manifest.json",
    "./manifest.json",
    "a\0b",
    "a\nb",
    "C:/x",
    "..\\x",
]


@pytest.mark.parametrize("url", SCHEMES)
def test_only_http_and_local_paths_are_sources(tmp_path, url):
    with pytest.raises(ValueError, match="only http and https addresses and local paths"):
        fetch([Item(url, "a.nc")], tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_addresses_are_told_from_paths():
    assert is_address("http://x/a") and is_address("HTTPS://x/a")
    assert not any(
        map(is_address, ["a/b.nc", "/a/b", "./ftp:x", "C:\\a", "2020-01-01T00:00.nc", Path("ftp:x")])
    )


@pytest.mark.parametrize("name", [r"C:\data\x.nc", "D:/data/x.nc", r"c:x.nc", r"\\server\share\x.nc"])
def test_a_path_with_a_drive_letter_is_read_in_place_and_is_no_scheme(tmp_path, monkeypatch, name):
    """Here such a name is a file of the working folder: whoever takes C: for a scheme doesn't find it."""
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(b"1")
    assert not is_address(name) and is_local(name) == Path(name)
    (found,) = fetch([Item(name, "x.nc")], tmp_path / "data")
    assert found.path == Path(name).absolute() and found.path.read_bytes() == b"1"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_the_folder_brings_nothing(tmp_path, name):
    with serving() as server:
        items = [Item(server.put("good.nc", b"1"), "good.nc"), Item(server.put("bad.nc", b"2"), name)]
        with pytest.raises(ValueError, match="refused"):
            fetch(items, tmp_path / "data")
        assert server.requests == []
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "outside" / "x.nc").write_bytes(b"mine")
    os.symlink(tmp_path / "outside", tmp_path / "data" / "sub")
    os.symlink(tmp_path / "outside" / "x.nc", tmp_path / "data" / "x.nc")
    os.symlink(tmp_path / "outside" / "nowhere", tmp_path / "data" / "y.nc")
    with serving() as server:
        for name in ("sub/a.nc", "x.nc", "y.nc"):
            with pytest.raises(ValueError, match="symbolic link"):
                fetch([Item(server.put("a.nc", b"theirs"), name)], tmp_path / "data")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "outside").iterdir()] == [("x.nc", b"mine")]


def test_the_data_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "large").mkdir()
    os.symlink(tmp_path / "large", tmp_path / "data")
    with serving() as server:
        fetch([Item(server.put("a.nc", b"1"), "a.nc")], tmp_path / "data")
    assert (tmp_path / "large" / "a.nc").read_bytes() == b"1"
    assert contained(tmp_path / "data", "b/c.nc") == (tmp_path / "large" / "b" / "c.nc").resolve()


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/"])
def test_a_server_cannot_lead_elsewhere_than_http(tmp_path, where):
    with serving() as server:
        url = server.put("a.nc", b"1")
        server.fail("a.nc", status(302, Location=where))
        with pytest.raises(FetchError, match="isn't http or https"):
            fetch([Item(url, "a.nc")], tmp_path)
    assert not (tmp_path / "a.nc").exists()


def test_a_server_may_lead_to_another_address_but_not_in_circles(tmp_path):
    with serving() as server:
        url = server.put("a.nc", b"1")
        server.put("b.nc", b"22")
        server.fail("a.nc", status(301, Location="/b.nc"))
        fetch([Item(url, "a.nc")], tmp_path)
        assert (tmp_path / "a.nc").read_bytes() == b"22"
        server.fail("c.nc", *[status(302, Location="/c.nc")] * 40)
        with pytest.raises(FetchError, match="leads in circles"):
            fetch([Item(f"{server.url}/c.nc", "c.nc")], tmp_path)


def test_a_server_cannot_choose_the_name(tmp_path):
    with serving() as server:
        url = server.put("a.nc", b"1")
        header = {
            "Content_Disposition": 'attachment; filename="../../evil.nc"',
            "Content_Location": "../../evil.nc",
        }
        server.fail("a.nc", status(200, **header))
        fetch([Item(url, "a.nc")], tmp_path / "data")
    assert (tmp_path / "data" / "a.nc").read_bytes() == b"sorry"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", evil_files())
def test_pickles_are_refused_however_they_come(tmp_path, name):
    content = evil_files()[name]
    local = tmp_path / "local" / name
    local.parent.mkdir(parents=True)
    local.write_bytes(content)
    top = tmp_path / "local" / name.split("/")[0]
    with pytest.raises(ValueError, match="could run any code"):
        refuse_pickles(top)
    with pytest.raises(FetchError, match="could run any code"):
        fetch([Item(str(top), "x")], tmp_path / "data")
    if "/" not in name:
        with serving() as server, pytest.raises(FetchError, match="could run any code"):
            fetch([Item(server.put(name, content), name)], tmp_path / "data")
    assert not Path("/tmp/slams-pickle-was-run").exists()


@pytest.mark.parametrize("seal", ["../../../evil", "/../../../x", "0" * 63, "0" * 64 + "/", ""])
def test_an_attribute_that_names_files_is_refused(tmp_path, seal):
    """Caches are named by the fingerprint."""
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    root = json.loads((store.path / "zarr.json").read_text())
    root["attributes"]["fingerprint"] = seal
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="isn't a complete store"):
        FieldStore(store.path)


def test_metadata_of_a_store_cannot_write_beside_it(tmp_path):
    """Before an append the metadata of each array is brought in line with the root's."""
    store = FieldStore.create(tmp_path / "data" / "t2m.zarr", field())
    (tmp_path / "mine" / "c" / "7").mkdir(parents=True)
    (tmp_path / "mine" / "zarr.json").write_text("mine")
    root = json.loads((store.path / "zarr.json").read_text())
    members = root["consolidated_metadata"]["metadata"]
    members["../../mine"] = members["time"]
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="refused"):
        FieldStore.append(store.path, field(first="2001-01-01"))
    assert (tmp_path / "mine" / "zarr.json").read_text() == "mine" and (
        tmp_path / "mine" / "c" / "7"
    ).exists()


def test_an_older_zarr_that_poses_as_a_store_is_not_read(tmp_path):
    """Format 2 names its codecs freely, and one of them unpickles: here behind one that hides it."""
    path = tmp_path / "t2m.zarr"
    (path / "t2m").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"variable": "t2m", "fingerprint": "0" * 64}))
    array = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "order": "C"}
    array |= {"fill_value": "", "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]}
    (path / "t2m" / ".zarray").write_text(json.dumps(array))
    (path / "t2m" / "0").write_bytes(evil_files()["x.pkl"])
    with pytest.raises(ValueError, match="isn't a complete store"):
        FieldStore(path)
    with pytest.raises(ValueError, match="could run any code"):
        open_dataset(path)
    assert not Path("/tmp/slams-pickle-was-run").exists()


def test_an_archive_of_daily_fields_cannot_write_beside_the_data_folder(tmp_path):
    name = "era5_full_1.5deg_20000101.zarr"
    for member in (f"../{name}/.zgroup", f"/{name}/.zgroup", f"a/../../{name}/.zgroup"):
        as_zip(tmp_path / "source" / "era5_chunks.zip", {member: b"{}"})
        with pytest.raises(ValueError, match="leaves the folder"):
            REGISTRY["era5"].obtain([2000], tmp_path / "source", tmp_path / "data")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "source"]
        assert not list((tmp_path / "data").rglob(".zgroup"))


def test_metadata_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    for content in (b"{", b"[" * 100_000, b"\xff\xfe"):
        (tmp_path / "x.zarr" / "zarr.json").write_bytes(content)
        with pytest.raises(ValueError, match="isn't readable as a zarr's metadata"):
            refuse_pickles(tmp_path / "x.zarr")
