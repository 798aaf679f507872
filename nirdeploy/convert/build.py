"""NIR -> torch: a module with explicit state, `out, state = module(x, state)`."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import nir
import torch
from torch import Tensor, nn

from nirdeploy import graph as graphs
from nirdeploy import io
from nirdeploy.convert.primitives import PRIMITIVES, BuildContext, find, row_for_node
from nirdeploy.errors import ConventionError, ConversionError, RasterError, StabilityWarning, UnsupportedError
from nirdeploy.names import escape, suggest
from nirdeploy.nodes import type_name
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.graph_convention import stored_convention
from nirdeploy.reference.neurons import Membrane, Stateful
from nirdeploy.schedule import NodePath, Schedule, dotted, feedback_key, schedule

__all__ = ["GraphModule", "lookup", "nested", "nir_to_torch", "store"]

State = dict[str, Any]
ModuleMap = Mapping[type, Callable[..., "nn.Module | None"]]
_RESERVED = "./"


class Scope(nn.Module):
    """The modules of one graph by node name; subgraphs are Scopes in it."""

    def put(self, name: str, module: nn.Module) -> None:
        """Add a module under a node name; any name is possible."""
        # not add_module: it refuses dots and the names of attributes, such as 'training'
        self._modules[escape(name, reserved=_RESERVED)] = module

    def get(self, path: NodePath) -> nn.Module | None:
        """The module of a node; None for Inputs and Outputs."""
        scope: nn.Module | None = self
        for name in path:
            scope = None if scope is None else scope._modules.get(escape(name, reserved=_RESERVED))
        return scope

    def inner(self, name: str) -> Scope:
        """The scope of a subgraph."""
        return cast("Scope", self._modules[escape(name, reserved=_RESERVED)])

    def holder(self, path: NodePath) -> tuple[Any, str]:
        """The dict that holds the module of a node, and its key there."""
        scope: Scope = self
        for name in path[:-1]:
            scope = scope.inner(name)
        return scope._modules, escape(path[-1], reserved=_RESERVED)

    def forward(self, *_: Any) -> Any:
        """A scope is run by the graph it belongs to."""
        raise ConversionError("a subgraph of an imported graph cannot be called by itself")


@dataclasses.dataclass(frozen=True)
class _Step:
    """One node in execution order."""

    path: NodePath
    sources: tuple[tuple[NodePath, str | None], ...]  # with the key of the state entry where it is feedback
    stateful: bool


class GraphModule(Scope):
    """A NIR graph as a torch module.

    Submodules are named after nodes ('.' and '/' percent-encoded), so `state_dict` keys are 'lif.v_threshold', and
    'sub.lif.v_threshold' inside a subgraph.

    Attributes:
        skeleton: the graph with its types, options, edges and metadata; parameters live in the submodules.
        convention: what its neurons follow.
        plan: execution order, sources and feedback edges.
        shapes: input and output shape of every node, by path.
    """

    def __init__(
        self,
        graph: nir.NIRGraph,
        plan: Schedule,
        shapes: Mapping[NodePath, graphs.Shapes],
        modules: Mapping[NodePath, nn.Module],
        convention: Convention,
    ) -> None:
        super().__init__()
        self._index: dict[NodePath, tuple[Any, str]] = {}
        self.skeleton = graph
        self.convention = convention
        self.plan = dataclasses.replace(plan, nodes={})  # the nodes' arrays are in the submodules
        self.shapes = dict(shapes)
        self.kinds = {path: type_name(node) for path, node in plan.nodes.items()}
        back = set(plan.feedback)
        self._steps = tuple(
            _Step(
                path,
                tuple((s, feedback_key(s, path) if (s, path) in back else None) for s in plan.sources[path]),
                path in modules and _takes_state(modules[path]),
            )
            for path in plan.order
        )
        self._state_keys = {step.path[0] for step in self._steps if step.stateful}
        self._state_keys |= {key for step in self._steps for _, key in step.sources if key is not None}
        for path, module in modules.items():
            scope: Scope = self
            for name in path[:-1]:
                if scope.get((name,)) is None:
                    scope.put(name, Scope())
                scope = scope.inner(name)
            scope.put(path[-1], module)

        self._index.update({path: self.holder(path) for path in modules})

    def get(self, path: NodePath) -> nn.Module | None:
        """The module of a node; None for Inputs and Outputs."""
        if path not in self._index:
            return super().get(path)
        held, key = self._index[path]
        found: nn.Module | None = held.get(key)
        return found

    @property
    def input_names(self) -> list[str]:
        """Names of the Inputs, in name order."""
        return [dotted(path) for path in self.plan.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the Outputs, in name order."""
        return [dotted(path) for path in self.plan.outputs]

    def forward(self, *inputs: Any, state: Mapping[str, Any] | None = None, **named: Tensor) -> Any:
        """One step.

        Args:
            *inputs: one tensor for each Input in name order, [batch, ...] or [...]; or a dict by name; after them the
                state may follow.
            state: what the previous step returned; missing entries mean rest. Never changed.
            **named: inputs by name.

        Returns:
            The output (a dict by name with several Outputs) and the new state.

        Raises:
            RasterError: inputs missing, unknown or of another shape than the graph's.
            ConventionError: a state of another batch, naming the node.
        """
        given, state = self._arguments(inputs, state, named)
        values, new_state = self.step(given, state or {})
        found = {dotted(path): values[path] for path in self.plan.outputs}
        return (next(iter(found.values())) if len(found) == 1 else found), new_state

    def sequence(
        self,
        raster: Tensor | Mapping[str, Tensor],
        state: Mapping[str, Any] | None = None,
        *,
        method: str = "dense",
    ) -> Any:
        """Many steps at once, as calling the module step after step, with gradients where they are enabled.

        Time is folded into the batch of layers without state; populations have a backward pass of their own.

        Args:
            raster: [step, batch, ...], on the module's device; a dict by name with several Inputs.
            state: what an earlier call returned; missing entries mean rest. Never changed.
            method: 'dense', or 'event' where Linear layers and their gradients should read the spikes alone.

        Returns:
            The output [step, batch, ...] (a dict by name with several Outputs) and the new state.

        Raises:
            RasterError: a raster of another shape, type or device than the module's.
            ConventionError: a state of another batch, naming the node.
        """
        from nirdeploy.reference.sequence import sequence

        return sequence(self, raster, state or {}, method)

    def _arguments(
        self, inputs: tuple[Any, ...], state: Mapping[str, Any] | None, named: Mapping[str, Tensor]
    ) -> tuple[dict[NodePath, Tensor], Mapping[str, Any] | None]:
        names = self.input_names
        positional = list(inputs)
        given = dict(named)
        if positional and isinstance(positional[0], Mapping):
            given |= positional.pop(0)
        elif positional and isinstance(positional[0], list | tuple):
            positional[:1] = positional[0]
        for name in names:
            if name not in given and positional:
                given[name] = positional.pop(0)
        if positional and state is None:
            state = positional.pop(0)
        if positional or set(given) != set(names):
            raise RasterError(f"inputs {sorted(given)} given, the graph has the Inputs {names}")
        self._check_state(state)
        found = {path: given[dotted(path)] for path in self.plan.inputs}
        for path, value in found.items():
            shape = self.shapes[path].input
            rank = len(shape)
            if tuple(value.shape[value.ndim - rank :]) != shape or value.ndim not in (rank, rank + 1):
                raise RasterError(
                    f"an input of shape {tuple(value.shape)}, expected {shape}, with a batch axis before it or without",
                    node=dotted(path),
                )
        return found, state

    def _check_state(self, state: Any) -> None:
        if state is None:
            return
        if not isinstance(state, Mapping):
            raise ConventionError(f"the state is a {type(state).__name__}, expected a dict by node name")
        for key in state:
            if key not in self._state_keys:
                raise ConventionError(f"the state has an entry {key!r}", remedy=suggest(str(key), self._state_keys))

    def step(self, inputs: Mapping[NodePath, Tensor], state: Mapping[str, Any]) -> tuple[dict[NodePath, Tensor], State]:
        """One step, returning what every node emits, by path, and the new state."""
        values: dict[NodePath, Tensor] = dict(inputs)
        new_state: State = {}
        previous = self._previous(inputs, state)
        for step in self._steps:
            if step.path in inputs:
                continue
            x = self._gather(step, values, previous)
            module = self.get(step.path)
            if module is None:
                values[step.path] = x
            elif step.stateful:
                values[step.path], after = self._advance(step.path, module, x, state)
                store(new_state, step.path, after)
            else:
                values[step.path] = module(x)
        for source, target in self.plan.feedback:
            new_state[feedback_key(source, target)] = values[source]
        return values, new_state

    @staticmethod
    def _advance(path: NodePath, module: nn.Module, x: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, Any]:
        try:
            result = module(x, lookup(state, path))
        except ConventionError as error:
            raise ConventionError(str(error), node=dotted(path)) from error
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ConversionError(
                f"{type(module).__name__} takes a second argument but does not return (output, state)",
                node=dotted(path),
                remedy="Return both, or give the module the attribute stateful = False.",
            )
        return result

    def _previous(self, inputs: Mapping[NodePath, Tensor], state: Mapping[str, Any]) -> dict[str, Tensor]:
        """What each feedback edge carries into this step."""
        found: dict[str, Tensor] = {}
        silent: dict[NodePath, Tensor] | None = None
        for source, target in self.plan.feedback:
            key = feedback_key(source, target)
            if state.get(key) is not None:
                found[key] = state[key]
                continue
            if self.convention.feedback_start == "zero":
                found[key] = self._zeros(source, inputs)
                continue
            silent = silent if silent is not None else self._silence(inputs)
            found[key] = silent[source]
        return found

    def _zeros(self, path: NodePath, inputs: Mapping[NodePath, Tensor]) -> Tensor:
        first, like = next(iter(inputs.items()))
        batch = like.shape[: like.ndim - len(self.shapes[first].input)]
        return like.new_zeros((*batch, *self.shapes[path].output))

    def _silence(self, inputs: Mapping[NodePath, Tensor]) -> dict[NodePath, Tensor]:
        """What every node emits where Inputs are 0, spiking nodes silent, integrators at their initial v.

        Stateless nodes compute; other feedback edges carry 0.
        """
        values = {path: torch.zeros_like(value) for path, value in inputs.items()}
        for step in self._steps:
            if step.path in values:
                continue
            module = self.get(step.path)
            if step.stateful:
                zeros = self._zeros(step.path, inputs)
                values[step.path] = module.rest(zeros) if isinstance(module, Stateful) else zeros
                continue
            zero = {key: self._zeros(source, inputs) for source, key in step.sources if key is not None}
            x = self._gather(step, values, zero)
            values[step.path] = x if module is None else module(x)
        return values

    @staticmethod
    def _gather(step: _Step, values: Mapping[NodePath, Tensor], previous: Mapping[str, Tensor]) -> Tensor:
        parts = [values[source] if key is None else previous[key] for source, key in step.sources]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def lookup(state: Mapping[str, Any], path: NodePath) -> Any:
    """The entry of a node in a nested state; None where any part of it is missing."""
    found: Any = state
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def store(state: State, path: NodePath, value: Any) -> None:
    """Put the entry of a node into a nested state that is being made."""
    for name in path[:-1]:
        state = state.setdefault(name, {})
    state[path[-1]] = value


