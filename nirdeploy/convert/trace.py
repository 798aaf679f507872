"""torch -> NIR by symbolic tracing: nothing is run, nothing is dropped."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule
from nirdeploy.convert.primitives import BYPASSED, MODULES, TraceContext, find, flatten_node
from nirdeploy.errors import ConversionError, GraphError, UnsupportedError
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import Neuron

__all__ = ["torch_to_nir"]

Shape = tuple[int, ...]
ModuleMap = Mapping[type, Callable[..., "nir.NIRNode | None"]]

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__"}
_TORCH = str(Path(torch.__file__).parent)
_FLATTENS = {torch.flatten, "flatten"}


@dataclass(frozen=True)
class _Signal:
    """What a traced value is in the graph: the sum of these nodes' outputs."""

    sources: tuple[str, ...]
    shape: Shape | None


@dataclass(frozen=True)
class _State:
    """A traced value that is a module's state, not a signal."""

    owner: str


@dataclass
class _Draft:
    """The graph under construction."""

    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    inputs: dict[str, Shape | None] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    conventions: list[Convention] = field(default_factory=list)

    def unique(self, name: str) -> str:
        taken = self.nodes.keys() | self.inputs.keys()
        if name not in taken:
            return name
        return next(n for i in range(1, len(taken) + 2) if (n := f"{name}_{i}") not in taken)


