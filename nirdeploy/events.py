"""Recorded spike events of one sample, and their exact conversion to and from rasters of counts.

Times are whole microseconds and steps whole numbers, so no event is lost to rounding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nirdeploy.errors import RasterError
from nirdeploy.files import MAX_BYTES
from nirdeploy.raster import _plain, _refuse, as_array

__all__ = [
    "Binned",
    "Binning",
    "Events",
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

_LAST_US = 1 << 62  # so that a time less an origin fits 64 bits
_LAST_INDEX = (1 << 31) - 1
_EXACT_FLOAT = 1 << 53
_MAX_EVENTS = 1 << 28
_NAMES = {0: (), 1: ("channel",), 2: ("channel", "x"), 3: ("channel", "y", "x")}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Events:
    """Spike events of one sample, in the order they are applied: on event-driven chips it decides the result.

    Events of images are `Events(time_us, channel, y, x)`, of vectors `Events(time_us, channel)`, of rows
    `Events(time_us, channel, x=x)`; `index` takes one array an axis for any rank. The arrays are copied, and
    cannot be written to.

    Args:
        time_us: [event] microseconds, whole, not negative, never decreasing.
        channel: [event] first index.
        y: [event] row.
        x: [event] column.
        index: one [event] array an axis of the sample, instead of channel, y and x.
        shape: shape of the sample, where it is known, e.g. (channels, height, width).
        stop_us: when the recording ends, where it is known; later than every event.
        label: the class of the sample.

    Attributes:
        time_us: as given.
        index: one [event] array an axis of the sample.
        shape: as given; None: not known.
        stop_us: as given; None: not known.
        label: as given.

    Raises:
        RasterError: unequal lengths; values that are no whole numbers, negative or beyond the shape; time that
            decreases.
    """

    time_us: NDArray[np.int64]
    index: tuple[NDArray[np.int32], ...]
    shape: tuple[int, ...] | None
    stop_us: int | None
    label: int | None

    def __init__(
        self,
        time_us: ArrayLike,
        channel: ArrayLike | None = None,
        y: ArrayLike | None = None,
        x: ArrayLike | None = None,
        *,
        index: Sequence[ArrayLike] | None = None,
        shape: Sequence[int] | None = None,
        stop_us: int | None = None,
        label: int | None = None,
    ) -> None:
        time, axes = _columns(time_us, channel, y, x, index)
        falls = np.flatnonzero(time[1:] < time[:-1])
        if falls.size:
            at = int(falls[0]) + 1
            raise RasterError(
                f"time_us falls from {time[at - 1]} to {time[at]} at event {at}; the order decides the result",
                remedy="Events.sorted(...) takes the same arguments and sorts by time, stably.",
            )
        for name, value in (
            ("time_us", time),
            ("index", axes),
            ("shape", None if shape is None else _shape(shape)),
            ("stop_us", None if stop_us is None else _whole(stop_us, "stop_us", 0)),
            ("label", None if label is None else _whole(label, "label", -_LAST_US)),
        ):
            object.__setattr__(self, name, value)
        time.setflags(write=False)
        for axis in axes:
            axis.setflags(write=False)
        if self.shape is not None:
            _fits(self, self.shape)
        if self.stop_us is not None and len(time) and time[-1] >= self.stop_us:
            raise RasterError(f"the last event is at {time[-1]} us, not before stop_us={self.stop_us}")

    @classmethod
    def sorted(
        cls,
        time_us: ArrayLike,
        channel: ArrayLike | None = None,
        y: ArrayLike | None = None,
        x: ArrayLike | None = None,
        *,
        index: Sequence[ArrayLike] | None = None,
        shape: Sequence[int] | None = None,
        stop_us: int | None = None,
        label: int | None = None,
    ) -> Events:
        """Events in the order of their time; those of one time keep the order they are given in.

        Args:
            time_us: of each event, microseconds, in any order.
            channel: of each event, and so are y and x; or `index` instead, as in the class.
            y: row.
            x: column.
            index: one array an axis.
            shape: of the sample.
            stop_us: when the recording ends.
            label: of the sample.
        """
        time, axes = _columns(time_us, channel, y, x, index)
        order = np.argsort(time, kind="stable")
        return cls(time[order], index=[axis[order] for axis in axes], shape=shape, stop_us=stop_us, label=label)

    @classmethod
    def flat(
        cls,
        time_us: ArrayLike,
        address: ArrayLike,
        shape: Sequence[int] | None = None,
        *,
        stop_us: int | None = None,
        label: int | None = None,
    ) -> Events:
        """Events by flat address: the row-major position in `shape`, or the neuron of a vector without one.

        Args:
            time_us: of each event, microseconds, never decreasing.
            address: of each event.
            shape: of the sample.
            stop_us: when the recording ends.
            label: of the sample.

        Raises:
            RasterError: as the class, or an address beyond the shape.
        """
        if shape is None:
            return cls(time_us, address, stop_us=stop_us, label=label)
        wanted = _shape(shape)
        flat = _integers(address, "address", _LAST_US, np.dtype(np.int64))
        beyond = np.flatnonzero(flat >= math.prod(wanted))
        if beyond.size:
            at = int(beyond[0])
            raise RasterError(f"event {at} has address {flat[at]}; shape {wanted} has {math.prod(wanted)} cells")
        index = np.unravel_index(flat, wanted) if flat.size else [flat] * len(wanted)
        return cls(time_us, index=list(index), shape=wanted, stop_us=stop_us, label=label)

    def __len__(self) -> int:
        return len(self.time_us)

    def __eq__(self, other: object) -> bool:
        """Whether times, indices in their order, shape, end and label are all equal."""
        if not isinstance(other, Events):
            return NotImplemented
        same = (self.shape, self.stop_us, self.label) == (other.shape, other.stop_us, other.label)
        same = same and len(self.index) == len(other.index) and np.array_equal(self.time_us, other.time_us)
        return same and all(np.array_equal(a, b) for a, b in zip(self.index, other.index, strict=True))

    __hash__ = None  # type: ignore[assignment]  # Python's way to say unhashable, which typeshed does not know

    def __repr__(self) -> str:
        span = f", {self.time_us[0]} to {self.time_us[-1]} us" if len(self) else ""
        return f"Events({len(self)} events{span}, shape {self.shape})"

    @property
    def channel(self) -> NDArray[np.int32]:
        """[event] first index."""
        return self._axis("channel")

    @property
    def y(self) -> NDArray[np.int32]:
        """[event] row, of images."""
        return self._axis("y")

    @property
    def x(self) -> NDArray[np.int32]:
        """[event] column, of images and rows."""
        return self._axis("x")

    def _axis(self, name: str) -> NDArray[np.int32]:
        names = _NAMES.get(len(self.index), ())
        if name not in names:
            raise RasterError(f"events with {len(self.index)} indices have no {name!r}", remedy="Use index.")
        return self.index[names.index(name)]

    @property
    def address(self) -> NDArray[np.int64]:
        """[event] flat row-major address in `shape`.

        Raises:
            RasterError: several indices and no shape.
        """
        if self.shape is None and len(self.index) != 1:
            raise RasterError(
                "flat addresses need the sample's shape", remedy="dataclasses.replace(events, shape=...)."
            )
        return _address(self.index, (0,) if self.shape is None else self.shape, len(self))

    @property
    def duration_us(self) -> int:
        """Microseconds from the first event to the last."""
        return int(self.time_us[-1] - self.time_us[0]) if len(self) else 0

    def between(self, start_us: int | None = None, stop_us: int | None = None) -> Events:
        """The events with start_us <= time < stop_us, their times unchanged.

        Args:
            start_us: microseconds; None: from the first event on.
            stop_us: microseconds; None: to the end.
        """
        start = 0 if start_us is None else _whole(start_us, "start_us", 0)
        stop = None if stop_us is None else _whole(stop_us, "stop_us", start)
        first = int(np.searchsorted(self.time_us, start))
        last = len(self) if stop is None else int(np.searchsorted(self.time_us, stop))
        ends = self.stop_us if stop is None or self.stop_us is None else min(stop, self.stop_us)
        index = [axis[first:last] for axis in self.index]
        return Events(self.time_us[first:last], index=index, shape=self.shape, stop_us=ends, label=self.label)


# ---------------------------------------------------------------- raster to events


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
    step = _whole(step_us, "step_us", 1)
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
    if stop > _LAST_US:
        raise RasterError(f"{len(array)} steps of {step} us take {stop} us, at most {_LAST_US}")
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
    step = _whole(step_us, "step_us", 1)
    sample = _sample_shape(events, shape)
    _choice(incomplete, "incomplete", ("keep", "drop"))
    _choice(outside, "outside", ("error", "drop"))
    time, start = events.time_us, _start(events, origin)
    complete, rest = _steps(events, start, step)
    wanted = complete + (rest and incomplete == "keep") if n_steps is None else _whole(n_steps, "n_steps", 0)
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
        _choice(origin, "origin", ("first", "zero"))
        return int(events.time_us[0]) if origin == "first" and len(events) else 0
    return _whole(origin, "origin", -_LAST_US)


def _steps(events: Events, start: int, step: int) -> tuple[int, bool]:
    """Complete steps of the recording, and whether an incomplete one follows."""
    if events.stop_us is not None:
        complete, rest = divmod(max(events.stop_us - start, 0), step)
        return complete, rest > 0
    if not len(events) or int(events.time_us[-1]) < start:
        return 0, False
    return (int(events.time_us[-1]) - start) // step, True


def _position(time: NDArray[np.int64], when: int) -> int:
    return len(time) if when > _LAST_US else int(np.searchsorted(time, when))


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
    cells, counts = np.unique(_address((bins, *index), shape, len(bins)), return_counts=True)
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
    if size > max_bytes or max(shape) > _LAST_INDEX:
        raise RasterError(
            f"the raster of shape {shape} would take {size} bytes, at most {max_bytes}",
            remedy="Use longer steps, origin='first' where times do not begin near 0, or a larger max_bytes.",
        )
    return np.zeros(0 if dry else shape, dtype)


# ---------------------------------------------------------------- checking


def _columns(
    time_us: ArrayLike,
    channel: ArrayLike | None,
    y: ArrayLike | None,
    x: ArrayLike | None,
    index: Sequence[ArrayLike] | None,
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int32], ...]]:
    """Own copies of the times and of one index array an axis."""
    named = {name: values for name, values in (("channel", channel), ("y", y), ("x", x)) if values is not None}
    if index is not None:
        if named:
            raise RasterError(f"index and {', '.join(named)} are both given", remedy="Give one of them.")
        axes = list(zip(_axis_names(len(index)), index, strict=True))
    elif tuple(named) in (_NAMES[1], _NAMES[2], _NAMES[3]):
        axes = list(named.items())
    else:
        raise RasterError(
            f"events need channel, y and x, or channel and x, or channel, or index; got {', '.join(named) or 'none'}"
        )
    time = _integers(time_us, "time_us", _LAST_US, np.dtype(np.int64))
    columns = tuple(_integers(values, name, _LAST_INDEX, np.dtype(np.int32)) for name, values in axes)
    for (name, _), column in zip(axes, columns, strict=True):
        if len(column) != len(time):
            raise RasterError(f"{name} has {len(column)} values, time_us has {len(time)}")
    return time, columns


def _axis_names(rank: int) -> tuple[str, ...]:
    return _NAMES[rank] if rank in _NAMES else tuple(f"index[{i}]" for i in range(rank))


def _integers(values: ArrayLike, name: str, most: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A copy of [event] whole numbers from 0 to `most`."""
    source: Any = values
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise RasterError(f"{name} has masked values")
    try:
        array = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise RasterError(f"{name} is no row of numbers: {error}") from error
    if array.ndim != 1:
        raise RasterError(f"{name} has shape {array.shape}, expected one number an event")
    if array.dtype.kind not in ("iuf" if name == "time_us" else "biuf"):
        raise RasterError(f"{name} has dtype {array.dtype}, expected whole numbers")
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        _refuse_event(array, ~whole, name, "expected whole numbers")
        most = min(most, _EXACT_FLOAT)
    if array.dtype.kind != "b":
        _refuse_event(array, array < 0, name, "expected no negative numbers")
        _refuse_event(array, array > most, name, f"at most {most} is possible")
    return np.array(array, dtype=dtype)


