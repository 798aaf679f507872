"""What the chip is given, as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy_loihi.place import Core, core_contents
from nirdeploy_loihi.program import SYNAPSE_SHIFT, Compartments, Program, Synapses
from nirdeploy_loihi.resources import weight_bits
from nirdeploy_loihi.weights import sign_mode

__all__ = ["configuration", "program_configuration"]


def configuration(quantized: Quantized, placement: Placement) -> dict[str, Any]:
    """As `program_configuration`, for a quantised network.

    Raises:
        PlacementError: a placement without the tiles of a population.
        UnsupportedError, GraphError, ConventionError: as `lower_program.program_of`.
    """
    from nirdeploy_loihi.lower_program import program_of

    return program_configuration(program_of(quantized, placement), placement, quantized.target.table)


def program_configuration(program: Program, placement: Placement, table: Mapping[str, Any]) -> dict[str, Any]:
    """Registers of every population, integers and delays of every connection, and what every core holds.

    Names are those of Lava's LIF, Dense and Conv. `du` is decay_u - 1, as the chip adds 1 to it (ds_offset); `vth` is
    the mantissa. A register is one number, or a list of one a neuron where neurons differ, flat and row-major.
    Weights are [target neurons, source neurons], or with a window a kernel [out, in / groups, y, x] that
    correlates; images are channel, y, x. A spike of step t arrives in step t + 1 + delay.

    Args:
        program: the network of integers.
        placement: its cores and tiles.
        table: the target's limits.

    Raises:
        PlacementError: a placement without the tiles of a population.
    """
    return {
        "backend": "loihi",
        "input": {"name": program.input, "shape": list(program.input_shape)},
        "outputs": [
            {"name": o.name, "population": o.source, "shape": list(o.shape), "variable": o.variable}
            for o in program.outputs
        ],
        "populations": [_population(population) for population in program.populations],
        "connections": [_connection(synapses, table) for synapses in program.synapses],
        "always_on": [{"name": a.name, "axons": a.count, "first_step": a.start} for a in program.always_on],
        "cores": [_core(core) for core in core_contents(program, placement, table)],
        "traffic": placement.to_dict()["options"].get("traffic"),
    }


def _register(values: Any) -> Any:
    found = np.asarray(values).reshape(-1)
    return int(found[0]) if len(found) == 1 else found.tolist()


def _population(population: Compartments) -> dict[str, Any]:
    return {
        "name": population.name,
        "shape": list(population.shape),
        "du": _register(population.decay_u - 1),
        "dv": _register(population.decay_v),
        "vth": _register(population.threshold >> SYNAPSE_SHIFT),
        "bias_mant": _register(population.bias_mantissa),
        "bias_exp": int(population.bias_exponent),
        "v_start": _register(population.v_start),
        "refractory": int(population.refractory),
    }


def _connection(synapses: Synapses, table: Mapping[str, Any]) -> dict[str, Any]:
    window = synapses.window
    return {
        "name": synapses.name,
        "source": synapses.source,
        "target": synapses.target,
        "kind": "dense" if window is None else "conv",
        "window": None
        if window is None
        else {name: list(v) if isinstance(v, tuple) else v for name, v in vars(window).items()},
        "sign_mode": sign_mode(synapses.weight),
        "weight": synapses.weight.tolist(),
        "weight_exp": 0,
        "num_weight_bits": int(table["synapses"]["weight_bits"]),
        # one number, or [target neurons or 1, source neurons or 1]
        "delay": int(synapses.delay.flat[0]) if synapses.delay.size == 1 else synapses.delay.tolist(),
        "bits_per_synapse": weight_bits(synapses, table),
    }


def _core(core: Core) -> dict[str, Any]:
    def union(name: str) -> list[Any]:
        return sorted(frozenset().union(*(getattr(tile, name) for tile in core.tiles)))

    return {
        "core": core.number,
        "tiles": [
            {
                "population": tile.population,
                "block": [list(axis) for axis in tile.block],
                "sources": {name: len(found) for name, found in tile.sources.items()},
            }
            for tile in core.tiles
        ],
        **core.resources,
        "compartments": [
            {"du": u - 1, "dv": v, "bias_exp": exponent, "refractory": steps}
            for u, v, exponent, steps in union("compartments")
        ],
        "thresholds": [threshold >> SYNAPSE_SHIFT for threshold in union("thresholds")],
        "synapses": [{"sign_mode": mode, "delays": delays} for mode, delays in union("formats")],
    }
