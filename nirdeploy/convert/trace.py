"""torch -> NIR by symbolic tracing: nothing is run, nothing is dropped."""

from __future__ import annotations

import inspect
import operator
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule
from nirdeploy.convert.draft import Shape
from nirdeploy.convert.frameworks.framework import ONE_STEP, check_mode, leading_axes, row_of, traceable
from nirdeploy.convert.primitives import MODULES, TraceContext, find
from nirdeploy.convert.walk import ModuleMap, Walk
from nirdeploy.errors import ConversionError
from nirdeploy.reference.convention import Convention
from nirdeploy.schedule import NodePath, dotted

__all__ = ["called_modules", "torch_to_nir"]

_STATE_NAMES = ("state", "states", "hidden", "hx", "mem")
# what a forward raises that treats a symbolic state as if it were a value
_NOT_SYMBOLIC = (fx.proxy.TraceError, TypeError, AttributeError, KeyError, ValueError)


class _Proxy(fx.Proxy):
    """A traced value whose `+=` and kin are recorded as what they are: changes in place."""

    def _augmented(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._augmented(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._augmented(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._augmented(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._augmented(operator.itruediv, other)

    def _length(self, *, whole: bool) -> int | None:
        """Of the input itself, or what was asked of it, such as x.size(0)."""
        found: int | None = None
        if (self.node.op == "placeholder") == whole:
            found = cast("_Tracer", self.tracer).length(self.node)
        return found

    def __index__(self) -> int:
        """For range(x.size(0))."""
        length = self._length(whole=False)
        if length is None:
            raise TypeError("a traced value cannot be interpreted as an integer")
        return length

    def __int__(self) -> int:
        length = self._length(whole=False)
        if length is None:
            raise TypeError("a traced value is no number yet")
        return length

    def __len__(self) -> int:
        length = self._length(whole=True)
        return super().__len__() if length is None else length


class _Tracer(fx.Tracer):
    """Keeps mapped modules and torch's own layers whole."""

    proxy_buffer_attributes = True  # so that an operation on a buffer is seen, not run

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.record_stack_traces = True
        self._mapped = walk.is_mapped
        self._libraries = walk.default_map is None
        # of the input, where layers let forward loop over it
        loops = any(row.resets for part in walk.root.modules() if (row := walk.foreign(part)) is not None)
        self._length = walk.length if loops else None
        self.constants: dict[str, torch.Tensor] = {}
        self.states: Collection[str] = ()

    def to_bool(self, obj: fx.Proxy) -> bool:
        # `if state:` asks whether there is one, as `if state is not None:` does
        if obj.node.op == "placeholder" and str(obj.node.target) in self.states:
            return True
        return super().to_bool(obj)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def length(self, node: fx.Node) -> int | None:
        """What len(x), x.size(0) and x.shape[0] of an input are in the sample input; None for all else."""
        if node.op == "placeholder":
            return self._length
        first = node.target is operator.getitem and node.args[1] == 0
        shape: Any = node.args[0] if first else node
        asked = shape.args[1:] if isinstance(shape, fx.Node) and shape.target in ("size", getattr) else None
        if asked not in ([(), ("shape",)] if first else [(0,)]):
            return None
        source = shape.args[0]
        return self._length if isinstance(source, fx.Node) and source.op == "placeholder" else None

    def create_arg(self, a: Any) -> Any:
        # fx would hang the tensors it meets onto the user's module
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            name = f"constant {len(self.constants)}"
            self.constants[name] = a
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._mapped(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        stand_in = traceable(m) if self._libraries and not self._mapped(m) else m
        if stand_in is m:
            return super().call_module(m, forward, args, kwargs)
        _refuse_hooks(m, self.path_of_module(m))
        return super().call_module(m, stand_in.forward, args, kwargs)


def torch_to_nir(
    module: nn.Module,
    module_map: ModuleMap | None = None,
    default_map: ModuleMap | None = None,
    *,
    sample_input: Any = None,
    input_shape: Any = None,
    stateful_modules: Collection[type[nn.Module]] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    type_check: bool = True,
    dt: float | None = None,
) -> Any:
    """Convert a torch module into a NIR graph.

    Args:
        module: the network; its forward takes one step, or, with layers of snnTorch, loops over equal steps, as many as
            the sample input has or a fixed number, and stacks what they give. It is not run and not changed. BatchNorm
            is folded with its running statistics, Dropout and Identity are left out.
        module_map: module type -> function of the module that returns a NIR node or graph, or None to bypass it;
            wins over the defaults and is looked up along the class hierarchy.
        default_map: replaces the built-in table.
        sample_input: an input of forward, [batch, ...]; only its shape is used. With several inputs a dict or a
            sequence.
        input_shape: shape of one sample, without batch; instead of `sample_input`. Likewise.
        stateful_modules: types whose forward returns (output, state); those that are unpacked in forward are
            recognised without it.
        concrete_args: arguments of forward fixed to a value. A state argument (default None, or named 'state') that
            forward reads and returns under the same key becomes state of the modules it is passed to, or a recurrent
            edge where it is an earlier output.
        type_check: whether to check all shapes at the end.
        dt: seconds a step stands for where layers of a library count steps only (snnTorch, sinabs, SpikingJelly); None:
            1e-4.

    Returns:
        A NIRGraph with nodes named after module paths; for a module that is mapped itself, its node.

    Raises:
        ConversionError: an operation that NIR cannot express; the message has the operation, the module path, the
            source line and the remedy.
    """
    if isinstance(module, GraphModule):
        _shape_of(sample_input, input_shape, 1)
        return _from_graph_module(module, module_map or {})
    shape = _shape_of(sample_input, input_shape, leading_axes(module) if sample_input is not None else 1)
    if dt is not None:
        Convention(dt=dt)  # which refuses what is no step
    _refuse_wrapped(module)
    if default_map is None:
        check_mode(module)
        _refuse_hooks(module)
        module = traceable(module)
    concrete = dict(concrete_args or {})
    states = [name for name in _states_of(module) if name not in concrete]

    def walk() -> Walk:
        types = tuple(stateful_modules or ())
        return Walk(module, module_map, default_map, shape, types, dt, length=_length_of(sample_input))

    if walk().is_mapped(module):
        single = shape if isinstance(shape, tuple) else None
        return walk().alone(module, TraceContext("module", single, bare=True, dt=dt))
    graph = _converted(module, walk, concrete, states)
    if type_check:
        graphs.shapes(graph)
    return graph


def _converted(
    module: nn.Module, walk: Callable[[], Walk], concrete: dict[str, Any], states: list[str]
) -> nir.NIRGraph:
    """Trace with symbolic states; where forward needs to know whether they are there, with none."""
    if states:
        try:
            symbolic = _trace(module, walk(), concrete)
        except ConversionError:
            raise
        except _NOT_SYMBOLIC:
            symbolic = None
        if symbolic is not None:
            return walk().run(*symbolic, states)
    fixed = {**concrete, **dict.fromkeys(states)}
    try:
        traced = _trace(module, walk(), fixed)
    except ConversionError:
        raise
    except fx.proxy.TraceError as error:
        raise ConversionError(
            f"forward of {type(module).__name__} depends on its data: {error}",
            remedy="Move the condition out of forward, or fix its argument with concrete_args.",
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError) as error:
        if "cannot be interpreted as an integer" in str(error):
            raise ConversionError(
                f"forward of {type(module).__name__} loops over an axis of its input, such as its steps",
                remedy=f"A graph is one step. {ONE_STEP}",
            ) from error
        # tracing runs the user's forward, which may raise anything of these on symbolic values
        layers = any(row_of(part) is not None for part in module.modules())
        raise ConversionError(
            f"forward of {type(module).__name__} cannot be traced: {type(error).__name__}: {error}",
            remedy="Put what needs real values into a module of its own and map that with module_map."
            + (f" {ONE_STEP}" if layers else ""),
        ) from error
    return walk().run(*traced, [], assumes_states=bool(states or concrete))


def called_modules(module: nn.Module) -> set[str] | None:
    """Paths of the mapped modules that forward calls, as far as that does not depend on its input; None: not known."""
    if isinstance(module, GraphModule):
        return None
    walk = Walk(module, None, None, None, ())
    if walk.is_mapped(module):
        return None
    try:
        traced, _, _ = _trace(traceable(module), walk, dict.fromkeys(_states_of(module)))
    except (ConversionError, *_NOT_SYMBOLIC, RuntimeError, LookupError, NotImplementedError):
        return None
    return {str(node.target) for node in traced.nodes if node.op == "call_module"}


def _states_of(module: nn.Module) -> list[str]:
    """Arguments of forward that are states by their name or default."""
    signature = inspect.signature(module.forward).parameters
    return [name for name, parameter in signature.items() if parameter.default is None or name in _STATE_NAMES]


def _refuse_wrapped(module: nn.Module) -> None:
    inner = None
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = "the module it holds: network.module"
    elif isinstance(module, torch.jit.ScriptModule):
        inner = "the module that it was made from"
    elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
        inner = "the module it was compiled from: network._orig_mod"
    if inner is not None:
        raise ConversionError(
            f"{type(module).__name__} wraps a network and cannot be traced", remedy=f"Convert {inner}."
        )


def _refuse_hooks(module: nn.Module, path: str = "") -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ConversionError(
            f"{type(module).__name__} has forward hooks, which NIR cannot hold",
            node=path or None,
            remedy="Remove them.",
        )


def _trace(
    module: nn.Module, walk: Walk, concrete: dict[str, Any]
) -> tuple[fx.Graph, dict[str, torch.Tensor], list[tuple[str, int]]]:
    """The traced operations, the tensors that appear in them by name, and which layers were reset after how many."""
    _refuse_hooks(module)
    tracer = _Tracer(walk)
    tracer.states = [name for name in _states_of(module) if name not in concrete]
    resets: list[tuple[str, int]] = []
    with _recorded_resets(module, walk, tracer, resets), _unchanged(module), _without_chance(module):
        return tracer.trace(module, concrete_args=concrete or None), tracer.constants, resets


@contextmanager
def _recorded_resets(module: nn.Module, walk: Walk, tracer: _Tracer, resets: list[tuple[str, int]]) -> Iterator[None]:
    """Let layers of a library, asked to reset themselves, say only that they were: None for each of their states."""

    def recorded(path: str, count: int) -> Callable[[], Any]:
        def reset() -> Any:
            resets.append((path, len(tracer.graph.nodes)))
            return None if count == 1 else (None,) * count

        return reset

    changed: list[tuple[dict[str, Any], str]] = []
    for path, part in module.named_modules():
        row = walk.foreign(part)
        for name in () if row is None else row.resets:
            if row is not None and name not in vars(part):
                vars(part)[name] = recorded(path, len(row.states(part)))
                changed.append((vars(part), name))
    try:
        yield
    finally:
        for attributes, name in changed:
            del attributes[name]


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Put back attributes that forward sets while it is traced, and refuse: they are memory that NIR cannot hold.

    Raises:
        ConversionError: naming module and attribute.
    """
    before = {path: (part, dict(vars(part))) for path, part in module.named_modules()}
    versions = [(tensor, tensor._version) for tensor in (*module.parameters(), *module.buffers())]
    try:
        yield
    finally:
        changed: list[str] = []
        for path, (part, attributes) in before.items():
            now = vars(part)
            names = [n for n in {**attributes, **now} if n not in attributes or now.get(n) is not attributes[n]]
            changed.extend(f"{path}.{name}".lstrip(".") for name in names)
            for name in names:
                now.pop(name, None)
            now.update(attributes)
        changed.extend("a parameter or buffer" for tensor, version in versions if tensor._version != version)
    if changed:
        raise ConversionError(
            f"forward changes {', '.join(sorted(set(changed)))} of {type(module).__name__}: memory outside its state",
            remedy="Pass it in and out of forward as state.",
        )


@contextmanager
def _without_chance(module: nn.Module) -> Iterator[None]:
    """Refuse a forward that draws random numbers, which tracing would freeze, and put the generators back.

    Raises:
        ConversionError: naming the module.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
    same = torch.equal(before[0], after[0]) and repr(before[1]) == repr(after[1]) and before[2] == after[2]
    if not same:
        raise ConversionError(
            f"forward of {type(module).__name__} draws random numbers, so that its output depends on chance",
            remedy="Draw them once, in its constructor, and keep them as a buffer.",
        )


def _shape_of(sample_input: Any, input_shape: Any, axes: int) -> Shape | Mapping[str, Shape] | list[Shape] | None:
    """One shape, or one for each input by name or by position."""
    if sample_input is not None and input_shape is not None:
        raise ConversionError("sample_input and input_shape were both given", remedy="Give one.")

    def sample(value: Any) -> Shape:
        shape = tuple(int(n) for n in np.shape(value))
        if axes > 1 and len(shape) <= axes:
            raise ConversionError(
                f"sample_input has shape {shape}, and layers that take all steps at once need step, batch and neurons",
                remedy=f"Give it a batch axis, or pass input_shape={shape[1:]} instead.",
            )
        return shape[axes:]

    def plain(value: Any) -> Shape:
        return tuple(int(n) for n in value)

    given, one = (sample_input, sample) if sample_input is not None else (input_shape, plain)
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {str(name): one(value) for name, value in given.items()}
    nested = isinstance(given, list | tuple) and len(given) > 0 and isinstance(given[0], list | tuple | torch.Tensor)
    return [one(value) for value in given] if nested else one(given)


def _length_of(sample_input: Any) -> int | None:
    """The first axis of a sample input: its steps, where forward loops over it; that of the first of several."""
    if sample_input is None:
        return None
    several = isinstance(sample_input, Mapping)
    first = next(iter(sample_input.values()), ()) if several else sample_input
    return next(iter(np.shape(first)), 0)


def _from_graph_module(module: GraphModule, user_map: ModuleMap) -> nir.NIRGraph:
    """The graph an imported module came from, with its present parameters."""

    def level(skeleton: graphs.Skeleton, prefix: NodePath) -> nir.NIRGraph:
        nodes: dict[str, nir.NIRNode] = {}
        for name, sketch in skeleton.nodes.items():
            path = (*prefix, name)
            inner = sketch if isinstance(sketch, graphs.Skeleton) else None
            nodes[name] = level(inner, path) if inner is not None else _restored(module, user_map, path, sketch)
        return graphs.make_graph(nodes, list(skeleton.edges), skeleton.metadata)

    graph = level(module.skeleton, ())
    stored = graphs.metadata(graph).get("convention")
    if stored is not None and stored != module.convention.to_dict():
        # the module was built with another convention than the graph carried
        graph = graphs.with_metadata(graph, convention=module.convention.to_dict())
    return graph


def _restored(module: GraphModule, user_map: ModuleMap, path: NodePath, sketch: Any) -> nir.NIRNode:
    """One node of an imported graph; options that a torch layer cannot hold come from the sketch."""
    inner = module.get(path)
    if inner is None:
        return graphs.make_node(getattr(nir, sketch.kind), metadata=sketch.metadata, **sketch.options)
    function, row = find(user_map, type(inner)), find(MODULES, type(inner))
    if function is not None:
        node: nir.NIRNode = function(inner)
    elif row is not None:
        # per-neuron parameters keep the shape they have
        shape = module.shapes[path].input if sketch.kind in ("Conv1d", "Conv2d", "Flatten") else None
        node = row.to_nir(inner, TraceContext(dotted(path), shape, bare=True))
    else:
        raise ConversionError(
            f"{type(inner).__name__} has no map back to NIR", node=dotted(path), remedy="Pass module_map."
        )
    values = {**graphs.parameters(node), **sketch.options}
    return graphs.make_node(type(node), metadata=sketch.metadata, **values)
