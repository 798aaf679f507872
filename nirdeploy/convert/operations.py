"""What each traced operation becomes in the draft: one handler each, in the table `HANDLERS`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from nirdeploy.convert.draft import Batch, Key, Signal, StateOf, Value
from nirdeploy.convert.frameworks.framework import framework_of
from nirdeploy.convert.primitives import MODULES, TraceContext, find, flatten_node
from nirdeploy.convert.walk import Walk

__all__ = ["HANDLERS", "VIEWS", "in_place", "is_check"]


def in_place(node: fx.Node) -> bool:
    """Whether an operation changes its first argument (relu_, +=, inplace=True, out=)."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    marked = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
    plain = name.endswith("_") and not name.endswith("__")
    return marked or plain or node.target in _AUGMENTED or name in ("__iadd__", "__isub__", "__imul__", "setitem")


def is_check(node: fx.Node) -> bool:
    """Whether fx itself put the operation there, to check an argument that is fixed to a value."""
    return node.target is torch._assert or getattr(node.target, "__name__", "") == "_assert_is_none"


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _operands(walk: Walk, node: fx.Node) -> tuple[Any, Any]:
    named = [node.kwargs[key] for key in ("input", "other") if key in node.kwargs]
    left, right = [*node.args, *named][:2]
    return left, right


def _sum(walk: Walk, node: fx.Node, left: Any, right: Any, sign: float) -> Value:
    """left + sign * right, of signals and constants."""
    a, b = walk.constant(left), walk.constant(right)
    if a is not None and b is not None:
        return np.asarray(a + sign * b)
    if b is not None:
        return walk.draft.shift(walk.signal(left, node), sign * b, fold=right not in walk.parameters)
    if a is not None:
        scaled = walk.draft.scale(walk.signal(right, node), np.asarray(sign))
        return walk.draft.shift(scaled, a, fold=left not in walk.parameters)
    return walk.draft.merge(walk.signal(left, node), walk.draft.scale(walk.signal(right, node), np.asarray(sign)))


def _alpha(walk: Walk, node: fx.Node) -> float:
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(alpha, int | float):
        raise walk.refuse(node, f"with alpha={alpha!r}")
    return float(alpha)


def _add(walk: Walk, node: fx.Node) -> Value:
    left, right = _operands(walk, node)
    return _sum(walk, node, left, right, _alpha(walk, node))


def _subtract(walk: Walk, node: fx.Node) -> Value:
    left, right = _operands(walk, node)
    return _sum(walk, node, left, right, -_alpha(walk, node))


def _multiply(walk: Walk, node: fx.Node) -> Value:
    left, right = _operands(walk, node)
    a, b = walk.constant(left), walk.constant(right)
    if a is not None and b is not None:
        return np.asarray(a * b)
    if a is None and b is None:
        raise walk.refuse(node, "of two signals does not exist in NIR")
    factor, signal = (a, right) if a is not None else (b, left)
    return walk.draft.scale(walk.signal(signal, node), np.asarray(factor))


def _divide(walk: Walk, node: fx.Node) -> Value:
    left, right = _operands(walk, node)
    a, b = walk.constant(left), walk.constant(right)
    if b is None or node.kwargs.get("rounding_mode") is not None:
        raise walk.refuse(node, "by a signal, or with rounding, does not exist in NIR")
    if not np.all(b != 0):
        raise walk.refuse(node, "by zero")
    return np.asarray(a / b) if a is not None else walk.draft.scale(walk.signal(left, node), np.asarray(1.0 / b))


def _negate(walk: Walk, node: fx.Node) -> Value:
    constant = walk.constant(_first(node))
    return -constant if constant is not None else walk.draft.scale(walk.signal(_first(node), node), np.asarray(-1.0))


def _pass(walk: Walk, node: fx.Node) -> Value:
    constant = walk.constant(_first(node))
    return constant if constant is not None else walk.signal(_first(node), node)


