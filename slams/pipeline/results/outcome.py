"""What a test finds; its finished parts are kept on disk, so that a killed test does not do them again."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.files import atomic
from slams.evaluation import Scores

Interpolators = dict[tuple[str, str], AnomalyInterp]


@dataclass
class Outcome:
    """What a test leaves for tables, figures and files.

    Attributes:
        scores: Of every method.
        dates: Days of the test, one after another.
        truth: State variables on those days (T, *S), physical.
        members: Draws of the main set (N, T, *S), physical: state variables and what was observed.
        observed: What the main set saw (T, *S), physical, NaN where nothing.
        withheld: Scores at stations kept back, by modality: rows for the report.
    """

    scores: Scores
    dates: np.ndarray
    truth: dict[str, Tensor] = field(default_factory=dict)
    members: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What the main set left."""
        return {"members": self.members, "observed": self.observed}


class Finished:
    """Files of finished parts, one each, of one test.

    Args:
        folder: Of the run.
        key: Digest of everything the test depends on; files with another key are of no use and are removed.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        for path in folder.glob("resume_test_*.safetensors"):
            if not path.name.startswith(f"resume_test_{key}_"):
                path.unlink()

    def save(
        self, number: int, scores: Scores, tensors: dict[str, dict[str, Tensor]], interpolators: Interpolators
    ) -> None:
        """Keep one part, whole or not at all.

        Args:
            number: Which part.
            scores: What it added to the scores.
            tensors: What else it found, as tensors by group and name.
            interpolators: What it tuned, by (set, variable).
        """
        sums, index = scores.pack()
        flat = {f"scores/{name}": x for name, x in sums.items()}
        for group, named in tensors.items():
            flat |= {f"{group}/{name}": x for name, x in named.items()}
        tuned = [[*place, asdict(fitted)] for place, fitted in interpolators.items()]
        meta = {"scores": index, "interpolators": tuned}
        with atomic(self._path(number)) as temporary:
            save_file(
                {name: x.contiguous() for name, x in flat.items()},
                temporary,
                {name: json.dumps(part) for name, part in meta.items()},
            )

    def load(self, number: int, scores: Scores) -> tuple[dict[str, dict[str, Tensor]], Interpolators] | None:
        """What `save` kept, its scores added to `scores`; None if the part is not finished."""
        path = self._path(number)
        if not path.exists():
            return None
        groups: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            meta = {name: json.loads(part) for name, part in (file.metadata() or {}).items()}
            for key in file.keys():  # noqa: SIM118
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
        scores.unpack(groups.pop("scores"), meta["scores"])
        tuned = {(label, name): AnomalyInterp(**fitted) for label, name, fitted in meta["interpolators"]}
        return groups, tuned

    def clear(self) -> None:
        """Remove all parts: the test is done."""
        for path in self.folder.glob("resume_test_*.safetensors"):
            path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"resume_test_{self.key}_{number}.safetensors"
