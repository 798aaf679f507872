"""From traced operations to a draft: one handler an operation, everything else refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.draft import Draft, Key, Shape, Signal, StateOf, Value
from nirdeploy.convert.frameworks.conventions import combined, layer_conventions
from nirdeploy.convert.frameworks.framework import (
    ONE_STEP,
    LayerRow,
    check_forward,
    check_layer,
    framework_of,
    hint,
    is_lifted,
    leading_axes,
    row_of,
)
from nirdeploy.convert.loops import Loop, unrolled_loop
from nirdeploy.convert.operations import HANDLERS, VIEWS, in_place, is_check
from nirdeploy.convert.primitives import BYPASSED, MODULES, TraceContext, find
from nirdeploy.convert.returned import PREVIOUS, at, check_states, shown, split_output
from nirdeploy.errors import ConversionError, NirdeployError
from nirdeploy.graph import with_metadata
from nirdeploy.nodes import keeps_state, make_node
from nirdeploy.reference.neurons import Stateful
from nirdeploy.schedule import schedule
from nirdeploy.shapes import own_input_shape

__all__ = ["ModuleMap", "Walk"]

ModuleMap = Mapping[type, Callable[..., "nir.NIRNode | None"]]
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ONE_STEP = (nn.Conv1d, nn.Conv2d, nn.AvgPool2d)  # torch's own that take no second axis before a sample's


class Walk:
    """One conversion: maps, and what every traced value stands for."""

    def __init__(
        self,
        root: nn.Module,
        module_map: ModuleMap | None,
        default_map: ModuleMap | None,
        shape: Any,
        stateful: tuple[type[nn.Module], ...],
        dt: float | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self.root = root
        self.length = length  # of the sample input's first axis; None: only shapes were given
        self.dt = dt
        self.user_map = dict(module_map or {})
        self.default_map = default_map
        self.shape = shape
        self.stateful = stateful
        self.draft = Draft()
        self.env: dict[fx.Node, Value] = {}
        self.called: set[str] = set()
        self.reset: set[str] = set()  # layers that forward resets before it uses them
        self._cuts: dict[str, tuple[int, str]] = {}  # sizes by which layers cut time from samples, and the first's path
        self.assumes_states = False  # whether states were traced as None, which is then no state that is lacking
        # part of the state argument -> what is to come back there: the module it was passed to, and the place
        self.uses: dict[tuple[Any, ...], StateOf] = {}
        self.returned: Any = None
        self.output: Any = None  # everything that forward returns
        self.constants: dict[str, torch.Tensor] = {}
        self._leading = 1  # axes of the input in front of those of a sample
        self._changing: dict[fx.Node, int] = {}  # calls that change them -> what they make of them
        self._keys_of: dict[str, tuple[Any, ...]] = {}  # placeholder of a previous output -> its keys in the state
        self.parameters: set[Any] = set()  # traced values that are Parameters: kept as nodes of their own

    # ------------------------------------------------------------ maps

    def _function(self, module: nn.Module) -> Callable[..., Any] | None:
        found: Callable[..., Any] | None = find(self.user_map, type(module))
        if found is None and self.default_map is not None:
            found = find(self.default_map, type(module))
        return found

    def is_mapped(self, module: nn.Module) -> bool:
        """Whether a map or the table knows this module."""
        if self._function(module) is not None:
            return True
        return self.default_map is None and (find(MODULES, type(module)) is not None or row_of(module) is not None)

    def foreign(self, module: nn.Module) -> LayerRow | None:
        """The row of a library's layer that no map of the user's takes."""
        return row_of(module) if self.default_map is None and self._function(module) is None else None

    def returns_state(self, module: nn.Module) -> bool:
        """Whether forward returns (output, state): ours do, declared ones, and mapped ones that take a state."""
        if isinstance(module, (Stateful, *self.stateful)):
            return True
        foreign = self.foreign(module)
        if foreign is not None:
            return foreign.returns_state(module)
        return self._function(module) is not None and len(inspect.signature(module.forward).parameters) > 1

    def node_of(self, module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        """The node of a mapped module; None where a map bypasses it."""
        function = self._function(module)
        if function is not None:
            node = function(module)
            if node is not None and not isinstance(node, nir.NIRNode):
                raise ConversionError(f"its map returned a {type(node).__name__}, not a NIR node", node=context.path)
            return _with_arrays(node)
        row: Any = self.foreign(module)
        if row is not None:
            if not row.refuses:
                check_layer(module, row, context.path)
        else:
            row = find(MODULES, type(module))
            _refuse_altered(module, row.modules, context.path)
        try:
            with _frozen_parametrizations(module):
                converted: nir.NIRNode = row.to_nir(module, context)
        except NirdeployError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            # lazy and meta parameters have no values yet
            raise ConversionError(
                f"{type(module).__name__} has parameters that cannot be read: {error}",
                node=context.path,
                remedy="Run the module once, so that its parameters exist.",
            ) from error
        return converted

    def alone(self, module: nn.Module, context: TraceContext) -> nir.NIRNode | None:
        """The node of a module that is the whole network; where that is a graph, with its convention."""
        framework, row = framework_of(module), self.foreign(module)
        try:
            node = self.node_of(module, context)
        except AttributeError as error:
            raise self._other_version(error, module, context.path) from error
        if not isinstance(node, nir.NIRGraph) or framework is None or row is None:
            return node
        found = combined(layer_conventions(module, framework, row, self.dt))
        return node if found is None else with_metadata(node, convention=found.to_dict())

    # ------------------------------------------------------------ walk

    def run(
        self,
        traced: fx.Graph,
        constants: Mapping[str, torch.Tensor],
        resets: list[tuple[str, int]],
        states: list[str],
        *,
        assumes_states: bool = False,
    ) -> nir.NIRGraph:
        """Draft the graph of a traced forward.

        Args:
            traced: the operations.
            constants: tensors in them, by name.
            resets: paths of the layers that forward reset, with the number of operations traced by then.
            states: the symbolic state arguments.
            assumes_states: whether state arguments were traced as None, and what they are used for is not seen.
        """
        self.assumes_states = assumes_states
        self.constants = dict(constants)
        states = [*states, *self._layers_states(traced, states)]
        signals = [n for n in traced.nodes if n.op == "placeholder" and self._is_signal(n, states)]
        self._leading = self._axes_first_taken(traced)
        loop = unrolled_loop(traced, self._places, {path for path, _ in resets})
        self._check_resets(resets, loop)
        if loop is not None and loop.indexed and self.length is not None and isinstance(self.shape, tuple):
            self.shape = self.shape[1:]  # the sample input has all steps
        for node in traced.nodes if loop is None else loop.nodes:
            if loop is not None and (node in loop.same or node in loop.parts):
                self.env[node] = self.env[loop.same.get(node) or cast("fx.Node", node.args[0])]
                continue
            try:
                value = self._visit(node, states, signals)
            except ConversionError as error:
                if error.located:
                    raise
                raise self._located(error, node) from error
            except AttributeError as error:
                called = self.root.get_submodule(str(node.target)) if node.op == "call_module" else self.root
                raise self._other_version(error, called, str(node.target)) from error
            if isinstance(value, Signal):
                folds = value.foldable or node.op == "call_module"
                value = dataclasses.replace(value, foldable=folds and len(node.users) == 1)
            self.env[node] = value
        return self._finish()

    def _places(self, node: fx.Node) -> tuple[int, ...] | None:
        """Where a layer of a library returns what is to come back into it; None where it keeps no state."""
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        row = None if module is None else self.foreign(module)
        return row.states(module) if row is not None and row.resets else None

    def _check_resets(self, resets: list[tuple[str, int]], loop: Loop | None) -> None:
        """Layers are reset in front of a loop over time, or behind it, where it makes them start at rest.

        Raises:
            ConversionError: a layer that is reset in each step.
        """
        for path, traced in resets:
            if loop is None or loop.start < traced < loop.stop:
                raise ConversionError(
                    "forward resets it, and no loop over time of equal steps follows, so that it remembers nothing",
                    node=path,
                    remedy=f"Leave that to who calls it. {ONE_STEP}",
                )
        self.reset = {path for path, _ in resets}

    def _axes_first_taken(self, traced: fx.Graph) -> int:
        """Axes of the input in front of those of a sample: what the first layer called with some takes.

        Raises:
            ConversionError: the sample input was cut by those of another layer.
        """
        first, called = leading_axes(self.root) if self.default_map is None else 1, []
        for node in traced.nodes:
            module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
            row = None if module is None else self.foreign(module)
            if row is None or is_lifted(self.root, str(node.target)):
                continue
            called.append((node, row.axes(module)))
            if row.axes_after(module):
                self._changing[node] = row.axes_after(module)
        for node, taken in called:
            if taken and taken != first and self.length is not None:
                raise ConversionError(
                    f"the layer called first takes {taken} axes before those of a sample, the one made first {first}",
                    node=str(node.target),
                    remedy="Pass input_shape= instead of sample_input=.",
                )
            if taken:
                return taken
        return first

    def _is_signal(self, node: fx.Node, states: list[str]) -> bool:
        if str(node.target) in states:
            return False
        fixed = re.fullmatch(r"(.+)_\d+", str(node.target))
        known = inspect.signature(self.root.forward).parameters
        # fx renames an argument that is fixed to a value, and checks it
        return str(node.target) in known or fixed is None

    def _layers_states(self, traced: fx.Graph, known: list[str]) -> list[str]:
        """Arguments of forward that go nowhere but into layers of a library as their state, and unused ones then."""
        placeholders = [n for n in traced.nodes if n.op == "placeholder" and str(n.target) not in known]
        found = [n for n in placeholders if n.users and all(self._takes_as_state(user, n) for user in n.users)]
        unused = [n for n in placeholders[1:] if not n.users]
        return [str(n.target) for n in (*found, *unused)] if found else []

    def _takes_as_state(self, user: fx.Node, value: fx.Node) -> bool:
        if user.op != "call_module" or (user.args and user.args[0] is value):
            return False
        module = self.root.get_submodule(str(user.target))
        return self.foreign(module) is not None and self.returns_state(module)

    def _visit(self, node: fx.Node, states: list[str], signals: list[fx.Node]) -> Value:
        if node.op == "placeholder":
            return self._placeholder(node, states, signals)
        if node.op == "output":
            self._output(node)
            return None
        if node.op == "call_module":
            return self._call_module(node)
        if node.op == "get_attr":
            return self._attribute(node)
        if in_place(node) and self._seen_again(node):
            raise self.refuse(node, "changes a value in place that is used again, which a graph cannot express")
        handler = HANDLERS.get(node.target)
        if handler is not None:
            return handler(self, node)
        if is_check(node) or not (node.users or in_place(node)):
            return None  # fx's own checks of fixed arguments, and values nobody uses
        raise self.refuse(node)

    def _seen_again(self, node: fx.Node) -> bool:
        """Whether anything but this operation sees the value it changes, or a value that shares its memory."""
        value = node.args[0] if node.args else node.kwargs.get("input")
        while isinstance(value, fx.Node):
            if any(user is not node for user in value.users):
                return True
            if value.op == "get_attr":
                return True
            if value.target not in VIEWS:
                return False
            node, value = value, value.args[0] if value.args else value.kwargs.get("input")
        return False

    def refuse(self, node: fx.Node, why: str = "does not exist in NIR", remedy: str = "") -> ConversionError:
        """The error for an operation, with module and source line; a remedy of its own replaces the usual one."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        kind = {"call_method": "tensor method", "get_attr": "tensor attribute"}.get(node.op, "operation")
        where = self._where(node)
        usual = "Put it into a module of its own and map that with module_map, or remove it."
        meant, hinted = hint(where) or ("", usual)
        text = f"{meant}{': ' if meant else ''}{kind} {name!r} {why} ({where})"
        return ConversionError(text, remedy=remedy or hinted, located=True)

    def _other_version(self, error: AttributeError, module: nn.Module, path: str) -> Exception:
        """What a library's layer without the attributes of its class means; the error itself for all others."""
        library = framework_of(module) if self.foreign(module) is not None else None
        if library is None:
            return error
        kind = type(module).__name__
        return ConversionError(
            f"{kind} is no {kind} of the {library.name} that is known here: {error}",
            node=path,
            remedy=f"Install the version of {library.name} that docs/frameworks.md names, or map it with "
            f"module_map={{{kind}: lambda m: nir....}}.",
            located=True,
        )

    def _located(self, error: ConversionError, node: fx.Node) -> ConversionError:
        return ConversionError(f"{error} ({self._where(node)})", located=True)

    @staticmethod
    def _path(node: fx.Node) -> str:
        """The module whose forward an operation stands in."""
        stack = node.meta.get("nn_module_stack") or {}
        return next(reversed([str(entry[0]) for entry in stack.values()]), "") if stack else ""

    @cached_property
    def _leading(self) -> int:
        return leading_axes(self.root)

    def axes_of(self, node: fx.Node) -> int:
        """Axes in front of those of a sample where an operation or a module is called."""
        path = str(node.target) if node.op == "call_module" else f"{self._path(node)}.".lstrip(".")
        if self.default_map is not None or is_lifted(self.root, path):
            return 1
        return self._axes_before(node) or self._leading

    def _axes_before(self, node: fx.Node) -> int:
        """What the nearest layer before that changes those axes makes of them; 0 where there is none."""
        waiting = dict.fromkeys(node.all_input_nodes if self._changing else ())
        while waiting:  # first in, first out: the nearest come first
            before = next(iter(waiting))
            del waiting[before]
            if before in self._changing:
                return self._changing[before]
            waiting.update(dict.fromkeys(before.all_input_nodes))
        return 0

    def _check_axes(self, module: nn.Module, path: str, node: fx.Node) -> None:
        row = self.foreign(module)
        plain = 1 if self._function(module) is None and isinstance(module, _ONE_STEP) else 0
        wanted, here = plain if row is None else row.axes(module), self.axes_of(node)
        if wanted and self.default_map is None and wanted != here:
            ways = ("one step of [batch, ...]", "all steps, with batch and step as its first two axes")
            raise ConversionError(
                f"{type(module).__name__} takes {ways[wanted - 1]}, and gets {ways[here - 1]}",
                node=path,
                remedy="Use one of the two in all layers, or the library's layer that turns one into the other.",
            )

    def _check_cuts(self, module: nn.Module, path: str) -> None:
        row = self.foreign(module)
        for name, size in {} if row is None else row.cut(module).items():
            first, other = self._cuts.setdefault(name, (size, path))
            if size != first:
                raise ConversionError(
                    f"{type(module).__name__} has {name}={size}, {other!r} {first}, so that its steps are others",
                    node=path,
                    remedy=f"Build all layers with one {name}.",
                )

    def _where(self, node: fx.Node) -> str:
        path = self._path(node)
        frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
        own = [f"{file}:{line}" for file, line in frames if not file.startswith(_NOT_THE_USERS)]
        return f"in module {path or type(self.root).__name__!r}, {own[-1] if own else 'unknown line'}"

    # ------------------------------------------------------------ ends

    def _placeholder(self, node: fx.Node, states: list[str], signals: list[fx.Node]) -> Value:
        if str(node.target) in states:
            return Key((str(node.target),) if len(states) > 1 else ())
        if node not in signals:
            return None
        several = len(signals) > 1
        name = self.draft.unique(str(node.target) if several else "input")
        shape = self.shape
        if isinstance(shape, Mapping):
            shape = shape.get(str(node.target))
        elif isinstance(shape, list):
            index = signals.index(node)
            shape = shape[index] if index < len(shape) else None
        elif several:
            shape = None  # one shape for several inputs would be a guess
        self.draft.inputs[name] = shape
        return Signal((name,), shape)

    def _output(self, node: fx.Node) -> None:
        value = self.output = node.args[0]
        outputs, self.returned = split_output(self, value)
        if not outputs:
            raise ConversionError("forward returns no output")
        for label, leaf in outputs:
            signal = self.signal(leaf, node)
            name = self.draft.unique(label)
            shape = None if signal.shape is None else np.array(signal.shape)
            self.draft.nodes[name] = make_node(nir.Output, output_type={"output": shape})
            self.draft.edges.extend((source, name) for source in signal.sources)

    def sources(self) -> set[str]:
        """Names that edges start at."""
        return {source for source, _ in self.draft.edges}

    def _finish(self) -> nir.NIRGraph:
        check_states(self)
        replaced: dict[str, tuple[str, ...]] = {}
        wanted: set[tuple[str, str]] = set()
        for name in sorted(s for s in self.sources() if s.startswith(PREVIOUS)):
            keys = self._keys_of[name]
            found = self.env.get(leaf) if isinstance(leaf := at(self.returned, keys), fx.Node) else None
            if not isinstance(found, Signal):
                raise ConversionError(
                    f"state {shown(keys)} is used as a signal, but forward does not return its next value there",
                    remedy="Return the output that is to come back one step later under the same key.",
                )
            replaced[name] = found.sources
            wanted |= {(source, target) for source in found.sources for a, target in self.draft.edges if a == name}
        graph = self.draft.finish(replaced)
        if wanted:
            self._check_feedback(graph, wanted)
        return graph

    def _check_feedback(self, graph: nir.NIRGraph, wanted: set[tuple[str, str]]) -> None:
        """The delays of forward are those of the graph, but for moves through nodes without state.

        Delaying what goes into a stateless node is delaying what comes out of it. So each such node may be `early` by
        some steps, all others by none, and for every edge early(target) - early(source) must be the difference of the
        delays (retiming, Leiserson and Saxe 1991).
        """
        found = {(".".join(a), ".".join(b)) for a, b in schedule(graph).feedback}
        early = {name: 0 for name, node in graph.nodes.items() if _anchored(node)}
        neighbours: dict[str, list[tuple[str, int]]] = {}
        for source, target in graph.edges:
            moved = ((source, target) in found) - ((source, target) in wanted)
            neighbours.setdefault(source, []).append((target, moved))
            neighbours.setdefault(target, []).append((source, -moved))
        waiting = list(early)
        while waiting:
            name = waiting.pop()
            for other, moved in neighbours.get(name, []):
                if other not in early:
                    early[other] = early[name] + moved
                    waiting.append(other)
                elif early[other] != early[name] + moved:
                    raise ConversionError(
                        f"recurrence through the state delays {sorted(wanted)}, but in a NIR graph of this form the "
                        f"delayed edges are {sorted(found)}",
                        remedy="Feed the earlier output into the layer that the input enters first.",
                    )

    # ------------------------------------------------------------ values

    def signal(self, value: Any, node: fx.Node) -> Signal:
        """The signal a value is; a part of the state read as one is an output of the step before."""
        found = self.env.get(value) if isinstance(value, fx.Node) else None
        if isinstance(found, Signal):
            return found
        if isinstance(found, Key):
            name = f"{PREVIOUS}{found.keys!r}"
            self._keys_of[name] = found.keys
            return Signal((name,), None)
        if isinstance(found, StateOf):
            raise self.refuse(
                node,
                f"uses the state of {found.owner!r} as a signal, which NIR cannot tap",
                "Use what the layer puts out instead; a run records its states (v_mem, i_syn).",
            )
        if isinstance(value, fx.Node) and value not in self.env:
            raise self.refuse(node, "takes what one step of the loop over time gives, where NIR has each step's")
        raise self.refuse(node, f"of the constant {value!r} cannot be a layer's input")

    def constant(self, value: Any) -> np.ndarray | None:
        """A number or tensor known while tracing; None for anything else."""
        if isinstance(value, fx.Node):
            value = self.env.get(value)
            return value if isinstance(value, np.ndarray) else None
        if isinstance(value, torch.Tensor):
            return array_of(value)
        return np.asarray(value) if isinstance(value, int | float) else None

    def _attribute(self, node: fx.Node) -> np.ndarray:
        if node.target in self.constants:
            return array_of(self.constants[str(node.target)])
        found: Any = self.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if not isinstance(found, torch.Tensor):
            raise self.refuse(node)
        if isinstance(found, nn.Parameter):
            self.parameters.add(node)
        return array_of(found)

    # ------------------------------------------------------------ modules

    def _call_module(self, node: fx.Node) -> Signal:
        path = str(node.target)
        module = self.root.get_submodule(path)
        arguments = self._arguments(module, node)
        signal = self.signal(arguments[0] if arguments else None, node)
        function = self._function(module)
        if function is None and isinstance(module, BYPASSED):
            return signal
        foreign = self.foreign(module)
        if foreign is not None and foreign.folds:
            check_layer(module, foreign, path)
            return self._batch_norm(module, path, self.draft.learn(signal, foreign.input_shape(module)))
        if function is None and self.default_map is None and isinstance(module, _BATCH_NORMS):
            if self.axes_of(node) > 1:
                raise self.refuse(node, "would take the batch of [step, batch, channel] for its channels")
            _refuse_altered(module, _BATCH_NORMS, path)
            shape = (module.num_features,) if isinstance(module, nn.BatchNorm1d) else None
            return self._batch_norm(module, path, self.draft.learn(signal, shape))
        if not self.is_mapped(module):
            kind = type(module).__name__
            raise ConversionError(
                f"{kind} is not supported ({self._where(node)})",
                node=path,
                remedy=f"Pass module_map={{{kind}: lambda m: nir....}}.",
                located=True,
            )
        if foreign is not None and foreign.adds_inputs:
            check_layer(module, foreign, path)
            return self._added(arguments, node)
        self._check_axes(module, path, node)
        self._check_cuts(module, path)
        row = foreign or (find(MODULES, type(module)) if function is None else None)
        signal = self.draft.learn(signal, row.input_shape(module) if row is not None else None)
        context = TraceContext(
            path,
            signal.shape,
            dt=self.dt,
            axes=self.axes_of(node),
            gets_state=path in self.reset or any(value is not None for value in arguments[1:]),
        )
        created = self.node_of(module, context)
        if created is None:
            return signal
        if keeps_state(created) and path in self.called:
            raise ConversionError(
                f"a neuron module is called twice in one step; its state would be two states ({self._where(node)})",
                node=path,
                remedy=f"Use two modules. {ONE_STEP}",
                located=True,
            )
        self.called.add(path)
        if signal.shape is None and not isinstance(created, nir.NIRGraph):
            signal = self.draft.learn(signal, _own_shape(created))
        emitted = self.draft.add(path, created, signal, path)
        places = foreign.states(module) if foreign is not None else (None,)
        self._check_state_is_passed(module, path, node, arguments[1:])
        self._take_state(node, emitted.sources[0], arguments[1:], places)
        self._take_convention(module, emitted.sources[0])
        return emitted

    def _added(self, arguments: list[Any], node: fx.Node) -> Signal:
        """The sum of what a layer is called with."""
        total, *others = [self.signal(argument, node) for argument in arguments]
        for other in others:
            total = self.draft.merge(total, other)
        return total

    def _take_convention(self, module: nn.Module, name: str) -> None:
        if isinstance(module, Stateful):
            self.draft.conventions[name] = {"": module.convention}
        framework, row = framework_of(module), self.foreign(module)
        if framework is not None and row is not None:
            self.draft.conventions[name] = layer_conventions(module, framework, row, self.dt)

    @staticmethod
    def _arguments(module: nn.Module, node: fx.Node) -> list[Any]:
        """What a module is called with, in the order of its forward's own arguments."""
        if len(node.args) == 1 and not node.kwargs:
            return list(node.args)
        try:
            bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
        except TypeError as error:
            raise ConversionError(f"{type(module).__name__} is called with the wrong arguments: {error}") from error
        found: list[Any] = []
        for name, parameter in bound.signature.parameters.items():
            many = {inspect.Parameter.VAR_POSITIONAL: list, inspect.Parameter.VAR_KEYWORD: lambda v: v.values()}
            if parameter.kind not in many:
                found.append(bound.arguments.get(name))
            elif name in bound.arguments:
                found.extend(many[parameter.kind](bound.arguments[name]))
        return found

    def _check_state_is_passed(self, module: nn.Module, path: str, node: fx.Node, extra: list[Any]) -> None:
        """Refuse a layer that remembers nothing, as forward passes it no state in each step."""
        library = framework_of(module) if self.foreign(module) is not None else None
        if library is None or not library.passes_states or not self.returns_state(module):
            return
        given = any(value is not None for value in extra) or (self.assumes_states and len(extra) > 0)
        carried = getattr(self.root, "carries_states", False) or is_lifted(self.root, path)
        if given or carried or self.axes_of(node) > 1:
            return
        kind = type(module).__name__
        raise ConversionError(
            f"forward passes {kind} no state, so that it starts each step at rest and remembers nothing",
            node=path,
            remedy="Pass it in and return it: forward(x, state=None) with out, state = layer(x, state).",
        )

    def _take_state(self, node: fx.Node, owner: str, extra: list[Any], places: tuple[int | None, ...]) -> None:
        for n, value in enumerate(extra):
            found = self.env.get(value) if isinstance(value, fx.Node) else None
            if isinstance(found, Key):
                wanted = StateOf(owner, places[min(n, len(places) - 1)])
                if self.uses.setdefault(found.keys, wanted) != wanted:
                    other = self.uses[found.keys].owner
                    raise self.refuse(node, f"gets {shown(found.keys)}, which {other!r} gets, too")
            elif value is not None and found is not None:
                raise self.refuse(node, "gets a second argument that is not its own state")
            elif value is not None and not isinstance(value, fx.Node):
                raise self.refuse(node, f"gets the second argument {value!r}, which a NIR node cannot hold")

    def _batch_norm(self, module: Any, path: str, signal: Signal) -> Signal:
        """y = (x - mean) / sqrt(var + eps) * weight + bias, in float64, with the running statistics."""
        if module.running_mean is None or module.running_var is None:
            raise ConversionError("BatchNorm without running statistics depends on the batch", node=path)
        ones = torch.ones_like(module.running_mean)
        gain = array_of(module.weight if module.weight is not None else ones).astype(np.float64)
        offset = array_of(module.bias if module.bias is not None else 0 * ones).astype(np.float64)
        deviation = np.sqrt(array_of(module.running_var).astype(np.float64) + module.eps)
        factor = gain / deviation
        shift = offset - array_of(module.running_mean).astype(np.float64) * factor
        return self.draft.normalise(signal, path, factor, shift.astype(array_of(module.running_mean).dtype))


