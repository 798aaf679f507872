"""Trajectories in HDF5: a writer that goes along with a run, and a reader that need not hold the run in memory.

How a full disk is survived: before HDF5 is handed any data, the writer reserves the file's space for it, for the
steps still in its buffers and for closing the file. So the disk is found full while HDF5 has nothing half written,
and what was reserved before is enough to finish the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from nirdeploy import files
from nirdeploy.bits import PackedSpikes, n_bytes
from nirdeploy.errors import FileError, RasterError
from nirdeploy.names import escape, suggest, unescape, unstorable
from nirdeploy.outline import Outline
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Record, Trajectory

__all__ = ["TrajectoryWriter", "read", "write"]

FORMAT = "nirdeploy-trajectory"
FORMAT_VERSION = 2  # 1: without packed records, steps, neurons, complete
Key = tuple[str, str]

_CHUNK_BYTES = 256 << 10  # of one record; as much of it is buffered
_WRITE_BYTES = 16 << 20  # handed to HDF5 at once
_FLUSH_BYTES = 64 << 20
_MARGIN_FILE, _MARGIN_RECORD = 256 << 10, 32 << 10  # HDF5's own structures
_REASON_BYTES = 240
_END = 1 << 62  # a step that no run reaches
_DIMENSION = "This is a netCDF dimension but not a netCDF variable. {:10d}"  # netCDF-4's own words
_AXES = {1: ("neuron",), 2: ("y", "x"), 3: ("channel", "y", "x")}

# ---------------------------------------------------------------- writing


@dataclass(eq=False)
class _Stream:
    """A record that is being written; a row is one recorded step as the file holds it."""

    template: Record  # all metadata, no step
    packed: bool
    steps: range | None
    expected: int | None  # rows, where known from the start
    row: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    buffer: NDArray[Any] | None = None
    filled: int = 0  # rows in the buffer
    stored: int = 0  # rows in the file
    dataset: Any = None
    scale: Any = None

    def __post_init__(self) -> None:
        shape = self.template.shape[1:]
        self.row = (n_bytes(shape),) if self.packed else shape
        self.dtype = np.dtype(np.uint8) if self.packed else self.template.dtype

    @property
    def key(self) -> Key:
        return self.template.node, self.template.variable

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row) * self.dtype.itemsize

    @property
    def chunk(self) -> int:
        """Rows of a chunk."""
        rows = max(1, _CHUNK_BYTES // max(1, self.row_bytes, self.dtype.itemsize))
        known = self.expected if self.steps is None else len(self.steps)
        return rows if known is None else max(1, min(rows, known))

    @property
    def margin(self) -> int:
        """Bytes in the file that finishing it can take, whatever is buffered."""
        record = self.template
        entries = sum(0 if a is None else int(np.size(a)) for a in _arrays(record).values())
        steps = 0 if self.steps is None else len(self.steps)
        return self.chunk * max(1, self.row_bytes) + 8 * (entries + steps) + _MARGIN_RECORD

    @property
    def rows(self) -> int:
        return self.stored + self.filled

    @property
    def reached(self) -> int:
        """First step of the run that is to be recorded and is not yet."""
        if self.steps is None:
            return self.rows
        return self.steps[self.rows] if self.rows < len(self.steps) else _END

    def rows_before(self, step: int) -> int:
        """Rows that belong to the steps before this one."""
        if self.steps is None:
            return min(step, self.rows)
        return min(self.rows, len(range(self.steps.start, max(self.steps.start, step), self.steps.step)))


class TrajectoryWriter:
    """Writes a trajectory while the run goes on, in memory that does not grow with the number of steps.

    ```python
    with TrajectoryWriter("run.h5", target="speck2f", executor="emulator", outputs=("output",)) as writer:
        writer.declare("if1", "spikes", dtype=np.int32, sample_shape=(8, 6, 6), batch=10, units="count", packed=True)
        for spikes in blocks:  # each [steps, batch, 8, 6, 6]
            writer.append("if1", "spikes", spikes)
    ```

    The file is written beside `path` under a temporary name. Leaving the block renames it to `path`. Where the run
    raises, or the disk is full, the file is cut to the steps that all records have, marked as incomplete with the
    reason, and renamed likewise; without a single such step, an old file at `path` stays. A run whose records end
    at different steps, or before the steps declared, is marked as incomplete too. A killed process leaves the old
    file, and a temporary one ending in `.part`.

    Args:
        path: the file to write.
        target: 'reference', or the chip's name.
        executor: 'reference', 'emulator', 'simulator' or 'chip'.
        convention: what the run follows, where known.
        graph_sha256: `graph.sha256` of the network.
        producer: program and version.
        outputs: the Output nodes; each needs an 'output' record.

    Attributes:
        counters: as in `Trajectory`; may be filled until the block is left.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        target: str = "reference",
        executor: str = "reference",
        convention: Convention | None = None,
        graph_sha256: str = "",
        producer: str = "",
        outputs: Sequence[str] = (),
        outline: Outline | None = None,
    ) -> None:
        self.counters: dict[str, Mapping[str, int]] = {}
        self._path = Path(path)
        self._attributes: dict[str, str | int] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "producer": producer,
            "target": target,
            "executor": executor,
            "convention": convention.to_json() if convention else "",
            "graph_sha256": graph_sha256,
            "outputs": json.dumps(list(outputs)),
            "counters": "{}",
            "outline": outline.to_json() if outline else "",
            "order": "[]",
            "complete": 0,
            "n_steps": 0,
        }
        self._outputs = tuple(outputs)
        self._streams: dict[Key, _Stream] = {}
        self._scales: dict[tuple[str, range | None, int | None], Any] = {}
        self._margin = _MARGIN_FILE
        self._unflushed = 0
        self._atomic: Any = None
        self._temporary = Path()
        self._file: Any = None
        self._saved: Trajectory | None = None  # written as a whole, or not at all

    @property
    def n_steps(self) -> int:
        """Steps of the run that all declared records have so far."""
        reached = min((stream.reached for stream in self._streams.values()), default=0)
        if reached < _END:
            return reached
        return max(s.steps[-1] + 1 if s.steps else 0 for s in self._streams.values())

    def __enter__(self) -> Self:
        """Create the temporary file.

        Raises:
            FileError: the folder cannot be written, or a writer is used twice.
        """
        if self._atomic is not None:
            raise FileError(f"the writer of {str(self._path)!r} was used before", remedy="Make a new one.")
        self._atomic = files.atomic(self._path)
        self._temporary = self._atomic.__enter__()
        try:
            # without a cache of chunks, so that data are written when they are handed over
            self._file = h5py.File(self._temporary, "w", rdcc_nbytes=0)
            for name, value in self._attributes.items():
                files.set_attribute(self._file, name, value)
            files.set_attribute(self._file, "reason", "", _REASON_BYTES)
            self._file.create_group("nodes")
            self._reserve(0)
        except (OSError, RuntimeError) as error:
            self._abandon()
            self._leave(keep=False)
            raise FileError(f"cannot write {str(self._path)!r}: {_reason(error)}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file; after an exception, with the steps up to it.

        Raises:
            FileError: the disk is full.
        """
        if self._file is None:
            return
        if error is None:
            self._end(None)
            return
        if self._saved is not None:
            self._rescue("")
            return
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        with suppress(FileError):  # the run's own error is the one to see
            if kept := self._end(why):
                error.add_note(f"{str(self._path)!r} has the first {kept} steps, marked as incomplete")

    # ------------------------------------------------------------ records

    def declare(
        self,
        node: str,
        variable: str,
        *,
        dtype: DTypeLike,
        sample_shape: Sequence[int],
        batch: int | None = None,
        scale: float = 1.0,
        units: str = "model",
        source: str = "",
        index_map: NDArray[np.int64] | None = None,
        lag: int = 0,
        view: str | None = None,
        threshold: float | NDArray[Any] | None = None,
        packed: bool = False,
        steps: range | None = None,
        neurons: NDArray[np.int64] | None = None,
        offset: float | NDArray[np.float64] = 0.0,
        cores: int | NDArray[np.int64] | None = None,
    ) -> None:
        """Announce a record, before the first `append` to it; the metadata are those of `Record`.

        Args:
            node: as in `Record`, like all that is not named here.
            variable: likewise.
            dtype: type of the data; booleans, integers or floats.
            sample_shape: shape of one sample at one step; (k,) where k `neurons` are recorded.
            batch: number of samples; None: the data have no batch axis.
            scale: as in `Record`.
            units: likewise.
            source: likewise.
            index_map: likewise.
            lag: likewise.
            view: likewise.
            threshold: likewise.
            packed: whether to store zeros and ones as bits; `dtype` then only needs to be whole numbers.
            steps: the steps of the run that will be appended; None: all, from step 0.
            neurons: as in `Record`.
            offset: likewise.
            cores: likewise.

        Raises:
            FileError: declared before, or a name, type, shape or map that a file cannot hold.
        """
        shape = (0, *(() if batch is None else (batch,)), *sample_shape)
        try:
            if steps is not None and not (isinstance(steps, range) and steps.start >= 0 and steps.step > 0):
                raise FileError(f"steps are {steps!r}, expected a range that starts at 0 or later and counts upwards")
            template = Record(
                node,
                variable,
                np.empty(shape, dtype),
                scale=scale,
                units=units,
                source=source,
                index_map=index_map,
                lag=lag,
                view=view,
                threshold=threshold,
                batched=batch is not None,
                neurons=neurons,
                offset=offset,
                cores=cores,
            )
        except (TypeError, ValueError) as error:
            raise FileError(str(error), node=node) from error
        self._add(_Stream(template, packed, steps, None))

    def _add(self, stream: _Stream) -> None:
        record = stream.template
        self._check_open()
        for name in (record.node, record.source, record.variable):
            if reason := unstorable(name):
                raise FileError(
                    f"the name {reason}; a file cannot hold it", node=record.node, remedy="Rename the node."
                )
        kinds = "biu" if stream.packed else "biuf"
        if record.dtype.kind not in kinds:
            wanted = "whole numbers, to be packed" if stream.packed else "numbers"
            raise FileError(f"{record.variable} of type {record.dtype}, expected {wanted}", node=record.node)
        count = math.prod(record.neuron_axes)
        for what, value in (("index map", record.index_map), ("threshold", record.threshold)):
            if value is not None and np.ndim(value) and np.size(value) != count:
                raise FileError(f"the {what} has {np.size(value)} entries for {count} neurons", node=record.node)
        if stream.key in self._streams:
            raise FileError(f"{record.variable} is declared twice", node=record.node)
        self._streams[stream.key] = stream
        self._margin += stream.margin + 2 * len(json.dumps(stream.key))

    def append(self, node: str, variable: str, data: NDArray[Any] | PackedSpikes) -> None:
        """Add the next recorded steps, [step, batch, ...] or [step, ...]; up to 256 KiB of a record stay in memory.

        Raises:
            FileError: not declared, another shape or type, more steps than declared, a count in a packed record that
                is neither 0 nor 1; or the disk is full: the file is then finished with the steps it names.
        """
        self._check_open()
        if (node, variable) not in self._streams:
            known = [f"{name}/{what}" for name, what in self._streams]
            raise FileError(f"no record {node}/{variable} is declared. {suggest(f'{node}/{variable}', known)}")
        stream = self._streams[node, variable]
        rows = _rows(stream, data)
        try:
            self._push(stream, rows)
        except (OSError, RuntimeError) as error:
            raise self._stop(_reason(error)) from error

    def _push(self, stream: _Stream, rows: NDArray[Any]) -> None:
        if stream.buffer is None:
            self._reserve(0)
            stream.buffer = np.empty((stream.chunk, *stream.row), stream.dtype)
        chunk, position = stream.chunk, 0
        while position < len(rows):
            left = len(rows) - position
            if not stream.filled and left >= chunk:
                most = max(1, _WRITE_BYTES // max(1, chunk * stream.row_bytes))
                taken = chunk * min(left // chunk, most)
                self._write(stream, rows[position : position + taken])
            else:
                taken = min(chunk - stream.filled, left)
                stream.buffer[stream.filled : stream.filled + taken] = rows[position : position + taken]
                stream.filled += taken
                if stream.filled == chunk:
                    self._write(stream, stream.buffer)
                    stream.filled = 0
            position += taken

    def _write(self, stream: _Stream, rows: NDArray[Any]) -> None:
        self._reserve(rows.nbytes)
        self._put(stream, rows)
        self._unflushed += rows.nbytes
        if self._unflushed > _FLUSH_BYTES:
            self._unflushed = 0
            files.set_attribute(self._file, "order", json.dumps([list(key) for key in self._streams]))
            self._file.flush()
            self._reserve(0)

    def _reserve(self, size: int) -> None:
        """Take the file's space for `size` bytes and for all that finishing it can need."""
        handle, start = self._file.id.get_vfd_handle(), self._file.id.get_filesize()
        needed = size + self._margin
        if os.fstat(handle).st_size >= start + needed:
            return
        try:
            files.reserve(handle, start, needed + _WRITE_BYTES)  # ahead, to ask seldom
        except OSError:
            files.reserve(handle, start, needed)

    def _copy(self, key: Key, record: Record) -> None:
        """Declare and write a whole record."""
        empty = np.empty((0, *record.shape[1:]), record.dtype)
        template = replace(record, node=key[0], variable=key[1], storage=empty, steps=None)
        packed = record.read_packed(0, 0) is not None
        stream = _Stream(template, packed, record.steps, record.n_steps)
        self._add(stream)
        for start, stop in record.blocks():
            self.append(*key, (record.read_packed(start, stop) if packed else None) or record.read(start, stop))
        try:
            self._settle(stream, stream.rows)
        except (OSError, RuntimeError) as error:
            raise self._stop(_reason(error)) from error
        stream.buffer = None
        self._margin -= stream.margin

    # ------------------------------------------------------------ HDF5

    def _put(self, stream: _Stream, rows: NDArray[Any]) -> None:
        if stream.dataset is None:
            self._create(stream, max(1, min(stream.chunk, len(rows))))
        stop = stream.stored + len(rows)
        stream.dataset.resize(stop, axis=0)
        if rows.size:
            stream.dataset[stream.stored : stop] = rows
        stream.stored = stop

    def _create(self, stream: _Stream, chunk: int) -> None:
        record, variable = stream.template, stream.template.variable
        group = self._file["nodes"].require_group(escape(record.node))
        compressed = variable == "spikes" and not stream.packed
        dataset = group.create_dataset(
            variable,
            shape=(0, *stream.row),
            maxshape=(None, *(length or None for length in stream.row)),  # HDF5 has no chunks of fixed length 0
            dtype=stream.dtype,
            chunks=(chunk, *(max(1, length) for length in stream.row)),
            compression="gzip" if compressed else None,
            compression_opts=1 if compressed else None,
            shuffle=compressed,
        )
        stream.dataset, stream.scale = dataset, self._step_scale(group, stream)
        dataset.dims[0].label = _step_name(stream)
        dataset.dims[0].attach_scale(stream.scale)
        _attach_axes(group, dataset, _axis_names(stream), first=1)
        for name in ("scale", "units", "source", "lag"):
            files.set_attribute(dataset, name, getattr(record, name))
        files.set_attribute(dataset, "view", record.view or "")
        details = dataset.attrs
        details["batched"], details["packed"] = int(record.batched), int(stream.packed)
        if stream.packed:
            # with the batch, where there is one: the shape of one step
            details["sample_shape"] = np.asarray(record.shape[1:], dtype=np.int64)
        if stream.steps is not None:
            details["steps"] = np.array([stream.steps.start, stream.steps.stop, stream.steps.step], dtype=np.int64)
        for name, value in _arrays(record).items():
            if value is not None and np.ndim(value):
                # arrays are datasets: attributes stop at 64 KiB
                group.create_dataset(f"{variable}.{name}", data=np.asarray(value).reshape(-1))
                _attach_axes(group, group[f"{variable}.{name}"], ("cell",))
            elif value is not None:
                details[name] = value

    def _step_scale(self, group: Any, stream: _Stream) -> Any:
        """The group's dimension for these steps; with the steps as coordinates where not all are recorded."""
        key = (str(group.name), stream.steps, stream.expected)
        if key not in self._scales:
            label = _step_name(stream)
            while label in group:
                label += "_"
            if stream.steps is None:
                length = stream.expected or 0
                scale = group.create_dataset(label, shape=(length,), maxshape=(None,), dtype=np.int8, chunks=(4096,))
                scale.make_scale(_DIMENSION.format(length))
            else:
                values = np.asarray(stream.steps, dtype=np.int64)
                chunk = (max(1, min(4096, values.size)),)
                scale = group.create_dataset(label, data=values, maxshape=(None,), chunks=chunk)
                scale.make_scale(label)
            self._scales[key] = scale
        return self._scales[key]

    # ------------------------------------------------------------ the end

    def _stop(self, why: str) -> FileError:
        """End the file because of what HDF5 or the disk says; the error to raise."""
        if self._saved is not None:
            self._rescue("")
            return FileError(f"cannot write {str(self._path)!r}: {why}", remedy="Free space on the disk.")
        step = self.n_steps
        kept = self._end(why)
        held = f"its first {kept} steps are kept, marked as incomplete" if kept else "no step of it is kept"
        return FileError(
            f"cannot go on writing {str(self._path)!r} at step {step}: {why}; {held}",
            remedy="Free space on the disk, or record fewer nodes, fewer steps or packed spikes.",
        )

    def _end(self, why: str | None) -> int:
        """Finish, close and rename the file; the number of steps that are kept of one that was cut off.

        Args:
            why: why the run was cut off; None: it was not.

        Raises:
            FileError: it was not cut off and still cannot be finished.
        """
        step = self.n_steps
        trouble = self._unfinished(step) if why is None and self._saved is None else why
        if trouble is not None and not step:
            self._abandon()
            self._leave(keep=False)
            if why is None:
                raise FileError(f"{str(self._path)!r} is not written: {trouble}")
            return 0
        try:
            self._finish(step, trouble)
        except (OSError, RuntimeError) as error:
            kept = self._rescue(trouble or _reason(error))
            if why is None:
                held = f"its first {kept} steps are kept, marked as incomplete" if kept else "it is not kept"
                raise FileError(f"cannot finish {str(self._path)!r}: {_reason(error)}; {held}") from error
            return kept
        except BaseException:
            self._rescue(trouble or "interrupted")
            raise
        self._leave(keep=True)
        return step

    def _rescue(self, why: str) -> int:
        self._abandon()
        kept = 0 if self._saved else self._salvage(why)
        self._leave(keep=kept > 0)
        return kept

    def _unfinished(self, step: int) -> str | None:
        """Why records that were never cut off are not complete."""
        for stream in self._streams.values():
            if stream.rows > stream.rows_before(step) or (stream.steps is not None and stream.reached < _END):
                late = "/".join(min(self._streams.values(), key=lambda s: s.reached).key)
                return f"the records end at different steps, or before those declared: {late} at step {step}"
        missing = [name for name in self._outputs if (name, "output") not in self._streams]
        return f"the Output node {missing[0]!r} has no record 'output'" if missing else None

    def _finish(self, step: int, trouble: str | None) -> None:
        for stream in self._streams.values():
            self._settle(stream, stream.rows if trouble is None else stream.rows_before(step))
        counters = {node: dict(found) for node, found in self.counters.items()}
        files.set_attribute(self._file, "counters", json.dumps(counters))
        files.set_attribute(self._file, "order", json.dumps([list(key) for key in self._streams]))
        files.set_attribute(
            self._file, "outputs", json.dumps([n for n in self._outputs if (n, "output") in self._streams])
        )
        if self._saved is not None and not self._saved.complete:
            trouble = self._saved.reason
        _mark(self._file, self._saved.n_steps if self._saved else step, trouble)
        self._file.flush()
        self._file.close()
        # opening a file for writing makes HDF5 cut it to its own size, without what was reserved
        with h5py.File(self._temporary, "r+"):
            pass

    def _settle(self, stream: _Stream, rows: int) -> None:
        """Bring the file to this many rows, from the buffer where it lacks some."""
        missing = max(0, rows - stream.stored)
        if stream.buffer is None:
            stream.buffer = np.empty((0, *stream.row), stream.dtype)
        self._put(stream, stream.buffer[:missing])
        stream.filled = 0
        if stream.dataset.shape[0] != rows:
            stream.dataset.resize(rows, axis=0)
        stream.stored = rows
        if stream.scale.shape[0] != rows:
            stream.scale.resize(rows, axis=0)

    def _abandon(self) -> None:
        """Let go of the file as it lies on the disk, also where HDF5 can write nothing more to it."""
        file = self._file
        if file is None or not file.id.valid:
            return
        with suppress(OSError, RuntimeError):
            handle = file.id.get_vfd_handle()
            if os.path.samestat(os.fstat(handle), self._temporary.stat()):
                # what HDF5 still wants to write goes nowhere: closing then succeeds
                sink = os.memfd_create("sink") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
                os.dup2(sink, handle)
                os.close(sink)
        with suppress(OSError, RuntimeError):
            file.close()

    def _salvage(self, why: str) -> int:
        """Cut the file as it was last flushed to the steps that all records have; their number."""
        try:
            with h5py.File(self._temporary, "r+") as file:
                for stream in self._streams.values():
                    stream.dataset = file.get(f"nodes/{escape(stream.key[0])}/{stream.key[1]}")
                    stream.filled, stream.stored = 0, stream.dataset.shape[0] if stream.dataset else 0
                step = self.n_steps
                for stream in self._streams.values() if step else ():
                    stream.dataset.resize(stream.rows_before(step), axis=0)
                    for scale in stream.dataset.dims[0].values():
                        scale.resize(stream.rows_before(step), axis=0)
                _mark(file, step, why)
            read(self._temporary, lazy=True)
        except (OSError, RuntimeError, LookupError, TypeError, FileError):
            return 0
        return step

    def _leave(self, *, keep: bool) -> None:
        """Rename the temporary file into place, or remove it."""
        self._file = None
        if keep:
            self._atomic.__exit__(None, None, None)
            return
        discard = _Discarded()
        with suppress(_Discarded):
            self._atomic.__exit__(_Discarded, discard, None)

    def _check_open(self) -> None:
        if self._file is None:
            raise FileError(f"the writer of {str(self._path)!r} is not open", remedy="Use it in a `with` block.")


class _Discarded(Exception):  # noqa: N818 - never leaves this module
    """Tells `files.atomic` to remove the temporary file."""


def _rows(stream: _Stream, data: NDArray[Any] | PackedSpikes) -> NDArray[Any]:
    """The data as the file holds them, [step, *stream.row]."""
    record = stream.template
    if not isinstance(data, PackedSpikes):
        data = np.asarray(data)
    if not data.shape or data.shape[1:] != record.shape[1:]:
        expected = ", ".join(map(str, ("step", *record.shape[1:])))
        raise FileError(f"{record.variable} of shape {data.shape}, declared as [{expected}]", node=record.node)
    if stream.steps is not None and stream.rows + data.shape[0] > len(stream.steps):
        most = len(stream.steps)
        raise FileError(f"{stream.rows + data.shape[0]} steps, declared were {most}: {stream.steps}", node=record.node)
    if stream.packed:
        try:
            return (data if isinstance(data, PackedSpikes) else PackedSpikes.pack(data)).bits
        except RasterError as error:
            message = f"{record.variable} from row {stream.rows} on: {error}"
            raise FileError(message, node=record.node) from error
    array = data.unpack().view(np.int8) if isinstance(data, PackedSpikes) else data
    if not np.can_cast(array.dtype, stream.dtype, "safe"):
        message = f"{record.variable} of type {array.dtype}, declared as {stream.dtype}"
        raise FileError(message, node=record.node, remedy="Convert it first.")
    return array


def _mark(file: Any, step: int, trouble: str | None) -> None:
    """Say in the file's own attributes, in place, whether it is complete."""
    file.attrs.modify("complete", int(trouble is None))
    file.attrs.modify("n_steps", step)
    text = (trouble or "").encode("utf-8", "replace")[:_REASON_BYTES].decode("utf-8", "ignore")
    file.attrs.modify("reason", np.array(text.encode(), dtype=h5py.string_dtype("utf-8", _REASON_BYTES)))


def _reason(error: BaseException) -> str:
    """What the system said, from its own error or from HDF5's report of it."""
    found = re.search(r"error message = '([^']+)'", str(error))
    return found.group(1) if found else getattr(error, "strerror", None) or str(error)


def _step_name(stream: _Stream) -> str:
    return "step" if stream.steps is None else "recorded_step"


def _axis_names(stream: _Stream) -> tuple[str, ...]:
    if stream.packed:
        return ("step", "byte")
    record = stream.template
    rank = len(record.neuron_axes)
    names = _AXES.get(rank, tuple(f"axis{i}" for i in range(rank)))
    if record.neurons is not None:
        names = ("recorded",)
    return ("step", "batch", *names) if record.batched else ("step", *names)


def _attach_axes(group: Any, dataset: Any, names: tuple[str, ...], first: int = 0) -> None:
    """Name the axes from `first` on after dimensions of the group, made where there is none of that length."""
    for axis in range(first, len(names)):
        length, label = dataset.shape[axis], names[axis]
        while label in group and group[label].shape != (length,):
            label += "_"
        if label not in group:
            group.create_dataset(label, shape=(length,), dtype=np.int8).make_scale(_DIMENSION.format(length))
        dataset.dims[axis].label = names[axis]
        dataset.dims[axis].attach_scale(group[label])


def write(path: str | Path, trajectory: Trajectory) -> None:
    """Write a whole trajectory; an old file stays where this fails.

    Raises:
        FileError: as for `Trajectory.save`.
    """
    writer = TrajectoryWriter(
        path,
        target=trajectory.target,
        executor=trajectory.executor,
        convention=trajectory.convention,
        graph_sha256=trajectory.graph_sha256,
        producer=trajectory.producer,
        outputs=trajectory.output_names,
        outline=trajectory.outline,
    )
    for name in trajectory.output_names:
        if (name, "output") not in trajectory.records:
            raise FileError("an Output node without a record 'output'", node=name)
    writer.counters = dict(trajectory.counters)
    writer._saved = trajectory
    with writer:
        for key, record in trajectory.records.items():
            writer._copy(key, record)


# ---------------------------------------------------------------- reading

_WHAT = "a trajectory"
_SPIKES_RATIO = 256  # gzip, level 1, of spikes that never come: measured 228
_MOST_BYTES = 16 * files.MAX_BYTES
_ANY_BYTES = 1 << 62
_MOST_ENTRIES = 1 << 48  # of a packed step


@dataclass(frozen=True)
class _Stored:
    """A record's data in a file, read on access."""

    path: Path
    stamp: tuple[int, ...]
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    packed: bool
    max_bytes: int

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Steps [start, stop).

        Raises:
            FileError: as for `Storage.read`.
        """
        if self.packed:
            return _bits(self.name, self._read(start, stop, 1), self.shape[1:]).unpack().view(self.dtype)
        return self._read(start, stop, self.dtype.itemsize)

    def read_packed(self, start: int = 0, stop: int | None = None) -> PackedSpikes | None:
        """Steps [start, stop) as stored bits; None where they are not packed.

        Raises:
            FileError: as for `Storage.read_packed`.
        """
        return _bits(self.name, self._read(start, stop, 1 / 8), self.shape[1:]) if self.packed else None

    def _read(self, start: int, stop: int | None, entry_bytes: float) -> NDArray[Any]:
        first, last, _ = slice(start, stop).indices(self.shape[0])
        last = max(first, last)
        size = int((last - first) * math.prod(self.shape[1:]) * entry_bytes)
        if size > self.max_bytes:
            raise FileError(
                f"{str(self.path)!r}: reading {last - first} steps of {self.name} takes {size} bytes, more than "
                f"{self.max_bytes}",
                remedy="Use record.read(start, stop), or raise max_bytes.",
            )
        with files.reopen(self.path, _WHAT, self.stamp) as file:
            return np.asarray(files.member(file, self.name, h5py.Dataset)[first:last])


def read(path: str | Path, *, lazy: bool = False, max_bytes: int | None = None) -> Trajectory:
    """Read a trajectory file; arguments and errors are those of `load_trajectory`."""
    source = Path(path)
    stamp: tuple[int, ...] | None = None
    if max_bytes is None:
        max_bytes = files.MAX_BYTES
        if not lazy and not files.unreadable(source):
            max_bytes = max(max_bytes, min(_SPIKES_RATIO * source.stat().st_size, _MOST_BYTES))
    if lazy and not files.unreadable(source):
        source = source.absolute()
        stamp = files.stamp(source)
    with files.open_hdf5(source, _WHAT, max_bytes=_ANY_BYTES if lazy else max_bytes) as file:
        if "format" not in file.attrs or files.attribute(file, "format", str) != FORMAT:
            raise FileError(f"{str(path)!r} is HDF5 but not a trajectory")
        version = files.attribute(file, "version", int)
        if version > FORMAT_VERSION:
            raise FileError(
                f"{str(path)!r} has trajectory format {version}, this nirdeploy reads up to {FORMAT_VERSION}",
                remedy="Update nirdeploy.",
            )
        try:
            return _load(file, version, _Reader(source, stamp, max_bytes))
        # FileErrors are ValueErrors; the rest is what wrong types and damaged bytes raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{str(path)!r} is a damaged trajectory: {error}") from error


@dataclass(frozen=True)
class _Reader:
    """How the records of a file are read: at once, or on access where there is a stamp."""

    path: Path
    stamp: tuple[int, ...] | None
    max_bytes: int

    def array(self, dataset: Any, kinds: str = "biuf") -> NDArray[Any]:
        """A small dataset, read at once."""
        if dataset.shape is not None and math.prod(dataset.shape) * dataset.dtype.itemsize > self.max_bytes:
            raise FileError(f"{dataset.name} of shape {dataset.shape} takes more than {self.max_bytes} bytes")
        return files.numbers(dataset, kinds)

    def data(self, dataset: Any, packed: bool) -> NDArray[Any] | PackedSpikes | _Stored:
        """A record's data."""
        if not packed:
            if self.stamp is None:
                return files.numbers(dataset)
            if dataset.shape is None or not dataset.shape or dataset.dtype.kind not in "biuf":
                raise FileError(f"{dataset.name} of type {dataset.dtype} and shape {dataset.shape}, expected numbers")
            return _Stored(self.path, self.stamp, dataset.name, dataset.shape, dataset.dtype, False, self.max_bytes)
        sample = files.integers(dataset, "sample_shape")
        shape = dataset.shape
        if min(sample, default=0) < 0 or math.prod(max(1, length) for length in sample) > _MOST_ENTRIES:
            raise FileError(f"{dataset.name} has sample_shape {sample}")
        if dataset.dtype != np.uint8 or shape is None or len(shape) != 2 or shape[1] != n_bytes(sample):
            found = f"{dataset.dtype} {shape}"
            raise FileError(f"{dataset.name} is {found}, expected uint8 [step, {n_bytes(sample)}] for {sample} a step")
        if self.stamp is None:
            return _bits(dataset.name, files.numbers(dataset), sample)
        return _Stored(
            self.path, self.stamp, dataset.name, (shape[0], *sample), np.dtype(np.int8), True, self.max_bytes
        )


def _bits(name: str, bits: NDArray[Any], sample: tuple[int, ...]) -> PackedSpikes:
    try:
        return PackedSpikes(bits, (bits.shape[0], *sample))
    except RasterError as error:
        raise FileError(f"{name}: {error}") from error


def _load(file: Any, version: int, reader: _Reader) -> Trajectory:
    records: dict[Key, Record] = {}
    nodes = files.member(file, "nodes", h5py.Group)
    stored = {unescape(name): name for name in nodes}
    for node, variable in json.loads(files.attribute(file, "order", str)):
        group = files.member(nodes, stored[node], h5py.Group)
        records[node, variable] = _load_record(group, node, variable, version, reader)
    outputs = tuple(json.loads(files.attribute(file, "outputs", str)))
    for name in outputs:
        if (name, "output") not in records:
            raise FileError(f"no output record of {name!r}")
    text = files.attribute(file, "convention", str)
    return Trajectory(
        records,
        output_names=outputs,
        target=files.attribute(file, "target", str),
        executor=files.attribute(file, "executor", str),
        convention=Convention.from_dict(json.loads(text)) if text else None,
        graph_sha256=files.attribute(file, "graph_sha256", str),
        counters=_counters(json.loads(files.attribute(file, "counters", str))),
        producer=files.attribute(file, "producer", str),
        complete=version < 2 or bool(files.attribute(file, "complete", int)),
        reason="" if version < 2 else files.attribute(file, "reason", str),
        outline=_outline(file),
    )


def _outline(file: Any) -> Outline | None:
    text = files.attribute(file, "outline", str) if "outline" in file.attrs else ""
    return Outline.from_json(text) if text else None


def _counters(values: Any) -> dict[str, dict[str, int]]:
    for found in values.values():
        for name, count in found.items():
            if not isinstance(count, int):
                raise FileError(f"counter {name!r} is {count!r}, expected a whole number")
    return {str(node): dict(found) for node, found in values.items()}


def _arrays(record: Record) -> dict[str, Any]:
    """What of a record may be one a neuron; None or 0 is not stored."""
    offset = record.offset if np.any(record.offset) else None
    return {
        "index_map": record.index_map,
        "threshold": record.threshold,
        "neurons": record.neurons,
        "offset": offset,
        "cores": record.cores,
    }


def _load_record(group: Any, node: str, variable: str, version: int, reader: _Reader) -> Record:
    dataset = files.member(group, variable, h5py.Dataset)
    packed = version > 1 and bool(files.attribute(dataset, "packed", int))
    data = reader.data(dataset, packed)
    batched = bool(files.attribute(dataset, "batched", int))
    rank = 2 if batched else 1
    if len(data.shape) < rank:
        raise FileError(f"{dataset.name} has shape {data.shape}, expected at least {rank} axes")
    scale = files.attribute(dataset, "scale", float)
    if not (math.isfinite(scale) and scale > 0):
        raise FileError(f"{dataset.name} has scale {scale}, expected a positive number")
    offset = _level(group, dataset, "offset", data.shape[rank:], reader)
    if not np.isfinite(0.0 if offset is None else offset).all():
        raise FileError(f"{dataset.name} has an offset that is not finite")
    return Record(
        node,
        variable,
        data,
        scale=scale,
        units=files.attribute(dataset, "units", str),
        source=files.attribute(dataset, "source", str),
        lag=files.attribute(dataset, "lag", int),
        view=files.attribute(dataset, "view", str) or None,
        batched=batched,
        index_map=_indices(group, dataset, "index_map", math.prod(data.shape[rank:]), reader, least=-1),
        threshold=_level(group, dataset, "threshold", data.shape[rank:], reader),
        steps=_steps(dataset) if "steps" in dataset.attrs else None,
        neurons=_indices(group, dataset, "neurons", math.prod(data.shape[rank:]), reader),
        offset=0.0 if offset is None else offset,
        cores=_cores(group, dataset, data.shape[rank:], reader),
    )


def _cores(group: Any, dataset: Any, shape: tuple[int, ...], reader: _Reader) -> int | NDArray[np.int64] | None:
    if "cores" in dataset.attrs:
        return files.attribute(dataset, "cores", int)
    found = _indices(group, dataset, "cores", math.prod(shape), reader)
    return None if found is None else found.reshape(shape)


def _steps(dataset: Any) -> range:
    found = files.integers(dataset, "steps")
    if len(found) != 3 or found[0] < 0 or found[1] < 0 or found[2] < 1:
        raise FileError(f"attribute 'steps' of {dataset.name} is {found}, expected start, stop, stride")
    # a run that was cut off has fewer than were declared
    return range(*found)[: int(dataset.shape[0])]


def _indices(
    group: Any, dataset: Any, what: str, count: int, reader: _Reader, least: int = 0
) -> NDArray[np.int64] | None:
    name = f"{dataset.name.rpartition('/')[2]}.{what}"
    if name not in group:
        return None
    found = reader.array(group[name], "iu")
    if found.shape != (count,) or (found.size and not least <= found.min() <= found.max() < 1 << 31):
        raise FileError(f"{group.name}/{name} does not fit {dataset.name}: shape {found.shape}")
    return found.astype(np.int64, copy=False)


def _level(group: Any, dataset: Any, what: str, shape: tuple[int, ...], reader: _Reader) -> float | NDArray[Any] | None:
    """A threshold or an offset: a number, one a neuron, or nothing."""
    name = f"{dataset.name.rpartition('/')[2]}.{what}"
    if name in group:
        return reader.array(group[name]).reshape(shape)
    if what not in dataset.attrs:
        return None
    value = dataset.attrs[what]
    files.attribute(dataset, what, float)
    number: float = np.asarray(value).item()
    return number
