"""Layers of a lava-dl file, validated one by one and turned into NIR nodes and their integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import FileError, QuantizationError, UnsupportedError
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.netx_fields import (
    DECAY,
    THRESHOLD,
    Layer,
    Shape,
    bias_field,
    integers_field,
    neuron_group,
    register_field,
    require_shape,
    text_field,
    weight_field,
)
from nirdeploy_loihi.weights import kept_by_lava, sign_mode

__all__ = ["network_of"]

DT = 1e-3
FOREVER = 2.0**40  # time constant, in steps, of a decay register of 0
_TYPES = ("conv", "dense", "flatten", "input")
_KNOWN = {"type", "shape", "weight", "bias", "neuron", "stride", "padding", "dilation", "groups", "delay"}
_KNOWN |= {"inFeatures", "outFeatures", "inChannels", "outChannels", "kernelSize"}
_SHIFT = 6


@dataclass
class _Chain:
    """The network so far: nodes, edges, integers and the shape at its end."""

    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    integers: dict[str, QuantizedWeight | QuantizedNeuron] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    shape: Shape = ()
    last: str = "input"

    def append(self, name: str, node: nir.NIRNode, shape: Shape) -> None:
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last, self.shape = name, shape

    def warn(self, code: str, node: str, problem: str, remedy: str) -> None:
        self.findings.append(Finding(code, node, problem, remedy, severity="warning"))


def network_of(layers: Sequence[Layer], target: Target) -> tuple[Quantized, list[Finding]]:
    """The layers of a file as a quantised graph, with what is worth a warning.

    Raises:
        FileError, UnsupportedError, QuantizationError: see `nirdeploy_loihi.netx.read`.
    """
    kinds = [text_field(layer, "type", str(i)) for i, layer in enumerate(layers)]
    for group, kind in enumerate(kinds):
        if kind not in _TYPES:
            raise UnsupportedError(f"layer {group} has type {kind!r}", remedy=f"Supported: {', '.join(_TYPES)}.")
        if kind == "input" and group:
            raise UnsupportedError(f"layer {group} is an input behind other layers")
    chain = _Chain()
    chain.shape = _input_shape(layers, kinds)
    chain.nodes["input"] = graphs.make_node(nir.Input, input_type={"input": np.array(chain.shape)})
    for group, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        for name in sorted(set(layer) - _KNOWN - {"weight_rec"}):
            chain.warn("ignored", "", f"layer {group} has {name!r}, which netx ignores", "Check the export.")
        if kind != "input":
            _ADD[kind](chain, str(group), layer)
    if not chain.integers:
        raise FileError(f"the file has no layer with neurons, only {', '.join(kinds)}")
    output = graphs.make_node(nir.Output, output_type={"output": np.array(chain.shape)})
    chain.append("output", output, chain.shape)
    graph = graphs.make_graph(chain.nodes, chain.edges)
    # the delay of one step a connection is the lag of the records, not part of the equations
    convention = Convention(dt=DT, reset="zero")
    return Quantized(graph, target, convention, "given", chain.integers), chain.findings


def _input_shape(layers: Sequence[Layer], kinds: Sequence[str]) -> Shape:
    first = next((i for i, kind in enumerate(kinds) if kind != "input"), None)
    if first is None:
        raise FileError("the file has an input layer only")
    if kinds[0] != "input":
        if kinds[0] == "dense":
            return (int(weight_field(layers[0], "0", (2,)).shape[1]),)
        raise UnsupportedError(
            f"layer 0 is {kinds[0]!r} and there is no input layer to give the image's shape",
            remedy="Export the network with its input layer.",
        )
    layer = layers[0]
    for name in ("neuron", "weight", "bias"):
        if name in layer:
            raise UnsupportedError(
                f"layer 0 is an input with {name!r}, which netx cannot run on CPU or leaves out",
                remedy="Export an input layer without it.",
            )
    shape = tuple(int(v) for v in integers_field(layer, "shape", "0").reshape(-1))
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise FileError(f"layer 0 has shape {shape}, expected [neurons] or [channel, height, width]")
    flat = len(shape) == 3 and shape[1:] == (1, 1) and kinds[first] == "dense"
    return shape[:1] if flat else shape


# ---------------------------------------------------------------- layers


def _add_flatten(chain: _Chain, group: str, layer: Layer) -> None:
    size = int(np.prod(chain.shape))
    if "shape" in layer and int(np.prod(integers_field(layer, "shape", group))) != size:
        raise FileError(f"layer {group} flattens {chain.shape} to {layer['shape'].tolist()}")
    kind = {"input": np.array(chain.shape)}
    node = graphs.make_node(nir.Flatten, input_type=kind, start_dim=0, end_dim=-1)
    chain.append(f"{group}.flatten", node, (size,))


def _add_dense(chain: _Chain, group: str, layer: Layer) -> None:
    weight = weight_field(layer, group, (2,))
    _require_synapse(layer, group, weight, chain)
    if not kept_by_lava(weight):
        raise QuantizationError(
            f"layer {group} has {sign_mode(weight)} weights from {weight.min()} to {weight.max()} that Lava would "
            "change: it holds mixed signs from -256 to 254, positive up to 255, and of negative weights only "
            "those that its own scaling keeps",
            remedy="Scale them into the limits; make negative weights even, with a minimum that is no power of 2.",
        )
    if len(chain.shape) != 1:
        raise FileError(f"layer {group} is dense on an image {chain.shape}", remedy="Put a flatten layer before it.")
    if chain.shape[0] != weight.shape[1]:
        raise FileError(f"layer {group} has weight {weight.shape}, its input has {chain.shape[0]} neurons")
    shape = (int(weight.shape[0]),)
    require_shape(layer, group, shape)
    bias = bias_field(layer, group, shape)
    own = _own_bias(layer, group, bias)
    floats = weight.astype(np.float64)
    node = (
        graphs.make_node(nir.Linear, weight=floats)
        if own is None
        else graphs.make_node(nir.Affine, weight=floats, bias=own.astype(np.float64))
    )
    chain.append(f"{group}.synapse", node, shape)
    chain.integers[f"{group}.synapse"] = QuantizedWeight(weight, bias, 1.0)
    _add_neuron(chain, group, layer, bias, own is not None)


def _add_conv(chain: _Chain, group: str, layer: Layer) -> None:
    weight = weight_field(layer, group, (4, 5))
    weight = weight.reshape(weight.shape[:4])
    _require_synapse(layer, group, weight, chain)
    if weight.min() < -256 or weight.max() > 255 or (weight.min() < 0 and weight.max() > 254):
        raise QuantizationError(
            f"layer {group} has weights from {weight.min()} to {weight.max()}, 8 bits and a sign hold -256 to 254 "
            "or 0 to 255"
        )
    options = {
        name: graphs.pair(integers_field(layer, name, group, default))
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    groups = int(integers_field(layer, "groups", group, 1).reshape(-1)[0])
    if min(*options["stride"], *options["dilation"], groups) < 1 or min(options["padding"]) < 0:
        raise FileError(f"layer {group} has stride, padding, dilation {options} and groups {groups}")
    if len(chain.shape) != 3:
        raise FileError(f"layer {group} is a convolution on {chain.shape}, expected an image")
    node = graphs.make_node(
        nir.Conv2d,
        input_shape=tuple(chain.shape[1:]),
        weight=weight.astype(np.float64),
        groups=groups,
        bias=np.zeros(len(weight)),
        **options,
    )
    shape = _conv_shape(node, group, chain.shape)
    require_shape(layer, group, shape)
    bias = bias_field(layer, group, shape)
    own = _own_bias(layer, group, bias) if bias is not None and bias.ndim == 1 else None
    if own is not None:
        node.bias = own.astype(np.float64)
    chain.append(f"{group}.synapse", node, shape)
    per_channel = bias if bias is not None and bias.ndim == 1 else None
    chain.integers[f"{group}.synapse"] = QuantizedWeight(weight, per_channel, 1.0)
    if per_channel is not None:
        bias = np.broadcast_to(per_channel[:, None, None], shape).copy()
    _add_neuron(chain, group, layer, bias, own is not None)


_ADD = {"conv": _add_conv, "dense": _add_dense, "flatten": _add_flatten}


def _conv_shape(node: nir.Conv2d, group: str, given: Shape) -> Shape:
    outputs, per_group, *kernel = node.weight.shape
    options = graphs.conv2d_options(node, group)
    if given[0] != per_group * options["groups"] or outputs % options["groups"]:
        raise FileError(
            f"layer {group} has weight {node.weight.shape} and groups {options['groups']}, its input is {given}"
        )
    size = [
        (given[i + 1] + 2 * options["padding"][i] - options["dilation"][i] * (kernel[i] - 1) - 1)
        // options["stride"][i]
        + 1
        for i in (0, 1)
    ]
    if min(size) < 1:
        raise FileError(f"layer {group} has a kernel {tuple(kernel)} that leaves nothing of an input {given}")
    return (int(outputs), size[0], size[1])


def _add_neuron(chain: _Chain, group: str, layer: Layer, bias: NDArray[np.int64] | None, in_synapse: bool) -> None:
    """Append the population; `in_synapse`: the weight node already holds the bias."""
    values = neuron_group(layer, group)
    decay_u, decay_v = (register_field(values, name, group, DECAY) for name in ("iDecay", "vDecay"))
    threshold = register_field(values, "vThMant", group, THRESHOLD)
    name, shape = f"{group}.neuron", chain.shape
    for option, usual in (("refDelay", 1), ("gradedSpike", 0)):
        if option in values and np.any(np.asarray(values[option]) != usual):
            chain.warn("ignored", name, f"{option} is {values[option]}, which netx ignores", f"Use {usual}.")
    leak = np.zeros(shape) if bias is None or in_synapse else bias.astype(np.float64)
    chain.append(name, _neuron_node(decay_u, decay_v, float(threshold), leak, shape), shape)
    chain.integers[name] = QuantizedNeuron(
        threshold=threshold << _SHIFT,
        v_min=None,
        scale=1.0 / (1 << _SHIFT),
        decay_v=decay_v,
        decay_u=decay_u,
        bias=bias,
        bias_exponent=_SHIFT if bias is not None else 0,
        mantissa=threshold,
        exponent=_SHIFT,
    )


def _neuron_node(decay_u: int, decay_v: int, threshold: float, leak: NDArray[np.float64], shape: Shape) -> nir.NIRNode:
    """u = (1 - A) u + a and v = (1 - B) v + u + leak as NIR's Euler step, A and B being decay / 4096.

    NIR's CubaLIF gains are w_in A and r B (here 1, so w_in = 1/A, r = 1/B) and its leak is B v_leak; LIF is the
    case A = 1. IF has gain r dt = 1.
    """
    ones = np.ones(shape)
    values = {"v_threshold": threshold * ones, "v_reset": 0 * ones}
    if decay_u == 4096 and decay_v == 0 and not leak.any():
        return graphs.make_node(nir.IF, r=ones / DT, **values)
    steps_v = 4096 / decay_v if decay_v else FOREVER
    membrane = {"r": steps_v * ones, "v_leak": steps_v * leak, **values}
    if decay_u == 4096:
        return graphs.make_node(nir.LIF, tau=steps_v * DT * ones, **membrane)
    steps_u = 4096 / decay_u if decay_u else FOREVER
    return graphs.make_node(
        nir.CubaLIF, tau_syn=steps_u * DT * ones, tau_mem=steps_v * DT * ones, w_in=steps_u * ones, **membrane
    )


def _require_synapse(layer: Layer, group: str, weight: NDArray[np.int64], chain: _Chain) -> None:
    if "delay" in layer and np.any(np.asarray(layer["delay"]) != 0):
        raise UnsupportedError(f"layer {group} has delays", remedy="Train without delays.")
    if "weight_rec" in layer:
        raise UnsupportedError(f"layer {group} has recurrent weights")
    if sign_mode(weight) == "mixed" and np.any(weight % 2) and (weight.max() > 127 or weight.min() < -128):
        chain.warn(
            "odd_weights",
            f"{group}.synapse",
            f"mixed signs with odd weights from {weight.min()} to {weight.max()}: Lava on CPU keeps them, 8 bits and "
            "a sign on the chip hold even ones only",
            "Make them even.",
        )


def _own_bias(layer: Layer, group: str, bias: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The bias where the weight node can hold it: without a synaptic filter it acts on u and v alike."""
    if bias is None or register_field(neuron_group(layer, group), "iDecay", group, DECAY) != 4096:
        return None
    return bias
