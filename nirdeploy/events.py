"""Recorded spike events of one sample, at whole microseconds."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nirdeploy.errors import RasterError

__all__ = ["LAST_INDEX", "LAST_US", "Events", "choice", "row_major", "sample_shape", "whole"]

LAST_US = 1 << 62  # so that a time less an origin fits 64 bits
LAST_INDEX = (1 << 31) - 1
_EXACT_FLOAT = 1 << 53
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
            ("stop_us", None if stop_us is None else whole(stop_us, "stop_us", 0)),
            ("label", None if label is None else whole(label, "label", -LAST_US)),
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
        flat = _integers(address, "address", LAST_US, np.dtype(np.int64))
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
        return row_major(self.index, (0,) if self.shape is None else self.shape, len(self))

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
        start = 0 if start_us is None else whole(start_us, "start_us", 0)
        stop = None if stop_us is None else whole(stop_us, "stop_us", start)
        first = int(np.searchsorted(self.time_us, start))
        last = len(self) if stop is None else int(np.searchsorted(self.time_us, stop))
        ends = self.stop_us if stop is None or self.stop_us is None else min(stop, self.stop_us)
        index = [axis[first:last] for axis in self.index]
        return Events(self.time_us[first:last], index=index, shape=self.shape, stop_us=ends, label=self.label)


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
    time = _integers(time_us, "time_us", LAST_US, np.dtype(np.int64))
    columns = tuple(_integers(values, name, LAST_INDEX, np.dtype(np.int32)) for name, values in axes)
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


def sample_shape(events: Events, shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape given, which the events have to fit; None: the one they carry."""
    if shape is not None:
        wanted = _shape(shape)
        _fits(events, wanted)
        return wanted
    if events.shape is None:
        raise RasterError("the shape of the sample is not known", remedy="Pass it, e.g. shape=(2, 34, 34).")
    return events.shape


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(whole(n, "shape", 0) for n in shape)
    except TypeError:
        raise RasterError(f"shape is {shape!r}, expected a tuple of lengths") from None


def whole(value: Any, name: str, least: int) -> int:
    """A Python integer from `least` to what 62 bits hold."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= LAST_US:
        bound = f" from {least} on" if least > -LAST_US else ""
        raise RasterError(f"{name} is {value!r}, expected a whole number{bound}")
    return number


def choice(value: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        raise RasterError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")


def row_major(index: tuple[NDArray[Any], ...], shape: tuple[int, ...], length: int) -> NDArray[np.int64]:
    """Row-major addresses; the first length of the shape does not matter."""
    address = np.zeros(length, np.int64)
    for axis, size in zip(index, shape, strict=True):
        address *= size
        address += axis
    return address
