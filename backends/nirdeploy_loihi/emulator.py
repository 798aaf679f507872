"""The integer emulator: a whole raster through a quantised network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import RasterError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import REFRACTORY_VIEW, Trajectory
from nirdeploy.version import __version__
from nirdeploy_loihi.execute import VARIABLES, execute
from nirdeploy_loihi.lower_program import Lowered, lowered
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.results import trajectory

__all__ = ["emulate", "require_emulator"]

Ints = NDArray[np.int32]
Layers = Mapping[str, QuantizedWeight | QuantizedNeuron]


def require_emulator(mode: str | None, options: Mapping[str, Any]) -> None:
    """Refuse modes, and options the emulator does not have.

    Raises:
        UnsupportedError: naming them.
    """
    if mode is not None:
        raise UnsupportedError(f"the Loihi emulator has no mode {mode!r}", remedy="Use mode=None.")
    for name in sorted(set(options) - {"read_out"}):
        raise UnsupportedError(
            f"the Loihi emulator has no option {name!r} (given {options[name]!r})", remedy="Possible: read_out."
        )


def emulate(
    quantized: Quantized,
    raster: Any,
    *,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    read_out: str = "registers",
    found: Lowered | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Run a raster through the integer network.

    Every connection costs one step and its delay: a[t] = sum of W s[t - 1 - delay], the Input's included. Counters
    are those of `execute.Executed`.

    Args:
        quantized: the network.
        raster: 0 and 1, [step, batch, ...] or [step, ...].
        record: of 'spikes', 'v_mem' (the register v after the reset) and 'i_syn' (the register u). A population that
            only integrates has no spikes.
        nodes: populations to record; None: all. Outputs are always recorded.
        read_out: 'registers', or 'chip': v as the chip's probe shows it, see `execute.execute`.
        found: what to run; None: what lowering makes of the graph.
        progress: called now and then with the steps done and the steps of all samples.

    Raises:
        RasterError: a raster of wrong shape, a count other than 0 or 1, or an unknown node.
        UnsupportedError: an unknown read-out.
        QuantizationError: u beyond 32 bits; naming the population and the value.
    """
    found = found or lowered(quantized)
    program = found.program
    data, batched = check_raster(raster, program.input_shape, integer=True, maximum=1)
    keep = {name: set(record) & set(VARIABLES) for name in _chosen(program, nodes)}
    for name, variables in keep.items():
        if not quantized[name].fires:
            variables.discard("spikes")
    run = execute(program, data, keep, read_out=read_out, progress=progress)
    return trajectory(
        quantized,
        program,
        run.traces,
        run.outputs,
        lags=found.lags,
        batched=batched,
        executor="emulator",
        producer=f"nirdeploy {__version__}",
        view=REFRACTORY_VIEW if read_out == "chip" else None,
        counters=run.counters,
    )


def _chosen(program: Program, nodes: tuple[str, ...] | None) -> list[str]:
    """Populations to record, in the order of the program."""
    known = [p.name for p in program.populations]
    outputs = [shown.name for shown in program.outputs]
    for name in nodes or ():
        if name not in known and name not in outputs:
            raise RasterError(f"no population {name!r} to record", remedy=suggest(str(name), [*known, *outputs]))
    return [name for name in known if nodes is None or name in nodes]
