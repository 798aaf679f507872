"""The table of primitives: one row each, both directions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from nirdeploy.convert.layers import FlattenSample, SumPool2d
from nirdeploy.errors import ConversionError
from nirdeploy.graph import conv2d_options, make_node, pair
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import IF, LIF

__all__ = ["BYPASSED", "PRIMITIVES", "BuildContext", "Primitive", "TraceContext", "find", "row_for_node"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BuildContext:
    """What a row knows when it builds a module: the node's name, its input shape and the convention there."""

    name: str
    input_shape: Shape | None
    convention: Convention


@dataclass(frozen=True)
class TraceContext:
    """What a row knows when it writes a node: the module path and the shape of one sample that comes in."""

    path: str
    input_shape: Shape | None

    def required_shape(self, what: str) -> Shape:
        """The input shape, or a refusal that says how to give it."""
        if self.input_shape is None:
            raise ConversionError(
                f"{what} needs to know the shape of its input",
                node=self.path,
                remedy="Pass input_shape=(channel, height, width), or sample_input=x with a batch axis.",
            )
        return self.input_shape


@dataclass(frozen=True)
class Primitive:
    """One NIR primitive.

    Attributes:
        node: the NIR type.
        modules: torch modules that stand for it.
        to_torch: node -> module.
        to_nir: module -> node.
        input_shape: module -> shape of one sample that it takes, where the module alone tells.
    """

    node: type[nir.NIRNode]
    modules: tuple[type[nn.Module], ...]
    to_torch: Callable[[Any, BuildContext], nn.Module]
    to_nir: Callable[[Any, TraceContext], nir.NIRNode]
    input_shape: Callable[[Any], Shape | None] = lambda module: None


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    detached = tensor.detach().cpu()
    if detached.dtype in (torch.bfloat16, torch.float16):
        detached = detached.float()
    return np.array(detached.numpy(), copy=True)


def _fill(module: nn.Module, **values: Any) -> nn.Module:
    """Copy arrays into a module's parameters, so that module and graph share no memory."""
    for name, value in values.items():
        tensor = torch.tensor(np.asarray(value))
        if not tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        setattr(module, name, nn.Parameter(tensor))
    return module


# ---------------------------------------------------------------- weights


def _affine_to_torch(node: nir.Affine, context: BuildContext) -> nn.Module:
    outputs, inputs = node.weight.shape
    module = nn.Linear(inputs, outputs, device="meta")
    return _fill(module, weight=node.weight, bias=np.broadcast_to(node.bias, (outputs,)))


def _linear_to_torch(node: nir.Linear, context: BuildContext) -> nn.Module:
    outputs, inputs = node.weight.shape
    return _fill(nn.Linear(inputs, outputs, bias=False, device="meta"), weight=node.weight)


def _linear_to_nir(module: nn.Linear, context: TraceContext) -> nir.NIRNode:
    if module.bias is None:
        return make_node(nir.Linear, weight=_numpy(module.weight))
    return make_node(nir.Affine, weight=_numpy(module.weight), bias=_numpy(module.bias))


def _conv2d_to_torch(node: nir.Conv2d, context: BuildContext) -> nn.Module:
    options = conv2d_options(node, context.name)
    outputs, per_group, *kernel = node.weight.shape
    module = nn.Conv2d(per_group * options["groups"], outputs, tuple(kernel), bias=True, device="meta", **options)
    return _fill(module, weight=node.weight, bias=np.broadcast_to(node.bias, (outputs,)))


def _conv2d_to_nir(module: nn.Conv2d, context: TraceContext) -> nir.NIRNode:
    if module.padding_mode != "zeros":
        raise ConversionError(
            f"padding_mode {module.padding_mode!r} does not exist in NIR",
            node=context.path,
            remedy="Use 'zeros'.",
        )
    shape = context.required_shape("Conv2d")
    weight = _numpy(module.weight)
    bias = np.zeros(weight.shape[0], weight.dtype) if module.bias is None else _numpy(module.bias)
    padding = module.padding if isinstance(module.padding, str) else pair(module.padding)
    return make_node(
        nir.Conv2d,
        input_shape=tuple(shape[1:]),
        weight=weight,
        stride=pair(module.stride),
        padding=padding,
        dilation=pair(module.dilation),
        groups=module.groups,
        bias=bias,
    )


# ---------------------------------------------------------------- pooling and flatten


