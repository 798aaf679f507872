"""`step` mode: bit for bit what sinabs's DynapcnnNetwork computes, from what the chip is told.

Per step, in the order of the cores (sinabs 3.1.3, layers.IAFSqueeze with quantised parameters):
v += conv(x) + b; n = v // threshold where v > 0, else 0, at most 1 for single spikes;
v -= n threshold (or v = 0 where n > 0); v = max(v, v_min). States are wider than the chip's 16 bits; what
would not have fitted is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy.errors import QuantizationError
from nirdeploy_speck.fields import COUNTERS
from nirdeploy_speck.packed import Packed
from nirdeploy_speck.step_kernels import step_loop

__all__ = ["CoreRun", "Recorder", "run_steps"]

_SLICE = 1 << 26
"""Cells times steps between two moments at which Ctrl-C takes effect: a few tenths of a second."""


@dataclass(frozen=True)
class CoreRun:
    """What one core did.

    Attributes:
        spikes: counts [step, batch, channel, y, x], before pooling; None where not recorded.
        v_mem: v at the end of each step, likewise.
        counters: 'saturations', 'clamps', 'synaptic_operations', 'input_events', 'spikes'.
    """

    spikes: NDArray[Any] | None
    v_mem: NDArray[Any] | None
    counters: Mapping[str, int]


class Recorder:
    """Where the kernels write to: the cores that are recorded, side by side in one array."""

    def __init__(self, packed: Packed, steps: int, batch: int, dtype: Any, spikes: Iterable[int], v_mem: Iterable[int]):
        self._packed = packed
        self._sizes = packed.sizes
        self.spike_at, n_spikes = self._places(spikes)
        self.v_mem_at, n_v_mem = self._places(v_mem)
        self.spikes = np.zeros((batch, steps, n_spikes), dtype)  # most of it is never touched
        self.v_mem = np.empty((batch, steps, n_v_mem), dtype)
        self.counters = np.zeros((len(packed.table), len(COUNTERS)), np.int64)

    def _places(self, wanted: Iterable[int]) -> tuple[NDArray[np.int64], int]:
        places = np.full(len(self._sizes), -1, np.int64)
        used = 0
        for core in sorted(set(wanted)):
            places[core] = used
            used += int(self._sizes[core])
        return places, used

    def results(self) -> tuple[CoreRun, ...]:
        """What every core did; the arrays are views."""
        found = []
        for k, core in enumerate(self._packed.program.cores):
            counters = dict(zip(COUNTERS, (int(n) for n in self.counters[k]), strict=True))
            spikes = self._view(self.spikes, self.spike_at, k, "its spike count", core.layer)
            found.append(CoreRun(spikes, self._view(self.v_mem, self.v_mem_at, k, "v", core.layer), counters))
        return tuple(found)

    def _view(
        self, array: NDArray[Any], places: NDArray[np.int64], k: int, what: str, layer: str
    ) -> NDArray[np.int32] | None:
        if places[k] < 0:
            return None
        channel, height, width = self._packed.program.cores[k].output_shape
        part = array[:, :, places[k] : places[k] + self._sizes[k]]
        part = exact.narrow(part, what, layer)
        return part.reshape(*part.shape[:2], height, width, channel).transpose(1, 0, 4, 2, 3)


def run_steps(
    packed: Packed,
    raster: NDArray[Any],
    *,
    spikes: Sequence[int],
    v_mem: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CoreRun, ...]:
    """Every core over a raster of the Input's events, a step at a time.

    Args:
        packed: the program.
        raster: counts [step, batch, channel, y, x] in `program.input_map`.
        spikes: cores whose spikes to keep, by position.
        v_mem: cores whose v to keep.
        progress: called now and then with the steps done and the steps of all samples.

    Raises:
        QuantizationError: a sum that 62 bits do not hold, or a count or v that 32 bits do not, naming the population.
    """
    steps, batch = raster.shape[:2]
    part = max(1, _SLICE // max(1, packed.n_cells))
    # 32 bits are tried first; the loop stops before a sum that they might not hold
    for dtype, limit in ((np.int32, (1 << 31) - 1), (np.int64, 1 << 62)):
        recorder = Recorder(packed, steps, batch, dtype, spikes, v_mem)
        for sample, first in product(range(batch), range(0, steps, part)):
            if not first:
                v, bound = np.zeros(packed.n_cells, dtype), np.zeros(len(packed.table), np.float64)
            these = slice(first, min(first + part, steps))
            core, events = step_loop(
                *packed.arrays,
                raster[these, sample],
                v,
                bound,
                limit,
                recorder.spikes[sample, these],
                recorder.spike_at,
                recorder.v_mem[sample, these],
                recorder.v_mem_at,
                recorder.counters,
            )
            if core >= 0:
                break
            if progress is not None:
                progress(sample * steps + these.stop, batch * steps)
        else:
            return recorder.results()
    raise QuantizationError(
        f"v could pass 2**62: {events} events in one step reach it", node=packed.program.cores[core].layer
    )
