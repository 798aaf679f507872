"""Options of placement, checked: which cores, which solver, how long neurons are refractory."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest
from nirdeploy.placement import core_numbers
from nirdeploy_loihi.program import Program

__all__ = ["OPTIONS", "Options", "read_options"]

SOLVERS = ("greedy", "cp-sat")
OPTIONS = {
    "cores": "{population: [core, ...]}",
    "one_population_per_core": "True or False",
    "refractory": "{population: steps}",
    "solver": " or ".join(map(repr, SOLVERS)),
}


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        cores: population -> its cores, one a tile.
        refractory: population -> steps that v is held at 0 from the step of a spike on.
        solver: 'greedy' or 'cp-sat'.
        separate: whether a core holds one population alone.
    """

    cores: Mapping[str, tuple[int, ...]]
    refractory: Mapping[str, int]
    solver: str
    separate: bool


def read_options(options: Mapping[str, Any], program: Program, table: Mapping[str, Any]) -> Options:
    """The options, None as the default.

    Raises:
        PlacementError: naming option, value and what is expected.
    """
    given = {name: value for name, value in options.items() if value is not None}
    solver, separate = given.get("solver", "greedy"), given.get("one_population_per_core", False)
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise PlacementError(f"solver is {solver!r}, expected {OPTIONS['solver']}")
    if not isinstance(separate, bool):
        raise PlacementError(f"one_population_per_core is {separate!r}, expected True or False")
    return Options(
        cores=_cores(given.get("cores", {}), program, int(table["cores"]["count"]), separate),
        refractory=_refractory(given.get("refractory", {}), program, table["registers"]["refractory"]),
        solver=solver,
        separate=separate,
    )


def _by_population(option: str, given: Any, expected: str, program: Program) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise PlacementError(f"{option} is {given!r}, expected {expected}")
    known = [p.name for p in program.populations]
    for name in given:
        if name not in known:
            raise PlacementError(f"{option} names {name!r}, which is no population", remedy=suggest(str(name), known))
    return given


def _cores(given: Any, program: Program, count: int, separate: bool) -> dict[str, tuple[int, ...]]:
    taken: dict[int, str] = {}
    found: dict[str, tuple[int, ...]] = {}
    for name, values in _by_population("cores", given, OPTIONS["cores"], program).items():
        cores = core_numbers(values, count, option=f"cores[{name!r}]", node=name)
        if not 1 <= len(cores) <= program.sizes[name]:
            raise PlacementError(f"{len(cores)} cores for {program.sizes[name]} neurons", node=name)
        for core in cores:
            if core in taken and (separate or taken[core] == name):
                raise PlacementError(f"core {core} is already taken by {taken[core]!r}", node=name)
            taken[core] = name
        found[name] = cores
    return found


def _refractory(given: Any, program: Program, limits: Any) -> dict[str, int]:
    low, high = (int(limit) for limit in limits)
    found: dict[str, int] = {}
    for name, value in _by_population("refractory", given, OPTIONS["refractory"], program).items():
        try:
            steps = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            steps = None
        if steps is None or not low <= steps <= high:
            raise PlacementError(f"refractory is {value!r}, expected {low} to {high} whole steps", node=name)
        found[name] = steps
    return found