def _pool_options(node: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    return pair(node.kernel_size), pair(node.stride), pair(node.padding)


def _avg_to_torch(node: nir.AvgPool2d, context: BuildContext) -> nn.Module:
    return nn.AvgPool2d(*_pool_options(node))


def _sum_to_torch(node: nir.SumPool2d, context: BuildContext) -> nn.Module:
    return SumPool2d(*_pool_options(node))


def _pool_node(kind: type[nir.NIRNode], module: Any) -> nir.NIRNode:
    stride = module.kernel_size if module.stride is None else module.stride
    values = {"kernel_size": module.kernel_size, "stride": stride, "padding": module.padding}
    return make_node(kind, **{name: np.array(pair(value)) for name, value in values.items()})


def _avg_to_nir(module: nn.AvgPool2d, context: TraceContext) -> nir.NIRNode:
    padded = pair(module.padding) != (0, 0)
    for option, refused in (
        ("ceil_mode", bool(module.ceil_mode)),
        ("divisor_override", module.divisor_override is not None),
        ("count_include_pad=False", padded and not module.count_include_pad),
    ):
        if refused:
            raise ConversionError(
                f"AvgPool2d with {option} does not exist in NIR", node=context.path, remedy="Use its default."
            )
    return _pool_node(nir.AvgPool2d, module)


def _sum_to_nir(module: SumPool2d, context: TraceContext) -> nir.NIRNode:
    return _pool_node(nir.SumPool2d, module)


def _flatten_to_torch(node: nir.Flatten, context: BuildContext) -> nn.Module:
    if context.input_shape is None:
        raise ConversionError("Flatten without an input shape", node=context.name)
    return FlattenSample(int(node.start_dim), int(node.end_dim), len(context.input_shape))


def flatten_node(start_dim: int, end_dim: int, context: TraceContext) -> nir.NIRNode:
    """nir.Flatten, whose dimensions count without the batch, from torch's, which count with it."""
    if start_dim == 0:
        raise ConversionError("Flatten(start_dim=0) merges the batch", node=context.path, remedy="Use start_dim=1.")
    shape = context.required_shape("Flatten")
    return make_node(
        nir.Flatten,
        input_type={"input": np.array(shape)},
        start_dim=start_dim - 1 if start_dim > 0 else start_dim,
        end_dim=end_dim - 1 if end_dim > 0 else end_dim,
    )


def _flatten_to_nir(module: nn.Flatten, context: TraceContext) -> nir.NIRNode:
    return flatten_node(module.start_dim, module.end_dim, context)


def _flatten_sample_to_nir(module: FlattenSample, context: TraceContext) -> nir.NIRNode:
    shape = context.required_shape("Flatten")
    return make_node(
        nir.Flatten, input_type={"input": np.array(shape)}, start_dim=module.start_dim, end_dim=module.end_dim
    )


def _any_flatten_to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
    own = isinstance(module, FlattenSample)
    return _flatten_sample_to_nir(module, context) if own else _flatten_to_nir(module, context)


# ---------------------------------------------------------------- neurons


def _if_to_torch(node: nir.IF, context: BuildContext) -> nn.Module:
    return IF(node.r, node.v_threshold, getattr(node, "v_reset", 0.0), convention=context.convention)


def _lif_to_torch(node: nir.LIF, context: BuildContext) -> nn.Module:
    return LIF(
        node.tau,
        node.r,
        node.v_leak,
        node.v_threshold,
        getattr(node, "v_reset", 0.0),
        convention=context.convention,
    )


def _neuron_to_nir(module: IF | LIF, context: TraceContext) -> nir.NIRNode:
    shape = context.input_shape or _neuron_input_shape(module)
    if shape is None:
        context.required_shape(type(module).__name__)
    return module.to_node(tuple(shape or ()))


def _neuron_input_shape(module: IF | LIF) -> Shape | None:
    found = [tuple(p.shape) for p in module.parameters() if p.ndim]
    return max(found, key=len) if found else None


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(nir.Affine, (nn.Linear,), _affine_to_torch, _linear_to_nir, lambda m: (m.in_features,)),
    Primitive(nir.Linear, (), _linear_to_torch, _linear_to_nir),
    Primitive(nir.Conv2d, (nn.Conv2d,), _conv2d_to_torch, _conv2d_to_nir),
    Primitive(nir.AvgPool2d, (nn.AvgPool2d,), _avg_to_torch, _avg_to_nir),
    Primitive(nir.SumPool2d, (SumPool2d,), _sum_to_torch, _sum_to_nir),
    Primitive(nir.Flatten, (nn.Flatten, FlattenSample), _flatten_to_torch, _any_flatten_to_nir),
    Primitive(nir.IF, (IF,), _if_to_torch, _neuron_to_nir, _neuron_input_shape),
    Primitive(nir.LIF, (LIF,), _lif_to_torch, _neuron_to_nir, _neuron_input_shape),
)

# modules without effect on a spiking network that is run, not trained
BYPASSED: tuple[type[nn.Module], ...] = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def find(table: Mapping[type, Any], kind: type) -> Any:
    """The entry for a class or its nearest base class; None if there is none."""
    for base in inspect.getmro(kind):
        if base in table:
            return table[base]
    return None


MODULES: Mapping[type, Primitive] = {kind: row for row in PRIMITIVES for kind in row.modules}
NODES: Mapping[type, Primitive] = {row.node: row for row in PRIMITIVES}


def row_for_node(node: nir.NIRNode) -> Primitive | None:
    """The table's row for a node."""
    found: Primitive | None = find(NODES, type(node))
    return found
