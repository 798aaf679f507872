"""Pure helpers on NIRGraph: copies, metadata, validation, shapes, order, feedback edges, populations, hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from os import PathLike
from typing import Any

import nir
import numpy as np

from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.nodes import (
    Edge,
    declared_shape,
    make_graph,
    make_node,
    node_fields,
    parameters,
    stored_shape,
    type_name,
)
from nirdeploy.schedule import NodePath, Schedule, dotted, schedule
from nirdeploy.shapes import Shapes, conv1d_options, conv2d_options, neuron_shape, output_shape, own_input_shape, pair

__all__ = [
    "MEMBRANES",
    "METADATA_KEY",
    "NodeSketch",
    "Path",
    "Population",
    "Shapes",
    "Skeleton",
    "check_finite",
    "conv1d_options",
    "conv2d_options",
    "copy_graph",
    "dissolved",
    "feedback_edges",
    "input_names",
    "is_neuron",
    "make_graph",
    "make_node",
    "metadata",
    "neuron_shape",
    "node_fields",
    "order",
    "output_names",
    "output_shape",
    "pair",
    "parameters",
    "populations",
    "predecessors",
    "scheduled_shapes",
    "sha256",
    "shapes",
    "skeleton",
    "starts_at_zero",
    "successors",
    "torch_path",
    "type_name",
    "validate",
    "with_metadata",
]

METADATA_KEY = "nirdeploy"


def copy_graph(graph: nir.NIRGraph) -> nir.NIRGraph:
    """A deep copy that shares no array with `graph`."""
    nodes = {name: _copy_node(node) for name, node in graph.nodes.items()}
    return make_graph(nodes, list(graph.edges), _plain_metadata(graph))


def _copy_node(node: nir.NIRNode) -> nir.NIRNode:
    if isinstance(node, nir.NIRGraph):
        return copy_graph(node)
    values = {
        name: np.array(value, copy=True) if isinstance(value, np.ndarray) else value
        for name, value in parameters(node).items()
    }
    if isinstance(node, nir.Input | nir.Flatten):
        values["input_type"] = {"input": stored_shape(node, "input")}
    if isinstance(node, nir.Output):
        values["output_type"] = {"output": stored_shape(node, "output")}
    return make_node(type(node), metadata=getattr(node, "metadata", None), **values)


@dataclass(frozen=True)
class NodeSketch:
    """A node without its parameters: type, options that are no parameters, metadata."""

    kind: str
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Skeleton:
    """A graph without its parameters."""

    nodes: Mapping[str, NodeSketch | Skeleton]
    edges: tuple[Edge, ...]
    metadata: Mapping[str, Any]


_OPTIONS = ("input_shape", "stride", "padding", "dilation", "groups", "kernel_size", "start_dim", "end_dim")


def skeleton(graph: nir.NIRGraph) -> Skeleton:
    """What of a graph is neither weight nor neuron parameter."""
    nodes: dict[str, NodeSketch | Skeleton] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            nodes[name] = skeleton(node)
            continue
        options = {key: getattr(node, key) for key in _OPTIONS if hasattr(node, key)}
        if isinstance(node, nir.Input | nir.Flatten):
            options["input_type"] = {"input": stored_shape(node, "input")}
        if isinstance(node, nir.Output):
            options["output_type"] = {"output": stored_shape(node, "output")}
        nodes[name] = NodeSketch(type_name(node), options, dict(getattr(node, "metadata", None) or {}))
    return Skeleton(nodes, tuple(graph.edges), _plain_metadata(graph))


# ---------------------------------------------------------------- metadata


def _plain_metadata(graph: nir.NIRGraph) -> dict[str, Any]:
    # nir 1.0.8's NIRGraph has the class `dict` itself as its default metadata
    stored = getattr(graph, "metadata", None)
    return dict(stored) if isinstance(stored, Mapping) else {}


def metadata(graph: nir.NIRGraph) -> dict[str, Any]:
    """What nirdeploy stored in the graph: keys 'convention', 'torch_paths' and 'repairs', each optional."""
    text = _plain_metadata(graph).get(METADATA_KEY)
    if text is None:
        return {}
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        found = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise GraphError(f"metadata entry {METADATA_KEY!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise GraphError(f"metadata entry {METADATA_KEY!r} is not a JSON object")
    return found


def with_metadata(graph: nir.NIRGraph, **entries: Any) -> nir.NIRGraph:
    """A graph with the same nodes whose nirdeploy metadata has `entries` added (None removes one)."""
    stored = {**metadata(graph), **entries}
    stored = {key: value for key, value in stored.items() if value is not None}
    meta = _plain_metadata(graph)
    meta.pop(METADATA_KEY, None)
    if stored:
        meta[METADATA_KEY] = json.dumps(stored, sort_keys=True)
    return make_graph(graph.nodes, list(graph.edges), meta)


def torch_path(graph: nir.NIRGraph, node: str) -> str | None:
    """The torch module path a node came from, where `torch_to_nir` recorded one."""
    paths = metadata(graph).get("torch_paths", {})
    found = paths.get(node) if isinstance(paths, Mapping) else None
    return str(found) if found else None


# ---------------------------------------------------------------- structure


def input_names(graph: nir.NIRGraph) -> list[str]:
    """Names of the Input nodes, sorted."""
    return sorted(name for name, node in graph.nodes.items() if isinstance(node, nir.Input))


def output_names(graph: nir.NIRGraph) -> list[str]:
    """Names of the Output nodes, sorted."""
    return sorted(name for name, node in graph.nodes.items() if isinstance(node, nir.Output))


def predecessors(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """For each node the nodes that feed it, in name order."""
    found: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        found[target].append(source)
    return {name: sorted(sources) for name, sources in found.items()}


def successors(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """For each node the nodes it feeds, in name order."""
    found: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        found[source].append(target)
    return {name: sorted(targets) for name, targets in found.items()}


MEMBRANES = ("CubaLI", "CubaLIF", "I", "IF", "LI", "LIF")  # what integrates, whether it spikes or not
_SPIKING = ("CubaLIF", "IF", "LIF")


def is_neuron(node: nir.NIRNode) -> bool:
    """Whether a node has a membrane and emits spikes (IF, LIF, CubaLIF)."""
    return isinstance(node, nir.IF | nir.LIF | nir.CubaLIF)


def starts_at_zero(node: nir.NIRNode, v_start: str) -> bool:
    """Whether v of a population at rest is 0, for a convention's v_start: its parameter of that name is, or is none."""
    return not np.any(np.asarray(parameters(node).get(v_start, 0.0)) != 0)


