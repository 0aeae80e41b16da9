"""Advice on the choice of a method: sentences derived from the scores by stated rules."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slams.evaluation.frontier import ALARM, worse
from slams.evaluation.tables import text
from slams.twin.frontier.cases import FACTORS, CaseResults, MethodResult, mismatches

SCORE_FILTERS = ("EnSF", "DampedEnSF", "SingleMemberEnSF", "SSLS", "GenerativeEnKF", "SDA")
WORDS = {"density": "observation density", "sensor": "sensors", "model": "model error"}
CALIBRATED = (0.8, 1.25)  # of spread over error
CLOSE = 0.1  # fraction by which the advised method's error may exceed the smallest
CHEAPER = 0.1  # fraction of the CPU time below which another method is mentioned

RULES = (
    "Most accurate is the smallest mean rmse over truths. Tied with it is every method whose rmse, paired truth by "
    "truth, is not significantly larger and that diverged no more often: the chance to leave out the method that is best "
    f"in truth is at most {ALARM:.0%} in each set-up (Student's t with Bonferroni's correction over its methods). To "
    f"be used is the cheapest, in CPU seconds, of the tied whose rmse is at most {CLOSE:.0%} above the smallest, since "
    "few truths tie what more would separate; where the model is what costs, that of these with the fewest model "
    "calls. A method that is not better than every trivial row is never advised nor on a frontier. A method that is "
    "given what the others are not, which coefficient of the model is wrong (`estimate`) or that the model's error is "
    "the same at all sites (`uniform`), is stated apart and compared with the advised one. A spread counts as "
    f"calibrated where it is {CALIBRATED[0]:g} to {CALIBRATED[1]:g} times the error. Which sentence stands is decided "
    "by these rules alone."
)


@dataclass(frozen=True)
class Advice:
    """Advice for one set-up.

    Attributes:
        case: The set-up with its results.
        best: Most accurate method, None if no method beats the trivial rows.
        use: Cheapest method tied with it.
        sentences: The advice in words.
    """

    case: CaseResults
    best: MethodResult | None
    use: MethodResult | None
    sentences: Sequence[str]


def advise(case: CaseResults) -> Advice:
    """The advice for one set-up."""
    tied, floor = case.tied, case.floor
    if not tied:
        name = f"{floor.label} (rmse {text(floor.rmse)})" if floor else "the trivial rows"
        informed = [_informed(each, floor) for each in case.role("informed")] if floor else []
        return Advice(case, None, None, [f"Nothing beats {name}: use that.", *informed, *_warnings(case)])
    close = near(tied)
    best, use = tied[0], min(close, key=lambda p: p.value("cpu_seconds"))
    sentences = [_choice(case, best, use, tied, close)]
    frugal = frugalest(tied)
    if frugal.value("model_calls") < use.value("model_calls"):
        sentences.append(
            f"Where the model is what costs: {frugal.label}, {text(frugal.value('model_calls'))} model calls an analysis "
            f"instead of {text(use.value('model_calls'))}."
        )
    sizes = by_size(case)
    if len(sizes) > 1:
        listed = ", ".join(f"{p.label} (rmse {text(p.rmse)})" for _, p in sizes)
        sentences.append(f"Most accurate at each number of members: {listed}.")
    limit = CHEAPER * use.value("cpu_seconds")
    cheap = [p for p in case.candidates if p.value("cpu_seconds") <= limit]
    if cheap:
        sentences.append(
            f"With a tenth of its CPU time: {cheap[0].label}, rmse {text(cheap[0].rmse)}, "
            f"{cheap[0].rmse / use.rmse - 1:.0%} more."
        )
    for exact in case.role("exact"):
        sentences.append(f"The {exact.label}, exact for the model: rmse {text(exact.rmse)}.")
    sentences += [_informed(each, use) for each in case.role("informed")]
    sentences += [*_calibration(use, tied), *_score_filters(case), *_warnings(case)]
    return Advice(case, best, use, sentences)


def near(tied: Sequence[MethodResult]) -> list[MethodResult]:
    """Tied methods with an error close to the best, which is the first."""
    return [p for p in tied if p.rmse <= (1 + CLOSE) * tied[0].rmse]


def frugalest(tied: Sequence[MethodResult]) -> MethodResult:
    """The method with the fewest model calls."""
    return min(near(tied), key=lambda p: p.value("model_calls"))


def _choice(
    case: CaseResults,
    best: MethodResult,
    use: MethodResult,
    tied: Sequence[MethodResult],
    close: Sequence[MethodResult],
) -> str:
    share = f", {best.rmse / case.climate:.0%} of the climatology's" if math.isfinite(case.climate) else ""
    first = f"Most accurate: {best.label}, rmse {_interval(best)}{share}, {milliseconds(best)} an analysis"
    count = len(best.errors)
    among = f"{len(tied)} tied over {count} truths, {len(close)} of them within {CLOSE:.0%}"
    if use is best:
        others = (
            f"nothing is tied with it over {count} truths" if len(tied) == 1 else f"the cheapest of {among}"
        )
        return f"{first}; {others}. Use {use.label}."
    times = _times(best, use)
    return (
        f"{first}. Not significantly worse at {milliseconds(use)}, {text(times)} times less: use {use.label} "
        f"(rmse {_interval(use)}), the cheapest of {among}."
    )


def _informed(point: MethodResult, use: MethodResult) -> str:
    """A method that is given more, against the advised one, truth by truth."""
    ratio = point.rmse / use.rmse
    if worse(use.errors, point.errors, ALARM / 2):
        how = f"{1 - ratio:.0%} less than {use.label}"
    elif worse(point.errors, use.errors, ALARM / 2):
        how = f"{ratio - 1:.0%} more than {use.label}"
    else:
        how = f"not significantly different from {use.label}"
    return f"{point.given[0].upper()}{point.given[1:]}: {point.label}, rmse {_interval(point)}, {how}."


def _calibration(use: MethodResult, tied: Sequence[MethodResult]) -> list[str]:
    ratio = use.value("spread_skill")
    if math.isnan(ratio) or calibrated(use):
        return []
    how = "small" if ratio < 1 else "large"
    first = f"Its spread is too {how}, {text(ratio)} of its error"
    others = [p for p in tied if calibrated(p)]
    if not others:
        return [f"{first}, and that of no tied method fits: do not read its spread as its error."]
    other = min(others, key=lambda p: p.value("cpu_seconds"))
    return [
        f"{first}; where the spread matters: {other.label} ({text(other.value('spread_skill'))}, {milliseconds(other)})."
    ]


def _score_filters(case: CaseResults) -> list[str]:
    """The best score filter against the best of the others."""
    ours, others = (
        [p for p in case.role("method") if (p.method in SCORE_FILTERS) == wanted] for wanted in (True, False)
    )
    if not ours or not others:
        return []
    score, other = ours[0], others[0]
    ratio = score.rmse / other.rmse
    if worse(score.errors, other.errors, ALARM / 2):
        how = f"worse than {other.label} by {ratio - 1:.0%}"
    elif worse(other.errors, score.errors, ALARM / 2):
        how = f"better than {other.label} by {1 - ratio:.0%}"
    else:
        how = f"not significantly different from {other.label}"
    times = text(_times(score, other))
    return [
        f"The best score filter, {score.label} (rmse {text(score.rmse)}), is {how} at {times} times its CPU time."
    ]


def _warnings(case: CaseResults) -> list[str]:
    """Methods that lose to a trivial row, and methods that diverged."""
    out, floor = [], case.floor
    if floor:
        losing = [p for p in case.role("method") if not p.rmse < floor.rmse]
        if losing:
            names = ", ".join(p.label for p in losing)
            out.append(f"No better than {floor.label} (rmse {text(floor.rmse)}): {names}.")
    diverged = [p for p in case.candidates if p.value("divergence_rate") > 0]
    if diverged:
        listed = ", ".join(f"{p.label} {p.value('divergence_rate'):.0%}" for p in diverged)
        out.append(f"Diverged, in share of the truths: {listed}.")
    return out


def calibrated(point: MethodResult) -> bool:
    """Whether spread and error agree."""
    return CALIBRATED[0] <= point.value("spread_skill") <= CALIBRATED[1]


def sweeps(cases: Sequence[CaseResults]) -> list[tuple[str, list[CaseResults]]]:
    """Groups of at least two set-ups that differ in one factor alone, in the factor's order."""
    out = []
    for factor in FACTORS:
        groups: dict[str, list[CaseResults]] = {}
        for case in cases:
            rest = {k: v for k, v in case.factors.items() if k != factor}
            groups.setdefault(repr(sorted(rest.items())), []).append(case)
        for group in groups.values():
            if len({repr(case.factors[factor]) for case in group}) > 1:
                out.append((factor, sorted(group, key=lambda c: _rank(factor, c))))
    return out