# ---------------------------------------------------------------- small helpers


def _anchored(node: nir.NIRNode) -> bool:
    return keeps_state(node) or isinstance(node, nir.Input | nir.Output)


@contextmanager
def _frozen_parametrizations(module: nn.Module) -> Iterator[None]:
    """Read parametrised weights without their own steps in training (spectral_norm iterates at each access)."""
    parametrizations = getattr(module, "parametrizations", None)
    parts = parametrizations.modules() if isinstance(parametrizations, nn.Module) else ()
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _with_arrays(node: nir.NIRNode | None) -> nir.NIRNode | None:
    """A node of a user's map with tensors turned into arrays, as files need them."""
    if node is not None and not isinstance(node, nir.NIRGraph):
        for name, value in vars(node).items():
            if isinstance(value, torch.Tensor):
                setattr(node, name, array_of(value))
    return node


def _own_shape(node: nir.NIRNode) -> Shape | None:
    try:
        return own_input_shape("", node)
    except NirdeployError:
        return None


def _refuse_altered(module: nn.Module, known: tuple[type[nn.Module], ...], path: str) -> None:
    """Refuse a subclass that computes something else, and hooks, which no NIR node can hold."""
    base = next(kind for kind in known if isinstance(module, kind))
    if isinstance(module, Stateful) and type(module) is not base:
        raise ConversionError(
            f"{type(module).__name__} is a subclass of {base.__name__} that may step differently",
            node=path,
            remedy=f"Map it with module_map={{{type(module).__name__}: ...}}.",
        )
    check_forward(module, base, path)
