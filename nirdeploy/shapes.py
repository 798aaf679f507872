"""Shapes: one rule a primitive, correct also where nir's own inference is not (kernel width, groups).

Shapes are those of one sample at one step, without batch and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.nodes import Shape, parameters, type_name

__all__ = ["Shapes", "conv1d_options", "conv2d_options", "neuron_shape", "output_shape", "own_input_shape", "pair"]


@dataclass(frozen=True)
class Shapes:
    """Shapes of one sample at a node, without batch and time."""

    input: Shape
    output: Shape


def pair(value: Any) -> tuple[int, int]:
    """(height, width) from an int, a pair or an array of one or two whole numbers.

    Raises:
        GraphError: anything else.
    """
    flat = np.asarray(value).reshape(-1)
    if flat.dtype.kind not in "biuf" or flat.size not in (1, 2) or not np.array_equal(flat, np.rint(flat)):
        raise GraphError(f"{value!r} is not one or two whole numbers")
    first, last = int(flat[0]), int(flat[-1])
    return (first, last)


def _options(node: Any, name: str, **least: int) -> dict[str, tuple[int, int]]:
    """Options of a node as pairs, each at least what is given."""
    found = {}
    for key, low in least.items():
        try:
            found[key] = pair(getattr(node, key))
        except GraphError as error:
            raise GraphError(f"{type_name(node)}.{key}: {error}", node=name) from error
        if min(found[key]) < low:
            raise GraphError(f"{type_name(node)}.{key} is {found[key]}, at least {low} is possible", node=name)
    return found


def conv2d_options(node: nir.Conv2d, name: str) -> dict[str, Any]:
    """stride, padding and dilation as (y, x) pairs and groups as int; 'same' and 'valid' resolved.

    Raises:
        GraphError: 'same' with a stride, or with a kernel that needs unequal padding at the two ends.
    """
    _check_kernel(node, name, 4)
    plain = _options(node, name, stride=1, dilation=1, groups=1)
    padding = _resolved(node.padding, plain["stride"], plain["dilation"], node.weight.shape[2:], name)
    if isinstance(padding, tuple):
        resolved = (int(padding[0]), int(padding[-1]))
    else:
        resolved = _options(node, name, padding=0)["padding"]
    return {
        "stride": plain["stride"],
        "padding": resolved,
        "dilation": plain["dilation"],
        "groups": plain["groups"][0],
    }


def _check_kernel(node: Any, name: str, rank: int) -> None:
    weight = np.asarray(node.weight)
    if weight.ndim != rank or weight.size == 0:
        raise GraphError(
            f"{type_name(node)} with a weight of shape {weight.shape}, expected {rank} axes, none empty", node=name
        )
    bias = np.asarray(node.bias)
    if bias.shape not in ((weight.shape[0],), (1,), ()):
        raise GraphError(
            f"{type_name(node)} with a bias of shape {bias.shape} for {weight.shape[0]} outputs", node=name
        )


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv1d_options(node: nir.Conv1d, name: str) -> dict[str, Any]:
    """stride, padding, dilation and groups as ints; 'same' and 'valid' resolved as in `conv2d_options`."""
    _check_kernel(node, name, 3)
    plain = {key: value[0] for key, value in _options(node, name, stride=1, dilation=1, groups=1).items()}
    padding = _resolved(node.padding, (plain["stride"],), (plain["dilation"],), node.weight.shape[2:], name)
    own = padding[0] if isinstance(padding, tuple) else _options(node, name, padding=0)["padding"][0]
    return {**plain, "padding": own}


def _resolved(padding: Any, stride: Any, dilation: Any, kernel: Any, name: str) -> Any:
    """`padding` with the words 'valid' and 'same' turned into rows and columns."""
    if isinstance(padding, bytes | np.bytes_):
        padding = padding.decode()
    if not isinstance(padding, str):
        return None  # numbers: read with the other options
    if padding == "valid":
        return (0,) * len(kernel)
    if any(s != 1 for s in stride):
        raise GraphError(f"padding 'same' with stride {stride}", node=name)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total):
        raise GraphError(
            f"padding 'same' with kernel {tuple(kernel)} needs one more row at one end",
            node=name,
            remedy="Use an odd kernel or pad explicitly.",
        )
    return tuple(t // 2 for t in total)


def _conv1d_shape(name: str, node: Any, given: Shape) -> Shape:
    options = conv1d_options(node, name)
    out, per_group, kernel = node.weight.shape
    channels = per_group * options["groups"]
    if len(given) != 2 or given[0] != channels:
        raise GraphError(
            f"Conv1d with weight {tuple(node.weight.shape)} and groups {options['groups']} expects "
            f"({channels}, length), got {given}",
            node=name,
        )
    size = _window(given[1], kernel, options["stride"], options["padding"], options["dilation"])
    if size < 1:
        raise GraphError(f"a kernel of {kernel} leaves nothing of a {given} input", node=name)
    return (int(out), size)


def _conv2d_shape(name: str, node: Any, given: Shape) -> Shape:
    options = conv2d_options(node, name)
    out, per_group, *kernel = node.weight.shape
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
    found = _options(node, name, kernel_size=1, stride=1, padding=0)
    kernel, stride, padding = found["kernel_size"], found["stride"], found["padding"]
    if len(given) != 3:
        raise GraphError(f"{type_name(node)} expects (channel, height, width), got {given}", node=name)
    size = tuple(_window(given[i + 1], kernel[i], stride[i], padding[i]) for i in (0, 1))
    if min(size) < 1:
        raise GraphError(f"a {kernel} window leaves nothing of a {given} input", node=name)
    return (given[0], *size)


def _matrix_shape(name: str, node: Any, given: Shape) -> Shape:
    weight = np.asarray(node.weight)
    if weight.ndim == 2 and weight.size == 0:
        raise GraphError(f"{type_name(node)} with an empty weight {weight.shape}", node=name)
    bias = np.asarray(getattr(node, "bias", 0.0))
    if weight.ndim == 2 and bias.shape not in ((weight.shape[0],), (1,), ()):
        raise GraphError(
            f"{type_name(node)} with a bias of shape {bias.shape} for {weight.shape[0]} outputs", node=name
        )
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
    found = [np.shape(value) for value in parameters(node).values()]
    return tuple(int(v) for v in max(found, key=len))


def _elementwise_shape(name: str, node: Any, given: Shape) -> Shape:
    for field, value in parameters(node).items():
        own = np.shape(value)
        if own not in (given, (1,), ()):
            raise GraphError(f"{type_name(node)} has {field} of shape {own}, its input is {given}", node=name)
    return given


_OUTPUT_SHAPE: dict[str, Callable[[str, Any, Shape], Shape]] = {
    "Affine": _matrix_shape,
    "AvgPool2d": _pool_shape,
    "Conv1d": _conv1d_shape,
    "Conv2d": _conv2d_shape,
    "CubaLI": _elementwise_shape,
    "CubaLIF": _elementwise_shape,
    "Delay": _elementwise_shape,
    "Flatten": _flatten_shape,
    "I": _elementwise_shape,
    "IF": _elementwise_shape,
    "LI": _elementwise_shape,
    "LIF": _elementwise_shape,
    "Linear": _matrix_shape,
    "Scale": _elementwise_shape,
    "SumPool2d": _pool_shape,
    "Threshold": _elementwise_shape,
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


def own_input_shape(name: str, node: nir.NIRNode) -> Shape:
    """Shape of the input that a node's own parameters ask for.

    Raises:
        GraphError: they do not tell.
    """
    kind = type_name(node)
    if kind in ("Affine", "Linear"):
        return (int(node.weight.shape[1]),)
    if kind in ("Conv1d", "Conv2d") and node.input_shape is not None:
        size = tuple(int(n) for n in np.atleast_1d(np.asarray(node.input_shape)))
        return (int(node.weight.shape[1] * np.asarray(node.groups)), *size)
    if kind == "Flatten" and node.input_type["input"] is not None:
        return tuple(int(n) for n in node.input_type["input"])
    if _OUTPUT_SHAPE.get(kind) is _elementwise_shape and neuron_shape(node):
        return neuron_shape(node)
    raise GraphError(
        f"the shape of {kind} is unknown: nothing but a cycle feeds it",
        node=name,
        remedy="Give its parameters their full shape.",
    )
