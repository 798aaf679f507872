"""`core_model='two_lanes'`: two queues at a core's input, which change the order in which events are applied.

A model fitted to recordings of a Speck 2f (the layer-1 counts of the N-MNIST network of Pedersen et al., Nature
Communications 15, 8122, 2024), and not a law. Input event i of a core goes to lane i mod 2; each lane is a FIFO of
`fifo` events, the one in service included; the dispatcher works in order and waits while the next lane is full; an
event's service takes `position_us` for each position of the output map that it reaches, on the slower lane `ratio`
times as long; all its updates are applied at once when its service starts.

docs/speck_core_model.md has what speaks for it and what it leaves unexplained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import UnsupportedError
from nirdeploy_speck.native import kernel
from nirdeploy_speck.options import Lanes
from nirdeploy_speck.packed import Packed

__all__ = ["LANE_CORES", "require_lanes", "service_starts"]

LANE_CORES = (0, 1)
"""Cores that compute in parallel (sinabs issue 186)."""


def require_lanes(packed: Packed) -> tuple[int, ...]:
    """Positions of the cores that get lanes: those numbered 0 and 1, which the Input must feed.

    Raises:
        UnsupportedError: there is none, or one that other cores feed: there the model is not known to hold.
    """
    program = packed.program
    found = tuple(k for k, core in enumerate(program.cores) if core.number in LANE_CORES)
    if not found:
        used = ", ".join(f"{core.layer!r} on core {core.number}" for core in program.cores)
        raise UnsupportedError(
            f"core_model 'two_lanes' is one of cores 0 and 1, and none of them is in use ({used})",
            remedy="Deploy with cores={layer: 0}, or use core_model='in_order'.",
        )
    fed = {to.core for core in program.cores for to in core.destinations}
    for k in found:
        if k in fed:
            core = program.cores[k]
            raise UnsupportedError(
                f"is on core {core.number} and fed by other cores; core_model 'two_lanes' was only seen at the Input",
                node=core.layer,
                remedy="Deploy it on another core, or use core_model='in_order'.",
            )
    return found


def service_starts(
    packed: Packed, time_us: NDArray[Any], core: NDArray[np.int64], address: NDArray[np.int64], lanes: Lanes
) -> NDArray[np.float64]:
    """When each event is applied, in microseconds; at cores without lanes, when it arrives.

    Args:
        packed: the program.
        time_us: [event] when it arrives, never decreasing.
        core: [event] position of the core it goes to.
        address: [event, 3] channel, y, x at the core.
        lanes: parameters.
    """
    starts: NDArray[np.float64] = time_us.astype(np.float64)
    for k in require_lanes(packed):
        mine = np.flatnonzero(core == k)
        lane = np.arange(len(mine), dtype=np.int64) % 2
        positions = _positions(packed, k, address[mine])
        work: NDArray[Any] = positions * lanes.position_us
        if lanes.jitter:
            generator = np.random.default_rng(lanes.seed)
            work = work * np.exp(generator.normal(0.0, lanes.jitter, len(work)))
        work = np.where(lane == lanes.slower_lane, work * lanes.ratio, work)
        starts[mine] = _queue(starts[mine], work, lane, lanes.fifo)
    return starts


def _positions(packed: Packed, k: int, address: NDArray[np.int64]) -> NDArray[np.int64]:
    """[event] positions of core k's output map that each event reaches."""
    rows = packed.reach[packed.column("first_row")[k] + address[:, 1]]
    columns = packed.reach[packed.column("first_column")[k] + address[:, 2]]
    sides = [np.maximum(side[:, 1] - side[:, 0] + 1, 0) for side in (rows, columns)]
    found: NDArray[np.int64] = sides[0] * sides[1]
    return found


@kernel
def _queue(
    time: NDArray[np.float64], work: NDArray[np.float64], lane: NDArray[np.int64], room: int
) -> NDArray[np.float64]:
    """When each event's service starts: two queues of `room` places, filled in order by one that waits for a place.

    Args:
        time: [event] when it arrives.
        work: [event] how long its service takes.
        lane: [event] 0 or 1.
        room: places of a lane, the one in service included.
    """
    n = len(time)
    starts = np.empty(n)
    ends = np.zeros((2, room))  # of the last `room` events of a lane
    count = np.zeros(2, np.int64)
    last = np.zeros(2)
    clear = 0.0  # when the one that fills the queues has passed on the event before
    for i in range(n):
        at = lane[i]
        oldest = ends[at, count[at] % room]  # leaves before this one finds a place
        clear = max(clear, time[i], oldest if count[at] >= room else 0.0)
        starts[i] = max(clear, last[at])
        last[at] = starts[i] + work[i]
        ends[at, count[at] % room] = last[at]
        count[at] += 1
    return starts
