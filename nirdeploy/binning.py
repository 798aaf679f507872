"""Exact conversion of events to and from rasters of counts: times are whole microseconds, steps whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nirdeploy.errors import RasterError
from nirdeploy.events import LAST_INDEX, LAST_US, Events, choice, row_major, sample_shape, whole
from nirdeploy.files import MAX_BYTES
from nirdeploy.raster import _plain, _refuse, as_array

__all__ = [
    "Binned",
    "Binning",
    "Order",
    "Origin",
    "bin_events",
    "events_to_raster",
    "raster_to_events",
    "stack_events",
    "whole_microseconds",
]

Origin = Literal["first", "zero"] | int
Order = Literal["row_major", "sinabs"]

_MAX_EVENTS = 1 << 28


def raster_to_events(
    raster: Any, *, step_us: int = 1000, order: Order = "row_major", label: int | None = None
) -> Events:
    """One event a count, at time step * step_us; `events_to_raster` gives the same raster back.

    Args:
        raster: [step, *shape] whole counts of ONE sample; array or tensor.
        step_us: microseconds a step takes.
        order: of the events within a step. `row_major`: by index (channel, y, x), the spikes of one cell together.
            `sinabs`: as `ChipFactory.raster_to_events` of sinabs 3.1.3 sends them: the cells with the highest count
            n first, their row-major list n times over, then the next lower count.
        label: kept in the events.

    Returns:
        Events in microseconds, as many as there are counts.

    Raises:
        RasterError: no steps axis; negative, fractional, infinite or NaN counts, named by position; more spikes than
            memory should hold.
    """
    step = whole(step_us, "step_us", 1)
    array = _plain(as_array(raster))
    if array.ndim < 1:
        raise RasterError("the raster is a single number, expected [step, *shape]")
    if order not in ("row_major", "sinabs"):
        raise RasterError(f"order is {order!r}, expected 'row_major' or 'sinabs'")
    if array.dtype.kind == "f":
        _refuse(array, ~np.isfinite(array), "expected finite counts")
        _refuse(array, array != np.rint(array), "expected whole counts")
    _refuse(array, array < 0, "a negative count")
    _refuse(array, array > _MAX_EVENTS, f"at most {_MAX_EVENTS} events are made")
    cells = np.nonzero(array)
    counts = array[cells].astype(np.int64)
    if int(counts.sum()) > _MAX_EVENTS:
        raise RasterError(f"the raster holds {counts.sum()} spikes, at most {_MAX_EVENTS} events are made")
    stop = len(array) * step
    if stop > LAST_US:
        raise RasterError(f"{len(array)} steps of {step} us take {stop} us, at most {LAST_US}")
    picked = np.repeat(np.arange(len(counts)), counts)
    if order == "sinabs":
        again = np.arange(len(picked)) - np.repeat(np.cumsum(counts) - counts, counts)
        picked = picked[np.lexsort((picked, again, -counts[picked], cells[0][picked]))]
    index = [axis[picked] for axis in cells[1:]]
    return Events(cells[0][picked] * step, index=index, shape=array.shape[1:], stop_us=stop, label=label)


# ---------------------------------------------------------------- events to raster


class Binning(TypedDict, total=False):
    """The keywords of `bin_events`, `events_to_raster` and `stack_events`."""

    step_us: int
    n_steps: int | None
    origin: Origin
    incomplete: Literal["keep", "drop"]
    outside: Literal["error", "drop"]
    dtype: DTypeLike | None
    max_bytes: int


@dataclass(frozen=True)
class Binned:
    """A raster of counts, and how many events it leaves out.

    Attributes:
        raster: [step, *shape] counts.
        before: events earlier than the origin.
        after: events later than the last of `n_steps`.
        incomplete: events in the incomplete last step.
    """

    raster: NDArray[Any]
    before: int
    after: int
    incomplete: int

    @property
    def dropped(self) -> int:
        """Events that are not in the raster."""
        return self.before + self.after + self.incomplete


def bin_events(
    events: Events,
    shape: Sequence[int] | None = None,
    *,
    step_us: int = 1000,
    n_steps: int | None = None,
    origin: Origin = "zero",
    incomplete: Literal["keep", "drop"] = "keep",
    outside: Literal["error", "drop"] = "error",
    dtype: DTypeLike | None = None,
    max_bytes: int = MAX_BYTES,
) -> Binned:
    """Count the events of each step, (time_us - origin) // step_us in integers, and what was dropped if asked to.

    As given, nothing is dropped. N-MNIST is usually binned with origin="first", incomplete="drop".

    Args:
        events: of one sample.
        shape: of the sample, e.g. (2, 34, 34); left out where the events have it.
        step_us: microseconds a step takes.
        n_steps: steps to make; None: up to the end of the recording, or to the last event where the end is unknown.
        origin: microseconds at which step 0 begins: 0, a number, or the time of the first event.
        incomplete: what becomes of the last step when the recording ends inside it. Where the end is unknown it is
            the last event's time, so that event's step is incomplete.
        outside: whether events before the origin or after `n_steps` are an error or dropped.
        dtype: integer type of the counts; None: the first of uint8, int32 and int64 that holds them.
        max_bytes: most bytes the raster may take.

    Returns:
        The raster [step, *shape] and how many events were dropped, and why.

    Raises:
        RasterError: unknown shape, indices beyond it, events outside, counts the dtype cannot hold, or a raster
            too large.
    """
    step = whole(step_us, "step_us", 1)
    sample = sample_shape(events, shape)
    choice(incomplete, "incomplete", ("keep", "drop"))
    choice(outside, "outside", ("error", "drop"))
    time, start = events.time_us, _start(events, origin)
    complete, rest = _steps(events, start, step)
    wanted = complete + (rest and incomplete == "keep") if n_steps is None else whole(n_steps, "n_steps", 0)
    counted = min(wanted, complete) if incomplete == "drop" else wanted

    first = int(np.searchsorted(time, start))
    last = max(first, _position(time, start + counted * step))
    end = len(time) if n_steps is None else max(first, _position(time, start + wanted * step))
    before, after = first, len(time) - end
    if outside == "error" and (before or after):
        _refuse_outside(before, after, start, wanted, step)
    bins = (time[first:last] - start) // step
    raster = _count(bins, tuple(a[first:last] for a in events.index), (wanted, *sample), dtype, max_bytes)
    return Binned(raster, before, after, end - last)


def events_to_raster(events: Events, shape: Sequence[int] | None = None, **options: Unpack[Binning]) -> NDArray[Any]:
    """[step, *shape] counts; arguments and errors as of `bin_events`, which also tells what was dropped.

    Args:
        events: of one sample.
        shape: of the sample; left out where the events have it.
        **options: as of `bin_events`.

    Returns:
        Integer counts, [step, *shape].
    """
    return bin_events(events, shape, **options).raster


def stack_events(
    samples: Sequence[Events], shape: Sequence[int] | None = None, **options: Unpack[Binning]
) -> NDArray[Any]:
    """[step, batch, *shape] counts of several samples; the shorter ones are followed by silence.

    Args:
        samples: the events of each sample.
        shape: of a sample; left out where the events have it.
        **options: as of `bin_events`.

    Returns:
        Integer counts, [step, batch, *shape].

    Raises:
        RasterError: no samples, samples of different shapes, or an error of `bin_events`, with the sample's number.
    """
    if not len(samples):
        raise RasterError("there are no samples to stack")
    limit = options.get("max_bytes", MAX_BYTES)
    rasters: list[NDArray[Any]] = []
    for number, events in enumerate(samples):
        try:
            rasters.append(bin_events(events, shape, **options).raster)
        except RasterError as error:
            raise RasterError(f"sample {number}: {error}") from error
        if rasters[-1].shape[1:] != rasters[0].shape[1:]:
            raise RasterError(
                f"sample {number} has shape {rasters[-1].shape[1:]}, sample 0 {rasters[0].shape[1:]}",
                remedy="Give the shape of all.",
            )
    whole = (max(len(r) for r in rasters), len(rasters), *rasters[0].shape[1:])
    stacked = _zeros(whole, np.result_type(*rasters), limit)
    for number, raster in enumerate(rasters):
        stacked[: len(raster), number] = raster
    return stacked


def _start(events: Events, origin: Origin) -> int:
    if isinstance(origin, str):
        choice(origin, "origin", ("first", "zero"))
        return int(events.time_us[0]) if origin == "first" and len(events) else 0
    return whole(origin, "origin", -LAST_US)


def _steps(events: Events, start: int, step: int) -> tuple[int, bool]:
    """Complete steps of the recording, and whether an incomplete one follows."""
    if events.stop_us is not None:
        complete, rest = divmod(max(events.stop_us - start, 0), step)
        return complete, rest > 0
    if not len(events) or int(events.time_us[-1]) < start:
        return 0, False
    return (int(events.time_us[-1]) - start) // step, True


def _position(time: NDArray[np.int64], when: int) -> int:
    return len(time) if when > LAST_US else int(np.searchsorted(time, when))


def _refuse_outside(before: int, after: int, start: int, n_steps: int, step: int) -> None:
    parts = [f"{before} {_events(before)} before the origin ({start} us)"] if before else []
    parts += [f"{after} {_events(after)} after {n_steps} steps of {step} us"] if after else []
    raise RasterError(f"{' and '.join(parts)} would be lost", remedy="Pass outside='drop' to drop them.")


def _events(number: int) -> str:
    return "event" if number == 1 else "events"


def _count(
    bins: NDArray[np.int64],
    index: tuple[NDArray[np.int32], ...],
    shape: tuple[int, ...],
    dtype: DTypeLike | None,
    max_bytes: int,
) -> NDArray[Any]:
    """A raster of `shape` with the number of events of each cell."""
    chosen: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)
    if chosen is not None and chosen.kind not in "iu":
        raise RasterError(f"dtype is {chosen}, expected an integer type")
    _zeros(shape, chosen or np.dtype(np.uint8), max_bytes, dry=True)
    cells, counts = np.unique(row_major((bins, *index), shape, len(bins)), return_counts=True)
    most = int(counts.max()) if counts.size else 0
    if chosen is None:
        chosen = np.dtype(next(d for d in (np.uint8, np.int32, np.int64) if most <= np.iinfo(d).max))
    limit = np.iinfo(chosen).max
    if most > limit:
        at = int(np.argmax(counts > limit))
        where = tuple(int(i) for i in np.unravel_index(cells[at], shape))
        raise RasterError(
            f"the raster would hold {counts[at]} at {where}; {chosen} holds at most {limit}",
            remedy="Use a wider dtype or shorter steps.",
        )
    raster = _zeros(shape, chosen, max_bytes)
    raster.reshape(-1)[cells] = counts
    return raster


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any], max_bytes: int, *, dry: bool = False) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    if size > max_bytes or max(shape) > LAST_INDEX:
        raise RasterError(
            f"the raster of shape {shape} would take {size} bytes, at most {max_bytes}",
            remedy="Use longer steps, origin='first' where times do not begin near 0, or a larger max_bytes.",
        )
    return np.zeros(0 if dry else shape, dtype)


def whole_microseconds(dt: float | None) -> int | None:
    """A step of dt seconds in microseconds; None where that is no whole number, up to the rounding of dt."""
    step_us = 0 if dt is None else round(dt * 1e6)
    return step_us if dt is not None and step_us and abs(step_us - dt * 1e6) <= 1e-6 * step_us else None
