"""A raster or recorded events as the streams that event mode takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nirdeploy.binning import raster_to_events, whole_microseconds
from nirdeploy.errors import RasterError, UnsupportedError
from nirdeploy.events import Events
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy_speck.event import run_events
from nirdeploy_speck.network import Network
from nirdeploy_speck.options import EventOptions
from nirdeploy_speck.packed import Packed
from nirdeploy_speck.step import CoreRun
from nirdeploy_speck.stream import Stream, arrivals, make_stream
from nirdeploy_speck.two_lanes import require_lanes

__all__ = ["event_runs", "event_streams"]

_MAX_BYTES = 1 << 31
_STEP_US = 1000  # where nothing says how long a step is and nothing depends on it


def event_runs(
    packed: Packed,
    network: Network,
    raster: Any,
    options: EventOptions,
    convention: Convention,
    keep: Mapping[str, Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[CoreRun, ...], bool]:
    """Event mode over a raster or events, and whether they had a batch axis; `progress` as of `run_events`.

    Raises:
        UnsupportedError, RasterError: as `event_streams`.
    """
    streams, batched = event_streams(packed, network, raster, options, convention, keep)
    found = run_events(packed, streams, **keep, sweep=options.sweep, leak_fires=options.leak_fires, progress=progress)
    return found, batched


def event_streams(
    packed: Packed,
    network: Network,
    raster: Any,
    options: EventOptions,
    convention: Convention,
    keep: Mapping[str, Sequence[int]],
) -> tuple[list[Stream], bool]:
    """A stream a sample, and whether there was a batch axis.

    Args:
        packed: the program.
        network: the layers it was made of.
        raster: counts [step, batch, ...] or [step, ...], or Events.
        options: of the run.
        convention: whose dt is a step, where the options do not say.
        keep: the cores whose 'spikes' and 'v_mem' will be recorded.

    Raises:
        UnsupportedError: biases and not a word on the slow clock that adds them; lanes at cores that have none; or
            no time where the result depends on it.
        RasterError: wrong shape, negative, NaN or fractional counts; events beyond the Input or before the origin;
            records of more than 2 GiB.
    """
    if isinstance(raster, list | tuple) and any(isinstance(one, Events) for one in raster):
        raise RasterError("several recordings", remedy="Run one sample's Events at a time.")
    _require_clock(packed, options)
    if options.core_model == "two_lanes":
        require_lanes(packed)
    if isinstance(raster, Events):
        return [_of_events(packed, network, raster, options, convention, keep)], False
    data, batched = check_raster(raster, network.input_shape, integer=True)
    step_us = _step_us(options, convention, needed=options.timed)
    # the order is that in which the host sends them, before what the DVS layer makes of them
    sent = network.events(data) if network.dvs is None else data
    streams = []
    for sample in range(sent.shape[1]):
        events = raster_to_events(sent[:, sample], step_us=step_us, order=options.order)
        passed, *index = network.addresses(events.address)
        found = arrivals(packed.program, events.time_us[passed], *index)
        streams.append(make_stream(packed, found, options, start_us=0, step_us=step_us, n_steps=len(sent)))
    return streams, batched


def _of_events(
    packed: Packed,
    network: Network,
    events: Events,
    options: EventOptions,
    convention: Convention,
    keep: Mapping[str, Sequence[int]],
) -> Stream:
    shape = network.input_shape
    given = events if events.shape is not None else _shaped(events, shape)
    if given.shape != shape:
        raise RasterError(
            f"the events have the shape {given.shape}, the Input has {shape}",
            remedy=f"Give them the shape they were recorded for, or record {shape}.",
        )
    step_us = _step_us(options, convention, needed=False)
    first = int(events.time_us[0]) if len(events) else 0
    start = 0 if options.origin == "zero" else first if options.origin == "first" else int(options.origin)
    if len(events) and first < start:
        raise RasterError(f"the first event is at {first} us, before the origin at {start} us")
    last = int(events.time_us[-1]) + 1 if len(events) else start
    stop = last if events.stop_us is None else events.stop_us
    if stop < start:
        raise RasterError(
            f"the recording ends at {stop} us, before the origin at {start} us", remedy="Use an earlier origin."
        )
    n_steps = -(-(stop - start) // step_us)
    size = n_steps * (16 + sum(4 * int(packed.sizes[k]) for cores in keep.values() for k in cores))
    if size > _MAX_BYTES:
        raise RasterError(
            f"records of {n_steps} steps of {step_us} us would take {size} bytes, at most {_MAX_BYTES}",
            remedy="Use a longer step_us, record less, or origin='first' where times do not begin near 0.",
        )
    passed, channel, y, x = network.addresses(given.address)
    found = arrivals(packed.program, events.time_us[passed], channel, y, x)
    return make_stream(packed, found, options, start_us=start, step_us=step_us, n_steps=n_steps)


def _shaped(events: Events, shape: tuple[int, ...]) -> Events:
    return Events(events.time_us, index=events.index, shape=shape, stop_us=events.stop_us, label=events.label)


def _step_us(options: EventOptions, convention: Convention, *, needed: bool) -> int:
    if options.step_us is not None:
        return options.step_us
    found = whole_microseconds(convention.dt)
    if found is not None:
        return found
    if needed:
        what = "core_model 'two_lanes'" if options.core_model == "two_lanes" else "leak_clock_hz"
        raise UnsupportedError(
            f"{what} needs to know how long a step is, and the convention's dt is {convention.dt}",
            remedy="Pass step_us=, in microseconds.",
        )
    return _STEP_US


def _require_clock(packed: Packed, options: EventOptions) -> None:
    """Refuse biases without a word on the clock that alone adds them (DS 3.2.6)."""
    if options.leak_clock_hz is not None:
        return
    for core in packed.program.cores:
        if core.bias is not None and np.any(core.bias):
            raise UnsupportedError(
                "has a bias, which the chip adds once a cycle of its slow clock, and not at all without one",
                node=core.layer,
                remedy="Pass leak_clock_hz= (10 to 10000 are usual), or leak_clock_hz=0 to run without the clock.",
            )