def nested(path: NodePath, value: Any) -> State:
    """A state with the entry of one node."""
    found: State = {}
    store(found, path, value)
    return found


def _takes_state(module: nn.Module) -> bool:
    """Whether a module returns (output, state): by its attribute `stateful`, else by a second argument."""
    if isinstance(module, Stateful):
        return True
    declared = getattr(module, "stateful", None)
    if isinstance(declared, bool):
        return declared
    if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return False
    given = inspect.signature(module.forward).parameters.values()
    positional = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1


def nir_to_torch(
    graph_or_path: nir.NIRNode | str | Path,
    node_map: ModuleMap | None = None,
    default_map: ModuleMap | None = None,
    *,
    convention: Convention | None = None,
    dt: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Build a torch module from a NIR graph.

    Args:
        graph_or_path: a graph, a single node, or a .nir file.
        node_map: NIR type -> function of the node that returns a module, or None for one without effect; wins over
            the defaults and is looked up along the class hierarchy. A module whose forward takes a second argument,
            whatever its name, keeps state and returns (output, state); an attribute `stateful` (bool) says otherwise.
        default_map: replaces the built-in table.
        convention: how neurons are stepped; None: the one stored in the graph, else NIR's with `dt`.
        dt: step in seconds, instead of a convention.
        device: where the parameters live.
        dtype: floating-point type of the parameters.

    Returns:
        A module `out, state = module(x, state)`; for a single node the mapped module itself.

    Raises:
        MissingTimeStepError: a neuron or delay needs dt and none is known.
        UnsupportedError: a node type without a map, naming node and type.
        GraphError: shapes that disagree, dangling edges, and whatever else has no meaning.
    """
    from_file = isinstance(graph_or_path, str | Path)
    node = io.read(graph_or_path) if isinstance(graph_or_path, str | Path) else graph_or_path
    maps = (node_map or {}, default_map)
    if not isinstance(node, nir.NIRGraph):
        context = BuildContext("node", None, _convention(None, convention, dt), shared=False, dtype=dtype)
        return _build(context, node, *maps).to(device=device, dtype=dtype)
    graphs.validate(node)
    used = _convention(node, convention, dt)
    plan = schedule(node, used.feedback_edges)
    _check_overrides(plan, used)
    shapes = graphs.scheduled_shapes(plan)
    if used.population_delay:
        plan = schedule(node, used.feedback_edges, population_delay=used.population_delay)
    modules = {}
    for path in plan.order:
        inner = plan.nodes[path]
        if not isinstance(inner, nir.Input | nir.Output):
            # the graph delays the edges, its modules know nothing of it
            here = dataclasses.replace(used.for_node(dotted(path), type_name(inner)), population_delay=0)
            # what was read from a file for this call alone need not be copied
            context = BuildContext(dotted(path), shapes[path].input, here, shared=from_file, dtype=dtype)
            modules[path] = _build(context, inner, *maps)
    _warn_unstable(modules)
    module = GraphModule(graphs.skeleton(node), plan, shapes, modules, used)
    return module.to(device=device, dtype=dtype)


def _warn_unstable(modules: Mapping[NodePath, nn.Module]) -> None:
    """Say which populations forward Euler cannot follow: 1 - dt/tau is negative where dt is larger than tau."""
    found = []
    for path, module in modules.items():
        if not isinstance(module, Membrane):
            continue
        synapse = module.synapse()
        decays = [module.membrane().decay, *([] if synapse is None else [synapse.decay])]
        tensors = [torch.as_tensor(decay).detach() for decay in decays]
        lowest = min((float(tensor.min()) for tensor in tensors if tensor.numel()), default=0.0)
        if lowest < 0:
            found.append(f"{dotted(path)!r} (dt is {1 - lowest:.3g} tau)")
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        warnings.warn(
            f"forward Euler with a dt larger than a time constant is unstable: {', '.join(found[:5])}{more}. "
            "Use a smaller dt, or integrator='exponential'.",
            StabilityWarning,
            stacklevel=3,
        )


def _check_overrides(plan: Schedule, convention: Convention) -> None:
    # CubaLI also where the installed nir lacks it: one convention serves every version
    known = {dotted(path) for path in plan.order} | {row.node.__name__ for row in PRIMITIVES} | {"CubaLI"}
    for key in convention.overrides:
        if key not in known:
            raise ConventionError(
                f"overrides names {key!r}, which is no node of this graph and no type", remedy=suggest(key, known)
            )


def _convention(graph: nir.NIRGraph | None, given: Convention | None, dt: float | None) -> Convention:
    if given is not None:
        if dt is not None and given.dt is not None:
            raise ConventionError(f"dt={dt} and a convention with dt={given.dt} were given", remedy="Give one.")
        return dataclasses.replace(given, dt=dt) if dt is not None else given
    found = stored_convention(graph) if graph is not None else None
    if found is not None:
        if dt is not None and found.dt not in (None, dt):
            raise ConventionError(f"dt={dt} was given, the graph's own convention has dt={found.dt}")
        return dataclasses.replace(found, dt=dt if dt is not None else found.dt)
    return Convention(dt=dt)


def _build(context: BuildContext, node: nir.NIRNode, node_map: ModuleMap, default_map: ModuleMap | None) -> nn.Module:
    for table in (node_map, default_map):
        function = find(table, type(node)) if table else None
        if function is not None:
            module = function(node)
            if module is None:
                return nn.Identity()
            if not isinstance(module, nn.Module):
                raise ConversionError(f"its map returned a {type(module).__name__}, not a module", node=context.name)
            return module
    kind = type_name(node)
    row = row_for_node(node) if default_map is None else None
    if row is None:
        raise UnsupportedError(
            f"type {kind} is not supported yet",
            node=context.name,
            remedy=f"Pass node_map={{nir.{kind}: function}}; built in: "
            f"{', '.join(r.node.__name__ for r in PRIMITIVES)}.",
        )
    module = row.to_torch(node, context)
    if isinstance(module, Stateful):
        module.check(context.name)  # a missing dt is told now, not at the first step
    return module
