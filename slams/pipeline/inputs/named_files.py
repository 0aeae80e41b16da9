"""Files given on the command line as [NAME=]FILE, and the modalities of their variables."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slams.core.errors import InvalidValueError
from slams.data.files.canonical import aliases
from slams.data.files.opening import open_dataset
from slams.data.files.read import find


@dataclass
class FileSource:
    """Files of a modality.

    Attributes:
        variable: Name of the variable in the files.
        files: Paths of the files.
    """

    variable: str
    files: list[str] = field(default_factory=list)


def match(
    arguments: Sequence[str], variables: Mapping[str, str], sought: Collection[str]
) -> dict[str, FileSource]:
    """Sources of the modalities.

    In a file without a name, only the modalities sought are looked for: under their own name, else under the
    name their variable has in the recipe, unless another modality goes by that name. NAME=FILE reads NAME,
    sought or not, and then only from there.

    Args:
        arguments: Arguments, FILE or NAME=FILE each; a file may be a glob.
        variables: Variable of every known modality, by name.
        sought: Modalities looked for in files without a name.

    Returns:
        Sources in the order of `variables`; modalities without a file are omitted.

    Raises:
        FileNotFoundError: If a file isn't there.
        ValueError: If nothing is given, a name is unknown, a file holds nothing sought, or a variable could
            be several modalities.
    """
    if not arguments:
        raise InvalidValueError("no file was given; name at least one, as FILE or NAME=FILE.")
    split = [_split(argument, variables) for argument in arguments]
    explicit = {name for name, _ in split if name is not None}
    found: dict[str, FileSource] = {}
    for name, path in split:
        for file in find((path,)):
            available = contents(file)
            if name is not None:
                found_here = {name: _explicit(name, variables[name], available, file)}
            else:
                found_here = _unnamed(variables, [n for n in sought if n not in explicit], available)
                if not found_here and not explicit & set(sought):
                    raise InvalidValueError(
                        f"{file} holds none of {', '.join(sought) or 'the modalities'}; it has "
                        f"{', '.join(sorted(available))}. Say which modality it is with NAME={file}, "
                        "or give another file."
                    )
            for n, variable in found_here.items():
                source = found.setdefault(n, FileSource(variable))
                if source.variable != variable:
                    raise InvalidValueError(
                        f"{n} is called {source.variable!r} in {source.files[0]} but {variable!r} in {file}; "
                        "give files in which it has one name."
                    )
                source.files.append(str(file))
    return {n: found[n] for n in variables if n in found}


def contents(path: Path) -> set[str]:
    """Names of the variables of a file.

    Raises:
        ValueError: If it can't be opened.
    """
    with open_dataset(path) as dataset:
        return {str(name) for name in dataset.data_vars}


def _split(argument: str, variables: Mapping[str, str]) -> tuple[str | None, str]:
    """Name and path; a path that exists may hold an equals sign itself."""
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).expanduser().exists():
        return None, argument
    if name not in variables:
        near = difflib.get_close_matches(name, list(variables), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(variables)}."
        raise InvalidValueError(f"{argument!r} names {name!r}, which is no modality; {hint}")
    return name, path


def _explicit(name: str, variable: str, available: set[str], file: Path) -> str:
    names = (name, variable, *aliases(variable))
    for candidate in names:
        if candidate in available:
            return candidate
    raise InvalidValueError(
        f"{file} has no variable {' or '.join(dict.fromkeys(names))} for {name}; it has "
        f"{', '.join(sorted(available))}. Rename the variable, or give another file."
    )


def _unnamed(variables: Mapping[str, str], sought: Sequence[str], available: set[str]) -> dict[str, str]:
    found_here = {}
    for name in sought:
        if name in available:
            found_here[name] = name
            continue
        for candidate in (variables[name], *aliases(variables[name])):
            if candidate not in available or candidate in variables:
                continue
            rivals = [n for n, v in variables.items() if n not in available and candidate in (v, *aliases(v))]
            if len(rivals) > 1:
                raise InvalidValueError(
                    f"the variable {candidate!r} could be {' or '.join(rivals)}; say which with NAME=FILE, "
                    "or call the variable by the modality's name."
                )
            found_here[name] = candidate
            break
    return found_here
