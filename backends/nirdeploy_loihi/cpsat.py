"""Tiles onto cores by OR-tools CP-SAT: the fewest messages that there are, proved where its time suffices."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError, UnavailableError
from nirdeploy_loihi.assign import numbered
from nirdeploy_loihi.layout import Layout
from nirdeploy_loihi.traffic import OUTSIDE, messages

__all__ = ["require_solver", "solve"]

Integers = NDArray[np.int64]
_VARIABLES = 1_000_000  # a model of more takes minutes to build
_EFFORT = 20.0  # deterministic units of work, about seconds: the same answer on every machine
_UNIT = 2.0**-24  # messages a step that the solver tells apart


def require_solver() -> None:
    """Refuse where OR-tools is not installed.

    Raises:
        UnavailableError: naming the command that installs it.
    """
    if importlib.util.find_spec("ortools") is None:
        raise UnavailableError(
            "solver='cp-sat' needs OR-tools, which is not installed",
            remedy="Run pip install 'nirdeploy[cp-sat]', or use solver='greedy'.",
        )


def solve(layout: Layout, fixed: Mapping[int, int], count: int, hint: Integers | None) -> tuple[Integers | None, bool]:
    """Core of every tile (None: there is no assignment), and whether nothing better exists.

    Args:
        layout: the tiles.
        fixed: tile -> core that the user chose.
        count: cores of the chip.
        hint: an assignment that fits; what is returned sends at most as many messages.

    Raises:
        PlacementError: a network too large for the solver.
    """
    from ortools.sat.python import cp_model

    slots = min(count, len(layout.tiles))
    size = slots * (2 * layout.bundles.hits.shape[1] + len(layout.tiles))
    if size > _VARIABLES:
        raise PlacementError(
            f"solver='cp-sat' would take {size} variables, at most {_VARIABLES}", remedy="Use solver='greedy'."
        )
    problem = _Problem(layout, fixed, slots, cp_model.CpModel())
    if hint is not None:
        problem.start_from(hint)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = _EFFORT
    status = solver.solve(problem.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return hint, False
    found = np.array([[solver.boolean_value(x) for x in row] for row in problem.on]).argmax(axis=1)
    result = numbered(found, fixed, count)
    if hint is not None and _sent(layout, hint) <= _sent(layout, result):
        result = hint
    return result, status == cp_model.OPTIMAL


def _sent(layout: Layout, core_of: Integers) -> float:
    return messages(layout.bundles, core_of)["messages_per_step"]


class _Problem:
    """The model: which tile is on which of the interchangeable slots."""

    def __init__(self, layout: Layout, fixed: Mapping[int, int], slots: int, model: Any) -> None:
        self.layout, self.fixed, self.slots, self.model = layout, fixed, slots, model
        self.chosen = {core: slot for slot, core in enumerate(dict.fromkeys(fixed.values()))}
        self.on = [[model.new_bool_var("") for _ in range(slots)] for _ in layout.tiles]
        for number, row in enumerate(self.on):
            model.add_exactly_one(row)
            if number in fixed:
                model.add(row[self.chosen[fixed[number]]] == 1)
        self._break_symmetry()
        self.heard = [
            [self._any(np.flatnonzero(tiles), slot) for slot in range(slots)] for tiles in layout.bundles.hits.T
        ]
        self._minimise()
        for slot in range(slots):
            self._limit(slot)

    def _break_symmetry(self) -> None:
        """Slots that the user did not choose are taken in the order of tiles."""
        first = len(self.chosen)
        for place, number in enumerate(n for n in range(len(self.on)) if n not in self.fixed):
            for slot in range(first + place + 1, self.slots):
                self.model.add(self.on[number][slot] == 0)

    def _any(self, tiles: Sequence[int] | Integers, slot: int) -> Any:
        """At least whether one of some tiles is on a slot."""
        found = self.model.new_bool_var("")
        for tile in tiles:
            self.model.add_implication(self.on[tile][slot], found)
        return found

    def _minimise(self) -> None:
        terms, weights = [], []
        found = self.layout.bundles
        for number, source in enumerate(found.source.tolist()):
            for slot in range(self.slots):
                sent = self.heard[number][slot]
                if source != OUTSIDE:  # nothing is sent to the own core
                    sent = self.model.new_bool_var("")
                    self.model.add_bool_or([self.heard[number][slot].negated(), self.on[source][slot], sent])
                terms.append(sent)
                weights.append(round(float(found.spikes[number]) / _UNIT))
        self.model.minimize(sum(w * t for w, t in zip(weights, terms, strict=True)))

    def _limit(self, slot: int) -> None:
        limits, tiles, model = self.layout.limits, self.layout.tiles, self.model
        here = [row[slot] for row in self.on]
        neurons = sum(tile.neurons * x for tile, x in zip(tiles, here, strict=True))
        if "neurons" in limits:
            model.add(neurons <= int(limits["neurons"]))
        if "synapse_bits" in limits:
            self._limit_memory(slot, here, neurons)
        if "in_axons" in limits:
            counts = self.layout.bundles.neurons.tolist()
            model.add(sum(n * row[slot] for n, row in zip(counts, self.heard, strict=True)) <= int(limits["in_axons"]))
        if "out_axons" in limits:
            self._limit_out_axons(slot)
        kinds = {"compartment_configs": "compartments", "threshold_configs": "thresholds", "synapse_configs": "formats"}
        for resource, name in kinds.items():
            if resource in limits:
                known = sorted(frozenset().union(*(getattr(tile, name) for tile in tiles)), key=repr)
                holders = ([n for n, tile in enumerate(tiles) if k in getattr(tile, name)] for k in known)
                model.add(sum(self._any(found, slot) for found in holders) <= int(limits[resource]))
        for name in {tile.population for tile in tiles}:
            model.add_at_most_one([x for tile, x in zip(tiles, here, strict=True) if tile.population == name])
        if self.layout.separate:
            model.add_at_most_one(here)

    def _limit_memory(self, slot: int, here: Sequence[Any], neurons: Any) -> None:
        """The length of target indices follows from the neurons on a core."""
        model, layout = self.model, self.layout
        levels = [model.new_bool_var("") for _ in range(layout.low, layout.high + 1)]
        model.add_exactly_one(levels)
        for number, level in enumerate(levels):
            if layout.low + number < layout.high:
                model.add(neurons <= 1 << (layout.low + number)).only_enforce_if(level)
            bits = sum(tile.synapse_bits[number] * x for tile, x in zip(layout.tiles, here, strict=True))
            # a tile of more neurons than a level's indices reach has no entry there; the line above excludes it
            model.add(bits <= int(layout.limits["synapse_bits"])).only_enforce_if(level)

    def _limit_out_axons(self, slot: int) -> None:
        """A neuron takes an output axon for every core that it reaches, its own included."""
        found = self.layout.bundles
        terms = []
        for number, source in enumerate(found.source.tolist()):
            if source == OUTSIDE:
                continue
            axons = self.model.new_int_var(0, self.slots, "")
            self.model.add(axons >= sum(self.heard[number])).only_enforce_if(self.on[source][slot])
            terms.append(int(found.neurons[number]) * axons)
        self.model.add(sum(terms) <= int(self.layout.limits["out_axons"]))

    def start_from(self, core_of: Integers) -> None:
        """Give the solver an assignment, its cores as slots."""
        slot_of = dict(self.chosen)
        for number, core in enumerate(core_of.tolist()):
            at = slot_of.setdefault(core, len(slot_of))
            for slot, x in enumerate(self.on[number]):
                self.model.add_hint(x, slot == at)