def _graph_of(given: object) -> str:
    """How what was given instead of a graph becomes one; '' where that is not known."""
    if isinstance(given, str | PathLike):
        return "Read the file with nirdeploy.read(path)."
    if callable(getattr(given, "named_children", None)):  # a torch module, torch being imported or not
        return "Convert the module with nirdeploy.torch_to_nir(module, sample_input=x)."
    if isinstance(getattr(given, "graph", None), nir.NIRGraph):
        return f"Pass the {type(given).__name__}'s graph."
    return ""


def validate(graph: nir.NIRGraph) -> None:
    """Refuse a graph that has no defined meaning.

    Raises:
        GraphError: no nodes, no Input or Output, an edge to a missing node, a duplicate edge, an edge into
            an Input or out of an Output, a node nothing feeds, or an Output nothing feeds.
    """
    if not isinstance(graph, nir.NIRGraph):
        raise GraphError(f"expected a NIRGraph, got {type(graph).__name__}", remedy=_graph_of(graph))
    if not graph.nodes:
        raise GraphError("the graph has no nodes", remedy="Add an Input, a layer and an Output.")
    if not input_names(graph):
        raise GraphError("the graph has no Input node")
    if not output_names(graph):
        raise GraphError("the graph has no Output node")
    seen: set[Edge] = set()
    for edge in graph.edges:
        source, target = edge
        for end in edge:
            if end not in graph.nodes:
                raise GraphError(f"edge {source!r} -> {target!r} names node {end!r}, which does not exist")
        if (source, target) in seen:
            raise GraphError(f"edge {source!r} -> {target!r} is there twice")
        seen.add((source, target))
        if isinstance(graph.nodes[target], nir.Input):
            raise GraphError(f"edge from {source!r} leads into an Input", node=target)
        if isinstance(graph.nodes[source], nir.Output):
            raise GraphError(f"edge to {target!r} leads out of an Output", node=source)
    fed = {target for _, target in seen}
    for name, node in graph.nodes.items():
        if name not in fed and not isinstance(node, nir.Input):
            raise GraphError(
                f"{type_name(node)} has no input", node=name, remedy="Connect it or remove it from the graph."
            )


