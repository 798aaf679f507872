"""A graph without its numbers: nodes, shapes and edges, small enough to travel with every trajectory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import nir

from nirdeploy.errors import FileError, GraphError
from nirdeploy.nodes import Edge, type_name
from nirdeploy.schedule import dotted, schedule

__all__ = ["Outline", "OutlineNode"]


class OutlineNode(NamedTuple):
    """One node.

    Attributes:
        kind: the primitive, e.g. 'LIF'.
        shape: of what it puts out in one step of one sample; None where the graph does not tell.
    """

    kind: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Outline:
    """Nodes and edges as they are executed: subgraphs dissolved, the nodes' names dotted.

    Attributes:
        nodes: name -> kind and shape, in execution order.
        edges: (source, target), those that carry the previous step's output included.
        feedback: of the edges those that carry the previous step's output.
    """

    nodes: Mapping[str, OutlineNode]
    edges: tuple[Edge, ...]
    feedback: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", MappingProxyType(dict(self.nodes)))

    @classmethod
    def of(cls, graph: nir.NIRGraph) -> Outline:
        """The outline of a valid graph."""
        from nirdeploy import graph as graphs

        plan = schedule(graph)
        try:
            shapes: Mapping[Any, Any] = graphs.scheduled_shapes(plan)
        except GraphError:
            shapes = {}
        return cls(
            {
                dotted(path): OutlineNode(
                    type_name(plan.nodes[path]), tuple(shapes[path].output) if path in shapes else None
                )
                for path in plan.order
            },
            tuple((dotted(source), dotted(path)) for path in plan.order for source in plan.sources[path]),
            tuple((dotted(source), dotted(target)) for source, target in plan.feedback),
        )

    def sources(self, name: str) -> list[str]:
        """What feeds a node, in name order."""
        return [source for source, target in self.edges if target == name]

    def before(self) -> dict[str, int]:
        """For each node all that lead to it, over feedback too, as bits in the order of `nodes`."""
        names = list(self.nodes)
        place = {name: k for k, name in enumerate(names)}
        sources: dict[int, list[int]] = {}
        for source, target in self.edges:
            sources.setdefault(place[target], []).append(place[source])
        found, changed = [0] * len(names), True
        while changed:  # in order of execution: once, and once more for each feedback edge within another's loop
            changed = False
            for node, feeding in sources.items():
                reached = found[node]
                for one in feeding:
                    reached |= found[one] | 1 << one
                changed |= reached != found[node]
                found[node] = reached
        return dict(zip(names, found, strict=True))

    def to_json(self) -> str:
        """JSON text; `from_json` is its inverse."""
        values = {
            "nodes": [
                [name, kind, None if shape is None else list(shape)] for name, (kind, shape) in self.nodes.items()
            ],
            "edges": [list(edge) for edge in self.edges],
            "feedback": [list(edge) for edge in self.feedback],
        }
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Outline:
        """Inverse of `to_json`.

        Raises:
            FileError: text that is no outline.
        """
        try:
            values = json.loads(text)
            nodes = {str(name): OutlineNode(str(kind), _shape(shape)) for name, kind, shape in values["nodes"]}
            edges, feedback = (tuple((str(a), str(b)) for a, b in values[key]) for key in ("edges", "feedback"))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileError(f"the outline of the graph cannot be read: {error}") from error
        for edge in (*edges, *feedback):
            for end in edge:
                if end not in nodes:
                    raise FileError("the outline has an edge of an unknown node", node=end)
        return cls(nodes, edges, feedback)


def _shape(values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 1 << 48 for v in values):
        raise TypeError("a shape is no list of whole numbers from 0 on")
    return tuple(values)
