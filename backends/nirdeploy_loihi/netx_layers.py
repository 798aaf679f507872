"""Layers of a lava-dl file, validated one by one and turned into NIR nodes and their integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import FileError, QuantizationError, UnsupportedError
from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.netx_chain import DT, Chain
from nirdeploy_loihi.netx_fields import (
    DECAY,
    LAYER_FIELDS,
    Layer,
    Shape,
    bias_field,
    delay_field,
    integers_field,
    matrix_field,
    neuron_group,
    number_field,
    pair_field,
    register_field,
    require_shape,
    text_field,
    weight_field,
)
from nirdeploy_loihi.netx_weights import kept_by_conv, odd_for_the_chip
from nirdeploy_loihi.weights import kept_by_lava, sign_mode

__all__ = ["network_of"]

Integers = NDArray[np.int64]


def network_of(layers: Sequence[Layer], target: Target, skip: int = 0) -> tuple[Quantized, list[Finding]]:
    """The layers of a file as a quantised graph, with what is worth a warning.

    Args:
        layers: groups '0', '1', ... of the file.
        target: the chip.
        skip: layers at the front that the Input stands for.

    Raises:
        FileError, UnsupportedError, QuantizationError, PlacementError: see `nirdeploy_loihi.netx.read`.
    """
    kinds = [text_field(layer, "type", str(i)) for i, layer in enumerate(layers)]
    for group, kind in enumerate(kinds):
        if kind not in LAYER_FIELDS:
            raise UnsupportedError(
                f"layer {group} has type {kind!r}",
                remedy=f"Supported: {', '.join(LAYER_FIELDS)}; read(..., num_layers={group}) leaves it out."
                if group
                else f"Supported: {', '.join(LAYER_FIELDS)}.",
            )
        if kind == "input" and group:
            raise UnsupportedError(f"layer {group} is an input behind other layers")
    cores = target.table["cores"]
    chain = Chain(_input_shape(layers, kinds, skip), int(cores["count"]) * int(cores["neurons"]))
    chain.nodes["input"] = graphs.make_node(nir.Input, input_type={"input": np.array(chain.shape)})
    for group, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        if group < skip:
            continue
        for name in sorted(set(layer) - LAYER_FIELDS[kind]):
            chain.warn("ignored", "", f"layer {group} has {name!r}, which netx ignores", "Check the export.")
        if kind != "input":
            _ADD[kind](chain, str(group), layer)
    if not chain.integers:
        raise FileError(f"no layer with neurons, only {', '.join(kinds[skip:])}")
    output = graphs.make_node(nir.Output, output_type={"output": np.array(chain.shape)})
    chain.append("output", output, chain.shape)
    graph = graphs.make_graph(chain.nodes, chain.edges)
    # the delay of one step a connection is the lag of the records, not part of the equations
    convention = Convention(dt=DT, reset="zero")
    return Quantized(graph, target, convention, "given", chain.integers), chain.findings


# ---------------------------------------------------------------- input


def _input_shape(layers: Sequence[Layer], kinds: Sequence[str], skip: int) -> Shape:
    if skip:
        return _skipped_shape(layers, kinds, skip)
    if kinds[0] in ("dense", "dense_rec"):
        return (int(matrix_field(layers[0], "0").shape[1]),)
    if kinds[0] != "input":
        raise UnsupportedError(
            f"layer 0 is {kinds[0]!r} and there is no input layer to give the image's shape",
            remedy="Export the network with its input layer.",
        )
    first = next((kind for kind in kinds if kind != "input"), None)
    if first is None:
        raise FileError("the file has an input layer only")
    for name in ("neuron", "weight", "bias"):
        if name in layers[0]:
            raise UnsupportedError(
                f"layer 0 is an input with {name!r}, which netx cannot run on CPU or leaves out",
                remedy="read(..., skip_layers=1) takes the spikes of its neurons for the Input.",
            )
    shape = _stated_shape(layers[0], "0")
    flat = len(shape) == 3 and shape[1:] == (1, 1) and first in ("dense", "dense_rec")
    return shape[:1] if flat else shape


def _skipped_shape(layers: Sequence[Layer], kinds: Sequence[str], skip: int) -> Shape:
    """What the last of the skipped layers states; a dense layer and a flatten are flat."""
    shape = _stated_shape(layers[skip - 1], str(skip - 1))
    return shape if kinds[skip - 1] in ("conv", "input") else (math.prod(shape),)


def _stated_shape(layer: Layer, group: str) -> Shape:
    shape = tuple(int(v) for v in integers_field(layer, "shape", group).reshape(-1))
    if len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) >= 1 << 62:
        raise FileError(f"layer {group} has shape {shape}, expected [neurons] or [channel, height, width]")
    return shape


# ---------------------------------------------------------------- layers


def _add_flatten(chain: Chain, group: str, layer: Layer) -> None:
    size = math.prod(chain.shape)
    stated = integers_field(layer, "shape", group, size).reshape(-1).tolist()
    if math.prod(stated) != size:
        raise FileError(f"layer {group} flattens {chain.shape} to {stated}")
    kind = {"input": np.array(chain.shape)}
    node = graphs.make_node(nir.Flatten, input_type=kind, start_dim=0, end_dim=-1)
    chain.append(f"{group}.flatten", node, (size,))


def _add_dense(chain: Chain, group: str, layer: Layer) -> None:
    if "weight_rec" in layer:
        raise UnsupportedError(
            f"layer {group} has recurrent weights, which netx ignores in a dense layer",
            remedy="Export it with the type dense_rec.",
        )
    _add_synapses(chain, group, layer, None)


def _add_recurrent(chain: Chain, group: str, layer: Layer) -> None:
    if "delay" in layer and np.any(integers_field(layer, "delay", group)):
        raise UnsupportedError(
            f"layer {group} is recurrent with delays; netx loses the weight exponent of such a layer",
            remedy="Train without delays, or put the recurrence into a layer of its own.",
        )
    _add_synapses(chain, group, layer, matrix_field(layer, group, "weight_rec"))


def _add_synapses(chain: Chain, group: str, layer: Layer, recurrent: Integers | None) -> None:
    """A dense layer: [Delay ->] Linear [-> Delay] -> neurons, and from them back to themselves."""
    weight = matrix_field(layer, group)
    if len(chain.shape) != 1:
        raise FileError(f"layer {group} is dense on an image {chain.shape}", remedy="Put a flatten layer before it.")
    if chain.shape[0] != weight.shape[1]:
        raise FileError(f"layer {group} has weight {weight.shape}, its input has {chain.shape[0]} neurons")
    outputs, inputs = weight.shape
    shape: Shape = (outputs,)
    require_shape(layer, group, shape)
    chain.require_room(group, shape)
    _require_weights(chain, group, weight, recurrent)
    delay = delay_field(layer, group, (outputs, inputs))
    bias = bias_field(layer, group, shape)
    before, after = (delay, None) if delay.shape[0] == 1 or not delay.any() else (None, delay)
    # a bias before a Delay would be late
    own = _own_bias(layer, group, bias) if after is None else None
    if before is not None and before.any():
        chain.delay(f"{group}.delay", before, inputs)
    floats = weight.astype(np.float64)
    node = (
        graphs.make_node(nir.Linear, weight=floats)
        if own is None
        else graphs.make_node(nir.Affine, weight=floats, bias=own.astype(np.float64))
    )
    chain.weigh(f"{group}.synapse", node, shape, weight, bias)
    if after is not None:
        chain.delay(f"{group}.delay", after, outputs)
    chain.populate(layer, group, bias, own is not None)
    if recurrent is not None:
        _close_loop(chain, group, recurrent)


def _close_loop(chain: Chain, group: str, recurrent: Integers) -> None:
    size, name, neuron = chain.shape[0], f"{group}.recurrent", chain.last
    if recurrent.shape != (size, size):
        raise FileError(f"layer {group} has weight_rec {recurrent.shape}, expected {(size, size)}")
    node = graphs.make_node(nir.Linear, weight=recurrent.astype(np.float64))
    chain.weigh(name, node, (size,), recurrent)
    chain.edges.append((name, neuron))
    chain.last = neuron


def _require_weights(chain: Chain, group: str, weight: Integers, recurrent: Integers | None) -> None:
    matrices = [weight] if recurrent is None else [weight, recurrent]
    if not kept_by_lava(*matrices):
        every = np.concatenate([m.reshape(-1) for m in matrices])
        raise QuantizationError(
            f"layer {group} has {sign_mode(every)} weights from {every.min()} to {every.max()} that Lava would "
            "change: it holds mixed signs from -256 to 254, positive up to 255, and of negative weights only "
            "those that its own scaling keeps",
            remedy="Scale them into the limits; make negative weights even, with a minimum that is no power of 2.",
        )
    _warn_odd(chain, f"{group}.synapse", weight)
    if recurrent is not None:
        _warn_odd(chain, f"{group}.recurrent", recurrent)


def _warn_odd(chain: Chain, name: str, weight: Integers) -> None:
    if odd_for_the_chip(weight):
        chain.warn(
            "odd_weights",
            name,
            f"mixed signs with odd weights from {weight.min()} to {weight.max()}: Lava on CPU keeps them, 8 bits and "
            "a sign on the chip hold even ones only",
            "Make them even.",
        )


def _add_conv(chain: Chain, group: str, layer: Layer) -> None:
    weight = weight_field(layer, group)
    for name, reason in (("delay", "delays"), ("weight_rec", "recurrent weights")):
        if name in layer and np.any(integers_field(layer, name, group)):
            raise UnsupportedError(
                f"layer {group} has {reason}, which netx ignores in a convolution", remedy=f"Train without {reason}."
            )
    if not kept_by_conv(weight):
        raise QuantizationError(
            f"layer {group} has weights from {weight.min()} to {weight.max()}, 8 bits and a sign hold -256 to 254 "
            "or 0 to 255"
        )
    _warn_odd(chain, f"{group}.synapse", weight)
    if len(chain.shape) != 3:
        raise FileError(f"layer {group} is a convolution on {chain.shape}, expected an image")
    options = {
        name: pair_field(layer, name, group, default)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    groups = number_field(layer, "groups", group, 1)
    if min(*options["stride"], *options["dilation"], groups) < 1 or min(options["padding"]) < 0:
        raise FileError(f"layer {group} has stride, padding, dilation {options} and groups {groups}")
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
    chain.require_room(group, shape)
    bias = bias_field(layer, group, shape)
    per_channel = bias if bias is not None and bias.ndim == 1 else None
    own = _own_bias(layer, group, per_channel)
    if own is not None:
        node.bias = own.astype(np.float64)
    chain.weigh(f"{group}.synapse", node, shape, weight, per_channel)
    if per_channel is not None:
        bias = np.broadcast_to(per_channel[:, None, None], shape).copy()
    chain.populate(layer, group, bias, own is not None)


_ADD = {"conv": _add_conv, "dense": _add_dense, "dense_rec": _add_recurrent, "flatten": _add_flatten}


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


def _own_bias(layer: Layer, group: str, bias: Integers | None) -> Integers | None:
    """The bias where the weight node can hold it: without a synaptic filter it acts on u and v alike."""
    if bias is None or register_field(neuron_group(layer, group), "iDecay", group, DECAY) != 4096:
        return None
    return bias