def _dropout(walk: Walk, node: fx.Node) -> Value:
    """Nothing, as of the module; but not where it acts outside training, or in another library's network."""
    given = inspect.signature(functional.dropout).bind(*node.args, **node.kwargs).arguments
    acts = given.get("training", True) is True and given.get("p", 0.5) > 0
    if acts and (not walk.root.training or any(framework_of(part) for part in walk.root.modules())):
        raise walk.refuse(node, "drops values by chance; call eval(), and give it training=self.training")
    return _pass(walk, node)


def _item(walk: Walk, node: fx.Node) -> Value:
    value, index = node.args[0], node.args[1]
    found = walk.env.get(value) if isinstance(value, fx.Node) else None
    if isinstance(found, Key) and isinstance(index, int | str):
        return Key((*found.keys, index))
    if isinstance(found, Batch) and found.whole and (index == 0 or not node.users):
        return Batch()
    if isinstance(value, fx.Node) and value.op == "call_module" and isinstance(index, int):
        module = walk.root.get_submodule(str(value.target))
        if isinstance(found, Signal) and walk.maps.returns_state(module):
            return found if index == 0 else StateOf(found.sources[0], index)
    raise walk.refuse(node, "(indexing) does not exist in NIR")


def _get(walk: Walk, node: fx.Node) -> Value:
    found = walk.env.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if isinstance(found, Key) and isinstance(node.args[1], int | str) and node.args[2:] in ((), (None,)):
        return Key((*found.keys, node.args[1]))
    raise walk.refuse(node)


def _size(walk: Walk, node: fx.Node) -> Value:
    walk.signal(node.args[0], node)
    if node.args[1:] == (0,):
        return Batch()
    if node.args[1:] == ():
        return Batch(whole=True)
    raise walk.refuse(node, "of another axis than the batch")


def _getattr(walk: Walk, node: fx.Node) -> Value:
    if node.args[1] == "shape":
        walk.signal(node.args[0], node)
        return Batch(whole=True)
    raise walk.refuse(node)


def _flatten(walk: Walk, node: fx.Node) -> Value:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    if not (isinstance(start, int) and isinstance(end, int)):
        raise walk.refuse(node, "with computed dimensions does not exist in NIR")
    return _flattened(walk, node, start, end)


def _flattened(walk: Walk, node: fx.Node, start: int, end: int) -> Signal:
    signal = walk.signal(_first(node), node)
    context = TraceContext("flatten", signal.shape, axes=walk.axes.of(node))
    return walk.draft.add("flatten", flatten_node(start, end, context), signal)


def _view(walk: Walk, node: fx.Node) -> Value:
    """x.view(x.size(0), -1) and its kin: everything but the batch becomes one axis."""
    sizes = (
        list(node.args[1]) if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else list(node.args[1:])
    )
    signal = walk.signal(node.args[0], node)
    if len(sizes) == 2 and walk.axes.of(node) == 1:
        first, second = sizes
        batch = isinstance(first, fx.Node) and isinstance(walk.env.get(first), Batch)
        flat = int(np.prod(signal.shape)) if signal.shape is not None else None
        if (batch and second in (-1, flat)) or (first == -1 and second == flat):
            return _flattened(walk, node, 1, -1)
    raise walk.refuse(node, f"to {sizes} is no flattening of a sample")


def _average(walk: Walk, node: fx.Node) -> Value:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    signal = walk.signal(given.pop("input"), node)
    pool = nn.AvgPool2d(**given)
    row = find(MODULES, nn.AvgPool2d)
    return walk.draft.add("avg_pool2d", row.to_nir(pool, TraceContext("avg_pool2d", signal.shape)), signal)


# results that share their argument's memory
VIEWS = {torch.flatten, "flatten", "view", "reshape", torch.reshape, "contiguous", "detach"}
_AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}

HANDLERS: dict[Any, Callable[[Walk, fx.Node], Value]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__", "__radd__"), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract"), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"), _multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_", "divide"), _divide),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative, "neg"), _negate),
    **dict.fromkeys((torch.clone, "clone", "contiguous"), _pass),
    **dict.fromkeys((functional.dropout, functional.dropout1d, functional.dropout2d, torch.dropout), _dropout),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys(("view", "reshape", torch.reshape), _view),
    functional.avg_pool2d: _average,
    operator.getitem: _item,
    "get": _get,
    "size": _size,
    getattr: _getattr,
}
