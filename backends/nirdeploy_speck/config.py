"""Every field a Speck is given, as plain data.

Field names are those of samna's configuration classes; x comes before y everywhere, and weights are
[out][in][x][y] (sinabs chips/dynapcnn.py). None stands for what samna's own default configuration has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.target import Target
from nirdeploy_speck.cores import ChipCore, ChipProgram, chip_program

__all__ = ["chip_configuration"]


def chip_configuration(
    quantized: Quantized, placement: Placement, program: ChipProgram | None = None
) -> dict[str, Any]:
    """`cnn_layers` (fields by core, for every core in use), `dvs_layer`, `dvs_filter`, `readout`, `factory_config`.

    Args:
        quantized: the network's integers.
        placement: its cores.
        program: `chip_program` of both, where it is there already.

    Raises:
        QuantizationError, PlacementError: as `cores.chip_program`.
    """
    program = chip_program(quantized, placement) if program is None else program
    target = quantized.target
    exits = set(program.outputs.values())
    layers = {
        str(core.number): {
            **_fields(core),
            "monitor_enable": core.layer in exits,
            "destinations": _destinations(core, program, target),
        }
        for core in sorted(program.cores, key=lambda core: core.number)
    }
    return {
        "cnn_layers": layers,
        "dvs_layer": _dvs_layer(program, target),
        "dvs_filter": _dvs_filter(),
        "readout": _readout(program.readout),
        "factory_config": {"internal_slow_clk_divider": None, "io_sel": None},
    }


# ---------------------------------------------------------------- cores


def _fields(core: ChipCore) -> dict[str, Any]:
    _, out_y, out_x = core.output_shape
    inputs, in_y, in_x = core.input_shape
    outputs = core.features
    weight = np.zeros((outputs, *core.weight.shape[1:]), dtype=np.int64)
    weight[:: core.spread] = core.weight
    bias = np.zeros(outputs, dtype=np.int64)
    bias[:: core.spread] = 0 if core.bias is None else core.bias
    return {
        "dimensions": {
            "input_shape": {"feature_count": inputs, "size": {"x": in_x, "y": in_y}},
            "output_shape": {"feature_count": outputs, "size": {"x": out_x, "y": out_y}},
            "kernel_size": int(core.weight.shape[2]),
            "stride": {"x": core.stride[1], "y": core.stride[0]},
            "padding": {"x": core.padding[1], "y": core.padding[0]},
        },
        "weights": weight.swapaxes(2, 3).tolist(),
        "biases": bias.tolist(),
        "neurons_initial_value": np.zeros((outputs, out_x, out_y), dtype=np.int64).tolist(),
        "leak_enable": bool(bias.any()),
        "leak_internal_slow_clk_enable": False,
        "threshold_high": core.threshold,
        "threshold_low": core.v_min,
        "return_to_zero": not core.subtract,
        "input_congestion_balancer_enable": False,
        "output_decimator_enable": False,
        "output_decimator_interval": 0,
    }


def _destinations(core: ChipCore, program: ChipProgram, target: Target) -> list[dict[str, Any]]:
    found = [
        {
            "enable": True,
            "layer": program.cores[to.core].number,
            "pooling": to.pooling,
            "feature_shift": to.feature_shift,
        }
        for to in core.destinations
    ]
    if program.readout is not None and program.readout["node"] == core.layer:
        layer = int(target.table["readout"]["destination"])
        found.append({"enable": True, "layer": layer, "pooling": 1, "feature_shift": 0})
    unused = {"enable": False, "layer": 0, "pooling": 1, "feature_shift": 0}
    return [*found, *(dict(unused) for _ in range(int(target.table["limits"]["destinations"]) - len(found)))]


# ---------------------------------------------------------------- before and behind


def _dvs_layer(program: ChipProgram, target: Target) -> dict[str, Any]:
    table, dvs = target.table["dvs"], program.dvs
    last = int(table["size"]) - 1
    pooling, origin, cut = ((1, 1), (0, 0), (last, last)) if dvs is None else (dvs.pooling, dvs.origin, dvs.cut)
    mirror = (False, False) if dvs is None else dvs.mirror
    entry = () if dvs is None else program.entry
    used = [{"enable": True, "layer": program.cores[to.core].number} for to in entry]
    return {
        # of events of one polarity, both are meant
        "merge": dvs is not None and (dvs.merge or dvs.input_shape[0] == 1),
        "on_channel": True,
        "off_channel": True,
        "pooling": _xy(pooling),
        "origin": _xy(origin),
        "cut": _xy(cut),
        "mirror": _xy(mirror),
        "mirror_diagonal": dvs is not None and dvs.swap,
        "pass_sensor_events": dvs is not None and dvs.sensor,
        "monitor_enable": False,
        "raw_monitor_enable": False,
        "destinations": [
            *used,
            *({"enable": False, "layer": 0} for _ in range(int(table["destinations"]) - len(used))),
        ],
    }


def _xy(pair: tuple[Any, Any]) -> dict[str, Any]:
    return {"x": pair[1], "y": pair[0]}


def _dvs_filter() -> dict[str, Any]:
    """Off: which events it lets through depends on the slow clock, which no emulator has (DS 3.2.3.5)."""
    return {
        "enable": False,
        "filter_size": {"x": 0, "y": 0},
        "threshold": 0,
        "hot_pixel_filter_enable": False,
        "low_pass_mode_enable": False,
        "internal_slow_clk": False,
    }


def _readout(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the readout; which option is which field: DS 3.2.5, tables 5 and 6."""
    used = options is not None
    options = options or {
        "threshold": 0,
        "average": 16,
        "addressing": 3,
        "output_mode": 0,
        "neuron": 0,
        "override_threshold": False,
        "internal_clock": False,
    }
    return {
        "enable": used,
        "threshold": options["threshold"],
        "readout_configuration_sel": options["addressing"],
        "output_mode_sel": options["output_mode"],
        "output_neuron_num": options["neuron"],
        "low_pass_filter_disable": options["average"] == 1,
        "low_pass_filter32_not16": options["average"] == 32,
        "override_threshold_max": options["override_threshold"],
        "monitor_enable": used and options["output_mode"] != 0,
        "readout_pin_monitor_enable": used,
        "internal_slow_clk": options["internal_clock"],
    }
