"""What each target takes: the answers of `check` to one small network for each primitive, option and convention."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import nir

from nirdeploy.backend import find_target, targets
from nirdeploy.errors import ConventionError, GraphError, NirdeployError
from nirdeploy.pipeline import check
from nirdeploy.probes import DT, POPULATIONS, PROBES, Probe, changed_population, plain, recurrent
from nirdeploy.reference.convention import PER_NODE, Convention
from nirdeploy.reference.presets import PRESETS, convention
from nirdeploy.rules import Report

__all__ = ["Answer", "always", "matrix", "sections"]

_RANK = {"yes": 0, "warning": 1, "no": 2}
# where a field says nothing of a plain network: what it is asked of, and fields that go with it
_CONTEXT: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "use_r": (changed_population(r=2.0), {}),
    "v_start": (changed_population(v_reset=-0.5, v_leak=0.25), {}),
    "feedback_start": (recurrent, {}),
    "late_reset": (plain, {"reset_time": "next_step"}),
}
_OF_KINDS = {  # fields that only some populations have
    "gain": ("LIF", "CubaLIF"),
    "if_gain": ("IF",),
    "synapse_integrator": ("CubaLIF",),
    "synapse_gain": ("CubaLIF",),
}
_BOUNDS: tuple[Any, ...] = (None, -1.0, "-threshold")  # of v_min, which is a number or text


@dataclass(frozen=True)
class Answer:
    """What one target says to one question.

    Attributes:
        section: what the question belongs to, e.g. 'Primitives'.
        name: the question, e.g. 'Conv2d, stride 2'.
        target: the target.
        answer: 'yes', 'warning' (taken, and computed differently) or 'no'.
        codes: codes of the findings that make it so, less those of `always`.
        problems: what they say.
        population: the kind that it was asked with, where this is the best answer.
        convention: likewise the convention.
    """

    section: str
    name: str
    target: str
    answer: Literal["yes", "warning", "no"]
    codes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    population: str = ""
    convention: Convention | None = None

    def __str__(self) -> str:
        codes = ", ".join(self.codes)
        return {"yes": "yes", "warning": f"yes, with {codes}", "no": f"no: {codes}"}[self.answer]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        values = {**vars(self), "convention": None if self.convention is None else self.convention.to_dict()}
        return {**values, "codes": list(self.codes), "problems": list(self.problems)}


def matrix(names: Iterable[str] | None = None) -> tuple[Answer, ...]:
    """Ask targets every question; the best answer over kinds of population and presets counts.

    Args:
        names: targets; None: all.

    Returns:
        Answers in the order of the questions, for each the targets in the order given.

    Raises:
        TargetError: an unknown target.
    """
    chosen = [find_target(name).name for name in (targets() if names is None else names)]
    known = {name: always(name) for name in chosen}
    questions = (*PROBES, *(probe for kind in POPULATIONS for probe in _of_conventions(kind)))
    return tuple(_ask(probe, name, known[name]) for probe in questions for name in chosen)


def sections(answers: Iterable[Answer]) -> dict[str, dict[str, dict[str, Answer]]]:
    """Answers by section, question and target."""
    found: dict[str, dict[str, dict[str, Answer]]] = {}
    for answer in answers:
        found.setdefault(answer.section, {}).setdefault(answer.name, {})[answer.target] = answer
    return found


def always(target: str) -> frozenset[str]:
    """Codes of the warnings that a target gives to the plainest network there is, in the preset it likes best."""
    reports = [
        check(plain(population), target, convention=used)
        for population in POPULATIONS.values()
        for used in _conventions({})
    ]
    return frozenset(found.code for found in min(reports, key=_badness).findings)


def _badness(report: Report) -> tuple[int, int]:
    return len({f.code for f in report.errors}), len({f.code for f in report.warnings})


def _of_conventions(kind: str) -> Iterator[Probe]:
    """A question for every field of a convention with each value it has, as the fields' types list them."""
    for field, hint in typing.get_type_hints(Convention).items():
        if field not in PER_NODE | {"population_delay", "feedback_start"} or kind not in _OF_KINDS.get(field, (kind,)):
            continue
        build, needed = _CONTEXT.get(field, (plain, {}))
        for value in _BOUNDS if field == "v_min" else typing.get_args(hint) or (True, False):
            name = ", ".join(f"{key}={held!r}" for key, held in {field: value, **needed}.items())
            yield Probe(f"Convention, {kind}", name, build, (kind,), {**needed, field: value})


def _conventions(fields: Mapping[str, Any]) -> list[Convention]:
    """Every preset with fields changed, for all nodes; presets that they contradict are left out."""
    found = []
    for name, preset in PRESETS.items():
        overrides = {
            kind: {key: kept for key, kept in own.items() if key not in fields}
            for kind, own in preset.fields.get("overrides", {}).items()
        }
        try:
            found.append(convention(name, dt=DT, **{**fields, "overrides": overrides}))
        except ConventionError:
            continue
    return found


def _ask(probe: Probe, target: str, known: frozenset[str]) -> Answer:
    best: Answer | None = None
    conventions = _conventions(probe.fields)
    for kind in probe.populations or POPULATIONS:
        try:
            graph = probe.build(POPULATIONS[kind])
        except GraphError as error:  # of a nir that is too old for it
            best = _better(best, Answer(probe.section, probe.name, target, "no", ("graph",), (str(error),)))
            continue
        for used in conventions:
            answer = _answer(probe, target, graph, used, known)
            best = _better(best, replace(answer, population=kind, convention=used))
            if best.answer == "yes":
                return best
    if best is None:
        return Answer(probe.section, probe.name, target, "no", ("convention",), ("no preset can have it",))
    return best


def _answer(probe: Probe, target: str, graph: nir.NIRGraph, used: Convention, known: frozenset[str]) -> Answer:
    try:
        report = check(graph, target, convention=used)
    except NirdeployError as error:  # the graph has no meaning at all
        return Answer(probe.section, probe.name, target, "no", ("graph",), (str(error),))
    found = report.errors or tuple(f for f in report.warnings if f.code not in known)
    answer: Literal["yes", "warning", "no"] = "no" if report.errors else "warning" if found else "yes"
    codes = tuple(sorted({f.code for f in found}))
    return Answer(probe.section, probe.name, target, answer, codes, tuple(dict.fromkeys(f.problem for f in found)))


def _better(old: Answer | None, new: Answer) -> Answer:
    if old is None or (_RANK[new.answer], len(new.codes)) < (_RANK[old.answer], len(old.codes)):
        return new
    return old