class _Tracer(fx.Tracer):
    """Keeps mapped modules and torch's own layers whole."""

    def __init__(self, mapped: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self._mapped = mapped

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._mapped(m) or super().is_leaf_module(m, module_qualified_name)


def torch_to_nir(
    module: nn.Module,
    module_map: ModuleMap | None = None,
    default_map: ModuleMap | None = None,
    *,
    sample_input: Any = None,
    input_shape: Shape | None = None,
    stateful_modules: Collection[type[nn.Module]] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    type_check: bool = True,
) -> Any:
    """Convert a torch module into a NIR graph.

    Args:
        module: the network; its forward takes one step. It is not run and not changed.
        module_map: module type -> function of the module that returns a NIR node, or None to bypass it; wins
            over the defaults and is looked up along the class hierarchy.
        default_map: replaces the built-in table.
        sample_input: an input [batch, ...]; only its shape is used.
        input_shape: shape of one sample, without batch; instead of `sample_input`.
        stateful_modules: types whose forward returns (output, state); those that are unpacked in forward are
            recognised without it.
        concrete_args: arguments of forward fixed to a value; arguments whose default is None are fixed to None.
        type_check: whether to check all shapes at the end.

    Returns:
        A NIRGraph with nodes named after module paths; for a module that is mapped itself, its node.

    Raises:
        ConversionError: an operation that NIR cannot express or this version does not convert; the message has
            the operation, the module path, the source line and the remedy.
    """
    shape = _shape_of(sample_input, input_shape)
    if isinstance(module, GraphModule):
        return _from_graph_module(module)
    convert = _Converter(module, module_map, default_map, shape, tuple(stateful_modules or ()))
    if convert.is_mapped(module):
        return convert.node_of(module, TraceContext("module", shape))
    graph = convert.run(dict(concrete_args or {}))
    if type_check:
        graphs.shapes(graph)
    return graph


def _shape_of(sample_input: Any, input_shape: Shape | None) -> Shape | None:
    if sample_input is not None and input_shape is not None:
        raise ConversionError("sample_input and input_shape were both given", remedy="Give one.")
    if sample_input is not None:
        return tuple(int(n) for n in np.shape(sample_input)[1:])
    return None if input_shape is None else tuple(int(n) for n in input_shape)


def _from_graph_module(module: GraphModule) -> nir.NIRGraph:
    """The graph an imported module came from, with its present parameters."""
    nodes: dict[str, nir.NIRNode] = {}
    for name, original in module.graph.nodes.items():
        inner = module.node(name)
        row = find(MODULES, type(inner)) if inner is not None else None
        if inner is None:
            nodes[name] = original
            continue
        if row is None:
            raise ConversionError(
                f"{type(inner).__name__} has no map back to NIR",
                node=name,
                remedy="Convert the original graph.",
            )
        node = row.to_nir(inner, TraceContext(name, module.shapes[name].input))
        node.metadata = dict(getattr(original, "metadata", None) or {})
        nodes[name] = _as_original(node, original)
    edges = list(module.graph.edges)
    return graphs.copy_graph(graphs.make_graph(nodes, edges, module.graph.metadata))


def _as_original(node: nir.NIRNode, original: nir.NIRNode) -> nir.NIRNode:
    """Keep fields that a torch layer cannot hold, such as 'same' padding or an unknown input shape."""
    if isinstance(original, nir.Conv2d):
        node.padding, node.input_shape = original.padding, original.input_shape
    if isinstance(original, nir.Flatten):
        node.start_dim, node.end_dim = original.start_dim, original.end_dim
    return node


class _Converter:
    """Walks the traced operations and drafts the graph."""

    def __init__(
        self,
        root: nn.Module,
        module_map: ModuleMap | None,
        default_map: ModuleMap | None,
        shape: Shape | None,
        stateful: tuple[type[nn.Module], ...],
    ) -> None:
        self.root = root
        self.user_map = dict(module_map or {})
        self.default_map = default_map
        self.shape = shape
        self.stateful = stateful
        self.draft = _Draft()
        self.env: dict[fx.Node, _Signal | _State | None] = {}
        self.seen: dict[str, str] = {}

    # ------------------------------------------------------------ maps

    def _function(self, module: nn.Module) -> Callable[..., Any] | None:
        found: Callable[..., Any] | None = find(self.user_map, type(module))
        if found is None and self.default_map is not None:
            found = find(self.default_map, type(module))
        return found

    def is_mapped(self, module: nn.Module) -> bool:
        """Whether a map or the table knows this module, or it has no effect."""
        if self._function(module) is not None:
            return True
        return self.default_map is None and find(MODULES, type(module)) is not None

    def _returns_state(self, module: nn.Module) -> bool:
        """Whether forward returns (output, state): ours do, declared ones, and mapped ones that take a state."""
        if isinstance(module, (Neuron, *self.stateful)):
            return True
        return self._function(module) is not None and len(inspect.signature(module.forward).parameters) > 1

    def node_of(self, module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        """The node of a mapped module."""
        function = self._function(module)
        if function is not None:
            node = function(module)
            if node is not None and not isinstance(node, nir.NIRNode):
                raise ConversionError(f"its map returned a {type(node).__name__}, not a NIR node", node=context.path)
            if isinstance(node, nir.NIRGraph):
                raise UnsupportedError("a map that returns a NIRGraph is not supported yet", node=context.path)
            return node
        converted: nir.NIRNode = find(MODULES, type(module)).to_nir(module, context)
        return converted

    # ------------------------------------------------------------ walk

    def run(self, concrete: dict[str, Any]) -> nir.NIRGraph:
        """Trace and draft."""
        traced = self._trace(concrete)
        for node in traced.nodes:
            self.env[node] = self._visit(node)
        return self._finish()

    def _trace(self, concrete: dict[str, Any]) -> fx.Graph:
        signature = inspect.signature(self.root.forward).parameters
        for name, parameter in signature.items():
            if parameter.default is None:
                concrete.setdefault(name, None)
        try:
            return _Tracer(self.is_mapped).trace(self.root, concrete_args=concrete)
        except fx.proxy.TraceError as error:
            raise ConversionError(
                f"forward of {type(self.root).__name__} depends on its data: {error}",
                remedy="Move the condition out of forward, or fix its argument with concrete_args.",
            ) from error

    def _visit(self, node: fx.Node) -> _Signal | _State | None:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "output":
            self._output(node)
            return None
        if node.op == "call_module":
            return self._call_module(node)
        if node.target is operator.getitem:
            return self._item(node)
        if node.op in ("call_function", "call_method") and node.target in _ADDITIONS:
            return self._add(node)
        if node.op in ("call_function", "call_method") and node.target in _FLATTENS:
            return self._flatten(node)
        if not node.users or all("assert" in str(user.target) for user in node.users):
            return None  # fx's own assertions on fixed arguments, and values nobody uses
        raise self._refuse(node)

    def _refuse(self, node: fx.Node, why: str = "") -> ConversionError:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        kind = {"call_method": "tensor method", "get_attr": "tensor attribute"}.get(node.op, "operation")
        return ConversionError(
            f"{kind} {name!r} {why or 'is not supported yet'} ({self._where(node)})",
            remedy="Put it into a module of its own and map that with module_map, or remove it.",
        )

    def _where(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed([str(entry[0]) for entry in stack.values()]), "") if stack else ""
        frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
        own = [f"{file}:{line}" for file, line in frames if not file.startswith(_TORCH)]
        line = own[-1] if own else "unknown line"
        return f"in module {path or type(self.root).__name__!r}, {line}"

    def _placeholder(self, node: fx.Node) -> _Signal | None:
        if all("assert" in str(user.target) for user in node.users) and node.users:
            return None
        if not node.users and node.args:
            return None
        name = self.draft.unique("input" if not self.draft.inputs else str(node.target))
        if self.draft.inputs:
            raise UnsupportedError(
                f"a second input {node.target!r} of forward is not supported yet",
                remedy="Give it a default of None if it is a state, or fix it with concrete_args.",
            )
        self.draft.inputs[name] = self.shape
        return _Signal((name,), self.shape)

    def _signal(self, value: Any, node: fx.Node) -> _Signal:
        found = self.env.get(value) if isinstance(value, fx.Node) else None
        if isinstance(found, _Signal):
            return found
        if isinstance(found, _State):
            raise self._refuse(node, f"uses the state of {found.owner!r} as a signal, which is not supported yet")
        raise self._refuse(node, f"with the constant {value!r} is not supported yet")

    def _call_module(self, node: fx.Node) -> _Signal:
        path = str(node.target)
        module = self.root.get_submodule(path)
        signal = self._signal(node.args[0] if node.args else next(iter(node.kwargs.values()), None), node)
        function = self._function(module)
        if function is None and isinstance(module, BYPASSED):
            return signal
        if not self.is_mapped(module):
            raise ConversionError(
                f"{type(module).__name__} is not supported yet ({self._where(node)})",
                node=path,
                remedy=f"Pass module_map={{{type(module).__name__}: lambda m: nir....}}.",
            )
        signal = self._with_shape(signal, module)
        created = self.node_of(module, TraceContext(path, signal.shape))
        if created is None:
            return signal
        if path in self.seen and graphs.is_neuron(created):
            raise ConversionError(
                "a neuron module is called twice in one step; its state would be two states",
                node=path,
                remedy="Use two modules.",
            )
        name = self._add_node(path, created, signal)
        self.seen[path] = name
        if isinstance(module, Neuron):
            self.draft.conventions.append(module.convention)
        return _Signal((name,), self._output_shape(name, created, signal.shape))

    def _with_shape(self, signal: _Signal, module: nn.Module) -> _Signal:
        """Learn the Input's shape from the first module that fixes it."""
        row = find(MODULES, type(module))
        if signal.shape is not None or row is None:
            return signal
        shape = row.input_shape(module)
        if shape is None:
            return signal
        for source in signal.sources:
            if source in self.draft.inputs and self.draft.inputs[source] is None:
                self.draft.inputs[source] = shape
        return _Signal(signal.sources, shape)

    def _add_node(self, path: str, created: nir.NIRNode, signal: _Signal) -> str:
        name = self.draft.unique(path)
        self.draft.nodes[name] = created
        self.draft.paths[name] = path
        self.draft.edges.extend((source, name) for source in signal.sources)
        return name

    def _output_shape(self, name: str, created: nir.NIRNode, shape: Shape | None) -> Shape | None:
        if shape is None:
            return None
        try:
            return graphs.output_shape(name, created, shape)
        except GraphError as error:
            raise ConversionError(str(error), remedy=f"Its input has shape {shape}.") from error

    def _item(self, node: fx.Node) -> _Signal | _State:
        value, index = node.args[0], node.args[1]
        if isinstance(value, fx.Node) and value.op == "call_module" and isinstance(index, int):
            found = self.env.get(value)
            if isinstance(found, _Signal) and self._returns_state(self.root.get_submodule(str(value.target))):
                return found if index == 0 else _State(found.sources[0])
        raise self._refuse(node, "(indexing) is not supported yet")

    def _add(self, node: fx.Node) -> _Signal:
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if alpha != 1:
            raise self._refuse(node, f"with alpha={alpha} is not supported yet")
        operands = [*node.args[:2], *(v for k, v in node.kwargs.items() if k in ("input", "other"))]
        left, right = (self._signal(value, node) for value in operands)
        twice = set(left.sources) & set(right.sources)
        if twice:
            raise self._refuse(node, f"adds {sorted(twice)[0]!r} twice, and NIR has no double edges; that")
        if left.shape is not None and right.shape is not None and left.shape != right.shape:
            raise self._refuse(node, f"broadcasts {left.shape} with {right.shape}, which")
        return _Signal((*left.sources, *right.sources), left.shape or right.shape)

    def _flatten(self, node: fx.Node) -> _Signal:
        signal = self._signal(node.args[0], node)
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        if not (isinstance(start, int) and isinstance(end, int)):
            raise self._refuse(node, "with computed dimensions is not supported yet")
        created = flatten_node(start, end, TraceContext(self._where(node), signal.shape))
        name = self._add_node(self.draft.unique("flatten"), created, signal)
        return _Signal((name,), self._output_shape(name, created, signal.shape))

    # ------------------------------------------------------------ end

    def _output(self, node: fx.Node) -> None:
        value = node.args[0]
        if isinstance(value, list | tuple) and value:
            rest = [self.env.get(v) for v in _leaves(value[1:])]
            if any(isinstance(v, _Signal) for v in rest):
                raise UnsupportedError("a forward with several outputs is not supported yet")
            value = value[0]
        signal = self._signal(value, node)
        name = self.draft.unique("output")
        shape = np.array(signal.shape) if signal.shape is not None else None
        self.draft.nodes[name] = graphs.make_node(nir.Output, output_type={"output": shape})
        self.draft.edges.extend((source, name) for source in signal.sources)

    def _finish(self) -> nir.NIRGraph:
        draft = self.draft
        nodes: dict[str, nir.NIRNode] = {}
        for name, shape in draft.inputs.items():
            if shape is None:
                raise ConversionError("the shape of the input is unknown", remedy="Pass input_shape= or sample_input=.")
            nodes[name] = graphs.make_node(nir.Input, input_type={"input": np.array(shape)})
        nodes.update(draft.nodes)
        keep = _reaching_output(nodes, draft.edges)
        nodes = {name: node for name, node in nodes.items() if name in keep}
        edges = [(a, b) for a, b in draft.edges if a in keep and b in keep]
        graph = graphs.make_graph(nodes, edges)
        paths = {name: path for name, path in draft.paths.items() if name in keep}
        first = draft.conventions[0] if draft.conventions else None
        same = first is not None and all(other == first for other in draft.conventions)
        return graphs.with_metadata(
            graph, torch_paths=paths or None, convention=first.to_dict() if first and same else None
        )


def _leaves(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    if isinstance(value, list | tuple):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return []


def _reaching_output(nodes: Mapping[str, nir.NIRNode], edges: list[tuple[str, str]]) -> set[str]:
    keep = {name for name, node in nodes.items() if isinstance(node, nir.Output | nir.Input)}
    grown = True
    while grown:
        before = len(keep)
        keep |= {a for a, b in edges if b in keep}
        grown = len(keep) > before
    return keep
