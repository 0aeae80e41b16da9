"""Classes of a user's own package by import path; only packages named as trusted are imported."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import nn

from slams.core.errors import InvalidTypeError, InvalidValueError, UntrustedCodeError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
HERE = "."  # as a trusted name: packages of the working folder

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@contextmanager
def trusting(packages: Collection[str]) -> Iterator[None]:
    """Allow `network` to import packages while the block runs.

    Args:
        packages: Names of the packages; "." also allows packages of the working folder.

    Raises:
        TypeError: If a single string is given instead of a list.
    """
    if isinstance(packages, str):
        raise InvalidTypeError(
            f"trust is a list of packages, got the text {packages!r}; pass trust=[{packages!r}]."
        )
    token = _trusted.set(tuple(packages))
    try:
        yield
    finally:
        _trusted.reset(token)


def network(path: str, settings: Mapping[str, Any], where: str) -> nn.Module:
    """A network of a user-defined class from a package that `trusting` allows.

    Args:
        path: "package.module:Class".
        settings: Keywords of the class: plain numbers, strings, lists and mappings.
        where: Setting or file that names it, for messages.

    Returns:
        An instance.

    Raises:
        PermissionError: If the package, or the working folder that contains it, is not trusted.
        ValueError: If the path is malformed, the class does not exist, or a keyword is not plain.
        TypeError: If the class is no `torch.nn.Module` or rejects the keywords.
    """
    _check_plain(settings, where)
    found = _trusted_class(path, _trusted.get(), where)
    try:
        return found(**settings)
    except TypeError as error:
        raise InvalidTypeError(f"{where}: {path} does not take these settings: {error}.") from error


def _trusted_class(path: str, trust: Collection[str], where: str) -> type[nn.Module]:
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise InvalidValueError(f"{where}: a network's class is named 'package.module:Class', got {path!r}.")
    module_name, _, name = path.partition(":")
    package = module_name.partition(".")[0]
    if package not in trust:
        raise UntrustedCodeError(
            f"{where} asks for the class {path}, which is code outside slams; if you trust the package {package!r}, "
            f"pass trust=[{package!r}] or --trust {package}."
        )
    if package not in sys.modules:
        _check_place(package, trust, where)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidValueError(
            f"{where}: {module_name} failed to import ({error}); install the package, or put its folder on "
            "PYTHONPATH."
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise InvalidValueError(f"{where}: {module_name} has no class {name}.")
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise InvalidTypeError(f"{where}: {path} is no subclass of torch.nn.Module.")
    return found


def _check_place(package: str, trust: Collection[str], where: str) -> None:
    """Refuse a package that would come from the working folder, which `python -m` puts on the path unasked."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise InvalidValueError(
            f"{where}: there is no package {package!r}; install it, or put its folder on PYTHONPATH."
        )
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    here = Path.cwd().resolve()
    inside = any(Path(place).resolve().parent in (here, here / package) for place in places if place)
    if inside and HERE not in trust:
        raise UntrustedCodeError(
            f"{where}: the package {package!r} lies in the working folder {here}; if you mean that one, pass "
            f"trust=['.', {package!r}] or --trust . --trust {package}."
        )


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidValueError(f"{where}: keywords are texts, got {key!r}.")
            _check_plain(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item, where)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise InvalidValueError(
            f"{where}: settings are plain numbers, texts, lists and mappings, got {value!r}."
        )
