"""A program of integers as a lava-dl file, in the layout that Lava's netx reads; what that cannot hold is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.errors import UnsupportedError
from nirdeploy.version import __version__
from nirdeploy_loihi.netx_fields import BIAS, DECAY, THRESHOLD
from nirdeploy_loihi.netx_sequence import Link, sequence
from nirdeploy_loihi.netx_weights import kept_by_conv
from nirdeploy_loihi.program import LONGEST_DELAY, SYNAPSE_SHIFT, Compartments, Program, Synapses, Window
from nirdeploy_loihi.weights import kept_by_lava

__all__ = ["layers_of", "store", "write_program"]

Integers = NDArray[np.int64]
Fields = dict[str, Any]
_UNIT = 1 << SYNAPSE_SHIFT  # netx hdf5.py: thresholds and biases are mantissas << 6


def write_program(program: Program, path: str | Path) -> None:
    """Write a `.net` file, atomically.

    Neurons keep their numbers. Of the Input and the Output a shape of three axes is kept as an image, any other is
    written flat.

    Raises:
        UnsupportedError: what the format cannot hold or netx would change, naming node, value and remedy.
        FileError: the file cannot be written.
    """
    layers = layers_of(program)
    with files.atomic(path) as temporary:
        store(layers, temporary)


def store(layers: list[Fields], path: Path) -> None:
    """Put layers into a new file."""
    with files.new_hdf5(path) as file:
        files.set_attribute(file, "producer", f"nirdeploy {__version__}")
        root = file.create_group("layer")
        for number, layer in enumerate(layers):
            _store_group(root.create_group(str(number)), layer)


def _store_group(group: h5py.Group, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _store_group(group.create_group(name), value)
        elif isinstance(value, str):
            group.create_dataset(name, (1,), "S10", [value.encode()])  # as lava-dl's export; netx decodes ASCII
        else:
            group.create_dataset(name, data=value)


def layers_of(program: Program) -> list[Fields]:
    """The groups of a file, in order: each with its fields as text, numbers, arrays and groups.

    Raises:
        UnsupportedError: as `write_program`.
    """
    links = sequence(program)
    shape = _input_shape(program, links[0].synapses.window)
    layers: list[Fields] = [{"type": "input", "shape": _padded(shape)}]
    for link in links:
        window = link.synapses.window
        if window is None and len(shape) == 3:
            layers.append({"type": "flatten", "shape": _padded((link.synapses.n_sources,))})
        shape = _conv_shape(link, window, shape) if window else (link.population.size,)
        synapses = _conv(link, window) if window else _dense(link)
        layers.append(synapses | {"shape": _padded(shape)} | _bias(link.population, shape, windowed=window is not None))
        layers[-1]["neuron"] = _neuron(link.population)
    if len(shape) == 3 and len(program.outputs[0].shape) == 1:
        layers.append({"type": "flatten", "shape": _padded(program.outputs[0].shape)})
    return layers


def _padded(shape: tuple[int, ...]) -> Integers:
    return np.array([*shape, 1, 1][:3], dtype=np.int64)


def _input_shape(program: Program, window: Window | None) -> tuple[int, ...]:
    if window:
        return window.source_shape
    shape = program.input_shape
    return shape if len(shape) == 3 else (program.sizes[program.input],)


# ---------------------------------------------------------------- synapses


def _dense(link: Link) -> Fields:
    synapses, loop = link.synapses, link.loop
    matrices = [synapses.weight] if loop is None else [synapses.weight, loop.weight]
    if not any(m.any() for m in matrices):
        raise UnsupportedError(
            "all weights are 0, on which netx fails", node=synapses.name, remedy="Leave the layer out, or train it."
        )
    if not kept_by_lava(*matrices):
        low, high = min(int(m.min()) for m in matrices), max(int(m.max()) for m in matrices)
        raise UnsupportedError(
            f"netx would change its weights from {low} to {high}",
            node=synapses.name,
            remedy="Make negative weights even, with a minimum that is no power of 2.",
        )
    outputs, inputs = synapses.weight.shape
    found = {"weight": synapses.weight.astype(np.float32), "inFeatures": inputs, "outFeatures": outputs}
    if loop is not None:
        if synapses.delay.any():
            raise UnsupportedError(
                f"a delay of {synapses.delay.max()} steps into a population that feeds itself, for which netx loses "
                "the weight exponent",
                node=synapses.name,
                remedy="Train without the delay, or without the loop.",
            )
        return {"type": "dense_rec", **found, "weight_rec": loop.weight.astype(np.float32)}
    return {"type": "dense", **found, **_delay(synapses)}


def _delay(synapses: Synapses) -> Fields:
    """One number an output, else an input; of one axis netx takes as many as outputs for theirs."""
    delay, shape = synapses.delay, synapses.weight.shape
    if not delay.any():
        return {}
    if delay.min() < 0 or delay.max() > LONGEST_DELAY:
        raise UnsupportedError(
            f"delays from {delay.min()} to {delay.max()} steps, the format holds 0 to {LONGEST_DELAY}",
            node=synapses.name,
        )
    full = np.broadcast_to(delay, shape)
    if (full == full[:, :1]).all():
        return {"delay": full[:, 0].astype(np.float32)}
    if not (full == full[:1]).all():
        raise UnsupportedError(
            f"delays of {delay.min()} to {delay.max()} steps that differ both between its inputs and its outputs",
            node=synapses.name,
            remedy="Put the Delay on one side of the weights.",
        )
    return {"delay": (full[0] if shape[0] != shape[1] else full).astype(np.float32)}


def _conv(link: Link, window: Window) -> Fields:
    synapses = link.synapses
    weight = synapses.weight
    if link.loop is not None:
        raise UnsupportedError(
            "a population behind a convolution feeds itself; the format has loops on dense layers alone",
            node=link.population.name,
            remedy="Put the loop behind dense weights.",
        )
    if synapses.delay.any():
        raise UnsupportedError(
            f"a delay of {synapses.delay.max()} steps, which netx ignores on a convolution",
            node=synapses.name,
            remedy="Put the Delay before dense weights.",
        )
    if not kept_by_conv(weight):
        raise UnsupportedError(
            f"weights from {weight.min()} to {weight.max()}, 8 bits and a sign hold -256 to 254 or 0 to 255",
            node=synapses.name,
        )
    return {
        "type": "conv",
        "weight": weight.astype(np.float32),
        "inChannels": window.source_shape[0],
        "outChannels": len(weight),
        "kernelSize": np.array(weight.shape[2:]),
        "stride": np.array(window.stride),
        "padding": np.array(window.padding),
        "dilation": np.array(window.dilation),
        "groups": window.groups,
    }


def _conv_shape(link: Link, window: Window, given: tuple[int, ...]) -> tuple[int, int, int]:
    name, kernel = link.synapses.name, link.synapses.weight.shape[2:]
    if given != window.source_shape:
        raise UnsupportedError(
            f"a convolution of {window.source_shape} on a layer that the format holds as {given}",
            node=name,
            remedy="Let a convolution, or the Input, give the image.",
        )
    y, x = (
        (window.source_shape[i + 1] + 2 * window.padding[i] - window.dilation[i] * (kernel[i] - 1) - 1)
        // window.stride[i]
        + 1
        for i in (0, 1)
    )
    shape = (link.synapses.weight.shape[0], y, x)
    if shape != window.target_shape:
        raise UnsupportedError(
            f"its kernel fits {shape} times, {window.target_shape} are used; the format holds no rows left over",
            node=name,
            remedy="Pool without rows left over.",
        )
    return shape


# ---------------------------------------------------------------- registers


def _neuron(population: Compartments) -> Fields:
    if population.v_start.any():
        raise UnsupportedError(
            f"v starts at {population.v_start[np.flatnonzero(population.v_start)[0]]}, the format starts at 0",
            node=population.name,
            remedy="Use v_reset = 0 and v_leak = 0.",
        )
    if population.refractory != 1:
        raise UnsupportedError(
            f"refractory for {population.refractory} steps, netx ignores refDelay",
            node=population.name,
            remedy="Deploy without the option refractory.",
        )
    threshold = _single(population, "threshold")
    mantissa, rest = divmod(threshold, _UNIT)
    if rest or not 0 < mantissa <= THRESHOLD[1]:
        raise UnsupportedError(
            f"a threshold of {threshold}, the format holds multiples of {_UNIT} up to {THRESHOLD[1] * _UNIT}",
            node=population.name,
        )
    decays = {"iDecay": _single(population, "decay_u"), "vDecay": _single(population, "decay_v")}
    for name, value in decays.items():
        if not DECAY[0] <= value <= DECAY[1]:
            raise UnsupportedError(f"{name} {value}, the format holds {DECAY[0]} to {DECAY[1]}", node=population.name)
    return {"type": "CUBA", **decays, "vThMant": mantissa, "refDelay": 1, "gradedSpike": False}


def _single(population: Compartments, name: str) -> int:
    values = np.unique(getattr(population, name))
    if len(values) > 1:
        raise UnsupportedError(
            f"{name} differs between neurons, {values[0]} to {values[-1]}; the format has one for all",
            node=population.name,
            remedy="Use one time constant and one threshold a population.",
        )
    return int(values[0])


def _bias(population: Compartments, shape: tuple[int, ...], *, windowed: bool) -> Fields:
    """Mantissas << 6: one a neuron, or of an image one a channel where that is enough (netx: x, y, channel)."""
    bias = population.bias
    if not bias.any():
        return {}
    mantissa, rest = np.divmod(bias, _UNIT)
    wrong = bias[(rest != 0) | (mantissa < BIAS[0]) | (mantissa > BIAS[1])]
    if wrong.size:
        raise UnsupportedError(
            f"a bias of {wrong[0]}, the format holds multiples of {_UNIT} from {BIAS[0] * _UNIT} to {BIAS[1] * _UNIT}",
            node=population.name,
            remedy="Deploy with a scale at which the bias takes the exponent 6, or without bias.",
        )
    full = np.broadcast_to(mantissa, (population.size,)).reshape(shape)
    if windowed:
        channels = full[:, 0, 0]
        full = channels if (full == channels[:, None, None]).all() else full.transpose(2, 1, 0)
    return {"bias": full.astype(np.float32)}
