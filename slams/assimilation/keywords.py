"""Keywords that filters have in common, and which settings a filter accepts."""

import inspect
from typing import Literal, TypedDict

Failure = Literal["stop", "replace"]


class FilterKeywords(TypedDict, total=False):
    """Keywords of every filter, as `Filter` states them.

    Attributes:
        failure: "stop" or "replace": what to do about members that are not finite or larger than `bound`.
        bound: Largest credible absolute value of a state.
    """

    failure: Failure
    bound: float


def settings_of(method: type) -> dict[str, inspect.Parameter]:
    """Settings that a filter accepts beside its dynamics, by name, those of its base classes included.

    >>> from slams.assimilation import ETKF
    >>> settings_of(ETKF)["inflation"].default
    1.0
    """
    found = dict(inspect.signature(method).parameters)
    found.pop("dynamics", None)
    return found


def signature_of(method: type) -> inspect.Signature:
    """Signature of `__init__`, and of that of the next base class as long as keywords are handed on."""
    found: dict[str, inspect.Parameter] = {}
    for kind in method.__mro__:
        if "__init__" not in vars(kind):
            continue
        _, *own = inspect.signature(vars(kind)["__init__"]).parameters.values()
        for parameter in own:
            if parameter.kind is not parameter.VAR_KEYWORD:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return inspect.Signature(sorted(found.values(), key=lambda parameter: parameter.kind))
