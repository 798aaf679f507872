"""Trajectories into HDF5, as a whole or along with the run."""

from __future__ import annotations

import json
import math
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
from nirdeploy.trajectory_datasets import Datasets
from nirdeploy.trajectory_part import WRITE_BYTES, Part, mark, reason
from nirdeploy.trajectory_reader import read
from nirdeploy.trajectory_stream import END, FORMAT, FORMAT_VERSION, Stream, rows_of

__all__ = ["TrajectoryWriter", "write"]

Key = tuple[str, str]


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
        self._part = Part(self._path)
        self._datasets: Any = None
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
        self._part.open(self._attributes)
        self._datasets = Datasets(self._part.file["nodes"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file; after an exception, with the steps up to it.

        Raises:
            FileError: the disk is full.
        """
        if self._part.file is None:
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
        self._part.check_open()
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
        self._part.margin += stream.margin + 2 * len(json.dumps(stream.key))

    def append(self, node: str, variable: str, data: NDArray[Any] | PackedSpikes) -> None:
        """Add the next recorded steps, [step, batch, ...] or [step, ...]; up to 256 KiB of a record stay in memory.

        Raises:
            FileError: not declared, another shape or type, more steps than declared, a count in a packed record that
                is neither 0 nor 1; or the disk is full: the file is then finished with the steps it names.
        """
        self._part.check_open()
        if (node, variable) not in self._streams:
            known = [f"{name}/{what}" for name, what in self._streams]
            raise FileError(f"no record {node}/{variable} is declared. {suggest(f'{node}/{variable}', known)}")
        stream = self._streams[node, variable]
        rows = rows_of(stream, data)
        try:
            self._push(stream, rows)
        except (OSError, RuntimeError) as error:
            raise self._stop(reason(error)) from error

    def _push(self, stream: Stream, rows: NDArray[Any]) -> None:
        if stream.buffer is None:
            self._part.reserve(0)
            stream.buffer = np.empty((stream.chunk, *stream.row), stream.dtype)
        chunk, position = stream.chunk, 0
        while position < len(rows):
            left = len(rows) - position
            if not stream.filled and left >= chunk:
                most = max(1, WRITE_BYTES // max(1, chunk * stream.row_bytes))
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
        self._part.reserve(rows.nbytes)
        self._datasets.put(stream, rows)
        if self._part.has_grown(rows.nbytes):
            files.set_attribute(self._part.file, "order", json.dumps([list(key) for key in self._streams]))
            self._part.file.flush()
            self._part.reserve(0)

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
            self._datasets.settle(stream, stream.rows)
        except (OSError, RuntimeError) as error:
            raise self._stop(reason(error)) from error
        stream.buffer = None
        self._part.margin -= stream.margin

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
            self._part.abandon()
            self._part.leave(keep=False)
            if why is None:
                raise FileError(f"{str(self._path)!r} is not written: {trouble}")
            return 0
        try:
            self._finish(step, trouble)
        except (OSError, RuntimeError) as error:
            kept = self._rescue(trouble or reason(error))
            if why is None:
                held = f"its first {kept} steps are kept, marked as incomplete" if kept else "it is not kept"
                raise FileError(f"cannot finish {str(self._path)!r}: {reason(error)}; {held}") from error
            return kept
        except BaseException:
            self._rescue(trouble or "interrupted")
            raise
        self._part.leave(keep=True)
        return step

    def _rescue(self, why: str) -> int:
        self._part.abandon()
        kept = 0 if self._saved else self._salvage(why)
        self._part.leave(keep=kept > 0)
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
            self._datasets.settle(stream, stream.rows if trouble is None else stream.rows_before(step))
        counters = {node: dict(found) for node, found in self.counters.items()}
        files.set_attribute(self._part.file, "counters", json.dumps(counters))
        files.set_attribute(self._part.file, "order", json.dumps([list(key) for key in self._streams]))
        files.set_attribute(
            self._part.file, "outputs", json.dumps([n for n in self._outputs if (n, "output") in self._streams])
        )
        if self._saved is not None and not self._saved.complete:
            trouble = self._saved.reason
        mark(self._part.file, self._saved.n_steps if self._saved else step, trouble)
        self._part.close()

    def _salvage(self, why: str) -> int:
        """Cut the file as it was last flushed to the steps that all records have; their number."""
        try:
            with h5py.File(self._part.temporary, "r+") as file:
                for stream in self._streams.values():
                    stream.dataset = file.get(f"nodes/{escape(stream.key[0])}/{stream.key[1]}")
                    stream.filled, stream.stored = 0, stream.dataset.shape[0] if stream.dataset else 0
                step = self.n_steps
                for stream in self._streams.values() if step else ():
                    stream.dataset.resize(stream.rows_before(step), axis=0)
                    for scale in stream.dataset.dims[0].values():
                        scale.resize(stream.rows_before(step), axis=0)
                mark(file, step, why)
            read(self._part.temporary, lazy=True)
        except (OSError, RuntimeError, LookupError, TypeError, FileError):
            return 0
        return step


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
