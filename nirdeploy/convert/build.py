"""NIR -> torch: a module with explicit state, `out, state = module(x, state)`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nir
import torch
from torch import Tensor, nn

from nirdeploy import graph as graphs
from nirdeploy import io
from nirdeploy.convert.primitives import PRIMITIVES, BuildContext, find, row_for_node
from nirdeploy.errors import ConventionError, ConversionError, RasterError, UnsupportedError
from nirdeploy.names import escape
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import Neuron

__all__ = ["GraphModule", "nir_to_torch"]

State = dict[str, Any]


class GraphModule(nn.Module):
    """A NIR graph as a torch module.

    Attributes:
        graph: a copy of the graph it was built from.
        convention: what its neurons follow.
        order: node names in execution order.
        input_names: names of the Inputs.
        output_names: names of the Outputs.
        shapes: input and output shape of every node.
    """

    def __init__(self, graph: nir.NIRGraph, modules: Mapping[str, nn.Module], convention: Convention | None) -> None:
        super().__init__()
        self.graph = graphs.copy_graph(graph)
        self.convention = convention
        self.order = graphs.order(graph)
        self.input_names = graphs.input_names(graph)
        self.output_names = graphs.output_names(graph)
        self.shapes = graphs.shapes(graph)
        self._sources = graphs.predecessors(graph)
        self.nodes = nn.Module()
        for name, module in modules.items():
            # not add_module: it refuses dots and names of attributes such as 'training'
            self.nodes._modules[escape(name, reserved="./")] = module
        self._stateful = {name for name, module in modules.items() if _takes_state(module)}

    def node(self, name: str) -> nn.Module | None:
        """The module of a node; None for Inputs and Outputs."""
        return self.nodes._modules.get(escape(name, reserved="./"))

    def forward(self, x: Tensor | Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> Any:
        """One step.

        Args:
            x: input [batch, ...] or [...]; with several Inputs a dict by name.
            state: what the previous step returned; missing entries mean rest. Never changed.

        Returns:
            The output (a dict by name with several Outputs) and the new state.

        Raises:
            RasterError: an input of another shape than the graph's.
        """
        values, new_state = self.step(self._inputs(x), state or {})
        found = {name: values[name] for name in self.output_names}
        return (next(iter(found.values())) if len(found) == 1 else found), new_state

    def _inputs(self, x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(x) if isinstance(x, Mapping) else {self.input_names[0]: x}
        if set(given) != set(self.input_names):
            raise RasterError(f"inputs {sorted(given)} given, the graph has {self.input_names}")
        for name, value in given.items():
            shape = self.shapes[name].input
            rank = len(shape)
            if tuple(value.shape[value.ndim - rank :]) != shape or value.ndim not in (rank, rank + 1):
                raise RasterError(
                    f"an input of shape {tuple(value.shape)}, expected {shape} or (batch, *{shape})",
                    node=name,
                )
        return given

    def step(self, inputs: Mapping[str, Tensor], state: Mapping[str, Any]) -> tuple[dict[str, Tensor], State]:
        """One step, returning what every node emits and the new state."""
        values: dict[str, Tensor] = dict(inputs)
        new_state: State = {}
        for name in self.order:
            if name in values:
                continue
            x = self._gather(values, name)
            module = self.node(name)
            if module is None:
                values[name] = x
            elif name in self._stateful:
                try:
                    values[name], new_state[name] = module(x, state.get(name))
                except ConventionError as error:
                    raise ConventionError(str(error), node=name) from error
            else:
                values[name] = module(x)
        return values, new_state

    def _gather(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        first, *others = self._sources[name]
        total = values[first]
        for other in others:
            total = total + values[other]
        return total


def _takes_state(module: nn.Module) -> bool:
    return "state" in inspect.signature(module.forward).parameters


def nir_to_torch(
    graph_or_path: nir.NIRNode | str | Path,
    node_map: Mapping[type, Callable[..., nn.Module | None]] | None = None,
    default_map: Mapping[type, Callable[..., nn.Module | None]] | None = None,
    *,
    convention: Convention | None = None,
    dt: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Build a torch module from a NIR graph.

    Args:
        graph_or_path: a graph, a single node, or a .nir file.
        node_map: NIR type -> function of the node that returns a module; wins over the defaults.
        default_map: replaces the built-in table.
        convention: how neurons are stepped; None: the one stored in the graph, else NIR's with `dt`.
        dt: step in seconds, instead of a convention.
        device: where the parameters live.
        dtype: floating-point type of the parameters.

    Returns:
        A module `out, state = module(x, state)`; for a single node the mapped module itself.

    Raises:
        MissingTimeStepError: a neuron needs dt and none is known.
        UnsupportedError: a node type without a map, naming node and type.
    """
    node = io.read(graph_or_path) if isinstance(graph_or_path, str | Path) else graph_or_path
    if not isinstance(node, nir.NIRGraph):
        used = _convention(None, convention, dt)
        module = _build("node", node, None, used, node_map, default_map)
        return module.to(device=device, dtype=dtype)
    shapes = graphs.shapes(node)
    if back := graphs.feedback_edges(node):
        source, target = back[0]
        raise UnsupportedError(f"feedback from {source!r} is not supported yet", node=target)
    used = _convention(node, convention, dt)
    modules = {
        name: _build(name, inner, shapes[name].input, used, node_map, default_map)
        for name, inner in node.nodes.items()
        if not isinstance(inner, nir.Input | nir.Output)
    }
    return GraphModule(node, modules, used).to(device=device, dtype=dtype)


def _convention(graph: nir.NIRGraph | None, given: Convention | None, dt: float | None) -> Convention:
    if given is not None:
        if dt is not None and given.dt is not None:
            raise ConventionError(f"dt={dt} and a convention with dt={given.dt} were given", remedy="Give one.")
        return dataclasses.replace(given, dt=dt) if dt is not None else given
    stored = graphs.metadata(graph).get("convention") if graph is not None else None
    if isinstance(stored, dict):
        found = Convention.from_dict(stored)
        if dt is not None and found.dt not in (None, dt):
            raise ConventionError(f"dt={dt} was given, the graph's own convention has dt={found.dt}")
        return dataclasses.replace(found, dt=dt if dt is not None else found.dt)
    return Convention(dt=dt)


def _build(
    name: str,
    node: nir.NIRNode,
    input_shape: tuple[int, ...] | None,
    convention: Convention,
    node_map: Mapping[type, Callable[..., nn.Module | None]] | None,
    default_map: Mapping[type, Callable[..., nn.Module | None]] | None,
) -> nn.Module:
    for table in (node_map, default_map):
        function = find(table, type(node)) if table else None
        if function is not None:
            module = function(node)
            if module is None:
                return nn.Identity()
            if not isinstance(module, nn.Module):
                raise ConversionError(f"its map returned a {type(module).__name__}, not a module", node=name)
            return module
    kind = graphs.type_name(node)
    row = row_for_node(node) if default_map is None else None
    if row is None:
        raise UnsupportedError(
            f"type {kind} is not supported yet",
            node=name,
            remedy=f"Pass node_map={{nir.{kind}: function}}; built in: "
            f"{', '.join(r.node.__name__ for r in PRIMITIVES)}.",
        )
    module = row.to_torch(node, BuildContext(name, input_shape, convention.for_node(name, kind)))
    if isinstance(module, Neuron):
        module.check(name)  # a missing dt is told now, not at the first step
    return module
