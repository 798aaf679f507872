"""One record on its way into a trajectory file: its rows as the file holds them, and what stands beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.bits import PackedSpikes, n_bytes
from nirdeploy.errors import FileError, RasterError
from nirdeploy.trajectory import Record

__all__ = [
    "END",
    "FORMAT",
    "FORMAT_VERSION",
    "MARGIN_RECORD",
    "Stream",
    "arrays_of",
    "rows_of",
]

FORMAT = "nirdeploy-trajectory"
FORMAT_VERSION = 2  # 1: without packed records, steps, neurons, complete
Key = tuple[str, str]
END = 1 << 62  # a step that no run reaches
MARGIN_RECORD = 32 << 10  # HDF5's own structures of a record
_CHUNK_BYTES = 256 << 10  # of one record; as much of it is buffered


@dataclass(eq=False)
class Stream:
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
        """Node and variable."""
        return self.template.node, self.template.variable

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
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
        entries = sum(0 if a is None else int(np.size(a)) for a in arrays_of(record).values())
        steps = 0 if self.steps is None else len(self.steps)
        return self.chunk * max(1, self.row_bytes) + 8 * (entries + steps) + MARGIN_RECORD

    @property
    def rows(self) -> int:
        """Rows so far, in the file and in the buffer."""
        return self.stored + self.filled

    @property
    def reached(self) -> int:
        """First step of the run that is to be recorded and is not yet."""
        if self.steps is None:
            return self.rows
        return self.steps[self.rows] if self.rows < len(self.steps) else END

    def rows_before(self, step: int) -> int:
        """Rows that belong to the steps before this one."""
        if self.steps is None:
            return min(step, self.rows)
        return min(self.rows, len(range(self.steps.start, max(self.steps.start, step), self.steps.step)))


def rows_of(stream: Stream, data: NDArray[Any] | PackedSpikes) -> NDArray[Any]:
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


def arrays_of(record: Record) -> dict[str, Any]:
    """What of a record may be one a neuron; None or 0 is not stored."""
    offset = record.offset if np.any(record.offset) else None
    return {
        "index_map": record.index_map,
        "threshold": record.threshold,
        "neurons": record.neurons,
        "offset": offset,
        "cores": record.cores,
    }
