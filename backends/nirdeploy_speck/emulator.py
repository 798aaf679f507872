"""Integer emulation of DYNAP-CNN, `step` mode: bit for bit what sinabs's DynapcnnNetwork computes.

Per step (sinabs 3.1.3, layers.IAFSqueeze with quantised parameters):
v += conv(x) + b; n = v // threshold where v > 0, else 0, at most 1 for single spikes;
v -= n threshold (or v = 0 where n > 0); v = max(v, v_min). States are wider than the chip's 16 bits; what
would not have fitted is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError, UnavailableError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy.version import __version__
from nirdeploy_speck.network import Layer, Network, lowered

__all__ = ["Core", "LayerRun", "layer_input", "run", "run_layer"]


@dataclass(frozen=True)
class Core:
    """What one core is given.

    Attributes:
        weight: int8 [out, in, y, x].
        bias: int16 [out], or None.
        threshold: int16, at least 1.
        v_min: int16, at most -1.
        scale: model units an integer stands for.
        subtract: reset by subtracting the threshold instead of to 0.
        many: several spikes of a neuron a step.
    """

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    threshold: int
    v_min: int
    scale: float
    subtract: bool
    many: bool

    @classmethod
    def of(cls, layer: Layer, quantized: Mapping[str, Any]) -> Core:
        """The integers of one layer out of a `Quantized`."""
        (weight, bias), neuron = layer.integers(quantized), quantized[layer.name]
        return cls(
            weight,
            bias,
            neuron.threshold,
            neuron.v_min,
            neuron.scale,
            neuron.reset == "subtract",
            neuron.many,
        )


@dataclass(frozen=True)
class LayerRun:
    """Spikes and v_mem [step, batch, channel, y, x] of one layer, and what happened on the way."""

    spikes: NDArray[np.int32]
    v_mem: NDArray[np.int32]
    counters: Mapping[str, int]


@numba.njit(cache=True)
def _scan(
    currents: NDArray[np.int64],
    threshold: int,
    v_min: int,
    subtract: bool,
    many: bool,
    spikes: NDArray[Any],
    v_mem: NDArray[Any],
) -> tuple[int, int]:
    """Neurons [step, cell] through time; returns how often v passed 16 bits and how often v_min held it."""
    steps, cells = currents.shape
    state = np.zeros(cells, dtype=np.int64)
    saturations = 0
    clamps = 0
    for step in range(steps):
        for cell in range(cells):
            v = state[cell] + currents[step, cell]
            if v > 32767 or v < -32768:
                saturations += 1
            n = v // threshold if v > 0 else 0
            if n > 1 and not many:
                n = 1
            if n > 0:
                v = v - n * threshold if subtract else 0
            if v < v_min:
                v = v_min
                clamps += 1
            state[cell] = v
            spikes[step, cell] = n
            v_mem[step, cell] = v
    return saturations, clamps


def layer_input(layer: Layer, produced: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Events at the core's input [step, batch, channel, y, x]: sources pooled by summing, then added.

    Raises:
        QuantizationError: a source whose map is not the one the core is configured for.
    """
    total: NDArray[Any] | None = None
    for feed in layer.feeds:
        x = produced[feed.source]
        steps, batch = x.shape[:2]
        flat = x.reshape(steps * batch, *x.shape[2:])
        if feed.pool > 1:
            side = (feed.pool, feed.pool)
            flat = exact.sum_pool2d(flat, side, side)
        expected = layer.inlet(feed).input_shape
        if flat.shape[1:] != expected:
            problem = f"events of {feed.source!r} come as {flat.shape[1:]}, the core expects {expected}"
            raise QuantizationError(problem, node=layer.name)
        pooled = flat.reshape(steps, batch, *expected)
        if expected != layer.input_shape:  # one of several inputs side by side
            wide = np.zeros((steps, batch, *layer.input_shape), dtype=pooled.dtype)
            wide[:, :, feed.shift : feed.shift + expected[0], : expected[1], : expected[2]] = pooled
            pooled = wide
        total = pooled if total is None else total.astype(np.int64) + pooled
    if total is None:
        raise UnsupportedError("a layer without inputs", node=layer.name)
    return total