def _rank(factor: str, case: CaseResults) -> tuple[Any, ...]:
    """Dense before sparse, linear before not, perfect before wrong."""
    value = case.factors[factor]
    if factor == "density":
        return (value,)
    if factor == "sensor":
        return (value[0] != "identity", *value)
    pairs = [
        pair for pair in mismatches(case.setup).values() if all(isinstance(v, int | float) for v in pair)
    ]
    return (sum(abs(truth - model) for truth, model in pairs), value)


def level(factor: str, case: CaseResults) -> str:
    """The value of a factor in a few words."""
    value = case.factors[factor]
    if factor == "density":
        return "all seen" if value == 1 else f"1 in {value} seen"
    if factor == "sensor":
        return f"{value[0]}, noise {math.sqrt(float(value[1])):.3g}"
    wrong = [f"{k} {model} (truth {truth})" for k, (truth, model) in mismatches(case.setup).items()]
    if wrong:
        return "model: " + ", ".join(wrong)
    listed = ", ".join(f"{k} {v}" for k, v in case.setup["truth"].items())
    return f"perfect model{': ' + listed if listed else ''}"


def overall(cases: Sequence[CaseResults]) -> list[str]:
    """Sentences over all set-ups."""
    advices = [advise(case) for case in cases]
    out = [
        _count(
            cases, lambda case: {p.method for p in case.tied}, "Most accurate, or tied with it, at some size"
        ),
        _count(cases, lambda case: _used(advise(case)), "Advised"),
    ]
    for factor, group in sweeps(cases):
        fixed = ", ".join(level(other, group[0]) for other in FACTORS if other != factor)
        uses = [
            f"{level(factor, case)}: {_name(next(a for a in advices if a.case is case))}" for case in group
        ]
        out.append(f"Over {WORDS[factor]} ({group[0].setup['system']}; {fixed}): {'; '.join(uses)}.")
    never = _never(cases)
    if never:
        out.append(f"Never better than the best trivial row, wherever it was run: {', '.join(never)}.")
    return [sentence for sentence in out if sentence]


