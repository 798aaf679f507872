"""Pure helpers on NIRGraph: construction, validation, shapes, order, feedback edges, populations, hash.

Differences between nir versions live here and in `io.py`, nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from nirdeploy.errors import GraphError, UnsupportedError

__all__ = [
    "METADATA_KEY",
    "Path",
    "Population",
    "Shapes",
    "conv2d_options",
    "copy_graph",
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
    "sha256",
    "shapes",
    "successors",
    "torch_path",
    "type_name",
    "validate",
    "with_metadata",
]

METADATA_KEY = "nirdeploy"
Shape = tuple[int, ...]
Edge = tuple[str, str]

_DERIVED = {"input_type", "output_type", "metadata", "nodes", "edges"}


# ---------------------------------------------------------------- construction across nir versions


def type_name(node: nir.NIRNode) -> str:
    """The primitive's name as NIR files write it, e.g. 'Conv2d'."""
    return type(node).__name__


def node_fields(kind: type[nir.NIRNode]) -> tuple[str, ...]:
    """Names of a primitive's own parameters in declaration order (no types, no metadata)."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in _DERIVED)


def make_node(kind: type[nir.NIRNode], **values: Any) -> nir.NIRNode:
    """Build a node by keyword under any nir version.

    Raises:
        GraphError: a value the installed nir cannot hold (v_reset other than 0 needs nir >= 1.0.6).
    """
    accepted = set(inspect.signature(kind).parameters)
    if "v_reset" in values and "v_reset" not in accepted:
        if np.any(np.asarray(values["v_reset"]) != 0):
            raise GraphError(
                f"{kind.__name__} has v_reset != 0, which nir {nir.version} cannot hold",
                remedy="Install nir >= 1.0.6.",
            )
        values.pop("v_reset")
    extra = values.pop("metadata", None)
    node = kind(**values)
    if extra and hasattr(node, "metadata"):
        node.metadata = dict(extra)
    return node


def make_graph(
    nodes: Mapping[str, nir.NIRNode], edges: Sequence[Edge], meta: Mapping[str, Any] | None = None
) -> nir.NIRGraph:
    """A NIRGraph exactly as given: nir's own inference, which changes graphs, is switched off."""
    options: dict[str, Any] = {"nodes": dict(nodes), "edges": [(a, b) for a, b in edges]}
    options["metadata"] = dict(meta or {})
    if "type_check" in inspect.signature(nir.NIRGraph).parameters:
        options["type_check"] = False
    return nir.NIRGraph(**options)


def parameters(node: nir.NIRNode) -> dict[str, Any]:
    """Own parameters of a node by name; `v_reset` is 0 where the installed nir lacks the field."""
    values = {name: getattr(node, name) for name in node_fields(type(node))}
    if "v_threshold" in values and values.get("v_reset") is None:
        values["v_reset"] = np.zeros_like(np.asarray(values["v_threshold"]))
    return values


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
        values["input_type"] = {"input": _stored_shape(node, "input")}
    if isinstance(node, nir.Output):
        values["output_type"] = {"output": _stored_shape(node, "output")}
    return make_node(type(node), metadata=getattr(node, "metadata", None), **values)


# ---------------------------------------------------------------- metadata


def _plain_metadata(graph: nir.NIRGraph) -> dict[str, Any]:
    # nir 1.0.8's NIRGraph has the class `dict` itself as its default metadata
    stored = getattr(graph, "metadata", None)
    return dict(stored) if isinstance(stored, Mapping) else {}


def metadata(graph: nir.NIRGraph) -> dict[str, Any]:
    """What nirdeploy stored in the graph: keys 'convention' and 'torch_paths', each optional."""
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


def is_neuron(node: nir.NIRNode) -> bool:
    """Whether a node has a membrane and emits spikes (IF, LIF, CubaLIF)."""
    return isinstance(node, nir.IF | nir.LIF | nir.CubaLIF)


def validate(graph: nir.NIRGraph) -> None:
    """Refuse a graph that has no defined meaning.

    Raises:
        GraphError: no nodes, no Input or Output, an edge to a missing node, a duplicate edge, an edge into
            an Input or out of an Output, a node nothing feeds, or an Output nothing feeds.
    """
    if not isinstance(graph, nir.NIRGraph):
        raise GraphError(f"expected a NIRGraph, got {type(graph).__name__}")
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


