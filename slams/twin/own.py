"""Systems, surveys and methods of the user's own in twin experiments."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from slams import assimilation
from slams.assimilation.base import Assimilator
from slams.core.covariance import Isotropic
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.settings import build, override
from slams.observation import operators
from slams.observation.operators import Operator
from slams.observation.survey import Survey
from slams.systems.base import Dynamics
from slams.twin.methods import METHODS, Factory, Settings, starting
from slams.twin.setup import ObservingNetwork, Setup, setup, with_variance

Method = str | Factory | Assimilator
Methods = Mapping[str, Factory | Assimilator] | Iterable[Method]

_BURN_IN = 100  # analyses, of systems that have no default


class TwinOptions(TypedDict, total=False):
    """Keywords of a twin experiment in Python.

    Attributes:
        truth: Dynamics of the truth, if other than the methods' model.
        operator: Name of an operator, or any callable (*B, *S) -> (*B, *O).
        stride: Distance of two observed variables, in place of `operator`.
        every: Steps from one observation to the next.
        noise: Standard deviation of the observation errors.
        survey: Operator, errors and times at once, in place of the four above.
        replicates: Number of independent truths.
        cycles: Number of scored analyses of each truth.
        burn_in: Number of analyses before them; None for the system's default, 100 if it has none.
        seed: Seed of the first truth; the others follow.
        overrides: Further settings of the set-up, such as "truth.forcing=11".
    """

    truth: Dynamics | None
    operator: str | Operator | None
    stride: int
    every: int | None
    noise: float | None
    survey: Survey | None
    replicates: int
    cycles: int
    burn_in: int | None
    seed: int
    overrides: Iterable[str]


@dataclass(frozen=True)
class OwnSetup(Setup):
    """A set-up of objects in place of names; its plain values describe them.

    Attributes:
        objects: System of the truth, model of the methods, and survey.
    """

    objects: tuple[Dynamics, Dynamics, Survey] = field(kw_only=True)

    def parts(self) -> tuple[Dynamics, Dynamics, Survey]:
        """Truth's system, methods' model and survey."""
        return self.objects


def setup_of(system: str | Dynamics, options: TwinOptions) -> Setup:
    """The set-up of a system's name or of a system, with any operator and survey.

    Raises:
        ValueError: If a name is unknown, a value is invalid, or two options exclude each other.
        TypeError: If an object is no system or survey.
    """
    for name, thing, kind in (
        ("system", system, (str, Dynamics)),
        ("truth", options.get("truth"), (Dynamics, type(None))),
        ("survey", options.get("survey"), (Survey, type(None))),
    ):
        if not isinstance(thing, kind):
            hint = "; make an instance of the class" if isinstance(thing, type) else ""
            raise InvalidTypeError(
                f"{name} is a {kind[0].__name__} or a {kind[1].__name__}, got {thing!r}{hint}."
            )
    operator, survey, truth = options.get("operator"), options.get("survey"), options.get("truth")
    tree = _tree(options)
    named = survey is None and not callable(operator)
    if isinstance(system, str) and named and truth is None:
        return setup({"system": system, **tree}, list(options.get("overrides", ())), imports=True)
    if isinstance(system, str):
        made = setup({"system": system, **tree}, list(options.get("overrides", ())), imports=True)
        usual_truth, model, _ = made.parts()
    else:
        tree = override({"burn_in": _BURN_IN, **tree}, list(options.get("overrides", ())))
        tree["observe"] = with_variance(tree.get("observe", {}))
        made, usual_truth, model = build(Setup, {"system": type(system).__name__, **tree}), system, system
        if made.truth or made.model:
            raise InvalidValueError(
                "a system that is made already takes no settings; make it with them, and pass truth=."
            )
    network = made.observe
    if survey is not None:
        network, used = _network(survey), survey
    else:
        used, name = _survey(network, operator, model)
        network = replace(network, operator=name)
    parts = (truth or usual_truth, model, used)
    facts: dict[str, Any] = {"truth": made.truth, "model": made.model}
    if truth is not None or not isinstance(system, str):
        facts = {"truth": _facts(parts[0]), "model": _facts(model)}
    shared: dict[str, Any] = {
        name: getattr(made, name) for name in ("system", "cycles", "burn_in", "replicates", "seed")
    }
    return OwnSetup(**shared, **facts, observe=network, objects=parts)


def methods_of(methods: Methods | None) -> tuple[list[str] | None, dict[str, Factory | Assimilator]]:
    """Names of methods in order, and those of the user's by name.

    Args:
        methods: Names, classes, functions that take the model, and instances; or the latter three by name.

    Raises:
        ValueError: If a method has no name, or two have the same.
        TypeError: If an object is no method.
    """
    if methods is None:
        return None, {}
    if isinstance(methods, str):
        raise InvalidTypeError(
            f"methods is a list of methods, got the text {methods!r}; write [{methods!r}]."
        )
    items: Any = methods.items() if isinstance(methods, Mapping) else ((None, each) for each in methods)
    names: list[str] = []
    own: dict[str, Factory | Assimilator] = {}
    for label, method in items:
        name = label or (
            method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
        )
        names.append(name)
        if isinstance(method, str) or getattr(assimilation, name, None) is method:
            continue
        if not (callable(method) or isinstance(method, Assimilator)):
            raise InvalidTypeError(
                f"a method is a name, a class, a function or an Assimilator, got {method!r}."
            )
        if name in METHODS or name in own or name == "<lambda>":
            raise InvalidValueError(
                f"a method needs a name of its own, got {name}; pass methods={{'my method': …}}."
            )
        own[name] = method
    return names, own


def starting_of(name: str, system: str, own: Mapping[str, Any]) -> tuple[str, Settings]:
    """Origin of the initial settings, and the settings; "own" and an ensemble size for a method of the user's."""
    return ("own", {"members": 40}) if name in own else starting(name, system)


