"""Settings: YAML and overrides to typed dataclasses; an unknown key raises an error with the nearest one."""

import dataclasses
import datetime
import difflib
import functools
import inspect
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slams.core.errors import InvalidValueError
from slams.core.renamed import renamed

_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML text.
        where: Origin of the text, for messages.

    Raises:
        ValueError: If the text is invalid YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidValueError(f"{where} is invalid YAML: {' '.join(str(error).split())}.") from error


def read_tree(path: str | Path, what: str = "file of settings") -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: The file.
        what: Kind of file, for messages.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the content is invalid YAML or not a mapping.
    """
    tree = read_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InvalidValueError(
            f"{path} is not a {what}: expected keys and values, got {type(tree).__name__}."
        )
    return tree


def override(tree: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The tree with overrides "a.b=c" applied; c is read as YAML.

    Raises:
        ValueError: If a setting has another form or its key leads into a plain value.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InvalidValueError(f"an override looks like a.b=c, got {setting!r}.")
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InvalidValueError(
                    f"{key!r} leads into {parent!r}, which is a plain value without keys."
                )
        node[last] = read_yaml(text, setting)
    return tree


def sized(tree: dict[str, Any], overrides: Sequence[str] = (), *, default: str = "quick") -> dict[str, Any]:
    """The tree at the size given by `size=NAME`, with overrides applied.

    A file has one set of settings and, under `sizes`, the differences of each named size by dotted keys.
    Overrides are applied last.

    Args:
        tree: Nested settings; `size` and `sizes` are taken out.
        overrides: Overrides such as "size=full" or "archive.count=8".
        default: Name of the size without an entry under `sizes`.

    Returns:
        The nested settings, `size` among them.

    Raises:
        ValueError: If the size is unknown (the nearest is named).

    >>> sized({"truths": 2, "sizes": {"full": {"truths": 16}}}, ["size=full"])
    {'truths': 16, 'size': 'full'}
    """
    tree = dict(tree)
    sizes = tree.pop("sizes", None) or {}
    asked = override(
        {"size": tree.pop("size", default)}, [text for text in overrides if text.startswith("size=")]
    )
    size = str(asked["size"])
    names = list(dict.fromkeys([default, *sizes]))
    if size not in names:
        raise InvalidValueError(unknown("size", size, names))
    for key, value in (sizes.get(size) or {}).items():
        *parents, last = str(key).split(".")
        node = tree
        for parent in parents:
            node[parent] = dict(node.get(parent) or {})
            node = node[parent]
        node[last] = value
    rest = [text for text in overrides if not text.startswith("size=")]
    return {**override(tree, rest), "size": size}


def build(cls: type, tree: Any, where: str = "", *, kind: str = "key") -> Any:
    """A dataclass from nested plain values, each converted to the type of its field.

    Args:
        cls: The dataclass; its fields may be dataclasses, tuples, mappings, optional or plain values.
        tree: Keys and values.
        where: Dotted name of the tree, ending in a dot unless empty, for messages.
        kind: Noun for a key in messages.

    Returns:
        An instance.

    Raises:
        ValueError: If a key is unknown (the nearest is named) or missing, or a value has the wrong type.
    """
    if not isinstance(tree, Mapping):
        raise InvalidValueError(f"{where[:-1] or 'the tree'} must be a mapping of settings, got {tree!r}.")
    tree = renamed(cls.RENAMED, tree) if hasattr(cls, "RENAMED") else tree
    kinds = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    known_settings(tree, [field.name for field in fields], where, kind=kind)
    lacking = [
        field.name
        for field in fields
        if field.name not in tree
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise InvalidValueError(f"{where[:-1] or 'the file'} needs {', '.join(lacking)} too.")
    return cls(**{key: convert(kinds[key], value, f"{where}{key}") for key, value in tree.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """Convert a plain value to the type of a setting.

    Args:
        kind: Type: a dataclass, a tuple, sequence or mapping of types, X | None, Literal, a plain type, or Any.
        value: Value from a file or an override.
        where: Dotted name of the setting, for messages.

    Raises:
        ValueError: If the value has another type.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return value if isinstance(value, kind) else build(kind, value, where + ".")
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InvalidValueError(f"{where} is {' or '.join(map(repr, arguments))}, got {value!r}.")
        return value
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _sequence(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise InvalidValueError(f"{where} is a mapping, got {value!r}.")
        return {str(k): convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _plain_value(kind, value, where)


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of a function's keywords, those of a `**settings: Unpack[TypedDict]` included.

    >>> parameters(sized)["default"]
    <class 'str'>
    """
    found: dict[str, Any] = {}
    inner = function.func if isinstance(function, functools.partial) else function
    hints = typing.get_type_hints(inner.__init__ if isinstance(inner, type) else inner)  # type: ignore[misc]
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= {k: v for each in typing.get_args(kind) for k, v in typing.get_type_hints(each).items()}
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = kind
    return found


def arguments(
    function: Callable[..., Any], tree: Mapping[str, Any], where: str = "", *, leave: Iterable[str] = ()
) -> dict[str, Any]:
    """Keywords of a function from plain values, each converted to the type of its parameter.

    Args:
        function: A function or a class.
        tree: Keys and values.
        where: Dotted name of the tree, ending in a dot unless empty, for messages.
        leave: Parameters that are not settings.

    Raises:
        ValueError: If a key is unknown (the nearest is named) or a value has the wrong type.
    """
    kinds = {name: kind for name, kind in parameters(function).items() if name not in leave}
    known_settings(tree, kinds, where)
    return {key: convert(kinds[key], value, f"{where}{key}") for key, value in tree.items()}


def _union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds[:-1]:
        try:
            return convert(kind, value, where)
        except ValueError:
            continue
    return convert(kinds[-1], value, where)


def _sequence(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidValueError(f"{where} is a list, got {value!r}.")
    repeated = len(arguments) == 1 or arguments[-1] is Ellipsis
    kinds = [arguments[0]] * len(value) if repeated else list(arguments)
    if len(kinds) != len(value):
        raise InvalidValueError(f"{where} needs {len(kinds)} entries, got {value!r}.")
    return tuple(convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _plain_value(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(kind, type):  # Any, a callable, ...
        return value
    if kind is str and isinstance(value, (str, int, float, datetime.date)) and not isinstance(value, bool):
        return str(value)
    if kind in (float, int) and isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidValueError(f"{where} must be {kind.__name__}, got {value!r}.")
    return value


def plain(value: Any) -> Any:
    """Nested dicts, lists and plain values of nested dataclasses, mappings and sequences, as `build` reads them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """A message that names the nearest known name.

    Args:
        kind: Kind of thing that is named.
        name: The unknown name.
        known: Known names.
        where: Dotted prefix of all names, ending in a dot unless empty.

    >>> unknown("method", "EnFK", ["EnKF", "ETKF"])
    "unknown method 'EnFK'; did you mean EnKF? There are EnKF, ETKF."
    """
    names = list(known)
    letters = Counter(name.lower())

    def likeness(other: str) -> tuple[float, int]:
        same = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
        return same, (letters & Counter(other.lower())).total()  # of equals the one with letters swapped

    nearest = max(names, key=likeness, default="")
    near = likeness(nearest)[0] >= 0.5
    hint = f"did you mean {where}{nearest}? " if near else ""
    return f"unknown {kind} {where + name!r}; {hint}{'There' if hint else 'there'} are {', '.join(names)}."


def known_settings(
    tree: Mapping[str, Any], allowed: Iterable[str], where: str = "", *, kind: str = "setting"
) -> None:
    """Reject keys that are not allowed.

    Args:
        tree: Keys and values.
        allowed: The keys that exist.
        where: Dotted name of the tree, ending in a dot unless empty.
        kind: Noun for a key in messages.

    Raises:
        ValueError: If a key is not allowed; names the dotted key and the nearest one.
    """
    allowed = list(allowed)
    for key in tree:
        if key not in allowed:
            raise InvalidValueError(unknown(kind, str(key), allowed, where))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Differences between nested settings, one line each.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 1 there, 2 here']
    """
    lines = []
    for key in sorted({*before, *now}):
        one, other = before.get(key, "absent"), now.get(key, "absent")
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, f"{where}{key}.")
        elif one != other:
            lines.append(f"{where}{key}: {one} there, {other} here")
    return lines
