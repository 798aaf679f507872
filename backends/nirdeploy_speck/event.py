"""`event` mode: what the chip does, event by event.

For each input event, in order, every neuron that its kernel reaches gets v = max(v + w, v_min), saturating at 16
bits; where v >= threshold it emits ONE spike and v -= threshold (or v = 0), even if v is still at the threshold or
above: what remains waits for the neuron's next event (Speck Dev Kit Datasheet 3.2.4.4 to 3.2.4.6; sinabs
docs/speck/faqs/tips_for_training.md). A spike's coordinates are divided by the destination's pooling.

What the documents leave open has a name: `sweep`, the order in which the neurons that one event makes fire send; and
`leak_fires`. Everything that follows from a spike happens before the next one: the chip without congestion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy_speck.event_kernels import event_loop
from nirdeploy_speck.packed import Packed
from nirdeploy_speck.step import CoreRun, Recorder
from nirdeploy_speck.stream import Stream

__all__ = ["EventRun", "Spikes", "run_events", "trace_events"]

_SLICE = 1 << 16
"""Events between two moments at which Ctrl-C takes effect: a tenth of a second."""


@dataclass(frozen=True)
class Spikes:
    """Spikes of one core in the order they are sent.

    Attributes:
        cause: position in the stream of the input event that they follow from, -1 for the slow clock.
        order: position among the spikes of all cores.
        channel, y, x: of the neuron in the core's map, before pooling.
    """

    cause: NDArray[np.int64]
    order: NDArray[np.int64]
    channel: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]


@dataclass(frozen=True)
class EventRun:
    """What the cores made of one stream of events.

    Attributes:
        cores: spikes and v a step, with a batch of 1, and counters, by position.
        spikes: every spike in order, for each core.
    """

    cores: tuple[CoreRun, ...]
    spikes: tuple[Spikes, ...]


def run_events(
    packed: Packed,
    streams: Sequence[Stream],
    *,
    spikes: Sequence[int],
    v_mem: Sequence[int],
    sweep: str = "yxc",
    leak_fires: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CoreRun, ...]:
    """Every core over streams of events, a sample each, all of the same number of steps.

    Args:
        packed: the program.
        streams: one a sample.
        spikes: cores whose spikes to count a step, by position.
        v_mem: cores whose v to keep at the end of each step.
        sweep: one of `options.SWEEPS`.
        leak_fires: whether a cycle of the slow clock can make a neuron fire (not documented), or only the next event.
        progress: called now and then with the steps done and the steps of all samples.
    """
    recorder = Recorder(packed, streams[0].n_steps, len(streams), np.int32, spikes, v_mem)
    nothing = np.zeros((0, 3), np.int64)
    for sample, stream in enumerate(streams):
        _loop(packed, stream, recorder, sample, nothing, sweep, leak_fires, progress)
    return recorder.results()


def trace_events(packed: Packed, stream: Stream, *, sweep: str = "yxc", leak_fires: bool = True) -> EventRun:
    """As `run_events`, for one stream and with every single spike in the order it is sent."""
    everything = range(len(packed.table))
    counted = Recorder(packed, stream.n_steps, 1, np.int32, (), ())
    total = _loop(packed, stream, counted, 0, np.zeros((0, 3), np.int64), sweep, leak_fires)
    trace = np.empty((total, 3), np.int64)
    recorder = Recorder(packed, stream.n_steps, 1, np.int32, everything, everything)
    _loop(packed, stream, recorder, 0, trace, sweep, leak_fires)
    found = []
    for k, core in enumerate(packed.program.cores):
        order = np.flatnonzero(trace[:, 1] == k)
        outputs, _, width = core.output_shape
        position, channel = np.divmod(trace[order, 2], outputs)
        found.append(Spikes(trace[order, 0], order, channel, *np.divmod(position, width)))
    return EventRun(recorder.results(), tuple(found))


def _loop(
    packed: Packed,
    stream: Stream,
    recorder: Recorder,
    sample: int,
    trace: NDArray[Any],
    sweep: str,
    leak_fires: bool,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """The number of spikes; `progress`, as of `run_events`, is called after each slice of the events."""
    v, begun = np.zeros(packed.n_cells, np.int32), np.zeros(4, np.int64)
    while begun[0] < stream.n_steps:
        event_loop(
            *packed.arrays,
            stream.events,
            stream.until,
            stream.cycles,
            v,
            recorder.spikes[sample],
            recorder.spike_at,
            recorder.v_mem[sample],
            recorder.v_mem_at,
            recorder.counters,
            trace,
            sweep == "cyx",
            leak_fires,
            begun,
            _SLICE,
        )
        if progress is not None:
            progress(sample * stream.n_steps + int(begun[0]), len(recorder.spikes) * stream.n_steps)
    return int(begun[3])
