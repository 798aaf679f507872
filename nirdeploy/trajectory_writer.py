"""Trajectories into HDF5, as a whole or along with the run.

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
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from nirdeploy import files
from nirdeploy.bits import PackedSpikes
from nirdeploy.errors import FileError
from nirdeploy.names import escape, suggest, unstorable
from nirdeploy.outline import Outline
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy.trajectory_reader import read
from nirdeploy.trajectory_stream import (
    DIMENSION,
    END,
    FORMAT,
    FORMAT_VERSION,
    Stream,
    arrays_of,
    attach_axes,
    axis_names,
    rows_of,
    step_name,
)

__all__ = ["TrajectoryWriter", "write"]

Key = tuple[str, str]

_WRITE_BYTES = 16 << 20  # handed to HDF5 at once
_FLUSH_BYTES = 64 << 20
_MARGIN_FILE = 256 << 10  # HDF5's own structures
_REASON_BYTES = 240


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
        self._streams: dict[Key, Stream] = {}
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
        if reached < END:
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
        self._add(Stream(template, packed, steps, None))

    def _add(self, stream: Stream) -> None:
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
        rows = rows_of(stream, data)
        try:
            self._push(stream, rows)
        except (OSError, RuntimeError) as error:
            raise self._stop(_reason(error)) from error

    def _push(self, stream: Stream, rows: NDArray[Any]) -> None:
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

    def _write(self, stream: Stream, rows: NDArray[Any]) -> None:
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
        stream = Stream(template, packed, record.steps, record.n_steps)
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

    def _put(self, stream: Stream, rows: NDArray[Any]) -> None:
        if stream.dataset is None:
            self._create(stream, max(1, min(stream.chunk, len(rows))))
        stop = stream.stored + len(rows)
        stream.dataset.resize(stop, axis=0)
        if rows.size:
            stream.dataset[stream.stored : stop] = rows
        stream.stored = stop

    def _create(self, stream: Stream, chunk: int) -> None:
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
        dataset.dims[0].label = step_name(stream)
        dataset.dims[0].attach_scale(stream.scale)
        attach_axes(group, dataset, axis_names(stream), first=1)
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
        for name, value in arrays_of(record).items():
            if value is not None and np.ndim(value):
                # arrays are datasets: attributes stop at 64 KiB
                group.create_dataset(f"{variable}.{name}", data=np.asarray(value).reshape(-1))
                attach_axes(group, group[f"{variable}.{name}"], ("cell",))
            elif value is not None:
                details[name] = value

    def _step_scale(self, group: Any, stream: Stream) -> Any:
        """The group's dimension for these steps; with the steps as coordinates where not all are recorded."""
        key = (str(group.name), stream.steps, stream.expected)
        if key not in self._scales:
            label = step_name(stream)
            while label in group:
                label += "_"
            if stream.steps is None:
                length = stream.expected or 0
                scale = group.create_dataset(label, shape=(length,), maxshape=(None,), dtype=np.int8, chunks=(4096,))
                scale.make_scale(DIMENSION.format(length))
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
            if stream.rows > stream.rows_before(step) or (stream.steps is not None and stream.reached < END):
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

    def _settle(self, stream: Stream, rows: int) -> None:
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
