"""Files of recorded events: our `.npz`, N-MNIST's `.bin`, Prophesee's `.dat` and `.raw`, `.es` and AEDAT 4.

Sources: Orchard et al. 2015, "Converting static image datasets to spiking neuromorphic datasets using saccades" (the
40-bit events; in the reader published with them an event at y 240 marks an overflow of the clock); Prophesee's pages
on DAT, EVT 2.0 and EVT 3.0, and the decoders of OpenEB. Triggers, frames and inertial data are no spikes and are left
out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import FileError, RasterError, UnavailableError
from nirdeploy.events import Events
from nirdeploy.files import MAX_BYTES, atomic, unreadable
from nirdeploy.names import suggest
from nirdeploy.raster import DAMAGE, load_array

__all__ = ["load_events", "save_events"]

_EVENT_BYTES = 20  # of one event in memory: its time and three indices
_NMNIST_SHAPE = (2, 34, 34)
_NMNIST_OVERFLOW_Y, _NMNIST_OVERFLOW_US, _NMNIST_LAST_US = 240, 1 << 13, (1 << 23) - 1
_SECONDS = 600


@dataclass(frozen=True)
class _Columns:
    """What a reader finds: Events' arguments, the label and the end only where the format has them."""

    time: NDArray[Any]
    index: Sequence[NDArray[Any]]
    shape: tuple[int, ...] | None
    stop_us: int | None = None
    label: int | None = None


@dataclass(frozen=True)
class _Format:
    """One format: its files' suffixes, its reader (path, max_bytes) and its writer."""

    what: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, int], _Columns]
    write: Callable[[Path, Events], None] | None = None


