"""What is known of directives' effects: learned from requests that were answered at several levels.

JSON lines, an object a request that was answered without a directive and with some:

    {"task": "faq", "variants": {"L0": {"output_tokens": 210, "input_tokens": 64}, "L1": {"output_tokens": 71, ...}}}

The names of variants may begin with a model and a slash, "13b/L1"; only a model that has an L0 and others counts. Where
output_tokens is missing, energy_joules or energy_kwh stand in for it if an energy law is given, or else the length of
`answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from router.diagnosis.effect import MIN_REQUESTS, Effect, fit_effect, misfit
from router.diagnosis.law import Law
from router.diagnosis.lines import LogError, file_kind, json_objects, opened

BASELINE: Final = "L0"
CHARACTERS_PER_TOKEN: Final = 4.0
"""Of English text, where nothing but the text is known."""
EXTRA_INPUT_TOKENS: Final = 18.0
"""That a directive as a system message adds, where the evidence does not tell: L1 and L2 add 17 and 18."""
PUBLISHED_MISFIT: Final = 0.01
"""`misfit` of the published measurements: the least that is taken, as evidence of one length shows none."""
MOST_REQUESTS: Final = 1_000_000
JOULES_PER_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True)
class Evidence:
    """Effects by task and directive, and how far they carry over to the model of the log."""

    effects: tuple[Effect, ...]
    source: str
    transfer_deviation: float = 0.0
    """Standard deviation, between models, of the log of the share that an answer keeps; 0 where the evidence is of the
    model that the log is of."""
    transfer_freedom: int = 1
    """Degrees of freedom of that."""
    notes: tuple[str, ...] = ()

    def of(self, directive: str) -> Mapping[str, Effect]:
        """By task."""
        return {effect.task: effect for effect in self.effects if effect.directive == directive}

    @property
    def directives(self) -> tuple[str, ...]:
        return tuple(sorted({effect.directive for effect in self.effects}))


@dataclass(slots=True)
class Pairs:
    """The same prompts' answers without a directive and with it, in tokens."""

    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    extra: list[float] = field(default_factory=list)
    """Input tokens that the directive added, where known."""


def learn(pairs: Mapping[tuple[str, str], Pairs], source: str, notes: Iterable[str] = ()) -> Evidence:
    """Effects of (task, directive); one with fewer than MIN_REQUESTS requests is left out, and noted."""
    said = list(notes)
    large = {key: found for key, found in pairs.items() if len(found.before) >= MIN_REQUESTS}
    said += [
        f"{directive} for task {task!r} has {len(found.before)} requests in the evidence, fewer than {MIN_REQUESTS}: "
        "it is not used"
        for (task, directive), found in pairs.items()
        if (task, directive) not in large
    ]
    surplus = max(PUBLISHED_MISFIT, misfit((found.before, found.after) for found in large.values()) or 0.0)
    effects = []
    for (task, directive), found in sorted(large.items()):
        extra = sum(found.extra) / len(found.extra) if found.extra else EXTRA_INPUT_TOKENS
        effect = fit_effect(task, directive, found.before, found.after, extra)
        effects.append(effect.with_misfit(surplus))
    return Evidence(tuple(effects), source, notes=tuple(said))


def read_evidence(path: str | Path, law: Law | None = None) -> Evidence:
    """Of a file whose name ends in .jsonl or .jsonl.gz.

    Args:
        law: By which an energy tells of an answer's length; None where answers' texts shall.

    Raises LogError where it cannot be read, has faults, or too few requests to learn anything from.
    """
    path = Path(path)
    file_kind(path, ".jsonl")
    pairs: dict[tuple[str, str], Pairs] = {}
    measures: dict[str, int] = {}
    requests = 0
    with opened(path) as lines:
        for requests, (number, found) in enumerate(json_objects(path, lines), 1):
            if requests > MOST_REQUESTS:
                raise LogError([f"{path}:{number}: evidence may have at most {MOST_REQUESTS:,} requests"])
            try:
                _add(found, law, pairs, measures)
            except ValueError as error:
                raise LogError([f"{path}:{number}: {error}"]) from None
    most = max((len(pair.before) for pair in pairs.values()), default=0)
    if most < MIN_REQUESTS:
        fault = f"no task has {MIN_REQUESTS} requests answered both at L0 and with a directive, the most is {most}"
        raise LogError([f"{path}: {fault}"])
    notes = [f"in the evidence, the lengths of {count:,} answers are {how}" for how, count in measures.items() if how]
    return learn(pairs, f"{path.name}, {requests:,} requests", notes)