def _tree(options: TwinOptions) -> dict[str, Any]:
    """The plain settings among the options."""
    numbers = ("replicates", "cycles", "burn_in", "seed")
    tree: dict[str, Any] = {key: options[key] for key in numbers if options.get(key) is not None}  # type: ignore[literal-required]
    stride, operator = options.get("stride", 1), options.get("operator")
    given = {"every": options.get("every"), "noise_std": options.get("noise")}
    observe: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options.get("survey") is not None and (observe or operator is not None or stride != 1):
        raise InvalidValueError(
            "a survey has operator, times and errors; leave out operator, stride, every and noise."
        )
    if stride != 1 and operator is not None:
        raise InvalidValueError(
            f"stride={stride} and operator={operator!r} are both given; leave out one of them."
        )
    if isinstance(operator, str):
        observe["operator"] = operator
    elif stride != 1:
        observe |= {"operator": "stride", "step": stride}
    return {**tree, "observe": observe} if observe else tree


def _survey(network: ObservingNetwork, operator: Any, model: Dynamics) -> tuple[Survey, str]:
    """The survey of a callable, or of the network's operator; values of fields are flattened."""
    event = len(model.state_shape)
    if callable(operator):
        made, name = operator, getattr(operator, "__name__", type(operator).__name__)
    elif event == 1:
        return network.survey(), network.operator
    else:
        given = {"step": network.step} if network.operator == "stride" else {}
        inner = operators.by_name(network.operator, given, event=event, axes=min(event, 2))
        made, name = operators.Compose([inner, operators.Flatten(event)]), network.operator
    times: dict[str, Any] = {"every": network.every, "start": network.first, "missing": network.missing}
    return Survey(made, Isotropic(network.noise), **times), name


def _network(survey: Survey) -> ObservingNetwork:
    """A survey as plain values of a set-up."""
    parts = list(survey.instruments.values())
    if any(part.times is not None for part in parts) or len({(p.every, p.start) for p in parts}) > 1:
        raise InvalidValueError(
            "a survey for tables observes at regular steps, the same for all instruments; give `every`."
        )
    variance = getattr(parts[0].noise, "variance", None)
    return ObservingNetwork(
        ", ".join(getattr(part.operator, "__name__", type(part.operator).__name__) for part in parts),
        noise=1.0 if variance is None else float(variance.double().mean()),
        every=parts[0].every,
        start=parts[0].start,
        missing=parts[0].missing,
    )


def _facts(system: Dynamics) -> dict[str, Any]:
    """Public plain attributes of a system, which identify its runs."""
    found = {"class": type(system).__name__, "state_shape": list(system.state_shape)}
    plain = {k: v for k, v in vars(system).items() if k[0] != "_" and isinstance(v, (bool, int, float, str))}
    return found | {key: value for key, value in plain.items() if key != "training"}