def load_events(
    path: str | Path,
    format: str | None = None,  # noqa: A002 (as in matplotlib and PIL)
    *,
    shape: Sequence[int] | None = None,
    sort: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Events:
    """Read the events of one recording, in the file's order; polarity is the channel (0 off, 1 on).

    Args:
        path: the file.
        format: `npz`, `nmnist`, `dat`, `evt` (`evt2`, `evt3` where the header does not say which), `es` or `aedat4`;
            None: by the suffix.
        shape: shape of the sample, instead of what the file or the format says; every event must be inside.
        sort: sort events whose time decreases, stably; without it they are refused.
        max_bytes: most bytes the file, and the events in memory, may take.

    Returns:
        Events in microseconds, with the label and the end of the recording where the file has them.

    Raises:
        FileError: missing, unknown suffix or format, damaged, truncated, too large, or events that are none.
        UnavailableError: the format needs a package that is not installed.
    """
    source = Path(path)
    row = _format(source, format)
    if reason := unreadable(source):
        raise FileError(f"{str(source)!r} {reason}, expected {row.what}")
    try:
        _refuse_large(source, max_bytes)
        found = row.read(source, max_bytes)
    except (FileError, UnavailableError):
        raise
    except DAMAGE as error:
        raise FileError(f"{str(source)!r} is not {row.what}: {error or type(error).__name__}") from error
    make = Events.sorted if sort else Events
    wanted = found.shape if shape is None else shape
    try:
        return make(found.time, index=found.index, shape=wanted, stop_us=found.stop_us, label=found.label)
    except RasterError as error:
        text, remedy = str(error), None
        if "time_us falls" in text:
            text, remedy = text.removesuffix(f" {error.remedy}"), "Pass sort=True to sort by time, stably."
        elif "the shape" in text:
            remedy = "Pass the shape of the sensor, shape=(2, height, width)."
        raise FileError(f"{str(source)!r}: {text}", remedy=remedy) from error


def save_events(
    path: str | Path,
    events: Events,
    format: str | None = None,  # noqa: A002 (as in matplotlib and PIL)
) -> None:
    """Write events as `.npz`, which keeps everything, or as N-MNIST's `.bin`.

    Args:
        path: the file.
        events: of one recording.
        format: 'npz' or 'nmnist'; None: by the suffix.

    Raises:
        FileError: another suffix, a path that cannot be written, or events the format cannot hold.
    """
    target = Path(path)
    row = _format(target, format)
    if row.write is None:
        raise FileError(f"{row.what} cannot be written", remedy="Use .npz, or .bin for N-MNIST.")
    row.write(target, events)


def is_event_file(path: Path) -> bool:
    """Whether a file is named or, of `.npz`, filled like recorded events."""
    if not zipfile.is_zipfile(path):
        suffix = path.suffix.lower()
        return suffix != ".npz" and any(suffix in row.suffixes for row in _FORMATS.values())
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "time_us.npy" in names and "raster.npy" not in names


def _format(path: Path, name: str | None) -> _Format:
    if name is not None:
        if name not in _FORMATS:
            raise FileError(f"{name!r} is no format of events", remedy=suggest(name, _FORMATS))
        return _FORMATS[name]
    for row in _FORMATS.values():
        if path.suffix.lower() in row.suffixes:
            return row
    known = sorted(suffix for row in _FORMATS.values() for suffix in row.suffixes)
    raise FileError(f"{str(path)!r} has no suffix of events: {', '.join(known)}", remedy="Pass format=.")


def _refuse_large(path: Path, max_bytes: int) -> None:
    size = path.stat().st_size
    if size > max_bytes:
        raise FileError(f"{str(path)!r} has {size} bytes, at most {max_bytes} are read", remedy="Raise max_bytes.")


def _refuse_many(path: Path, number: int, max_bytes: int) -> None:
    if number * _EVENT_BYTES > max_bytes:
        raise FileError(f"{str(path)!r} holds {number} events, more than {max_bytes} bytes", remedy="Raise max_bytes.")


# ---------------------------------------------------------------- .npz


def _read_npz(path: Path, max_bytes: int) -> _Columns:
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        axes = ("channel", "y", "x") if "address" not in names else ("address",)
        for name in ("time_us", *axes):
            if name not in names:
                remedy = "It holds a raster: load_raster." if "raster" in names else suggest(name, names)
                raise FileError(f"{str(path)!r} has no array {name!r}", remedy=remedy)
        left = max_bytes
        for name in ("time_us", *axes, "shape", "stop_us", "label"):
            if name in names:
                with archive.open(f"{name}.npy") as stream:
                    found[name] = load_array(stream, f"{path.name}:{name}", left)
                left -= found[name].nbytes
    for name in ("shape", "stop_us", "label"):
        array = found.get(name)
        if array is not None and (array.dtype.kind not in "iu" or array.ndim != (name == "shape")):
            what = "a row of lengths" if name == "shape" else "one whole number"
            raise FileError(f"{path.name + ':' + name!r} has shape {array.shape}, dtype {array.dtype}, expected {what}")
    shape = tuple(int(n) for n in found["shape"]) if "shape" in found else None
    stop, label = (int(found[name]) if name in found else None for name in ("stop_us", "label"))
    index: Sequence[NDArray[Any]] = [found[name] for name in axes]
    if axes == ("address",) and shape is not None:
        index = Events.flat(np.zeros(len(index[0]), np.int64), index[0], shape).index
    return _Columns(found["time_us"], index, shape, stop, label)


def _write_npz(path: Path, events: Events) -> None:
    arrays: dict[str, Any] = {"time_us": events.time_us}
    if len(events.index) == 3:
        arrays |= zip(("channel", "y", "x"), events.index, strict=True)
    else:
        try:
            arrays["address"] = events.address
        except RasterError as error:
            raise FileError(f"cannot write {str(path)!r}: {error}") from error
    arrays |= {
        name: np.asarray(value, np.int64)
        for name, value in (("shape", events.shape), ("stop_us", events.stop_us), ("label", events.label))
        if value is not None
    }
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


# ---------------------------------------------------------------- N-MNIST


def _read_nmnist(path: Path, max_bytes: int) -> _Columns:
    """Five bytes an event: x, y, then big-endian one bit of polarity and 23 bits of microseconds.

    An event with y 240 is no spike: it stands for an overflow of the recorder's clock, and 2^13 us are added to the
    time of all that follow.
    """
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if not data.size:
        raise FileError(f"{str(path)!r} is empty, expected N-MNIST events")
    if rest := data.size % 5:
        raise FileError(f"{str(path)!r} is truncated: event {data.size // 5} has {rest} of 5 bytes")
    _refuse_many(path, data.size // 5, max_bytes)
    x, y, high, middle, low = data.reshape(-1, 5).T
    overflow = y == _NMNIST_OVERFLOW_Y
    time = ((high & np.uint8(127)).astype(np.int64) << 16) | (middle.astype(np.int64) << 8) | low
    time += _NMNIST_OVERFLOW_US * np.cumsum(overflow)
    spikes = ~overflow
    return _Columns(time[spikes], [(high >> 7)[spikes], y[spikes], x[spikes]], _NMNIST_SHAPE)


def _write_nmnist(path: Path, events: Events) -> None:
    if reason := _not_nmnist(events):
        raise FileError(f"cannot write {str(path)!r}: an N-MNIST file {reason}", remedy="Use .npz.")
    channel, y, x = (axis.astype(np.uint8) for axis in events.index)
    time = events.time_us
    columns = (x, y, (channel << 7) | (time >> 16), (time >> 8) & 255, time & 255)
    data = np.stack([column.astype(np.uint8) for column in columns], axis=1).tobytes()
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def _not_nmnist(events: Events) -> str:
    """What of the events an N-MNIST file cannot hold; '' where it can hold all."""
    if len(events.index) != 3:
        return f"has channel, y and x, the events {len(events.index)} indices"
    if not len(events):
        return "of no events would be empty"
    for name, value in (("stop_us", events.stop_us), ("label", events.label)):
        if value is not None:
            return f"has no {name}, the events {value}"
    if int(events.time_us[-1]) > _NMNIST_LAST_US:
        return f"holds times up to {_NMNIST_LAST_US} us, the last event is at {events.time_us[-1]}"
    for name, axis, limit in zip(("channel", "y", "x"), events.index, (2, _NMNIST_OVERFLOW_Y, 256), strict=True):
        if int(axis.max()) >= limit:
            at = int(np.argmax(axis >= limit))
            return f"holds {name} up to {limit - 1}, event {at} has {axis[at]}"
    return ""


# ---------------------------------------------------------------- Prophesee


def _header(data: bytes) -> tuple[dict[str, str], int]:
    """The lines '% keyword value' in front, and where the binary part begins."""
    fields: dict[str, str] = {}
    at = 0
    while data[at : at + 2] == b"% ":
        end = data.find(b"\n", at, at + 4096)
        if end < 0:
            break
        keyword, _, value = data[at + 2 : end].decode("latin-1").strip().partition(" ")
        at = end + 1
        if keyword.lower() == "end":
            break
        fields[keyword.lower()] = value.strip()
    return fields, at


def _sensor(fields: dict[str, str]) -> tuple[int, ...] | None:
    """(2, height, width) of what a header says, None where it says nothing."""
    text = fields.get("geometry", "")
    if found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text):
        return 2, int(found[2]), int(found[1])
    options = dict(part.strip().partition("=")[::2] for part in fields.get("format", "").split(";"))
    height, width = (options.get(name, fields.get(name, "")) for name in ("height", "width"))
    return (2, int(height), int(width)) if re.fullmatch(r"\d{1,5} \d{1,5}", f"{height} {width}") else None


def _words(path: Path, data: bytes, at: int, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    if rest := (len(data) - at) % size:
        whole = (len(data) - at) // size
        raise FileError(f"{str(path)!r} is truncated: word {whole} of the data has {rest} of {size} bytes")
    return np.frombuffer(data, dtype, offset=at)


def _unrolled(counter: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """A counter that begins again at `period`, counted on; a fall of less than half of it is no new beginning."""
    falls = np.diff(counter, prepend=counter[:1]) <= -(period // 2)
    return counter + period * np.cumsum(falls)


def _read_dat(path: Path, max_bytes: int) -> _Columns:
    """DAT version 2: after the header two bytes, then 32 bits of time and x 14, y 14, polarity 4 bits an event."""
    data = path.read_bytes()
    fields, at = _header(data)
    if not fields or len(data) < at + 2:
        raise FileError(f"{str(path)!r} has no DAT header, lines that begin with '% '")
    kind, size = data[at], data[at + 1]
    if kind not in (0x00, 0x0C) or size != 8:
        raise FileError(
            f"{str(path)!r} holds events of type {kind} and {size} bytes, expected type 12 (CD) and 8 bytes"
        )
    words = _words(path, data, at + 2, "<u8")
    _refuse_many(path, len(words), max_bytes)
    address = (words >> np.uint64(32)).astype(np.int64)
    time = _unrolled((words & np.uint64(0xFFFFFFFF)).astype(np.int64), 1 << 32)
    polarity = address >> 28
    if (polarity > 1).any():
        bad = int(np.argmax(polarity > 1))
        raise FileError(f"{str(path)!r} is damaged: event {bad} has polarity {polarity[bad]}")
    return _Columns(time, [polarity, (address >> 14) & 0x3FFF, address & 0x3FFF], _sensor(fields))


def _read_raw(path: Path, max_bytes: int, version: str | None = None) -> _Columns:
    data = path.read_bytes()
    fields, at = _header(data)
    text = fields.get("format", "").partition(";")[0].strip()
    said = text.upper() or {"2.0": "EVT2", "2.1": "EVT21", "3.0": "EVT3"}.get(fields.get("evt", ""), "")
    if version is None and not said:
        raise FileError(f"{str(path)!r} does not say its encoding", remedy="Pass format='evt2' or 'evt3'.")
    if said and said not in ("EVT2", "EVT3"):
        raise FileError(f"{str(path)!r} is encoded as {said}, expected EVT2 or EVT3")
    if version and said and version != said:
        raise FileError(f"{str(path)!r} is encoded as {said}, not as {version}")
    if fields.get("endianness", "little").lower() != "little":
        raise FileError(f"{str(path)!r} is {fields['endianness']}-endian, expected little-endian")
    read = _evt2 if (version or said) == "EVT2" else _evt3
    return replace(read(path, data, at, max_bytes), shape=_sensor(fields))


def _kinds(path: Path, kind: NDArray[Any], known: Sequence[int]) -> None:
    bad = ~np.isin(kind, known)
    if bad.any():
        at = int(np.argmax(bad))
        raise FileError(f"{str(path)!r} is damaged: word {at} of the data has the unknown type {int(kind[at]):#x}")


def _latest(flags: NDArray[np.bool_]) -> NDArray[np.integer[Any]]:
    """Of each word, the position of the latest flagged one up to it; -1 where there is none."""
    small = len(flags) <= np.iinfo(np.int32).max
    found = np.where(flags, np.arange(len(flags), dtype=np.int32 if small else np.int64), -1)
    return np.maximum.accumulate(found, out=found)


def _refuse_untold(path: Path, spikes: NDArray[np.bool_], known: NDArray[np.bool_], what: str) -> None:
    untold = spikes & ~known
    if untold.any():
        at = int(np.argmax(untold))
        raise FileError(f"{str(path)!r}: word {at} of the data is an event, and no {what} came before it")


def _evt2(path: Path, data: bytes, at: int, max_bytes: int) -> _Columns:
    """32-bit words: type 4 bits; time high 28, or an event's time low 6, x 11, y 11 bits."""
    words = _words(path, data, at, "<u4")
    kind = words >> 28
    _kinds(path, kind, (0x0, 0x1, 0x8, 0xA, 0xE, 0xF))
    spikes = kind <= 1
    _refuse_many(path, int(spikes.sum()), max_bytes)
    high = kind == 0x8
    _refuse_untold(path, spikes, _latest(high) >= 0, "time word")
    base = _unrolled((words[high] & 0x0FFFFFFF).astype(np.int64), 1 << 28)
    event = words[spikes].astype(np.int64)
    time = (base[np.cumsum(high)[spikes] - 1] << 6 if event.size else event) | (event >> 22) & 63
    return _Columns(time, [event >> 28, event & 0x7FF, (event >> 11) & 0x7FF], None)


def _evt3(path: Path, data: bytes, at: int, max_bytes: int) -> _Columns:
    """16-bit words that set y, time or a base x, and events: one x, or a mask of 12 or 8 pixels from the base on."""
    words = _words(path, data, at, "<u2")
    kind = (words >> 12).astype(np.uint8)
    _kinds(path, kind, (0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0xE, 0xF))
    width = np.array([0, 0, 0, 0, 12, 8, *[0] * 10], np.uint8)[kind]  # pixels of a mask
    within = np.array([0, 0, 0, 0, 0xFFF, 0xFF, *[0] * 10], np.uint16)[kind]
    bits = np.where(kind == 0x2, np.uint16(1), words & within)
    population, places = _masks()
    _refuse_many(path, int(population[bits].sum(dtype=np.int64)), max_bytes)
    y, base = _latest(kind == 0x0), _latest(kind == 0x3)
    events = (kind == 0x2) | (width > 0)
    _refuse_untold(path, events, _latest(kind == 0x8) >= 0, "time word")
    _refuse_untold(path, events, y >= 0, "y")
    _refuse_untold(path, width > 0, base >= 0, "base x")

    # from here on only the words with events; a mask moves the base on by its width
    moved = np.cumsum(width, dtype=np.int64) - width
    picked = np.flatnonzero(events)
    single = kind[picked] == 0x2
    source = np.where(single, picked, base[picked])  # the word with x and polarity
    start = (words[source] & 0x7FF) + np.where(single, 0, moved[picked] - moved[source])
    pixels = population[bits[picked]]
    time = _evt3_time(kind, words, picked)
    polarity, row = words[source] >> 11 & 1, words[y[picked]] & 0x7FF
    nth = np.arange(pixels.sum(dtype=np.int64)) - np.repeat(np.cumsum(pixels, dtype=np.int64) - pixels, pixels)
    x = np.repeat(start, pixels) + places[np.repeat(bits[picked], pixels), nth]
    return _Columns(np.repeat(time, pixels), [np.repeat(polarity, pixels), np.repeat(row, pixels), x], None)


@cache
def _masks() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """[mask] how many of its 12 bits are set, and [mask, n] where its n-th set bit is."""
    is_set = (np.arange(1 << 12)[:, None] >> np.arange(12)) & 1 == 1
    return is_set.sum(1).astype(np.uint8), np.argsort(~is_set, axis=1, kind="stable").astype(np.uint8)


def _evt3_time(kind: NDArray[np.uint8], words: NDArray[Any], picked: NDArray[Any]) -> NDArray[np.int64]:
    """Microseconds at the picked words; the low 12 bits count only since the high ones changed."""
    if not picked.size:
        return np.zeros(0, np.int64)
    at = np.flatnonzero(kind == 0x8)
    highs = _unrolled((words[at] & 0xFFF).astype(np.int64), 1 << 12)
    changes = at[np.diff(highs, prepend=-1) != 0]
    now = np.searchsorted(at, picked) - 1
    low = _latest(kind == 0x6)[picked]
    changed = changes[np.searchsorted(changes, picked) - 1]
    time: NDArray[np.int64] = (highs[now] << 12) + np.where(low > changed, words[low] & 0xFFF, 0)
    return time


# ---------------------------------------------------------------- formats of other packages

# runs by itself in another process: these packages may end the one they read a damaged file in
_READER = """
import sys, numpy
package, path, target, limit = sys.argv[1:]
blocks, total, shape = [], 0, None
if package == "aedat":
    import aedat
    decoder = aedat.Decoder(path)
    streams = {i: s for i, s in decoder.id_to_stream().items() if s["type"] == "events"}
    if len(streams) != 1:
        sys.exit(f"it has {len(streams)} streams of events, expected one")
    (stream,) = streams.values()
    shape = stream["height"], stream["width"]
    packets = (packet["events"] for packet in decoder if "events" in packet)
else:
    import event_stream
    packets = event_stream.Decoder(path)
    if packets.type != "dvs":
        sys.exit(f"it holds {packets.type} events, expected dvs")
    shape = packets.height, packets.width
for packet in packets:
    total += len(packet)
    if total * 20 > int(limit):
        sys.exit(f"it holds more than {limit} bytes of events")
    blocks.append([packet["t"].copy(), packet["on"].copy(), packet["y"].copy(), packet["x"].copy()])
columns = [numpy.concatenate(c) for c in zip(*blocks)] if blocks else [numpy.zeros(0, int)] * 4
with open(target, "wb") as file:
    for column in (*columns, numpy.array(shape)):
        numpy.save(file, column.astype("u8"), allow_pickle=False)
"""


def _by_package(package: str, project: str) -> Callable[[Path, int], _Columns]:
    def read(path: Path, max_bytes: int) -> _Columns:
        from importlib.util import find_spec

        if find_spec(package) is None:
            raise UnavailableError(
                f"reading {str(path)!r} needs the package {project!r}", remedy="pip install 'nirdeploy[events]'"
            )
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "columns"
            command = [sys.executable, "-I", "-c", _READER, package, str(path.absolute()), str(target), str(max_bytes)]
            try:
                # no shell; code of our own, a package named here and two paths
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
            except subprocess.TimeoutExpired:
                raise FileError(f"{str(path)!r}: {project} did not read it in {_SECONDS} s") from None
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip() and line[:1] != " "]
                reason = lines[-1] if lines else f"{project} stopped with {done.returncode}"
                raise FileError(f"{str(path)!r} cannot be read by {project}: {reason}")
            with target.open("rb") as stream:
                time, polarity, y, x, size = (load_array(stream, package, 2 * max_bytes) for _ in range(5))
        return _Columns(time, [polarity, y, x], (2, int(size[0]), int(size[1])))

    return read


def _read_evt2(path: Path, max_bytes: int) -> _Columns:
    return _read_raw(path, max_bytes, "EVT2")


def _read_evt3(path: Path, max_bytes: int) -> _Columns:
    return _read_raw(path, max_bytes, "EVT3")


_FORMATS = {
    "npz": _Format("events (.npz)", (".npz",), _read_npz, _write_npz),
    "nmnist": _Format("N-MNIST events (.bin)", (".bin",), _read_nmnist, _write_nmnist),
    "dat": _Format("Prophesee DAT events", (".dat",), _read_dat),
    "evt": _Format("Prophesee EVT events (.raw)", (".raw",), _read_raw),
    "evt2": _Format("Prophesee EVT 2.0 events", (), _read_evt2),
    "evt3": _Format("Prophesee EVT 3.0 events", (), _read_evt3),
    "es": _Format("an Event Stream file (.es)", (".es",), _by_package("event_stream", "event-stream")),
    "aedat4": _Format("AEDAT 4 events", (".aedat4", ".aedat"), _by_package("aedat", "aedat")),
}