def _digraph(nodes: Mapping[str, Any], edges: Sequence[Edge]) -> Any:
    import networkx as nx  # imported on first use: 0.2 s

    digraph = nx.DiGraph()
    digraph.add_nodes_from(sorted(nodes))
    digraph.add_edges_from(sorted((a, b) for a, b in edges))
    return digraph


def _dissolve(graph: nir.NIRGraph) -> tuple[dict[str, nir.NIRNode], list[Edge]]:
    """Flat nodes and edges; subgraph nodes become 'sub.node', inner Inputs and Outputs are wires."""
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[Edge] = []
    enters: dict[str, list[str]] = {}
    leaves: dict[str, list[str]] = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner_nodes, inner_edges = _dissolve(node)
        nodes.update({f"{name}.{inner}": value for inner, value in inner_nodes.items()})
        edges.extend((f"{name}.{a}", f"{name}.{b}") for a, b in inner_edges)
        enters[name] = [f"{name}.{inner}" for inner in input_names(node)]
        leaves[name] = [f"{name}.{inner}" for inner in output_names(node)]
    for source, target in graph.edges:
        edges.extend((a, b) for a in leaves.get(source, [source]) for b in enters.get(target, [target]))
    for wire in [w for group in (*enters.values(), *leaves.values()) for w in group]:
        before = [a for a, b in edges if b == wire]
        after = [b for a, b in edges if a == wire]
        edges = [e for e in edges if wire not in e] + [(a, b) for a in before for b in after]
        nodes.pop(wire)
    return nodes, edges


def feedback_edges(graph: nir.NIRGraph) -> list[Edge]:
    """The edges that carry their source's previous output, in name order.

    The choice depends on the graph alone, never on the order of nodes or edges. In each cyclic strongly
    connected component the entry is, among the nodes fed from outside (if none: all), the one with the
    smallest (edges from the nearest Input minus edges to the nearest Output), then the fewest edges from an
    Input, then the first name; unreachable counts as node count + 1. Every inner edge into the entry is a
    feedback edge; they are removed and the rule is applied again. Subgraphs are dissolved first; their nodes
    are called 'subgraph.node'.
    """
    import networkx as nx

    nodes, edges = _dissolve(graph)
    remaining = _digraph(nodes, edges)
    far = len(nodes) + 1
    inputs = [n for n, node in nodes.items() if isinstance(node, nir.Input)]
    outputs = [n for n, node in nodes.items() if isinstance(node, nir.Output)]
    whole = remaining.copy()
    from_input = nx.multi_source_dijkstra_path_length(whole, inputs) if inputs else {}
    to_output = nx.multi_source_dijkstra_path_length(whole.reverse(), outputs) if outputs else {}
    found: list[Edge] = []
    while True:
        cyclic = [
            component
            for component in nx.strongly_connected_components(remaining)
            if len(component) > 1 or any(remaining.has_edge(n, n) for n in component)
        ]
        if not cyclic:
            return sorted(found)
        for component in cyclic:
            fed = [n for n in component if any(p not in component for p in remaining.predecessors(n))]
            entry = min(
                fed or component,
                key=lambda n: (
                    from_input.get(n, far) - to_output.get(n, far),
                    from_input.get(n, far),
                    n,
                ),
            )
            back = [(p, entry) for p in list(remaining.predecessors(entry)) if p in component]
            remaining.remove_edges_from(back)
            found.extend(back)


def order(graph: nir.NIRGraph) -> list[str]:
    """Node names in the one execution order: topological without feedback edges, ties by name."""
    import networkx as nx

    back = set(feedback_edges(graph))
    forward = [(a, b) for a, b in graph.edges if (a, b) not in back]
    return list(nx.lexicographical_topological_sort(_digraph(graph.nodes, forward)))


# ---------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shapes:
    """Shapes of one sample at a node, without batch and time."""

    input: Shape
    output: Shape


def pair(value: Any) -> tuple[int, int]:
    """(height, width) from an int, a pair or an array of one or two values."""
    flat = np.atleast_1d(np.asarray(value)).astype(int).tolist()
    return (flat[0], flat[0]) if len(flat) == 1 else (flat[0], flat[1])


