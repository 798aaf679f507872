"""What populations did, as the trajectory of the graph's nodes; for emulator, Lava and chip alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import UnsupportedError
from nirdeploy.quantization import Quantized, QuantizedNeuron
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy_loihi.dynamics import dynamics
from nirdeploy_loihi.program import Program

__all__ = ["trajectory"]


def trajectory(
    quantized: Quantized,
    program: Program,
    traces: Mapping[tuple[str, str], NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    *,
    lags: Mapping[str, int],
    batched: bool,
    executor: str,
    producer: str,
    view: str | None = None,
    counters: Mapping[str, Mapping[str, int]] | None = None,
) -> Trajectory:
    """Records of the graph's nodes out of integer traces.

    Args:
        quantized: scales, offsets and thresholds of the populations.
        program: what ran.
        traces: (population, 'spikes' | 'v_mem' | 'i_syn') -> [step, batch, *shape]: registers v and u, spikes.
        outputs: Output -> what it shows, [step, batch, *its shape].
        lags: population or Output -> steps by which it is later than the same node without the chip's delays.
        batched: whether the raster had a batch axis.
        executor: 'emulator', 'simulator' or 'chip'.
        producer: program and version.
        view: `trajectory.REFRACTORY_VIEW` where v was read off the chip; put on v of the populations that spike.
        counters: per population, what happened on the way.

    Raises:
        UnsupportedError: v is to be shown in units of an input gain that differs between neurons.
    """

    def record(name: str, source: str, variable: str, data: NDArray[Any]) -> Record:
        found = _fields(quantized, program, source, variable, view)
        as_record = variable if name == source else "output"
        return Record(name, as_record, data if batched else data[:, 0], lag=lags[name], batched=batched, **found)

    records = {
        (name, variable): record(name, name, variable, data)
        for (name, variable), data in traces.items()
        if variable != "spikes" or _neuron(quantized, name).fires
    }
    for shown in program.outputs:
        records[shown.name, "output"] = record(shown.name, shown.source, shown.variable, outputs[shown.name])
    return Trajectory(
        records,
        output_names=tuple(shown.name for shown in program.outputs),
        target=quantized.target.name,
        executor=executor,
        convention=quantized.convention,
        graph_sha256=graphs.sha256(quantized.graph),
        counters=counters or {},
        producer=producer,
    )


def _neuron(quantized: Quantized, name: str) -> QuantizedNeuron:
    return cast("QuantizedNeuron", quantized[name])


def _fields(quantized: Quantized, program: Program, name: str, variable: str, view: str | None) -> dict[str, Any]:
    """Scale, units, offset, threshold and view of a variable of a population."""
    neuron = _neuron(quantized, name)
    if variable == "spikes":
        return {"units": "count"}
    if variable == "i_syn":
        return {"scale": neuron.scale if neuron.scale_u is None else neuron.scale_u}
    shape = program.population(name).shape
    unit, units = _unit(quantized, name)
    return {
        "scale": neuron.scale / unit,
        "units": units,
        "offset": _shaped(neuron.offset, shape) / unit,
        "threshold": _shaped(neuron.threshold, shape) if neuron.fires else None,
        "view": view if neuron.fires else None,
    }


def _shaped(value: Any, shape: tuple[int, ...]) -> Any:
    """A number as it is, numbers of all neurons in their population's shape."""
    return value.reshape(shape) if isinstance(value, np.ndarray) and value.size > 1 else np.asarray(value).item()


def _unit(quantized: Quantized, name: str) -> tuple[float, str]:
    """What v of a population is divided by, and the name of that unit.

    Raises:
        UnsupportedError: it differs between neurons, which have one scale.
    """
    node = quantized.graph.nodes[name]
    v_unit = quantized.convention.for_node(name, graphs.type_name(node)).v_unit
    if v_unit == "model":
        return 1.0, "model"
    found = np.unique(dynamics(name, node, quantized.convention).unit(v_unit))
    what = "input gain" if v_unit == "gain" else "threshold"
    if found.size > 1:
        raise UnsupportedError(
            f"v_unit={v_unit!r} divides v by the {what}, which differs between neurons: {found[0]:g} to {found[-1]:g}",
            node=name,
            remedy="Use v_unit='model'.",
        )
    return float(found[0]), what
