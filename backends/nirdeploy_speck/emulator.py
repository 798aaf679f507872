"""The integer emulator of DYNAP-CNN: `step` mode, which is sinabs's arithmetic, and `event` mode, the chip's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy.errors import QuantizationError, UnsupportedError
from nirdeploy.events import Events
from nirdeploy.names import suggest
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Trajectory
from nirdeploy.version import __version__
from nirdeploy_speck.cores import ChipProgram, chip_program
from nirdeploy_speck.input import event_runs
from nirdeploy_speck.network import Layer, Network, lowered
from nirdeploy_speck.options import event_options, require_mode
from nirdeploy_speck.packed import Packed, pack
from nirdeploy_speck.results import core_variables, output_shapes, require_variables, trajectory
from nirdeploy_speck.step import CoreRun, run_steps
from nirdeploy_speck.step_kernels import scan

__all__ = ["Core", "LayerRun", "layer_currents", "layer_input", "run", "run_layer"]


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


@dataclass(frozen=True)
class LayerRun:
    """Spikes and v_mem [step, batch, channel, y, x] of one layer, and what happened on the way."""

    spikes: NDArray[np.int32]
    v_mem: NDArray[np.int32]
    counters: Mapping[str, int]


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


def layer_currents(layer: Layer, weight: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """What events [step, batch, channel, y, x] add to v: [step * batch, channel, y, x], without the bias."""
    steps, batch = x.shape[:2]
    flat = x.reshape(steps * batch, *layer.input_shape)
    if weight.shape[2:] == layer.input_shape[1:] and layer.padding == (0, 0):
        currents = exact.linear(flat.reshape(steps * batch, -1), weight.reshape(weight.shape[0], -1))
        return currents.reshape(steps * batch, *layer.output_shape)
    return exact.conv2d(flat, weight, stride=layer.stride, padding=layer.padding)


def run_layer(layer: Layer, core: Core, x: NDArray[Any]) -> LayerRun:
    """One layer over a whole raster: convolutions of all steps at once, then the neurons through time.

    Raises:
        QuantizationError: a sum, a count or v beyond 32 bits; naming the population and the value.
    """
    steps, batch = x.shape[:2]
    currents = layer_currents(layer, core.weight, x)
    if core.bias is not None:
        currents = currents + core.bias[:, None, None]
    # no count and no v is larger than all that has come in; only where that may pass 32 bits the states are wider
    most = steps * max(abs(int(currents.max())), abs(int(currents.min()))) + abs(core.v_min)
    if most >= 1 << 62:
        raise QuantizationError(f"v can reach {most}, which 64 bits do not hold", node=layer.name)
    spikes = np.empty((steps, batch, *layer.output_shape), dtype=np.int32 if most < 1 << 31 else np.int64)
    v_mem = np.empty_like(spikes)
    saturations, clamps = scan(
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


@dataclass(frozen=True, eq=False)
class _Prepared:
    network: Network
    packed: Packed
    outputs: Mapping[str, tuple[int, ...]]
    placement: Placement


# lowering a graph takes longer than a run; a Quantized never changes
_prepared: WeakKeyDictionary[Quantized, _Prepared] = WeakKeyDictionary()


def _prepare(quantized: Quantized, placement: Placement) -> _Prepared:
    found = _prepared.get(quantized)
    if found is None or found.placement is not placement:
        network = lowered(quantized, placement)
        program = chip_program(quantized, placement, network)
        found = _Prepared(network, pack(program), output_shapes(quantized, program), placement)
        _prepared[quantized] = found
    return found


def run(
    quantized: Quantized,
    placement: Placement,
    raster: Any,
    *,
    on: str,
    mode: str | None,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Run a raster of counts, or recorded events of one sample, through the emulator.

    Args:
        quantized: integers of every layer.
        placement: their cores.
        raster: counts, [step, batch, ...] or [step, ...]; or, with mode 'event', Events.
        on: 'emulator'.
        mode: 'step' (None) or 'event'.
        record: variables to record.
        nodes: populations to record; None: all.
        options: of mode 'event', the fields of `options.EventOptions` and `options.Lanes`.
        progress: called now and then with the steps done and the steps of all samples.

    Raises:
        UnsupportedError: an unknown `on`, mode or option, a variable the chip does not have, or biases in event mode
            without a word on the slow clock.
        RasterError: wrong shape, negative, NaN or fractional counts.
        QuantizationError: counts or voltages beyond 32 bits.
    """
    if on != "emulator":
        raise UnsupportedError(f"on={on!r} is unknown", remedy=suggest(str(on), ("emulator", "simulator", "chip")))
    chosen = require_mode(mode, options or {})
    prepared = _prepare(quantized, placement)
    network, program = prepared.network, prepared.packed.program
    require_variables(record, nodes, network)
    wanted = core_variables(program, record, nodes)
    keep = {name: [k for k, own in enumerate(wanted) if name in own] for name in ("spikes", "v_mem")}
    producer = f"nirdeploy {__version__}"
    if chosen == "event":
        asked = event_options(options or {})
        found, batched = event_runs(prepared.packed, network, raster, asked, quantized.convention, keep, progress)
        producer += f" ({asked})"
    else:
        if isinstance(raster, Events):
            raise UnsupportedError(
                "recorded events have no steps", remedy="Use mode='event', or events_to_raster(events, step_us=...)."
            )
        data, batched = check_raster(raster, network.input_shape, integer=True)
        found = run_steps(prepared.packed, network.events(data), **keep, progress=progress)
    return trajectory(
        quantized,
        network,
        program,
        [{k: data for k in ("spikes", "v_mem") if (data := getattr(one, k)) is not None} for one in found],
        record=record,
        nodes=nodes,
        batched=batched,
        outputs=prepared.outputs,
        executor="emulator",
        producer=producer,
        counters=_counters(program, found),
    )


def _counters(program: ChipProgram, found: tuple[CoreRun, ...]) -> dict[str, dict[str, int]]:
    """Of every population, and of every core where one is on several."""
    counters: dict[str, dict[str, int]] = {}
    for name, positions in program.layers.items():
        each = [found[k].counters for k in positions]
        counters[name] = {key: sum(one[key] for one in each) for key in each[0]}
        if len(positions) > 1:
            for k in positions:
                counters[f"{name} (core {program.cores[k].number})"] = dict(found[k].counters)
    return counters
