"""The Input's events on their way to the cores: in order, with their step and the slow clock's cycles before each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import RasterError
from nirdeploy_speck.cores import ChipProgram
from nirdeploy_speck.options import EventOptions
from nirdeploy_speck.packed import Packed
from nirdeploy_speck.two_lanes import service_starts

__all__ = ["Arrivals", "Stream", "arrivals", "make_stream"]

_LARGEST = 1 << 62


@dataclass(frozen=True)
class Arrivals:
    """Events in the order in which they arrive at cores; one that goes to two cores is there twice.

    Attributes:
        time_us: [event] when.
        core: [event] position of the core.
        address: [event, 3] channel, y, x in the core's input map.
    """

    time_us: NDArray[np.int64]
    core: NDArray[np.int64]
    address: NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """One sample's events as the emulator takes them.

    Attributes:
        events: [event, 5] core, channel, y, x and the slow clock's cycles before it.
        until: [step] number of events up to the end of each step.
        cycles: [step] cycles of the slow clock up to the end of each step.
    """

    events: NDArray[np.int64]
    until: NDArray[np.int64]
    cycles: NDArray[np.int64]

    @property
    def n_steps(self) -> int:
        """Number of steps that are recorded."""
        return len(self.until)


def arrivals(
    program: ChipProgram, time_us: NDArray[np.int64], channel: NDArray[Any], y: NDArray[Any], x: NDArray[Any]
) -> Arrivals:
    """The Input's events, in `program.input_map`, sent to where the program sends them."""
    copies = max(1, len(program.entry))
    n = len(time_us)
    address = np.empty((n, copies, 3), np.int64)
    core = np.empty((n, copies), np.int64)
    for at, to in enumerate(program.entry):
        core[:, at] = to.core
        address[:, at, 0] = channel.astype(np.int64) + to.feature_shift
        address[:, at, 1] = y // to.pooling
        address[:, at, 2] = x // to.pooling
    return Arrivals(np.repeat(time_us, copies), core.reshape(-1), address.reshape(-1, 3))


def make_stream(
    packed: Packed, found: Arrivals, options: EventOptions, *, start_us: int, step_us: int, n_steps: int
) -> Stream:
    """The order of service, steps, and cycles of the slow clock.

    Cycle k = 1, 2, ... of a clock of f Hz ends at start_us + k 10**6 / f, before the events of that time. With
    `core_model='two_lanes'` time is that of an event's service; what is served after the last step counts there.

    Args:
        packed: the program.
        found: the events.
        options: of the run.
        start_us: when step 0 begins.
        step_us: microseconds of a step.
        n_steps: number of steps.

    Raises:
        RasterError: more microseconds times cycles than 62 bits hold.
    """
    hertz = options.leak_clock_hz or 0
    if n_steps * step_us * max(hertz, 1) >= _LARGEST:
        raise RasterError(
            f"{n_steps} steps of {step_us} us at {hertz} Hz are more than 62 bits count",
            remedy="Use origin='first', or a slower leak_clock_hz.",
        )
    time: NDArray[Any] = found.time_us - start_us
    if options.core_model == "two_lanes":
        starts = service_starts(packed, time, found.core, found.address, options.lanes)
        sequence = np.argsort(starts, kind="stable")
        found = Arrivals(found.time_us[sequence], found.core[sequence], found.address[sequence])
        time = np.floor(starts[sequence]).astype(np.int64)
    ends = np.arange(1, n_steps + 1, dtype=np.int64) * step_us
    columns = (found.core[:, None], found.address, (time * hertz // 1_000_000)[:, None])
    events = np.concatenate(columns, axis=1)
    until = np.searchsorted(time, ends)
    if n_steps:
        until[-1] = len(events)
    # the cycle that ends with the last microsecond of a step is the next step's
    cycles = np.maximum(ends * hertz - 1, 0) // 1_000_000
    return Stream(np.ascontiguousarray(events), until.astype(np.int64), cycles)
