"""Fields of a layer in a lava-dl file, each read with its limits; every error names the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import FileError, QuantizationError, UnsupportedError
from nirdeploy_loihi.program import LONGEST_DELAY

__all__ = [
    "BIAS",
    "DECAY",
    "LAYER_FIELDS",
    "NEURON_FIELDS",
    "THRESHOLD",
    "Layer",
    "Shape",
    "bias_field",
    "delay_field",
    "integers_field",
    "matrix_field",
    "neuron_group",
    "number_field",
    "pair_field",
    "register_field",
    "require_shape",
    "text_field",
    "weight_field",
]

Layer = Mapping[str, Any]
Shape = tuple[int, ...]
# Lava's lif/models.py: vth unsigned 17 bit, bias_mant signed 13 bit, decays 12 bit with 4096 for "forget"
THRESHOLD, BIAS, DECAY = (0, 131071), (-4096, 4095), (0, 4096)
_EXACT = 2.0**53  # whole numbers up to here are floats, too
_NEURONS = ("CUBA", "LOIHI")
_DENSE = frozenset({"type", "shape", "weight", "weight_rec", "bias", "delay", "neuron", "inFeatures", "outFeatures"})
_CONV = frozenset({"stride", "padding", "dilation", "groups", "inChannels", "outChannels", "kernelSize"})
# what lava-dl's export writes into a layer of each type
LAYER_FIELDS = {
    "conv": _DENSE - {"inFeatures", "outFeatures"} | _CONV,
    "dense": _DENSE,
    "dense_rec": _DENSE,
    "flatten": frozenset({"type", "shape"}),
    "input": frozenset({"type", "shape"}),
}
NEURON_FIELDS = frozenset(
    {
        *("type", "iDecay", "vDecay", "vThMant", "refDelay", "gradedSpike", "wgtExp", "messageBits"),
        *("scaleRho", "tauRho", "theta"),  # of training: surrogate gradients, and the threshold once more
    }
)


def text_field(layer: Layer, name: str, group: str) -> str:
    """A text, without the padding of fixed-length strings."""
    value = layer.get(name)
    if not isinstance(value, str):
        raise FileError(f"layer {group} has no text {name!r}")
    return value.rstrip("\x00 ")


def integers_field(layer: Layer, name: str, group: str, default: int | None = None) -> NDArray[np.int64]:
    """A dataset of whole numbers; netx would cut fractions off."""
    if name not in layer and default is not None:
        return np.array(default)
    value = layer.get(name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or not value.size:
        raise FileError(f"layer {group} has no numbers {name!r}")
    # NaN and what is too large count as fractions
    inside = (value >= -_EXACT) & (value <= _EXACT)
    whole = np.rint(np.where(inside, value, 0.5)).astype(np.int64)
    if not np.array_equal(whole, value):
        wrong = value.reshape(-1)[np.flatnonzero(whole != value)[0]]
        raise QuantizationError(f"layer {group} has {name} {wrong}, expected whole numbers up to 2**53")
    return whole


def register_field(values: Layer, name: str, group: str, limits: tuple[int, int]) -> int:
    """One whole number within a register's limits, both included."""
    found = integers_field(values, name, group).reshape(-1)
    if found.size != 1:
        raise UnsupportedError(f"layer {group} has {found.size} values of {name}, one is supported")
    if not limits[0] <= found[0] <= limits[1]:
        raise QuantizationError(f"layer {group} has {name} {found[0]}, the register holds {limits[0]} to {limits[1]}")
    return int(found[0])


def number_field(layer: Layer, name: str, group: str, default: int | None = None) -> int:
    """One whole number."""
    found = integers_field(layer, name, group, default).reshape(-1)
    if found.size != 1:
        raise FileError(f"layer {group} has {found.size} values of {name}, expected one")
    return int(found[0])


def pair_field(layer: Layer, name: str, group: str, default: int) -> tuple[int, int]:
    """(y, x) of a convolution's option; one number holds for both."""
    found = integers_field(layer, name, group, default).reshape(-1).tolist()
    if len(found) not in (1, 2):
        raise FileError(f"layer {group} has {len(found)} values of {name}, expected one or [height, width]")
    return found[0], found[-1]


def weight_field(layer: Layer, group: str) -> NDArray[np.int64]:
    """Whole weights of a convolution, [out, in / groups, y, x]; of five axes the last has one entry."""
    weight = integers_field(layer, "weight", group)
    if weight.ndim not in (4, 5) or (weight.ndim == 5 and weight.shape[4] != 1):
        raise FileError(f"layer {group} has a weight of shape {weight.shape}, expected [out, in, height, width]")
    return weight.reshape(weight.shape[:4])


