"""Twin experiments: methods on simulated truths."""

from typing import TYPE_CHECKING, Any

from slams.twin.experiment import Result, TwinExperiment
from slams.twin.twin import Twin

if TYPE_CHECKING:
    from slams.twin.benchmark import BenchTable, bench
    from slams.twin.tuning import TuneTable, tune

__all__ = ["BenchTable", "Result", "TuneTable", "Twin", "TwinExperiment", "bench", "tune"]


def __getattr__(name: str) -> Any:
    if name in ("BenchTable", "bench"):  # when asked for: they load matplotlib
        from slams.twin import benchmark as module
    elif name in ("TuneTable", "tune"):
        from slams.twin import tuning as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