def by_size(case: CaseResults) -> list[tuple[int, MethodResult]]:
    """The most accurate candidate of each ensemble size that two methods were run with."""
    groups: dict[int, list[MethodResult]] = {}
    for point in case.candidates:
        if point.members is not None and not math.isnan(point.value("spread_skill")):
            groups.setdefault(point.members, []).append(point)
    return [(size, group[0]) for size, group in sorted(groups.items()) if len(group) > 1]


def milliseconds(point: MethodResult) -> str:
    """CPU time of an analysis.

    >>> from slams.twin.frontier.cases import MethodResult
    >>> milliseconds(MethodResult("a", "EnKF", "", {}, {"cpu_seconds": (0.0123, 0.0, 0.0)}, {}))
    '12.3 ms'
    """
    return f"{text(1e3 * point.value('cpu_seconds'))} ms"


def _times(one: MethodResult, other: MethodResult) -> float:
    """Ratio of the CPU times of two methods, as text."""
    least = other.value("cpu_seconds")
    return one.value("cpu_seconds") / least if least else math.inf


def _interval(point: MethodResult) -> str:
    value, low, high = point.scores["rmse"]
    return f"{text(value)}" if math.isnan(low) else f"{text(value)} [{text(low)}, {text(high)}]"


def _used(advice: Advice) -> set[str]:
    return {advice.use.method} if advice.use else set()


def _name(advice: Advice) -> str:
    if advice.use:
        return f"{advice.use.label} (rmse {text(advice.use.rmse)})"
    return f"{advice.case.floor.label}, nothing beats it" if advice.case.floor else "nothing"


def _count(cases: Sequence[CaseResults], chosen: Callable[[CaseResults], set[str]], what: str) -> str:
    """Number of set-ups on which each method is chosen, of those it was run on."""
    run: dict[str, int] = {}
    hits: dict[str, int] = {}
    for case in cases:
        picked = chosen(case)
        for method in {p.method for p in case.role("method")}:
            run[method] = run.get(method, 0) + 1
            hits[method] = hits.get(method, 0) + (method in picked)
    listed = sorted((m for m in hits if hits[m]), key=lambda m: (-hits[m], m))
    return f"{what}: {', '.join(f'{m} in {hits[m]} of {run[m]}' for m in listed)}." if listed else ""


def _never(cases: Sequence[CaseResults]) -> list[str]:
    """Methods that are a candidate on no set-up."""
    run: Mapping[str, Any] = dict.fromkeys(p.method for case in cases for p in case.role("method"))
    sound = {p.method for case in cases for p in case.candidates}
    return [method for method in run if method not in sound]
