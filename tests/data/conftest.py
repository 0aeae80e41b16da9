"""A server with faults, and fetching from it without waiting."""

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from slams.data.download.fetch import Fetched, Item, fetch
from slams.data.store.manifest import read_manifest, sha256_of
from tests.data.server import Archive, serving


@pytest.fixture
def server() -> Iterator[Archive]:
    """A server of one test."""
    with serving() as archive:
        yield archive


class Bring:
    """`fetch` into one folder; keeps the pauses asked for instead of making them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.waits = folder, []

    def __call__(self, *items: Item, **settings) -> list[Fetched]:
        return fetch(
            items, self.folder, **{"sleep": self.waits.append, "jitter": Random(0), "timeout": 5.0} | settings
        )

    @property
    def visible(self) -> list[str]:
        """Files that a glob finds."""
        found = (p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
        return sorted(name for name in found if not re.search(r"(^|/)\.", name))

    @property
    def partial(self) -> list[str]:
        """What unfinished downloads left."""
        return [p.name for p in self.folder.rglob("*") if ".part" in p.name]

    def assert_whole(self, name: str, content: bytes) -> None:
        """The file, its row in the manifest, and no leftovers."""
        assert (self.folder / name).read_bytes() == content
        (row,) = [row for row in read_manifest(self.folder)["files"] if row["path"] == name]
        assert row["size"] == len(content) and row["sha256"] == sha256_of(self.folder / name)
        assert self.partial == []


@pytest.fixture
def bring(tmp_path: Path) -> Bring:
    """Fetch into the folder `data` of the test."""
    return Bring(tmp_path / "data")