def _refuse_event(array: NDArray[Any], bad: NDArray[np.bool_], name: str, why: str) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise RasterError(f"{name} holds {array[at]} at event {at}: {why}")


def _fits(events: Events, shape: tuple[int, ...]) -> None:
    if len(shape) != len(events.index):
        raise RasterError(f"events with {len(events.index)} indices do not fit the shape {shape}")
    for name, axis, length in zip(_axis_names(len(shape)), events.index, shape, strict=True):
        _refuse_event(axis, axis >= length, name, f"the shape {shape} has {length} there")


def _sample_shape(events: Events, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        wanted = _shape(shape)
        _fits(events, wanted)
        return wanted
    if events.shape is None:
        raise RasterError("the shape of the sample is not known", remedy="Pass it, e.g. shape=(2, 34, 34).")
    return events.shape


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(_whole(n, "shape", 0) for n in shape)
    except TypeError:
        raise RasterError(f"shape is {shape!r}, expected a tuple of lengths") from None


def _whole(value: Any, name: str, least: int) -> int:
    """A Python integer from `least` to what 62 bits hold."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= _LAST_US:
        bound = f" from {least} on" if least > -_LAST_US else ""
        raise RasterError(f"{name} is {value!r}, expected a whole number{bound}")
    return number


def _choice(value: str, name: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RasterError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")


def _address(index: tuple[NDArray[Any], ...], shape: tuple[int, ...], length: int) -> NDArray[np.int64]:
    """Row-major addresses; the first length of the shape does not matter."""
    address = np.zeros(length, np.int64)
    for axis, size in zip(index, shape, strict=True):
        address *= size
        address += axis
    return address


def whole_microseconds(dt: float | None) -> int | None:
    """A step of dt seconds in microseconds; None where that is no whole number, up to the rounding of dt."""
    step_us = 0 if dt is None else round(dt * 1e6)
    return step_us if dt is not None and step_us and abs(step_us - dt * 1e6) <= 1e-6 * step_us else None