def feedback_edges(graph: nir.NIRGraph) -> list[Edge]:
    """The edges that carry their source's previous output, in name order.

    The choice depends on the graph alone, never on the order of nodes or edges (`schedule`). Subgraphs are dissolved
    first; their nodes are called 'subgraph.node'.

    Args:
        graph: the graph; never changed.

    Returns:
        (source, target) of each.
    """
    return [(dotted(a), dotted(b)) for a, b in schedule(graph).feedback]


def order(graph: nir.NIRGraph) -> list[str]:
    """Node names in the one execution order: topological without feedback edges, ties by name."""
    return [dotted(path) for path in schedule(graph).order]


def dissolved(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The same network without subgraphs: their nodes are called 'subgraph.node', as in conventions and trajectories.

    Returns:
        A graph that shares its nodes with the one given; that one itself where it has no subgraphs, where they have
        several Inputs or Outputs or are loops of wires, or where two edges or two names would become one.
    """
    if not any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values()):
        return graph
    try:
        plan = schedule(graph)
    except (GraphError, UnsupportedError):
        return graph
    nodes = {dotted(path): node for path, node in plan.nodes.items()}
    edges = [(dotted(source), dotted(target)) for target in plan.order for source in plan.sources[target]]
    if len(nodes) < len(plan.nodes) or len(set(edges)) < len(edges):
        return graph
    found = make_graph(nodes, edges, _plain_metadata(graph))
    known = metadata(graph).get("torch_paths")
    if not isinstance(known, Mapping):
        return found
    paths = {dotted(path): known[path[0]] for path in plan.nodes if path[0] in known}
    return with_metadata(found, torch_paths=paths)


# ---------------------------------------------------------------- shapes


def shapes(graph: nir.NIRGraph) -> dict[str, Shapes]:
    """Input and output shape of every node of a valid graph, by name ('subgraph.node' inside a subgraph).

    Raises:
        GraphError: shapes that disagree, naming node and both shapes.
        UnsupportedError: a node type without a shape rule.
    """
    validate(graph)
    return {dotted(path): found for path, found in scheduled_shapes(schedule(graph)).items()}


def scheduled_shapes(plan: Schedule) -> dict[NodePath, Shapes]:
    """Shapes by path, computed forward from the Inputs; a cycle that no Input feeds starts from its own parameters.

    Raises:
        GraphError, UnsupportedError: as `shapes`.
    """
    found: dict[NodePath, Shapes] = {}
    back = set(plan.feedback)
    for path in plan.order:
        node, name = plan.nodes[path], dotted(path)
        if isinstance(node, nir.Input):
            shape = declared_shape(name, node, "input")
            found[path] = Shapes(shape, shape)
            continue
        given = [(source, found[source].output) for source in plan.sources[path] if (source, path) not in back]
        if not given:
            own = own_input_shape(name, node)
            found[path] = Shapes(own, output_shape(name, node, own))
            continue
        _same(name, given)
        found[path] = _through(name, node, dotted(given[0][0]), given[0][1])
    for source, path in plan.feedback:
        _same(dotted(path), [((), found[path].input), (source, found[source].output)])
    return found


def _same(name: str, given: list[tuple[NodePath, tuple[int, ...]]]) -> None:
    for source, shape in given[1:]:
        if shape != given[0][1]:
            first = dotted(given[0][0]) or "forward"
            raise GraphError(
                f"inputs of different shape: {first!r} gives {given[0][1]}, {dotted(source)!r} gives {shape}", node=name
            )


def _through(name: str, node: nir.NIRNode, source: str, shape: tuple[int, ...]) -> Shapes:
    if isinstance(node, nir.Output):
        if stored_shape(node, "output") is not None:
            declared = declared_shape(name, node, "output")
            if declared != shape:
                raise GraphError(f"Output declares shape {declared}, its input {source!r} gives {shape}", node=name)
        return Shapes(shape, shape)
    try:
        return Shapes(shape, output_shape(name, node, shape))
    except GraphError as error:
        raise GraphError(f"{error}, from {source!r}") from error


# ---------------------------------------------------------------- populations


@dataclass(frozen=True)
class Path:
    """A chain of stateless nodes from a population or Input to a population or Output."""

    source: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Population:
    """A neuron node (or an Output) with every path that ends in it, in name order of the paths."""

    name: str
    paths: tuple[Path, ...]


_MOST_PATHS = 256  # into one population; their number doubles with every pair of parallel nodes


def populations(graph: nir.NIRGraph, *, integrators: bool = False) -> list[Population]:
    """Neuron nodes, then Outputs, in execution order, each with the chains of other nodes that feed it.

    Args:
        graph: a valid graph.
        integrators: whether I, LI and CubaLI count as populations, too.

    Raises:
        UnsupportedError: a subgraph, a cycle without a population, or more than 256 chains into one node.
    """
    kinds = MEMBRANES if integrators else _SPIKING

    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            raise UnsupportedError("a subgraph among populations", node=name, remedy="Dissolve it.")
    sources, ordered = predecessors(graph), order(graph)
    sources_too = {n for n, node in graph.nodes.items() if type_name(node) in ("Input", *kinds)}
    ends = [n for n in ordered if type_name(graph.nodes[n]) in kinds]
    ends += [n for n in ordered if isinstance(graph.nodes[n], nir.Output)]
    counts = _path_counts(sources_too, sources)
    for name in ends:
        if counts[name] > _MOST_PATHS:
            raise UnsupportedError(
                f"{counts[name]} paths lead here from other populations, at most {_MOST_PATHS} are possible",
                node=name,
                remedy="Put populations between its layers, or join parallel layers into one.",
            )
    return [Population(name, tuple(_chains(sources_too, name, sources))) for name in ends]


def _path_counts(starts: set[str], sources: Mapping[str, list[str]]) -> dict[str, int]:
    """How many chains end in each node, counted without following them; a million stands for all beyond."""
    inner = {name: [s for s in found if s not in starts] for name, found in sources.items()}
    counts: dict[str, int] = {}
    try:
        for name in TopologicalSorter(inner).static_order():
            own = len(sources[name]) - len(inner[name])
            counts[name] = min(own + sum(counts[source] for source in inner[name]), 10**6)
    except CycleError as error:
        raise UnsupportedError("closes a cycle without a neuron", node=error.args[1][0]) from error
    return counts


def _chains(starts: set[str], target: str, sources: Mapping[str, list[str]]) -> Iterator[Path]:
    waiting: list[tuple[str, tuple[str, ...]]] = [(s, ()) for s in reversed(sources[target])]
    while waiting:
        name, behind = waiting.pop()
        if name in starts:
            yield Path(name, behind)
        else:
            waiting.extend((source, (name, *behind)) for source in reversed(sources[name]))


# ---------------------------------------------------------------- values


def check_finite(graph: nir.NIRGraph) -> None:
    """Refuse parameters that are no finite real numbers.

    Raises:
        GraphError: naming node and field.
    """
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            check_finite(node)
            continue
        for field, value in parameters(node).items():
            array = np.asarray(value)
            if isinstance(value, str | bytes) or value is None:
                continue
            if array.dtype.kind not in "biuf":
                raise GraphError(f"{type_name(node)}.{field} has dtype {array.dtype}, expected real numbers", node=name)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise GraphError(f"{type_name(node)}.{field} holds NaN or infinity", node=name)


# ---------------------------------------------------------------- hash


def sha256(graph: nir.NIRGraph) -> str:
    """Hash of names, types, parameters and edges; independent of node order, edge order, metadata and `dissolved`."""
    digest = hashlib.sha256()
    _feed(digest, dissolved(graph))
    return digest.hexdigest()


def _feed(digest: Any, graph: nir.NIRGraph) -> None:
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        digest.update(f"\nnode {name!r} {type_name(node)}".encode())
        if isinstance(node, nir.NIRGraph):
            _feed(digest, node)
            continue
        values = parameters(node)
        if isinstance(node, nir.Input | nir.Output):
            values = {"shape": declared_shape(name, node, "input" if isinstance(node, nir.Input) else "output")}
        for field, value in sorted(values.items()):
            if isinstance(value, str | bytes) or value is None:
                digest.update(f" {field}={value!r}".encode())
                continue
            array = np.ascontiguousarray(value)
            digest.update(f" {field} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    for source, target in sorted((str(a), str(b)) for a, b in graph.edges):
        digest.update(f"\nedge {source!r} {target!r}".encode())