def _add(
    found: Mapping[str, Any], law: Law | None, pairs: dict[tuple[str, str], Pairs], measures: dict[str, int]
) -> None:
    task, prompt = found.get("task") or "", found.get("prompt")
    if not isinstance(task, str):
        raise ValueError(f"task must be text, got {task!r}")
    variants = _variants(found.get("variants"))
    if variants is None:
        return
    base = variants.pop(BASELINE)
    prompt_tokens = len(prompt) / CHARACTERS_PER_TOKEN if isinstance(prompt, str) else 0.0
    for directive, variant in variants.items():
        for how, measure in _MEASURES.items():
            before = measure(base, law, prompt_tokens)
            after = measure(variant, law, prompt_tokens + EXTRA_INPUT_TOKENS)
            if before is not None and after is not None:
                measures[how] = measures.get(how, 0) + 1
                break
        else:
            continue
        pair = pairs.setdefault((task, directive), Pairs())
        pair.before.append(before)
        pair.after.append(after)
        inputs = _number(base, "input_tokens"), _number(variant, "input_tokens")
        if inputs[0] is not None and inputs[1] is not None:
            pair.extra.append(max(0.0, inputs[1] - inputs[0]))


def _variants(found: Any) -> dict[str, Mapping[str, Any]] | None:
    """By directive, L0 among them; None where the request has nothing to compare."""
    if not isinstance(found, dict) or not all(isinstance(variant, dict) for variant in found.values()):
        raise ValueError('variants must be an object of objects, by directive, such as {"L0": {"output_tokens": 210}}')
    models: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, variant in found.items():
        model, _, directive = name.rpartition("/")
        models.setdefault(model, {})[directive] = variant
    complete = [model for model, its in models.items() if BASELINE in its and len(its) > 1]
    if len(complete) > 1:
        raise ValueError(f"variants: there are several models with directives, {', '.join(complete)}; keep one")
    return models[complete[0]] if complete else None


def _tokens(variant: Mapping[str, Any], law: Law | None, prompt_tokens: float) -> float | None:
    return _number(variant, "output_tokens")


def _by_energy(variant: Mapping[str, Any], law: Law | None, prompt_tokens: float) -> float | None:
    if law is None:
        return None
    kwh, joules = _number(variant, "energy_kwh"), _number(variant, "energy_joules")
    joules = kwh * JOULES_PER_KWH if joules is None and kwh is not None else joules
    inputs = _number(variant, "input_tokens")
    return None if joules is None else law.output_tokens(joules, prompt_tokens if inputs is None else inputs)


def _by_text(variant: Mapping[str, Any], law: Law | None, prompt_tokens: float) -> float | None:
    answer = variant.get("answer")
    return max(1.0, len(answer) / CHARACTERS_PER_TOKEN) if isinstance(answer, str) else None


_MEASURES: Final[Mapping[str, Callable[[Mapping[str, Any], Law | None, float], float | None]]] = {
    "": _tokens,
    "reckoned from their energy by the energy law": _by_energy,
    f"taken for their characters / {CHARACTERS_PER_TOKEN:g}": _by_text,
}
"""How the tokens of an answer may be known, best first."""


def _number(variant: Mapping[str, Any], name: str) -> float | None:
    value = variant.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"variants: {name} must be a number from 0 to 1e9, got {value!r}")
    return float(value)
