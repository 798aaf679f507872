"""When spikes arrive: every connection costs a step on the chip, in the graph only where its convention says so.

Steps that the chip takes more than the graph become the lag of a population, its own time; a connection whose ends
are further apart than the chip's own step gets a delay. So skips and loops keep the graph's timing, or are refused.
The arithmetic is that of retiming (Leiserson and Saxe, Algorithmica 6, 1991).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.reference.convention import Convention

__all__ = ["Route", "feedback_count", "lags", "route", "steps_of"]

Integers = NDArray[np.int64]
_ELEMENTWISE = ("Flatten", "Scale")  # what leaves neurons in their order


@dataclass(frozen=True, eq=False)
class Route:
    """How long a path takes in the graph.

    Attributes:
        source: population or Input.
        target: population.
        feedback: steps that feedback edges cost.
        delay: steps of Delay nodes, broadcast to [target neurons, source neurons].
    """

    source: str
    target: str
    feedback: int
    delay: Integers

    @property
    def shortest(self) -> int:
        """Steps of the fastest synapse."""
        return self.feedback + int(self.delay.min())


def steps_of(name: str, node: nir.NIRNode, convention: Convention) -> Integers:
    """Steps of a Delay node, one a neuron, flat.

    Raises:
        ConventionError, MissingTimeStepError: no dt, or a delay that is no whole number of steps.
    """
    from nirdeploy.reference.neurons import Delay

    try:
        module = Delay(node.delay, convention=replace(convention, population_delay=0, feedback_edges=None))
        module.check(name)
    except ConventionError as error:
        if error.node:
            raise
        raise ConventionError(str(error).split(". ")[0], node=name, remedy=error.remedy) from error
    return module.steps.numpy().reshape(-1)


def feedback_count(chain: Sequence[str], back: set[tuple[str, str]]) -> int:
    """How many edges of a chain of nodes carry their source's previous output."""
    return sum(edge in back for edge in pairwise(chain))


def route(
    graph: nir.NIRGraph,
    target: str,
    path: graphs.Path,
    shapes: Mapping[str, graphs.Shapes],
    back: set[tuple[str, str]],
    convention: Convention,
) -> Route:
    """Steps of a path, synapse by synapse.

    Raises:
        UnsupportedError: a Delay that differs between neurons, in the middle of a chain.
    """
    kinds = [graphs.type_name(graph.nodes[name]) for name in path.nodes]
    mixing = [i for i, kind in enumerate(kinds) if kind not in (*_ELEMENTWISE, "Delay")]
    before = np.zeros(1, dtype=np.int64)
    after = np.zeros(1, dtype=np.int64)
    for i, (name, kind) in enumerate(zip(path.nodes, kinds, strict=True)):
        if kind != "Delay":
            continue
        steps = steps_of(name, graph.nodes[name], convention)
        size = int(np.prod(shapes[name].input))
        if (steps == steps[0]).all():
            before = before + steps[0]
        elif not mixing or i < mixing[0]:
            before = before + np.broadcast_to(steps, (size,))
        elif i > mixing[-1]:
            after = after + np.broadcast_to(steps, (size,))
        else:
            raise UnsupportedError(
                f"its delays of {steps.min()} to {steps.max()} steps lie between {path.nodes[i - 1]!r} and "
                f"{path.nodes[i + 1]!r}, which mix neurons; a synapse has one delay",
                node=name,
                remedy="Put the Delay directly behind the population or directly before the next one.",
            )
    chain = (path.source, *path.nodes, target)
    return Route(path.source, target, feedback_count(chain, back), after[:, None] + before[None, :])


def lags(routes: Iterable[Route], earliest: Mapping[str, int]) -> dict[str, int]:
    """Steps by which the chip is later than the graph, for each population: the least that all routes allow.

    A route of r steps in the graph needs lag[target] - lag[source] + r >= 1. Forward Delay nodes stay delays; they
    shorten lags only where the loops leave no other way.

    Args:
        routes: all of them.
        earliest: lower bound of each population; the Input has 0.

    Raises:
        UnsupportedError: a loop that takes fewer steps in the graph than connections on the chip.
    """
    listed = list(routes)
    chosen: dict[str, Route] = {}
    for length in ([r.feedback for r in listed], [r.shortest for r in listed]):
        settled = _settled(listed, length, earliest, chosen)
        if settled is not None:
            return settled
    loop = _loop(chosen)
    steps = sum(r.shortest for r in loop)
    names = " -> ".join((*(r.source for r in loop), loop[-1].target))
    raise UnsupportedError(
        f"the loop {names} takes {steps} of the graph's steps, on the chip at least {len(loop)}",
        node=loop[0].target,
        remedy="Train with population_delay=1, or put a Delay into the loop.",
    )


def _settled(
    routes: Sequence[Route], length: Sequence[int], earliest: Mapping[str, int], chosen: dict[str, Route]
) -> dict[str, int] | None:
    """The longest way to each population, as Bellman and Ford find it; None where a loop grows for ever."""
    found = dict(earliest)
    chosen.clear()
    for _ in range(len(found) + 1):
        moved = False
        for r, steps in zip(routes, length, strict=True):
            if found[r.target] < found[r.source] + 1 - steps:
                found[r.target] = found[r.source] + 1 - steps
                chosen[r.target] = r
                moved = True
        if not moved:
            return found
    return None


def _loop(chosen: Mapping[str, Route]) -> list[Route]:
    """A cycle among the routes that determined the lags."""
    for start in chosen:
        seen: list[str] = []
        at = start
        while at in chosen and at not in seen:
            seen.append(at)
            at = chosen[at].source
        if at in seen:
            backwards = [chosen[name] for name in seen[seen.index(at) :]]
            return backwards[::-1]
    raise AssertionError("lags that never settle have a cycle")  # by Bellman and Ford
