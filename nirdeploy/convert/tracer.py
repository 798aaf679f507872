"""Symbolic tracing of a forward: which operations it makes of its inputs; nothing is run, nothing is changed."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from nirdeploy.convert.frameworks.framework import traceable
from nirdeploy.convert.guards import refuse_hooks, unchanged, without_chance
from nirdeploy.convert.maps import Maps

__all__ = ["NOT_SYMBOLIC", "Traced", "states_of", "trace_forward"]

_STATE_NAMES = ("state", "states", "hidden", "hx", "mem")
NOT_SYMBOLIC = (fx.proxy.TraceError, TypeError, AttributeError, KeyError, ValueError)
"""What a forward raises that treats a symbolic state as if it were a value."""


@dataclass(frozen=True)
class Traced:
    """A traced forward.

    Attributes:
        graph: its operations.
        constants: tensors in them, by name.
        resets: paths of the layers that forward reset, with the number of operations traced by then.
    """

    graph: fx.Graph
    constants: Mapping[str, torch.Tensor]
    resets: tuple[tuple[str, int], ...]


def states_of(module: nn.Module) -> list[str]:
    """Arguments of forward that are states by their name or default."""
    signature = inspect.signature(module.forward).parameters
    return [name for name, parameter in signature.items() if parameter.default is None or name in _STATE_NAMES]


def trace_forward(module: nn.Module, maps: Maps, concrete: Mapping[str, Any], *, length: int | None = None) -> Traced:
    """Trace a module whose mapped parts stay whole.

    Args:
        module: the network.
        maps: of the conversion.
        concrete: arguments of forward fixed to a value.
        length: of the sample input's first axis, over which forward may loop; None: not known.

    Raises:
        ConversionError: hooks, a forward that changes what is not its state, or one that draws random numbers; and
            whatever forward itself raises on symbolic values.
    """
    refuse_hooks(module)
    tracer = _Tracer(module, maps, length)
    tracer.states = [name for name in states_of(module) if name not in concrete]
    resets: list[tuple[str, int]] = []
    with _recorded_resets(module, maps, tracer, resets), unchanged(module), without_chance(module):
        graph = tracer.trace(module, concrete_args=dict(concrete) or None)
    return Traced(graph, tracer.constants, tuple(resets))


@contextmanager
def _recorded_resets(module: nn.Module, maps: Maps, tracer: _Tracer, resets: list[tuple[str, int]]) -> Iterator[None]:
    """Let layers of a library, asked to reset themselves, say only that they were: None for each of their states."""

    def recorded(path: str, count: int) -> Callable[[], Any]:
        def reset() -> Any:
            resets.append((path, len(tracer.graph.nodes)))
            return None if count == 1 else (None,) * count

        return reset

    changed: list[tuple[dict[str, Any], str]] = []
    for path, part in module.named_modules():
        row = maps.foreign(part)
        for name in () if row is None else row.resets:
            if row is not None and name not in vars(part):
                vars(part)[name] = recorded(path, len(row.states(part)))
                changed.append((vars(part), name))
    try:
        yield
    finally:
        for attributes, name in changed:
            del attributes[name]


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

    def __init__(self, root: nn.Module, maps: Maps, length: int | None) -> None:
        super().__init__()
        self.record_stack_traces = True
        self._mapped = maps.is_mapped
        self._libraries = maps.default is None
        # of the input, where layers let forward loop over it
        loops = any(row.resets for part in root.modules() if (row := maps.foreign(part)) is not None)
        self._length = length if loops else None
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
        refuse_hooks(m, self.path_of_module(m))
        return super().call_module(m, stand_in.forward, args, kwargs)
