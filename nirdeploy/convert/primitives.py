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

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.layers import FlattenSample, SumPool2d
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_node, parameters
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import IF, LI, LIF, CubaLI, CubaLIF, Delay, I, Membrane, Threshold
from nirdeploy.shapes import conv1d_options, conv2d_options, pair

__all__ = ["BYPASSED", "PRIMITIVES", "BuildContext", "Primitive", "TraceContext", "find", "row_for_node"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BuildContext:
    """What a row knows when it builds a module.

    Attributes:
        name: the node's name.
        input_shape: shape of one sample; None for a bare node.
        convention: what holds at the node.
        shared: whether the node's arrays belong to nobody else and need not be copied.
        dtype: type of the parameters.
    """

    name: str
    input_shape: Shape | None
    convention: Convention
    shared: bool = False
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class TraceContext:
    """What a row knows when it writes a node.

    Attributes:
        path: the module path.
        input_shape: shape of one sample that comes in, where known.
        bare: whether the node is wanted by itself, outside a graph, where NIR lets shapes be unknown.
        dt: seconds a step stands for where a module counts steps only; None: not said.
        axes: axes in front of those of a sample: the batch, or 2 where layers take all steps at once.
        gets_state: whether forward hands the module its state, so that what it holds itself does not matter.
    """

    path: str
    input_shape: Shape | None
    bare: bool = False
    dt: float | None = None
    axes: int = 1
    gets_state: bool = False

    def known_shape(self, what: str) -> Shape | None:
        """The input shape; None only for a bare node."""
        return None if self.bare and self.input_shape is None else self.required_shape(what)

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


def _fill(module: nn.Module, context: BuildContext, **values: Any) -> nn.Module:
    """Set parameters from arrays, copied unless they belong to nobody else."""
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ConversionError(f"{name} has dtype {array.dtype}, expected real numbers", node=context.name)
        if not array.dtype.isnative or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        if context.shared and array.flags.writeable and array.dtype.isnative:
            tensor = torch.from_numpy(array).to(context.dtype)
        else:
            tensor = torch.tensor(array, dtype=context.dtype)
        setattr(module, name, nn.Parameter(tensor))
    return module


# ---------------------------------------------------------------- weights


def _affine_to_torch(node: nir.Affine, context: BuildContext) -> nn.Module:
    outputs, inputs = node.weight.shape
    module = nn.Linear(inputs, outputs, device="meta")
    return _fill(module, context, weight=node.weight, bias=np.broadcast_to(node.bias, (outputs,)))


def _linear_to_torch(node: nir.Linear, context: BuildContext) -> nn.Module:
    outputs, inputs = node.weight.shape
    return _fill(nn.Linear(inputs, outputs, bias=False, device="meta"), context, weight=node.weight)


def _linear_to_nir(module: nn.Linear, context: TraceContext) -> nir.NIRNode:
    if module.bias is None:
        return make_node(nir.Linear, weight=array_of(module.weight))
    return make_node(nir.Affine, weight=array_of(module.weight), bias=array_of(module.bias))


def _conv2d_to_torch(node: nir.Conv2d, context: BuildContext) -> nn.Module:
    options = conv2d_options(node, context.name)
    outputs, per_group, *kernel = node.weight.shape
    module = nn.Conv2d(per_group * options["groups"], outputs, tuple(kernel), bias=True, device="meta", **options)
    return _fill(module, context, weight=node.weight, bias=np.broadcast_to(node.bias, (outputs,)))


def _conv2d_to_nir(module: nn.Conv2d, context: TraceContext) -> nir.NIRNode:
    weight, bias, size = _conv_parts(module, context)
    return make_node(
        nir.Conv2d,
        input_shape=size,
        weight=weight,
        stride=pair(module.stride),
        padding=module.padding if isinstance(module.padding, str) else pair(module.padding),
        dilation=pair(module.dilation),
        groups=module.groups,
        bias=bias,
    )


def _conv1d_to_torch(node: nir.Conv1d, context: BuildContext) -> nn.Module:
    options = conv1d_options(node, context.name)
    outputs, per_group, kernel = node.weight.shape
    module = nn.Conv1d(per_group * options["groups"], outputs, kernel, bias=True, device="meta", **options)
    return _fill(module, context, weight=node.weight, bias=np.broadcast_to(node.bias, (outputs,)))


def _conv1d_to_nir(module: nn.Conv1d, context: TraceContext) -> nir.NIRNode:
    weight, bias, size = _conv_parts(module, context)
    return make_node(
        nir.Conv1d,
        input_shape=None if size is None else size[0],
        weight=weight,
        stride=int(module.stride[0]),
        padding=module.padding if isinstance(module.padding, str) else int(module.padding[0]),
        dilation=int(module.dilation[0]),
        groups=module.groups,
        bias=bias,
    )


def _conv_parts(module: nn.Conv1d | nn.Conv2d, context: TraceContext) -> tuple[np.ndarray, np.ndarray, Shape | None]:
    """Weight, bias and size of the input map, which only a bare node may leave open."""
    if module.padding_mode != "zeros":
        raise ConversionError(
            f"padding_mode {module.padding_mode!r} does not exist in NIR", node=context.path, remedy="Use 'zeros'."
        )
    weight = array_of(module.weight)
    bias = np.zeros(weight.shape[0], weight.dtype) if module.bias is None else array_of(module.bias)
    known = context.known_shape(type(module).__name__)
    if known is not None and len(known) != weight.ndim - 1:
        axes = ("channel", "height", "width") if weight.ndim == 4 else ("channel", "length")
        raise ConversionError(
            f"{type(module).__name__} takes samples of ({', '.join(axes)}), here {known}",
            node=context.path,
            remedy="Give sample_input the axes that the first layer takes, or pass the shape of one sample as "
            "input_shape.",
        )
    return weight, bias, None if known is None else known[1:]


# ---------------------------------------------------------------- scale


class Scale(nn.Module):
    """Multiply by a scalar or one number a neuron (nir.Scale)."""

    def __init__(self, scale: Any) -> None:
        super().__init__()
        tensor = torch.as_tensor(np.array(scale, copy=True))
        self.scale = nn.Parameter(tensor if tensor.is_floating_point() else tensor.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale one step."""
        return x * self.scale


def _full(tensor: torch.Tensor, context: TraceContext) -> np.ndarray:
    array = array_of(tensor)
    return array if context.input_shape is None else np.array(np.broadcast_to(array, context.input_shape), copy=True)


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
    """nir.Flatten, whose dimensions count without batch and steps, from torch's, which count with them."""
    lead = context.axes
    if 0 <= start_dim < lead:
        raise ConversionError(
            f"Flatten(start_dim={start_dim}) merges the batch", node=context.path, remedy=f"Use start_dim={lead}."
        )
    shape = context.known_shape("Flatten")
    return make_node(
        nir.Flatten,
        input_type={"input": None if shape is None else np.array(shape)},
        start_dim=start_dim - lead if start_dim > 0 else start_dim,
        end_dim=end_dim - lead if end_dim > 0 else end_dim,
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


# ---------------------------------------------------------------- populations


def _population_row(kind: type[nir.NIRNode], module: type[Membrane] | type[Delay]) -> Primitive:
    """The row of a primitive whose module takes the node's own parameters by name."""

    def to_torch(node: nir.NIRNode, context: BuildContext) -> nn.Module:
        return module(**parameters(node), convention=context.convention)

    def to_nir(given: Any, context: TraceContext) -> nir.NIRNode:
        shape = context.input_shape if context.input_shape is not None else _widest(given)
        if shape is None and not context.bare:
            context.required_shape(type(given).__name__)
        node: nir.NIRNode = given.to_node(tuple(shape or ()))
        return node

    return Primitive(kind, (module,), to_torch, to_nir, _widest)


def _widest(module: nn.Module) -> Shape | None:
    """The shape that the per-neuron parameters of a population have; None where all are scalars."""
    found = [tuple(p.shape) for p in (*module.parameters(), *module.buffers()) if p.ndim]
    return max(found, key=len) if found else None


PRIMITIVES: tuple[Primitive, ...] = (
    Primitive(nir.Affine, (nn.Linear,), _affine_to_torch, _linear_to_nir, lambda m: (m.in_features,)),
    Primitive(nir.Linear, (), _linear_to_torch, _linear_to_nir),
    Primitive(nir.Conv1d, (nn.Conv1d,), _conv1d_to_torch, _conv1d_to_nir),
    Primitive(nir.Conv2d, (nn.Conv2d,), _conv2d_to_torch, _conv2d_to_nir),
    Primitive(nir.AvgPool2d, (nn.AvgPool2d,), _avg_to_torch, _avg_to_nir),
    Primitive(nir.SumPool2d, (SumPool2d,), _sum_to_torch, _sum_to_nir),
    Primitive(nir.Flatten, (nn.Flatten, FlattenSample), _flatten_to_torch, _any_flatten_to_nir),
    Primitive(
        nir.Scale,
        (Scale,),
        lambda node, context: Scale(node.scale),
        lambda module, context: make_node(nir.Scale, scale=_full(module.scale, context)),
        _widest,
    ),
    Primitive(
        nir.Threshold,
        (Threshold,),
        lambda node, context: Threshold(node.threshold),
        lambda module, context: make_node(nir.Threshold, threshold=_full(module.threshold, context)),
        _widest,
    ),
    _population_row(nir.Delay, Delay),
    _population_row(nir.I, I),
    _population_row(nir.LI, LI),
    _population_row(nir.IF, IF),
    _population_row(nir.LIF, LIF),
    *([_population_row(nir.CubaLI, CubaLI)] if hasattr(nir, "CubaLI") else []),  # nir 1.0.4 lacks it
    _population_row(nir.CubaLIF, CubaLIF),
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
