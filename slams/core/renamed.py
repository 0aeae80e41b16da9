"""Names of earlier versions: they work until 0.4, with a `FutureWarning` that names the new one."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from slams.core.errors import InvalidValueError

# Where a name is used -> old name -> new name. The one table of all renamed keywords, keys and columns.
RENAMED: dict[str, dict[str, str]] = {
    "sampler setting": {
        "grid": "time_grid",
        "stir": "noise_averaging",
        "stirred": "averaging_range",
        "stretch": "max_step_ratio",
    },
    "method setting": {"size": "members"},
    "setting of a study": {
        "grid": "size",
        "samples": "members",
        "truths": "replicates",
        "observations": "replicates",
    },
    "plan key": {"sizes": "members"},
    "bar": {"experiment": "case", "process": "case", "run": "row"},
    "metric": {
        "rmse_a": "rmse_time_mean",
        "spread_a": "spread_time_mean",
        "lost_share": "diverged_fraction",
    },
    "step diagnostic": {"hits": "covered", "lost": "diverged", "track": "innovation_ratio"},
    "window statistic": {"variance": "predictive_variance", "hits": "covered", "hits_fair": "covered_fair"},
    "setting of a local filter": {"radius": "support"},
}


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def renamed(scope: str, tree: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """The tree with old names replaced by new ones.

    Args:
        scope: A key of `RENAMED`.
        tree: Keys and values, or keywords.
        warn: Whether to warn; False for files written by the package.

    Returns:
        A new mapping, in the same order.

    Raises:
        ValueError: If a name is given in its old and its new form.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        new = RENAMED[scope].get(key, key)
        if warn and new != key:
            warnings.warn(
                f"the {scope} {key!r} is now {new!r}; {key!r} works until version 0.4.",
                FutureWarning,
                stacklevel=3,
            )
        if new in found or (new != key and new in tree):
            raise InvalidValueError(
                f"the {scope} {new!r} is given twice, as {key!r} and as {new!r}; leave out {key!r}."
            )
        found[new] = value
    return found


def current(scope: str, name: str) -> str:
    """The current name for one that may be old; see `renamed`."""
    return next(iter(renamed(scope, {name: None})))


def old_keywords(scope: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorator of a function whose keywords were renamed: the old ones work with a `FutureWarning`.

    Args:
        scope: A key of `RENAMED`.
    """
    old = RENAMED[scope].keys()

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            if old & keywords.keys():
                return function(*args, **renamed(scope, keywords))
            return function(*args, **keywords)

        return call

    return decorate