def run_layer(layer: Layer, core: Core, x: NDArray[Any]) -> LayerRun:
    """One layer over a whole raster: convolutions of all steps at once, then the neurons through time.

    Raises:
        QuantizationError: a sum, a count or v beyond 32 bits; naming the population and the value.
    """
    steps, batch = x.shape[:2]
    flat = x.reshape(steps * batch, *layer.input_shape)
    if core.weight.shape[2:] == layer.input_shape[1:] and layer.padding == (0, 0):
        currents = exact.linear(flat.reshape(steps * batch, -1), core.weight.reshape(core.weight.shape[0], -1))
        currents = currents.reshape(steps * batch, *layer.output_shape)
    else:
        currents = exact.conv2d(flat, core.weight, stride=layer.stride, padding=layer.padding)
    if core.bias is not None:
        currents = currents + core.bias[:, None, None]
    # no count and no v is larger than all that has come in; only where that may pass 32 bits the states are wider
    most = steps * max(abs(int(currents.max())), abs(int(currents.min()))) + abs(core.v_min)
    if most >= 1 << 62:
        raise QuantizationError(f"v can reach {most}, which 64 bits do not hold", node=layer.name)
    spikes = np.empty((steps, batch, *layer.output_shape), dtype=np.int32 if most < 1 << 31 else np.int64)
    v_mem = np.empty_like(spikes)
    saturations, clamps = _scan(
        currents.reshape(steps, -1),
        core.threshold,
        core.v_min,
        core.subtract,
        core.many,
        spikes.reshape(steps, -1),
        v_mem.reshape(steps, -1),
    )
    spikes, v_mem = exact.narrow(spikes, "its spike count", layer.name), exact.narrow(v_mem, "v", layer.name)
    counters = {
        "saturations": int(saturations),
        "clamps": int(clamps),
        "input_events": int(x.sum()),
        "spikes": int(spikes.sum()),
    }
    return LayerRun(spikes, v_mem, counters)


def run(
    quantized: Quantized,
    raster: Any,
    *,
    on: str,
    mode: str | None,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    options: Mapping[str, Any] | None = None,
    placement: Placement | None = None,
) -> Trajectory:
    """Run a raster of counts through the emulator.

    Raises:
        UnavailableError: on 'simulator' or 'chip'.
        UnsupportedError: a mode other than 'step', an unknown option, or a variable the chip does not have.
        RasterError: wrong shape, negative, NaN or fractional counts.
        QuantizationError: counts or voltages beyond 32 bits.
    """
    _refuse(on, mode, record, options or {})
    network = lowered(quantized, placement)
    data, batched = check_raster(raster, network.input_shape, integer=True)
    shapes = graphs.shapes(quantized.graph)
    if nodes is not None:
        _check_nodes(nodes, network)
    produced: dict[str, NDArray[Any]] = {network.input_name: network.events(data)}
    records: dict[tuple[str, str], Record] = {}
    counters: dict[str, Mapping[str, int]] = {}
    for layer in network.layers:
        core = Core.of(layer, quantized)
        result = run_layer(layer, core, layer_input(layer, produced))
        produced[layer.name] = result.spikes
        counters[layer.name] = result.counters
        if nodes is None or layer.name in nodes:
            _record(records, layer, result, core, record, batched)
    for name, source in network.outputs.items():
        shape = shapes[name].output
        data = produced[source].reshape(*produced[source].shape[:2], *shape)
        records[name, "output"] = Record(
            name, "output", data if batched else data[:, 0], units="count", batched=batched
        )
    return Trajectory(
        records,
        output_names=tuple(network.outputs),
        target=quantized.target.name,
        executor="emulator",
        convention=quantized.convention,
        graph_sha256=graphs.sha256(quantized.graph),
        counters=counters,
        producer=f"nirdeploy {__version__}",
    )


def _record(
    records: dict[tuple[str, str], Record],
    layer: Layer,
    result: LayerRun,
    core: Core,
    wanted: tuple[str, ...],
    batched: bool,
) -> None:
    for variable, array in (("spikes", result.spikes), ("v_mem", result.v_mem)):
        if variable not in wanted:
            continue
        data = array.reshape(*array.shape[:2], *layer.node_shape)
        voltage = variable == "v_mem"
        by_gain = voltage and layer.convention.v_unit == "gain"
        records[layer.name, variable] = Record(
            layer.name,
            variable,
            data if batched else data[:, 0],
            scale=(core.scale / layer.gain if by_gain else core.scale) if voltage else 1.0,
            units=("input gain" if by_gain else "model") if voltage else "count",
            threshold=core.threshold if voltage else None,
            batched=batched,
        )


def _check_nodes(nodes: tuple[str, ...], network: Network) -> None:
    known = [layer.name for layer in network.layers]
    for name in nodes:
        if name not in known:
            raise UnsupportedError(f"no population {name!r} to record", remedy=suggest(str(name), known))


def _refuse(on: str, mode: str | None, record: tuple[str, ...], options: Mapping[str, Any]) -> None:
    if on == "chip":
        raise UnavailableError(
            "running on a Speck needs samna and a device; this version has no samna runner yet",
            remedy="Use on='emulator'.",
        )
    if on == "simulator":
        raise UnavailableError(
            "running sinabs as a simulator is not supported yet", remedy="Use on='emulator', which equals it."
        )
    if on != "emulator":
        raise UnsupportedError(f"on={on!r} is unknown", remedy=suggest(str(on), ("emulator", "simulator", "chip")))
    if mode not in (None, "step"):
        raise UnsupportedError(f"mode {mode!r} is not supported yet", remedy="Use mode='step'.")
    for name in sorted(options):
        raise UnsupportedError(
            f"the Speck emulator has no option {name!r} (given {options[name]!r})", remedy="Leave it out."
        )
    if "i_syn" in record:
        raise UnsupportedError(
            "'i_syn' does not exist on this chip: its neurons have no synaptic state",
            remedy="Record 'spikes', 'v_mem' or 'output'.",
        )
