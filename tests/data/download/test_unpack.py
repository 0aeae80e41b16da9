import io
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
import zipfile
from random import Random

import numpy as np
import pytest

from slams.data.download import unpack as unpacking
from slams.data.download.unpack import parts_of, unpack
from slams.data.store.manifest import read_manifest, sha256_of

DAYS = [f"era5/era5_full_1.5deg_2000010{day}.zarr" for day in range(1, 6)]


def tree():
    """Names and contents: five daily zarrs and a file."""
    chance = Random(0)
    files = {f"{day}/t/{i}.0": chance.randbytes(40_000) for day in DAYS for i in range(4)}
    files |= {f"{day}/.zgroup": b'{"zarr_format": 2}' for day in DAYS}
    return files | {"era5/readme.txt": b"about"}


def as_zip(path, files=None, compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (files or tree()).items():
            archive.writestr(name, content)
    return path


def as_tar(path, files=None, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in (files or tree()).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def written(folder):
    """Everything under a folder that isn't the manifest's."""
    found = (p for p in folder.rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}
    return {k: v for k, v in names.items() if k not in ("manifest.json", ".manifest.lock", ".fetch.lock")}


@pytest.mark.parametrize("make, name", [(as_zip, "a.zip"), (as_tar, "a.tar.gz")])
def test_an_archive_gives_back_its_files_and_lists_them(tmp_path, make, name):
    archive = make(tmp_path / name)
    got = unpack(archive, tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in got] == [*DAYS, "era5/readme.txt"]
    assert written(tmp_path / "out") == tree()
    rows = read_manifest(tmp_path / "out")["files"]
    assert {row["path"]: row["sha256"] for row in rows} == {
        name: sha256_of(tmp_path / "out" / name) for name in [*DAYS, "era5/readme.txt"]
    }


def test_a_second_run_writes_only_what_is_missing_changed_or_new(tmp_path, monkeypatch):
    out, archive = tmp_path / "out", as_zip(tmp_path / "a.zip")
    unpack(archive, out)
    wrote = []
    real = unpacking._write
    monkeypatch.setattr(
        unpacking, "_write", lambda target, name, *rest: (wrote.append(name), real(target, name, *rest))
    )
    unpack(archive, out)
    assert wrote == []
    shutil.rmtree(out / DAYS[1])
    (out / DAYS[2] / "t" / "0.0").write_bytes(b"changed")
    changed = tree() | {f"{DAYS[4]}/t/0.0": bytes(40_000)}
    unpack(as_zip(archive, changed), out)
    assert wrote == [DAYS[1], DAYS[2], DAYS[4]] and written(out) == changed


def test_only_wanted_members_are_unpacked(tmp_path):
    files = tree() | {"../elsewhere": b"never looked at"}
    got = unpack(
        as_zip(tmp_path / "a.zip", files), tmp_path / "out", wanted=lambda name: name.startswith(DAYS[3])
    )
    assert [p.name for p in got] == [DAYS[3].split("/")[1]]
    assert set(written(tmp_path / "out")) == {name for name in tree() if name.startswith(DAYS[3])}


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs Info-ZIP, an independent writer of parts")
@pytest.mark.parametrize("size", ["64k", "128k", "300k"])
def test_a_zip_in_parts_reads_as_the_whole(tmp_path, size):
    for name, content in tree().items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-r", "-s", size, "../era5.zip", "era5"], cwd=tmp_path / "src", check=True)
    parts = parts_of(tmp_path / "era5.zip")
    assert len(parts) > 2 and parts[-1].name == "era5.zip" and parts[0].name == "era5.z01"
    unpack(parts, tmp_path / "out")
    assert written(tmp_path / "out") == tree()
    with pytest.raises(ValueError, match="parts"):
        unpack(parts[1:], tmp_path / "other")
    parts[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"part 1 of .*era5\.zip is missing"):
        parts_of(tmp_path / "era5.zip")


def split(whole, lengths):
    """A zip of one piece as `zip -s` would have cut it: positions count from each part's begin."""
    whole = b"PK\7\10" + whole
    end = whole.rfind(b"PK\5\6")
    entries, size, first = struct.unpack_from("<H2L", whole, end + 10)
    first += 4
    starts = np.cumsum([0, *lengths])

    def place(position):
        disk = int(np.searchsorted(starts, position, side="right")) - 1
        return disk, int(position - starts[disk])

    data, at = bytearray(whole), first
    while at < first + size:
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        disk, offset = place(struct.unpack_from("<L", data, at + 42)[0] + 4)
        struct.pack_into("<H", data, at + 34, disk)
        struct.pack_into("<L", data, at + 42, offset)
        at += 46 + name + extra + comment
    last, _ = place(end)
    disk, offset = place(first)
    struct.pack_into("<4H2L", data, end + 4, last, disk, 1, entries, size, offset)
    return [bytes(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_a_zip_cut_anywhere_reads_as_the_whole(tmp_path, seed):
    """Also inside headers and inside the list of members."""
    chance = Random(seed)
    files = {f"x{i}.bin": chance.randbytes(chance.randrange(3000)) for i in range(20)}
    whole = as_zip(tmp_path / "a.zip", files).read_bytes()
    lengths = [chance.randrange(1, len(whole) // 5) for _ in range(5)]
    pieces = split(whole, lengths)
    names = [tmp_path / f"b.z{i + 1:02d}" for i in range(5)] + [tmp_path / "b.zip"]
    for name, piece in zip(names, pieces, strict=True):
        name.write_bytes(piece)
    unpack(parts_of(tmp_path / "b.zip"), tmp_path / "out")
    assert written(tmp_path / "out") == files


def test_a_zip_merely_cut_reads_as_the_whole(tmp_path):
    whole = as_zip(tmp_path / "a.zip").read_bytes()
    for i, start in enumerate(range(0, len(whole), 100_000)):
        (tmp_path / f"b.zip.{i + 1:03d}").write_bytes(whole[start : start + 100_000])
    parts = parts_of(tmp_path / "b.zip.001")
    assert len(parts) > 5
    unpack(parts, tmp_path / "out")
    assert written(tmp_path / "out") == tree()


BAD_NAMES = [
    "/etc/passwd",
    "../outside",
    "a/../../outside",
    "era5/x.zarr/../../../outside",
    "..",
    "manifest.json",
    ".fetch.lock",
    "C:/windows",
    "a\\..\\..\\outside",
    "line\nbreak",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(tmp_path, make, name):
    archive = make(tmp_path / "a", {"good.txt": b"1", name: b"2"})
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="refused"):
        unpack(archive, tmp_path / "in" / "out")
    assert written(tmp_path / "in") == {"out/.fetch.lock": b""} or written(tmp_path / "in") == {}
    assert not (tmp_path / "outside").exists() and not (tmp_path / "in" / "outside").exists()


def test_links_and_devices_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(ValueError, match="'x', which is a link or device; refused"):
            unpack(tmp_path / "a.tar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    with pytest.raises(ValueError, match="'x', which is a link or device; refused"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert written(tmp_path / "out") == {}


def test_a_link_in_the_folder_is_not_followed_out_of_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", tmp_path / "out" / "era5")
    with pytest.raises(ValueError, match="symbolic link"):
        unpack(as_zip(tmp_path / "a.zip"), tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    archive = as_zip(tmp_path / "a.zip", {"zeros": bytes(10_000_000)})
    with pytest.raises(ValueError, match=r"10000000 bytes, 1000000 are allowed"):
        unpack(archive, tmp_path / "out", limit=1_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 5_000_000))
        with pytest.raises(OSError, match="has 5000000 free"):
            unpack(archive, tmp_path / "out")
    data = bytearray(archive.read_bytes())
    for mark, where in ((b"PK\1\2", 24), (b"PK\3\4", 22)):  # claims to be small
        struct.pack_into("<L", data, data.find(mark) + where, 100)
    archive.write_bytes(data)
    with pytest.raises(ValueError):
        unpack(archive, tmp_path / "out", limit=1_000_000)
    assert written(tmp_path / "out") == {}


@pytest.mark.parametrize("make, name", [(as_zip, "a.zip"), (as_tar, "a.tar.gz")])
def test_a_truncated_or_damaged_archive_is_told_and_leaves_whole_pieces_only(tmp_path, make, name):
    whole = make(tmp_path / name).read_bytes()
    for share in (0.0, 0.3, 0.9, 0.9999):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="isn't a whole zip or tar"):
            unpack(tmp_path / name, tmp_path / "out")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / name).write_bytes(flipped)
    with pytest.raises(ValueError, match="isn't a whole zip or tar"):
        unpack(tmp_path / name, tmp_path / "out")
    found = written(tmp_path / "out")
    assert all(tree()[name] == content for name, content in found.items())
    (tmp_path / name).write_bytes(whole)
    unpack(tmp_path / name, tmp_path / "out")
    assert written(tmp_path / "out") == tree()


class Evil:
    """Runs when unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/slams-pickle-was-run",)


def evil_files():
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    several = io.BytesIO()
    np.savez(several, a=np.zeros(2), b=np.array([Evil()], dtype=object))
    pickled = '{"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}]}'
    third = '{"zarr_format": 3, "node_type": "array", "codecs": [{"name": "numcodecs.pickle"}]}'
    return {
        "x.npy": objects.getvalue(),
        "x.npz": several.getvalue(),
        "x.pkl": pickle.dumps(Evil()),
        "day.zarr/t/.zarray": pickled.encode(),
        "day.zarr/.zmetadata": f'{{"metadata": {{"t/.zarray": {pickled}}}}}'.encode(),
        "day.zarr/t/zarr.json": third.encode(),
    }


@pytest.mark.parametrize("name", evil_files())
def test_what_would_load_pickles_is_not_unpacked(tmp_path, name):
    with pytest.raises(ValueError, match="could run any code when read; refused"):
        unpack(as_zip(tmp_path / "a.zip", {name: evil_files()[name]}), tmp_path / "out")
    assert written(tmp_path / "out") == {}


def test_plain_arrays_and_attributes_that_speak_of_pickles_pass(tmp_path):
    plain = io.BytesIO()
    np.save(plain, np.arange(5))
    files = {"x.npy": plain.getvalue(), "d.zarr/.zattrs": b'{"id": "pickle"}'}
    files["d.zarr/zarr.json"] = b'{"attributes": {"name": "pickle"}, "codecs": [{"name": "zstd"}]}'
    unpack(as_zip(tmp_path / "a.zip", files), tmp_path / "out")
    assert written(tmp_path / "out") == files


def test_two_members_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x", "2")
    with pytest.raises(ValueError, match="'x' twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