def conv2d_options(node: nir.Conv2d, name: str) -> dict[str, Any]:
    """stride, padding and dilation as (y, x) pairs and groups as int; 'same' and 'valid' resolved.

    Raises:
        GraphError: 'same' with a stride, or with a kernel that needs unequal padding at the two ends.
    """
    stride, dilation = pair(node.stride), pair(node.dilation)
    kernel = node.weight.shape[2:]
    padding: Any = node.padding
    if isinstance(padding, bytes | np.bytes_):
        padding = padding.decode()
    if isinstance(padding, str):
        if padding == "valid":
            padding = (0, 0)
        else:
            if stride != (1, 1):
                raise GraphError(f"padding 'same' with stride {stride}", node=name)
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if any(t % 2 for t in total):
                raise GraphError(
                    f"padding 'same' with kernel {tuple(kernel)} needs one more row at one end",
                    node=name,
                    remedy="Use an odd kernel or pad explicitly.",
                )
            padding = (total[0] // 2, total[1] // 2)
    return {
        "stride": stride,
        "padding": pair(padding),
        "dilation": dilation,
        "groups": int(np.asarray(node.groups)),
    }


def _stored_shape(node: nir.NIRNode, port: str) -> np.ndarray | None:
    types = node.input_type if port == "input" else node.output_type
    value = types.get(port) if isinstance(types, Mapping) else types
    return None if value is None else np.asarray(value).astype(int)


def _declared(name: str, node: nir.NIRNode, port: str) -> Shape:
    stored = _stored_shape(node, port)
    if stored is None:
        raise GraphError(f"{type_name(node)} declares no shape", node=name, remedy="Give it one.")
    return tuple(int(v) for v in np.atleast_1d(stored))


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _conv2d_shape(name: str, node: Any, given: Shape) -> Shape:
    out, per_group, *kernel = node.weight.shape
    options = conv2d_options(node, name)
    if len(given) != 3 or given[0] != per_group * options["groups"]:
        raise GraphError(
            f"Conv2d with weight {tuple(node.weight.shape)} and groups {options['groups']} expects "
            f"({per_group * options['groups']}, height, width), got {given}",
            node=name,
        )
    size = tuple(
        _window(given[i + 1], kernel[i], options["stride"][i], options["padding"][i], options["dilation"][i])
        for i in (0, 1)
    )
    if min(size) < 1:
        raise GraphError(f"a {tuple(kernel)} kernel leaves nothing of a {given} input", node=name)
    return (int(out), *size)


def _pool_shape(name: str, node: Any, given: Shape) -> Shape:
    kernel, stride, padding = pair(node.kernel_size), pair(node.stride), pair(node.padding)
    if len(given) != 3:
        raise GraphError(f"{type_name(node)} expects (channel, height, width), got {given}", node=name)
    size = tuple(_window(given[i + 1], kernel[i], stride[i], padding[i]) for i in (0, 1))
    if min(size) < 1:
        raise GraphError(f"a {kernel} window leaves nothing of a {given} input", node=name)
    return (given[0], *size)


def _matrix_shape(name: str, node: Any, given: Shape) -> Shape:
    weight = node.weight
    if weight.ndim != 2:
        raise UnsupportedError(
            f"{type_name(node)} with a weight of {weight.ndim} dimensions", node=name, remedy="Use 2."
        )
    if given != (weight.shape[1],):
        raise GraphError(
            f"{type_name(node)} with weight {tuple(weight.shape)} expects ({weight.shape[1]},), got {given}",
            node=name,
        )
    return (int(weight.shape[0]),)


def _flatten_shape(name: str, node: Any, given: Shape) -> Shape:
    rank = len(given)
    start, end = int(node.start_dim), int(node.end_dim)
    first, last = start + rank * (start < 0), end + rank * (end < 0)
    if not 0 <= first <= last < rank:
        raise GraphError(f"Flatten({start}, {end}) does not fit a {given} input", node=name)
    return (*given[:first], int(np.prod(given[first : last + 1])), *given[last + 1 :])


def neuron_shape(node: nir.NIRNode) -> Shape:
    """The shape of a neuron node's parameters."""
    first = next(iter(parameters(node).values()))
    return tuple(int(v) for v in np.asarray(first).shape)


def _elementwise_shape(name: str, node: Any, given: Shape) -> Shape:
    own = neuron_shape(node)
    size = int(np.prod(own)) if own else 1
    if own != given and size != 1:
        raise GraphError(f"{type_name(node)} has parameters of shape {own}, its input is {given}", node=name)
    return given


_OUTPUT_SHAPE: dict[str, Callable[[str, Any, Shape], Shape]] = {
    "Conv2d": _conv2d_shape,
    "SumPool2d": _pool_shape,
    "AvgPool2d": _pool_shape,
    "Affine": _matrix_shape,
    "Linear": _matrix_shape,
    "Flatten": _flatten_shape,
    "IF": _elementwise_shape,
    "LIF": _elementwise_shape,
    "CubaLIF": _elementwise_shape,
}


def output_shape(name: str, node: nir.NIRNode, given: Shape) -> Shape:
    """Shape that a node makes of an input of shape `given`.

    Raises:
        GraphError: the node does not take that shape.
        UnsupportedError: a type without a shape rule.
    """
    rule = _OUTPUT_SHAPE.get(type_name(node))
    if rule is None:
        raise UnsupportedError(
            f"type {type_name(node)} is not supported yet",
            node=name,
            remedy=f"Supported: {', '.join(sorted([*_OUTPUT_SHAPE, 'Input', 'Output']))}.",
        )
    return rule(name, node, given)


def shapes(graph: nir.NIRGraph) -> dict[str, Shapes]:
    """Input and output shape of every node of a valid graph, computed forward from the Inputs.

    Raises:
        GraphError: shapes that disagree, naming node and both shapes.
        UnsupportedError: a node type without a shape rule.
    """
    validate(graph)
    sources = predecessors(graph)
    back = set(feedback_edges(graph))
    found: dict[str, Shapes] = {}
    for name in order(graph):
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            declared = _declared(name, node, "input")
            found[name] = Shapes(declared, declared)
            continue
        given = [(s, found[s].output) for s in sources[name] if (s, name) not in back]
        if not given:
            raise UnsupportedError("a cycle that no Input feeds", node=name)
        for source, shape in given[1:]:
            if shape != given[0][1]:
                raise GraphError(
                    f"inputs of different shape: {given[0][0]!r} gives {given[0][1]}, {source!r} gives {shape}",
                    node=name,
                )
        shape = given[0][1]
        if isinstance(node, nir.Output):
            declared = _declared(name, node, "output")
            if declared != shape:
                raise GraphError(f"Output declares shape {declared}, its input is {shape}", node=name)
            found[name] = Shapes(shape, shape)
            continue
        found[name] = Shapes(shape, output_shape(name, node, shape))
    return found


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


def populations(graph: nir.NIRGraph) -> list[Population]:
    """Neuron nodes, then Outputs, in execution order, each with the stateless chains that feed it."""
    sources = predecessors(graph)

    def chains(target: str) -> Iterator[Path]:
        for source in sources[target]:
            node = graph.nodes[source]
            if isinstance(node, nir.Input) or is_neuron(node):
                yield Path(source, ())
            else:
                yield from (Path(path.source, (*path.nodes, source)) for path in chains(source))

    ends = [n for n in order(graph) if is_neuron(graph.nodes[n])]
    ends += [n for n in order(graph) if isinstance(graph.nodes[n], nir.Output)]
    return [Population(name, tuple(chains(name))) for name in ends]


# ---------------------------------------------------------------- hash


def sha256(graph: nir.NIRGraph) -> str:
    """Hash of names, types, parameters and edges; independent of node order, edge order and metadata."""
    digest = hashlib.sha256()
    _feed(digest, graph)
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
            values = {"shape": _declared(name, node, "input" if isinstance(node, nir.Input) else "output")}
        for field, value in sorted(values.items()):
            if isinstance(value, str | bytes) or value is None:
                digest.update(f" {field}={value!r}".encode())
                continue
            array = np.ascontiguousarray(value)
            digest.update(f" {field} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    for source, target in sorted((str(a), str(b)) for a, b in graph.edges):
        digest.update(f"\nedge {source!r} {target!r}".encode())
