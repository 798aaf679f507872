"""A forward that loops over time itself: its steps held against each other, and the first kept for all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

__all__ = ["Loop", "unrolled_loop"]

Places = Callable[[fx.Node], "tuple[int, ...] | None"]


@dataclass
class Loop:
    """One step of a loop that was traced unrolled.

    Attributes:
        nodes: what to walk instead of all traced nodes.
        parts: the first step's own part of the input, x[0].
        same: values behind the loop, by the value of one step that they hold for all: stacked outputs, last states.
        start: number of traced nodes in front of it.
        stop: number of traced nodes up to its end.
    """

    nodes: list[fx.Node]
    parts: set[fx.Node] = field(default_factory=set)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    start: int = 0
    stop: int = 0

    @property
    def indexed(self) -> bool:
        """Whether each step takes its own part of the input, x[step]."""
        return bool(self.parts)


def unrolled_loop(traced: fx.Graph, places: Places, reset: Collection[str] = ()) -> Loop | None:
    """The loop in a traced forward whose steps all are the first one, but for the states that they hand on; else None.

    Each layer with state has to be called once a step. What a step gets from the one before can only be a layer's own
    state, at the place where the layer takes it; everything else is equal, node by node, or the step's own x[step].

    Args:
        traced: the operations.
        places: call of a layer with state -> for each argument behind the input, the place in what it returns that is
            to come back there; None for all other operations.
        reset: paths of layers that forward resets. What it gets of that is None here, and is the state at rest: given
            in each step, it lets the layer remember nothing.
    """
    nodes = list(traced.nodes)
    calls: dict[str, list[int]] = {}
    for n, node in enumerate(nodes):
        if places(node) is not None:
            calls.setdefault(str(node.target), []).append(n)
    found = sorted(calls.values())
    if not found or len(found[0]) < 2 or len({len(each) for each in found}) > 1:
        return None
    first, second, steps = found[0][0], found[0][1], len(found[0])
    length = second - first
    reach = 0
    while reach < length - 1 and _alike(nodes[first - reach - 1], nodes[second - reach - 1]):
        reach += 1
    # what stands in front of the loop may look like the end of a step
    for start in range(first - reach, first + 1):
        stop = start + steps * length
        if (
            stop <= len(nodes)
            and found[-1][-1] < stop
            and (loop := _loop_at(nodes, (start, stop), steps, places, reset))
        ):
            return loop
    return None


def _loop_at(
    nodes: list[fx.Node], ends: tuple[int, int], steps: int, places: Places, reset: Collection[str]
) -> Loop | None:
    """The loop between these nodes; None where its steps differ."""
    start, stop = ends
    length = (stop - start) // steps
    bodies = [nodes[start + k * length : start + (k + 1) * length] for k in range(steps)]
    loop = Loop([*nodes[:start], *bodies[0]], start=start, stop=stop)
    check = _Check(bodies, places, loop, reset)
    if not all(check.step(k) for k in range(1, steps)) or (loop.indexed and not check.takes_parts_only()):
        return None
    loop.same |= {last: body for body, last in zip(bodies[0], bodies[-1], strict=True) if check.is_state(body)}
    loop.nodes += list(loop.same)
    for node in nodes[stop:]:
        if (p := check.stacked(node)) is not None:
            loop.same[node] = bodies[0][p]
        loop.nodes.append(node)
    return loop


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return a.op == b.op and a.target == b.target and a.op not in ("placeholder", "output")


class _Check:
    """Whether steps of a loop are the first one."""

    def __init__(self, bodies: list[list[fx.Node]], places: Places, loop: Loop, reset: Collection[str]) -> None:
        self.bodies, self.places, self.loop, self.reset = bodies, places, loop, reset
        self.position = {node: p for body in bodies for p, node in enumerate(body)}
        self.step_of = {node: k for k, body in enumerate(bodies) for node in body}
        self.carried: dict[tuple[int, int], bool] = {}  # node of a step, place of its argument -> from the step before

    def step(self, k: int) -> bool:
        return all(self._same(p, a, b, k) for p, (a, b) in enumerate(zip(self.bodies[0], self.bodies[k], strict=True)))

    def _same(self, p: int, a: fx.Node, b: fx.Node, k: int) -> bool:
        if not _alike(a, b) or len(a.args) != len(b.args) or a.kwargs.keys() != b.kwargs.keys():
            return False
        if self._is_index(a) and b.args[1] == k and b.args[0] is a.args[0]:
            self.loop.parts.add(a)
            return True
        states = self.places(a)
        if states is not None and a.kwargs:
            return False  # by name: places are not looked up
        for n, (one, other) in enumerate(zip(a.args, b.args, strict=True)):
            if states is not None and n > 0 and one is None:
                carries = other is not None
                if self.carried.setdefault((p, n), carries) != carries:
                    return False
                if not carries and str(a.target) in self.reset:
                    return False
                if carries and not self._is_own_state(other, b, k, states[n - 1]):
                    return False
            elif not self._equal(one, other, k):
                return False
        return self._equal(dict(a.kwargs), dict(b.kwargs), k)

    @staticmethod
    def _is_index(node: fx.Node) -> bool:
        """x[0] of an input."""
        if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
            return False
        return node.args[0].op == "placeholder" and isinstance(node.args[1], int) and node.args[1] == 0

    def takes_parts_only(self) -> bool:
        """Whether inputs of which steps take parts are used in no other way."""
        inputs = {node.args[0] for node in self.bodies[0] if self._is_index(node)}
        users = [user for value in inputs if isinstance(value, fx.Node) for user in value.users]
        parts = [user for user in users if user.target not in ("size", getattr)]  # for range(x.size(0)), x.shape[0]
        return len(inputs) == 1 and all(part in self.position and part.target is operator.getitem for part in parts)

    def _is_own_state(self, value: Any, call: fx.Node, k: int, place: int) -> bool:
        """Whether a value is what the same call of the step before returned at that place."""
        if not isinstance(value, fx.Node) or value.target is not operator.getitem or value.args[1] != place:
            return False
        return value.args[0] is self.bodies[k - 1][self.position[call]]

    def _equal(self, a: Any, b: Any, k: int) -> bool:
        if isinstance(a, fx.Node):
            if a not in self.position:
                return a is b
            return self.step_of[a] == 0 and b is self.bodies[k][self.position[a]]
        if isinstance(a, Mapping):
            return isinstance(b, Mapping) and a.keys() == b.keys() and all(self._equal(a[n], b[n], k) for n in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(self._equal, a, b, [k] * len(a)))
        return type(a) is type(b) and bool(a == b)

    def stacked(self, node: fx.Node) -> int | None:
        """The value of a step of which torch.stack puts those of all steps one behind the other; None for others."""
        if node.target is not torch.stack or not isinstance(node.args[0], list | tuple):
            return None
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        values = list(node.args[0])
        if dim != 0 or len(values) != len(self.bodies):
            return None
        found = {self.position.get(value, -1) for value in values}
        steps = [self.step_of.get(value) for value in values]
        return found.pop() if len(found) == 1 and steps == list(range(len(self.bodies))) else None

    def is_state(self, node: fx.Node) -> bool:
        """Whether a value is a state that a layer returned."""
        source = node.args[0] if node.target is operator.getitem else None
        return isinstance(source, fx.Node) and self.places(source) is not None and node.args[1] in (1, 2, 3)
