"""What the cores of a chip did, as the trajectory of the graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.quantization import Quantized
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy_speck.cores import ChipProgram
from nirdeploy_speck.network import Layer, Network

__all__ = ["core_variables", "output_shapes", "require_variables", "trajectory"]


def require_variables(record: tuple[str, ...], nodes: tuple[str, ...] | None, network: Network) -> None:
    """Refuse variables and nodes that no run on this chip has.

    Raises:
        UnsupportedError: naming what there is.
    """
    if "i_syn" in record:
        raise UnsupportedError(
            "'i_syn' does not exist on this chip: its neurons have no synaptic state",
            remedy="Record 'spikes', 'v_mem' or 'output'.",
        )
    known = [layer.name for layer in network.layers]
    for name in nodes or ():
        if name not in known:
            raise UnsupportedError(f"no population {name!r} to record", remedy=suggest(str(name), known))


def output_shapes(quantized: Quantized, program: ChipProgram) -> dict[str, tuple[int, ...]]:
    """Shapes of the Outputs in the graph."""
    shapes = graphs.shapes(quantized.graph)
    return {name: shapes[name].output for name in program.outputs}


def core_variables(
    program: ChipProgram, record: tuple[str, ...], nodes: tuple[str, ...] | None
) -> list[tuple[str, ...]]:
    """For each core which of 'spikes' and 'v_mem' a run has to give: what is recorded, and spikes the Outputs read."""
    found: list[tuple[str, ...]] = []
    for core in program.cores:
        wanted = {v for v in ("spikes", "v_mem") if v in record and (nodes is None or core.layer in nodes)}
        if core.layer in program.outputs.values():
            wanted.add("spikes")
        found.append(tuple(sorted(wanted)))
    return found


def trajectory(
    quantized: Quantized,
    network: Network,
    program: ChipProgram,
    found: list[Mapping[str, NDArray[Any]]],
    *,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    batched: bool,
    outputs: Mapping[str, tuple[int, ...]],
    executor: str,
    producer: str,
    counters: Mapping[str, Mapping[str, int]] | None = None,
    v_mem_steps: range | None = None,
) -> Trajectory:
    """Records of the graph's nodes out of what its cores gave.

    Args:
        quantized: the network's integers.
        network: its layers.
        program: its cores.
        found: for each core 'spikes' and 'v_mem', as `core_variables` asks for, [step, batch, channel, y, x].
        record: variables to record.
        nodes: populations to record; None: all.
        batched: whether the raster had a batch axis.
        outputs: shapes of the Outputs, as of `output_shapes`.
        executor: 'emulator', 'simulator' or 'chip'.
        producer: what made it.
        counters: per node, what happened on the way.
        v_mem_steps: the steps that v_mem is known of; None: all.
    """

    def whole(name: str, variable: str) -> NDArray[Any]:
        parts = [found[position][variable] for position in program.layers[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    records: dict[tuple[str, str], Record] = {}
    for layer in network.layers:
        if nodes is not None and layer.name not in nodes:
            continue
        core = program.cores[program.layers[layer.name][0]]
        for variable in ("spikes", "v_mem"):
            if variable in record:
                data = whole(layer.name, variable)
                data = data.reshape(*data.shape[:2], *layer.node_shape)
                steps = v_mem_steps if variable == "v_mem" else None
                one = _record(layer, variable, data if batched else data[:, 0], core.scale, core.threshold)
                records[layer.name, variable] = Record(**one, batched=batched, steps=steps)
    for name, source in program.outputs.items():
        data = whole(source, "spikes")
        data = data.reshape(*data.shape[:2], *outputs[name])
        records[name, "output"] = Record(
            name, "output", data if batched else data[:, 0], units="count", batched=batched
        )
    return Trajectory(
        records,
        output_names=tuple(program.outputs),
        target=quantized.target.name,
        executor=executor,
        convention=quantized.convention,
        graph_sha256=graphs.sha256(quantized.graph),
        counters=counters or {},
        producer=producer,
    )


def _record(layer: Layer, variable: str, data: NDArray[Any], scale: float, threshold: int) -> dict[str, Any]:
    common = {"node": layer.name, "variable": variable, "data": data}
    if variable == "spikes":
        return {**common, "units": "count"}
    by_gain = layer.convention.v_unit == "gain"
    return {
        **common,
        "scale": scale / layer.gain if by_gain else scale,
        "units": "input gain" if by_gain else "model",
        "threshold": threshold,
    }