def matrix_field(layer: Layer, group: str, name: str = "weight") -> NDArray[np.int64]:
    """Whole weights [out, in]; one axis is folded into the rows that `shape` states, as netx does."""
    weight = integers_field(layer, name, group)
    if weight.ndim == 1 and "shape" in layer:
        rows = math.prod(int(v) for v in integers_field(layer, "shape", group).reshape(-1))
        if rows > 0 and weight.size % rows == 0:
            return weight.reshape(rows, -1)
    if weight.ndim != 2:
        raise FileError(f"layer {group} has a {name} of shape {weight.shape}, expected [out, in]")
    return weight


def delay_field(layer: Layer, group: str, shape: Shape) -> NDArray[np.int64]:
    """Delays that broadcast to the weights [out, in], constant along one axis at least; all 0 where there are none.

    One number holds for all; of one axis they belong to the outputs if there are as many, else to the inputs
    (netx hdf5.py create_dense).
    """
    if "delay" not in layer:
        return np.zeros((1, 1), dtype=np.int64)
    delay = integers_field(layer, "delay", group)
    wrong = delay[(delay < 0) | (delay > LONGEST_DELAY)]
    if wrong.size:
        raise QuantizationError(
            f"layer {group} has a delay of {wrong.reshape(-1)[0]} steps, a synapse holds 0 to {LONGEST_DELAY}",
            remedy="netx would clip it; train with delays that fit.",
        )
    if delay.ndim == 0:
        return delay.reshape(1, 1)
    if delay.ndim == 1 and delay.size == shape[0]:
        return delay[:, None]
    if delay.ndim == 1 and delay.size == shape[1]:
        return delay[None, :]
    if delay.shape != shape:
        raise FileError(f"layer {group} has delay of shape {delay.shape}, its weight has {shape}")
    for constant in (delay[:1], delay[:, :1]):
        if np.array_equal(np.broadcast_to(constant, shape), delay):
            return constant
    raise UnsupportedError(
        f"layer {group} has delays of {delay.min()} to {delay.max()} steps that differ from synapse to synapse",
        remedy="A NIR Delay delays neurons: give all synapses of an output, or all of an input, one delay.",
    )


def bias_field(layer: Layer, group: str, shape: Shape) -> NDArray[np.int64] | None:
    """Mantissas: [out], [channel], one a neuron [channel, y, x] (in the file x, y, channel); of a dense layer also one.

    netx fails on one number for an image.
    """
    if "bias" not in layer:
        return None
    bias = integers_field(layer, "bias", group)
    wrong = bias[(bias < BIAS[0]) | (bias > BIAS[1])]
    if wrong.size:
        raise QuantizationError(
            f"layer {group} has bias {wrong.reshape(-1)[0]}, the mantissa holds {BIAS[0]} to {BIAS[1]}"
        )
    if bias.size == 1 and len(shape) == 1:
        return np.broadcast_to(bias.reshape(-1), shape).copy()
    if bias.shape == shape[:1]:
        return bias
    if bias.shape == shape[::-1]:
        return np.ascontiguousarray(bias.transpose())
    raise FileError(f"layer {group} has bias of shape {bias.shape}, its neurons have {shape}")


def neuron_group(layer: Layer, group: str) -> Layer:
    """The neuron of a layer, of a type whose equations are those of the chip's fixed pipeline."""
    values = layer.get("neuron")
    if not isinstance(values, Mapping):
        raise UnsupportedError(
            f"layer {group} has no neuron", remedy="Export it with a CUBA or LOIHI neuron; netx would integrate."
        )
    kind = text_field(values, "type", f"{group} neuron").upper()
    if kind not in _NEURONS:
        raise UnsupportedError(f"layer {group} has neuron type {kind!r}", remedy=f"Supported: {', '.join(_NEURONS)}.")
    if "messageBits" in values and np.any(np.asarray(values["messageBits"]) != 0):
        raise UnsupportedError(f"layer {group} has messageBits {values['messageBits']}: graded spikes")
    return values


def require_shape(layer: Layer, group: str, shape: Shape) -> None:
    """Refuse a layer that states another shape than its weights give."""
    if "shape" not in layer:
        return
    stated = tuple(int(v) for v in integers_field(layer, "shape", group).reshape(-1))
    same = stated == shape or (len(shape) == 1 and math.prod(stated) == shape[0])
    if not same:
        raise FileError(f"layer {group} states shape {stated}, its weights give {shape}")
