"""The integer emulator: a whole raster through a quantised network, population after population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy import graph as graphs
from nirdeploy.errors import RasterError, UnavailableError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy.version import __version__
from nirdeploy_loihi.dynamics import dynamics
from nirdeploy_loihi.linear import fan_out, integer_apply
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Layer, Network
from nirdeploy_loihi.registers import States, scan

__all__ = ["drive", "emulate", "require_emulator"]

Ints = NDArray[np.int32]
Layers = Mapping[str, QuantizedWeight | QuantizedNeuron]
_CELLS = 1 << 26  # cells of one population over all steps held at once; more are run in parts of the batch
_MISSING = {
    "simulator": "lava-nc 0.10 in a Python 3.10 environment; driving it is not implemented yet",
    "chip": "lava-loihi (Intel's neuromorphic research community) and a Loihi board; neither is driven yet",
}


def require_emulator(on: str, mode: str | None, options: Mapping[str, Any]) -> None:
    """Refuse what only a simulator or a chip could do, and options the emulator does not have.

    Raises:
        UnavailableError: `on` is 'simulator' or 'chip'.
        UnsupportedError: another `on`, a mode, or an unknown option.
    """
    if isinstance(on, str) and on in _MISSING:
        raise UnavailableError(f"on={on!r} needs {_MISSING[on]}", remedy="Use on='emulator'.")
    if on != "emulator":
        raise UnsupportedError(f"on={on!r} is unknown", remedy="Use 'emulator', 'simulator' or 'chip'.")
    if mode is not None:
        raise UnsupportedError(f"the Loihi emulator has no mode {mode!r}", remedy="Use mode=None.")
    for name in sorted(options):
        raise UnsupportedError(
            f"the Loihi emulator has no option {name!r} (given {options[name]!r})", remedy="Leave it out."
        )


def emulate(quantized: Quantized, raster: Any, *, record: tuple[str, ...], nodes: tuple[str, ...] | None) -> Trajectory:
    """Run a raster through the integer network.

    Every connection costs one step: a[t] = W s[t - 1], a[0] = 0, the Input's included. Counters of a
    population: 'wraps' of u, 'saturations' of v, 'synaptic_operations' (delivered spikes times fan-out, zero
    weights included) and 'spikes'.

    Args:
        quantized: the network.
        raster: 0 and 1, [step, batch, ...] or [step, ...].
        record: of 'spikes', 'v_mem' (the register v after the reset) and 'i_syn' (the register u).
        nodes: populations to record; None: all. Outputs are always recorded.

    Raises:
        RasterError: a raster of wrong shape, a count other than 0 or 1, or an unknown node.
    """
    network = lower(quantized.graph, quantized.convention)
    data, batched = check_raster(raster, network.input_shape, integer=True, maximum=1)
    chosen = _chosen(network, nodes)
    keep = {name: set(record) & {"spikes", "v_mem", "i_syn"} for name in chosen}
    largest = max([int(np.prod(layer.shape)) for layer in network.layers], default=1)
    part = max(1, _CELLS // (data.shape[0] * largest))
    traces: dict[tuple[str, str], list[Ints]] = {}
    counters: dict[str, dict[str, int]] = {}
    for first in range(0, data.shape[1], part):
        _run_part(network, quantized.layers, data[:, first : first + part], keep, traces, counters)
    return Trajectory(
        _records(network, quantized, traces, batched),
        output_names=tuple(readout.name for readout in network.readouts),
        target=quantized.target.name,
        executor="emulator",
        convention=quantized.convention,
        graph_sha256=graphs.sha256(quantized.graph),
        counters=counters,
        producer=f"nirdeploy {__version__}",
    )


def _chosen(network: Network, nodes: tuple[str, ...] | None) -> set[str]:
    known = [layer.name for layer in network.layers]
    outputs = [readout.name for readout in network.readouts]
    for name in nodes or ():
        if name not in known and name not in outputs:
            raise RasterError(f"no population {name!r} to record", remedy=suggest(str(name), [*known, *outputs]))
    return set(known if nodes is None else nodes)


def drive(layer: Layer, layers: Layers, spikes: Mapping[str, Ints]) -> Ints:
    """Synaptic sums of a population, [step, batch, ...], one step after the spikes that cause them.

    Sums of a convolution are wrapped to signed 24 bits each, as in Lava's conv/models.py.

    Raises:
        QuantizationError: a sum beyond 32 bits; naming the population and the value.
    """
    steps, batch = next(iter(spikes.values())).shape[:2]
    total = np.zeros((steps, batch, *layer.shape), dtype=np.int64)
    if steps > 1:
        for connection in layer.connections:
            weight = cast("QuantizedWeight", layers[connection.name])
            before = spikes[connection.source][:-1].reshape(-1, *connection.source_shape)
            found = integer_apply(connection, weight.weight, before)
            if connection.kind == "conv":
                found = (found + (1 << 23)) % (1 << 24) - (1 << 23)
            total[1:] += found.reshape(steps - 1, batch, *layer.shape)
    return exact.narrow(total, "a synaptic sum", layer.name)


def _run_part(
    network: Network,
    layers: Layers,
    raster: NDArray[Any],
    keep: Mapping[str, set[str]],
    traces: dict[tuple[str, str], list[Ints]],
    counters: dict[str, dict[str, int]],
) -> None:
    spikes: dict[str, Ints] = {network.input: np.ascontiguousarray(raster, dtype=np.int32)}
    for layer in network.layers:
        wanted = keep.get(layer.name, set())
        neuron = cast("QuantizedNeuron", layers[layer.name])
        a = drive(layer, layers, spikes)
        flat = a.reshape(a.shape[0], -1)
        size = int(np.prod(layer.shape))
        states = scan(flat, neuron, size, keep_u="i_syn" in wanted, keep_v="v_mem" in wanted)
        spikes[layer.name] = states.s.reshape(a.shape)
        for variable, values in (("spikes", states.s), ("v_mem", states.v), ("i_syn", states.u)):
            if variable in wanted:
                traces.setdefault((layer.name, variable), []).append(values.reshape(a.shape))
        _count(counters, layer, layers, spikes, states)
    for readout in network.readouts:
        shown = spikes[readout.source]
        traces.setdefault((readout.name, "output"), []).append(shown.reshape(*shown.shape[:2], *readout.shape))


def _count(
    counters: dict[str, dict[str, int]],
    layer: Layer,
    layers: Layers,
    spikes: Mapping[str, Ints],
    states: States,
) -> None:
    operations = 0
    for connection in layer.connections:
        weight = cast("QuantizedWeight", layers[connection.name])
        delivered = spikes[connection.source][:-1].sum(axis=(0, 1), dtype=np.int64)
        operations += int((delivered * fan_out(connection, weight.weight)).sum())
    found = {
        "wraps": states.wraps,
        "saturations": states.clips,
        "synaptic_operations": operations,
        "spikes": int(states.s.sum(dtype=np.int64)),
    }
    before = counters.setdefault(layer.name, dict.fromkeys(found, 0))
    for name, count in found.items():
        before[name] += count


def _unit_gain(quantized: Quantized, name: str) -> float | None:
    """The input gain that v of a population is divided by under v_unit='gain'; None: v is in model units."""
    node = quantized.graph.nodes[name]
    if quantized.convention.for_node(name, graphs.type_name(node)).v_unit == "model":
        return None
    return dynamics(name, node, quantized.convention).gain


def _records(
    network: Network, quantized: Quantized, traces: Mapping[tuple[str, str], list[Ints]], batched: bool
) -> dict[tuple[str, str], Record]:
    lags = {layer.name: layer.lag + layer.late for layer in network.layers}
    lags |= {readout.name: readout.lag for readout in network.readouts}
    records = {}
    for (name, variable), parts in traces.items():
        data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        counts = variable in ("spikes", "output")
        gain = _unit_gain(quantized, name) if variable == "v_mem" else None
        records[name, variable] = Record(
            name,
            variable,
            data if batched else data[:, 0],
            scale=1.0 if counts else quantized[name].scale / (gain or 1.0),
            units="count" if counts else "model" if gain is None else "input gain",
            lag=lags[name],
            threshold=quantized[name].threshold if variable == "v_mem" else None,
            batched=batched,
        )
    return records
