"""Fields of a layer in a lava-dl file, each read with its limits; every error names the layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import FileError, QuantizationError, UnsupportedError

__all__ = [
    "DECAY",
    "THRESHOLD",
    "Layer",
    "Shape",
    "bias_field",
    "integers_field",
    "neuron_group",
    "register_field",
    "require_shape",
    "text_field",
    "weight_field",
]

Layer = Mapping[str, Any]
Shape = tuple[int, ...]
# Lava's lif/models.py: vth unsigned 17 bit, bias_mant signed 13 bit, decays 12 bit with 4096 for "forget"
THRESHOLD, BIAS, DECAY = (0, 131071), (-4096, 4095), (0, 4096)
_NEURONS = ("CUBA", "LOIHI")


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
    whole = np.rint(np.where(np.isfinite(value), value, 0.5)).astype(np.int64)
    if not np.array_equal(whole, value):
        wrong = value.reshape(-1)[np.flatnonzero(whole != value)[0]]
        raise QuantizationError(f"layer {group} has {name} {wrong}, expected whole numbers")
    return whole


def register_field(values: Layer, name: str, group: str, limits: tuple[int, int]) -> int:
    """One whole number within a register's limits, both included."""
    found = integers_field(values, name, group).reshape(-1)
    if found.size != 1:
        raise UnsupportedError(f"layer {group} has {found.size} values of {name}, one is supported")
    if not limits[0] <= found[0] <= limits[1]:
        raise QuantizationError(f"layer {group} has {name} {found[0]}, the register holds {limits[0]} to {limits[1]}")
    return int(found[0])


def weight_field(layer: Layer, group: str, ranks: tuple[int, ...]) -> NDArray[np.int64]:
    """Whole weights of one of the ranks; of five axes the last has one entry."""
    weight = integers_field(layer, "weight", group)
    if weight.ndim not in ranks or (weight.ndim == 5 and weight.shape[4] != 1):
        raise FileError(f"layer {group} has a weight of shape {weight.shape}")
    return weight


def bias_field(layer: Layer, group: str, shape: Shape) -> NDArray[np.int64] | None:
    """Mantissas: [out], [channel], or one a neuron [channel, y, x] (in the file x, y, channel)."""
    if "bias" not in layer:
        return None
    bias = integers_field(layer, "bias", group)
    wrong = bias[(bias < BIAS[0]) | (bias > BIAS[1])]
    if wrong.size:
        raise QuantizationError(
            f"layer {group} has bias {wrong.reshape(-1)[0]}, the mantissa holds {BIAS[0]} to {BIAS[1]}"
        )
    if bias.size == shape[0] and max(bias.shape, default=1) == bias.size:
        return bias.reshape(-1)
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
    same = stated == shape or (len(shape) == 1 and int(np.prod(stated)) == shape[0])
    if not same:
        raise FileError(f"layer {group} states shape {stated}, its weights give {shape}")
