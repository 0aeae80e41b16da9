"""Results of stages on disk, reused if inputs and version are unchanged."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.files import measure, sha256_of, write_text
from slams.core.renamed import renamed
from slams.core.settings import differences, plain
from slams.core.tensorfile import read_facts, read_tensors, write_tensors

Result = tuple[dict[str, Tensor], dict[str, Any]]
Say = Callable[[str], None]

_LEDGER = ".stages.json"


def digest(*parts: Any) -> str:
    """A short hash of plain values, independent of the order of keys.

    Dataclasses count by the fields that differ from their defaults, so that a setting added later leaves the digest
    of older results alone.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps([essential(part) for part in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def essential(value: Any) -> Any:
    """Plain values, of dataclasses only the fields that differ from their defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for field in fields(value):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            item = getattr(value, field.name)
            if default is MISSING or plain(item) != plain(default):
                kept[field.name] = essential(item)
        return kept
    if isinstance(value, Mapping):
        return {str(key): essential(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [essential(item) for item in value]
    return plain(value)


def file_stem(label: str) -> str:
    """A label without characters that are invalid in file names.

    >>> file_stem("EnKF N 50, s 0.5")
    'EnKF_N_50__s_0.5'
    """
    return "".join(c if c.isalnum() or c in "-." else "_" for c in label)


def claim(path: str | Path, settings: Mapping[str, Any], scope: str = "") -> None:
    """Write settings to a new file, or check that an existing file has the same.

    Args:
        path: JSON file of the settings.
        settings: Plain values.
        scope: Key of `RENAMED` for old names that the file may contain.

    Raises:
        ValueError: If the file has other settings; lists the differences.
    """
    path, wanted = Path(path), json.loads(json.dumps(plain(settings)))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        same(path, renamed(scope, before, warn=False) if scope else before, wanted)
    else:
        write_text(path, json.dumps(wanted, indent=1))


def same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that existing results have the present settings.

    Args:
        path: File or folder of the results.
        before: Settings of the results.
        now: Present settings.

    Raises:
        ValueError: If the settings differ; lists the differences.
    """
    different = differences(before, now)
    if different:
        raise InvalidValueError(
            f"{path} is of another set-up: {'; '.join(different[:6])}. Choose another --out, or remove it."
        )


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Attributes:
        name: Name of the stage's result.
        inputs: Everything that the result depends on: plain values and dataclasses.
        version: Version of the algorithm; raised in the commit that changes its numbers.
        earlier: Keys of the same inputs and algorithm that releases before 0.2 wrote.
    """

    name: str
    inputs: Any = None
    version: int = 1
    earlier: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Version and digest of the inputs."""
        return f"{self.version}:{digest(self.inputs)}"


class Stages:
    """Finished stages of one folder.

    A stage's result is either a tensor file of this class (`keep`) or files of its own that are noted in a ledger
    (`done`, `finish`). A result is taken only if inputs and version agree and its files are whole; otherwise the
    stage is computed again, and the reason is printed.

    Args:
        folder: Folder of the results.
        say: Called with each line of text; no output if None.
    """

    def __init__(self, folder: str | Path, say: Say | None = None) -> None:
        self.folder = Path(folder)
        self._say = say or (lambda text: None)

    def keep(self, stage: Stage, make: Callable[[], Result]) -> Result:
        """The result of a stage, read from disk or made and written.

        Args:
            stage: The stage; its result is the file `file_stem(name)`.safetensors.
            make: Function that computes tensors and facts, each by name.

        Returns:
            Tensors and facts.
        """
        found = self.load(stage)
        if found is None:
            self.save(stage, *make())
            # rounding depends on how numbers lie in memory, and a resumed run reads them
            found = self.load(stage)
            assert found is not None
        return found

    def load(self, stage: Stage) -> Result | None:
        """The stored result of a stage, None if there is none with these inputs and this version."""
        path = self.path(stage)
        if not path.exists():
            return None
        try:
            key = read_facts(path).get("stage")
            if not self._same(stage, key):
                return None
            tensors, facts = read_tensors(path)
        except ValueError as error:
            self._say(f"{stage.name}: done again, {error}")
            return None
        facts.pop("stage")
        return tensors, facts

    def save(self, stage: Stage, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Store the result of a stage atomically."""
        write_tensors(self.path(stage), tensors, {**facts, "stage": stage.key})

    def path(self, stage: Stage) -> Path:
        """The file that `keep` writes."""
        return self.folder / f"{file_stem(stage.name)}.safetensors"

    def done(self, stage: Stage, files: Sequence[str] = ()) -> bool:
        """Whether a stage with files of its own is finished, from the same inputs, and its files are whole.

        Args:
            stage: The stage.
            files: Names of its files, in the folder; those that were recorded are checked too.
        """
        row = self._rows().get(stage.name)
        if row is None:
            return False
        row = {"key": row} if isinstance(row, str) else row
        if not self._same(stage, row["key"]):
            return False
        for name in dict.fromkeys([*files, *row.get("sizes", {})]):
            path = self.folder / name
            whole = path.exists() and all(
                name not in row.get(part, {}) or row[part][name] == measure(path)
                for part, measure in _MEASURES.items()
            )
            if not whole:
                self._say(
                    f"{stage.name}: done again, {path} is {'cut or changed' if path.exists() else 'gone'}"
                )
                return False
        return True

    def finish(self, stage: Stage, files: Sequence[str] = ()) -> None:
        """Record that a stage is finished, with the sizes and digests of its files."""
        parts = {
            part: {name: measure(self.folder / name) for name in files} for part, measure in _MEASURES.items()
        }
        rows = {**self._rows(), stage.name: {"key": stage.key, **parts}}
        write_text(self.folder / _LEDGER, json.dumps(rows, indent=1))

    def adopt(self, stage: Stage, files: Sequence[str]) -> None:
        """Record a stage finished by a release before 0.2 under its present key."""
        if self._rows().get(stage.name) in stage.earlier:
            self.finish(stage, files)

    def forget(self, stage: Stage) -> None:
        """Remove the record of a finished stage, which is then computed again."""
        rows = {name: row for name, row in self._rows().items() if name != stage.name}
        write_text(self.folder / _LEDGER, json.dumps(rows, indent=1))

    def _rows(self) -> dict[str, Any]:
        path = self.folder / _LEDGER
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        except ValueError as error:
            self._say(f"{path} can't be read ({error}), so that every stage is done again")
            return {}

    def _same(self, stage: Stage, key: Any) -> bool:
        """Whether a stored key is the stage's; prints a line if only the version differs."""
        if key == stage.key or key in stage.earlier:
            return True
        before = str(key).partition(":")[0]
        if ":" in str(key) and before != str(stage.version):
            self._say(f"{stage.name}: done again, its result is of version {before}, this is {stage.version}")
        return False


def _size(path: Path) -> int:
    return measure(path)[0] if path.exists() else 0


def _sha256(path: Path) -> str:
    return sha256_of(path) if path.exists() else ""


_MEASURES: dict[str, Callable[[Path], Any]] = {"sizes": _size, "sha256": _sha256}  # the quick one first
