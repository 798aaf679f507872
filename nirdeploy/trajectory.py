"""What a run leaves behind: states and spikes of every recorded node, in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import nir
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nirdeploy.bits import PackedSpikes
from nirdeploy.errors import RasterError
from nirdeploy.names import suggest
from nirdeploy.outline import Outline
from nirdeploy.reference.convention import Convention

__all__ = [
    "BEFORE_POOL_VIEW",
    "REFRACTORY_VIEW",
    "VARIABLES",
    "Record",
    "Storage",
    "Trajectory",
    "check_record",
    "load_trajectory",
    "wide",
]

VARIABLES = ("spikes", "v_mem", "i_syn", "output")
REFRACTORY_VIEW = "refractory_128"
"""View of v of a Loihi, which reads 128 times the refractory steps that are left where a neuron has fired."""
BEFORE_POOL_VIEW = "before_pool"
"""View of spikes that a chip shows of a pooling layer before they are pooled, as Speck's monitors do."""
_BLOCK_BYTES = 16 << 20  # read at once where a whole record need not be in memory


def check_record(record: Iterable[str]) -> tuple[str, ...]:
    """Variable names, validated."""
    if not isinstance(record, Iterable):
        raise RasterError(f"record is {record!r}, expected names", remedy=f"Choose from {', '.join(VARIABLES)}.")
    wanted = (record,) if isinstance(record, str) else tuple(record)
    for name in wanted:
        if name not in VARIABLES:
            raise RasterError(f"cannot record {name!r}", remedy=suggest(str(name), VARIABLES))
    return wanted


@runtime_checkable
class Storage(Protocol):
    """Data that a record reads when asked to, e.g. from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data, [step, ...]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the data read."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Steps [start, stop), counted as in a slice.

        Raises:
            FileError: the file is gone, changed or damaged, or the steps take more than its limit.
        """

    def read_packed(self, start: int = 0, stop: int | None = None) -> PackedSpikes | None:
        """The same steps as stored bits; None where the storage is not packed.

        Raises:
            FileError: as for `read`.
        """


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Record:
    """One variable of one node over a run.

    `data` is what the constructor takes: an array, `PackedSpikes` or a `Storage`. The attribute `data` is always
    an array: packed spikes are unpacked (to int8) and files are read on every access, and nothing is kept; `read`
    gives some of the steps. `dataclasses.replace` keeps what is stored as it is, and takes `data=` as well.

    Attributes:
        node: name of the node in the run's own network.
        variable: 'spikes' (counts), 'v_mem' (after the reset), 'i_syn' or 'output'.
        storage: the data as given: [step, batch, ...] or, where the raster had no batch axis, [step, ...]; integers
            stay integers.
        scale: model units an integer of `data` stands for.
        units: unit of `values`: 'count', or 'model' for model units.
        source: name of the node in the original graph that this is a copy of; `node` unless it moved.
        index_map: for each neuron of `data` in row-major order, the flat index in the source node, or -1 for one
            that stands for none of it; None: the same.
        lag: steps by which this record is later than the source node in a run without delays.
        view: what hides the state from comparison, e.g. `BEFORE_POOL_VIEW`; None: nothing.
        threshold: firing threshold in the units of `data`, a number or one a neuron; None: no threshold.
        batched: whether axis 1 of `data` is the batch.
        steps: which steps of the run are recorded, one an entry of `data`'s first axis; None: all, from step 0.
        neurons: where only some neurons are recorded, their flat indices in the node's shape, in the order of
            `data` [step, batch, k]; None: all.
        offset: model units where `data` is 0, a number or one a neuron (a chip whose v is shifted by v_reset).
        cores: core that holds each neuron, a number or one a neuron; None: not on a core, or not known.

    Raises:
        ValueError: an unknown variable, or steps or neurons that do not fit the data.
    """

    node: str
    variable: str
    storage: NDArray[Any] | PackedSpikes | Storage
    scale: float
    units: str
    source: str
    index_map: NDArray[np.int64] | None
    lag: int
    view: str | None
    threshold: float | NDArray[Any] | None
    batched: bool
    steps: range | None
    neurons: NDArray[np.int64] | None
    offset: float | NDArray[np.float64]
    cores: int | NDArray[np.int64] | None

    def __init__(
        self,
        node: str,
        variable: str,
        data: ArrayLike | PackedSpikes | Storage | None = None,
        scale: float = 1.0,
        units: str = "model",
        source: str = "",
        index_map: NDArray[np.int64] | None = None,
        lag: int = 0,
        view: str | None = None,
        threshold: float | NDArray[Any] | None = None,
        batched: bool = True,
        steps: range | None = None,
        neurons: NDArray[np.int64] | None = None,
        offset: float | NDArray[np.float64] = 0.0,
        cores: int | NDArray[np.int64] | None = None,
        *,
        storage: ArrayLike | PackedSpikes | Storage | None = None,
    ) -> None:
        if variable not in VARIABLES:
            raise ValueError(f"unknown variable {variable!r}; expected one of {VARIABLES}")
        given = storage if data is None else data  # `dataclasses.replace(record, data=...)` passes both
        if given is None:
            raise TypeError(f"a record of {node!r} needs data")
        stored = _stored(given)
        fields = {
            "node": node,
            "variable": variable,
            "storage": stored,
            "scale": scale,
            "units": units,
            "source": source or node,
            "index_map": index_map,
            "lag": lag,
            "view": view,
            "threshold": threshold,
            "batched": batched,
            "steps": steps,
            "neurons": None if neurons is None else _neurons(neurons, stored.shape[2 if batched else 1 :]),
            "offset": _offset(offset, stored.shape[2 if batched else 1 :]),
            "cores": None if cores is None else _cores(cores, stored.shape[2 if batched else 1 :]),
        }
        if steps is not None:
            _check_steps(steps, stored.shape[0])
        vars(self).update(fields)  # frozen from here on

    @property
    def data(self) -> NDArray[Any]:
        """The whole record as a read-only array; unpacked or read from its file on every access.

        Raises:
            FileError: it is read from a file, and this failed.
        """
        return self.read()

    @property
    def packed(self) -> PackedSpikes | None:
        """The stored bits, or None where the record is not packed.

        Raises:
            FileError: it is read from a file, and this failed.
        """
        return self.read_packed()

    @property
    def values(self) -> NDArray[Any]:
        """`data` in model units: data * scale + offset."""
        found = self.data if self.scale == 1.0 else wide(self.data) * self.scale
        offset = self.offset
        moved = offset != 0.0 if isinstance(offset, float) else offset.any()
        return wide(found) + offset if moved else found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `data`, without reading it."""
        return tuple(self.storage.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of `data`, without reading it."""
        return np.dtype(np.int8) if isinstance(self.storage, PackedSpikes) else self.storage.dtype

    @property
    def is_packed(self) -> bool:
        """Whether bits are stored, without reading them."""
        return isinstance(self.storage, PackedSpikes) or getattr(self.storage, "packed", False) is True

    @property
    def n_steps(self) -> int:
        """Number of recorded steps."""
        return self.shape[0]

    @property
    def n_samples(self) -> int:
        """Size of the batch; 1 for a run without a batch axis."""
        return self.shape[1] if self.batched else 1

    @property
    def neuron_axes(self) -> tuple[int, ...]:
        """Shape of one sample at one step."""
        return self.shape[2 if self.batched else 1 :]

    @property
    def batch_data(self) -> NDArray[Any]:
        """`data` as [step, batch, neuron], a view of it."""
        return self.read_batch()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Recorded steps [start, stop) of `data`, counted as in a slice; read-only.

        Args:
            start: first step.
            stop: the step after the last one; None: all.

        Raises:
            FileError: it is read from a file, and this failed.
        """
        if isinstance(self.storage, PackedSpikes):
            found: NDArray[Any] = self.storage.unpack(start, stop).view(np.int8)  # differences need a sign
        elif isinstance(self.storage, np.ndarray):
            return self.storage[start:stop]
        else:
            found = self.storage.read(start, stop)
        found.setflags(write=False)
        return found

    def read_batch(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """`read` as [step, batch, neuron].

        Args:
            start: as in `read`.
            stop: likewise.

        Raises:
            FileError: it is read from a file, and this failed.
        """
        found = self.read(start, stop)
        return found.reshape(found.shape[0], self.n_samples, math.prod(self.neuron_axes))

    def read_packed(self, start: int = 0, stop: int | None = None) -> PackedSpikes | None:
        """The stored bits of steps [start, stop), or None where the record is not packed.

        Args:
            start: as in `read`.
            stop: likewise.

        Raises:
            FileError: it is read from a file, and this failed.
        """
        if isinstance(self.storage, PackedSpikes):
            whole = start == 0 and stop is None
            return self.storage if whole else self.storage.steps(start, stop)
        return None if isinstance(self.storage, np.ndarray) else self.storage.read_packed(start, stop)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Bounds (start, stop) that cover all steps, each about 16 MiB of `data` or one step."""
        length = max(1, _BLOCK_BYTES // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        for start in range(0, self.n_steps, length):
            yield start, min(self.n_steps, start + length)

    def __repr__(self) -> str:
        lag = f", lag={self.lag}" if self.lag else ""
        held = repr(self.storage) if isinstance(self.storage, PackedSpikes) else f"{self.dtype} {self.shape}"
        return f"Record({self.node!r}, {self.variable!r}, {held}, units={self.units!r}{lag})"

    def __eq__(self, other: object) -> bool:
        """Whether all attributes and all of `data` are equal, however it is stored; NaN equals NaN."""
        if not isinstance(other, Record):
            return NotImplemented
        if self is other:
            return True
        names = ("node", "variable", "scale", "units", "source", "lag", "view", "batched", "steps", "shape", "dtype")
        return (
            all(getattr(self, name) == getattr(other, name) for name in names)
            and all(
                _same(getattr(self, n), getattr(other, n))
                for n in ("index_map", "threshold", "neurons", "offset", "cores")
            )
            and (
                self.storage is other.storage or all(_same(self.read(a, b), other.read(a, b)) for a, b in self.blocks())
            )
        )

    __hash__ = None  # type: ignore[assignment]  # Python's way to say unhashable, which typeshed does not know


def wide(data: NDArray[Any]) -> NDArray[Any]:
    """Data that hold a number of model units: half precision, whose range ends at 65504, becomes single."""
    return data.astype(np.float32) if data.dtype == np.float16 else data


def _stored(data: ArrayLike | PackedSpikes | Storage) -> NDArray[Any] | PackedSpikes | Storage:
    if not isinstance(data, np.ndarray) and isinstance(data, PackedSpikes | Storage):  # a protocol is slow to ask
        return data
    # a view: the caller's own array stays writable
    view = np.asarray(data).view()
    view.setflags(write=False)
    return view


def _offset(offset: Any, axes: tuple[int, ...]) -> float | NDArray[np.float64]:
    """A number, or one a neuron in the shape of a sample."""
    if isinstance(offset, float) or np.ndim(offset) == 0:
        return float(offset)
    found = np.array(offset, dtype=np.float64).reshape(-1)
    if found.size != math.prod(axes):
        raise ValueError(f"offset has {found.size} values, the data has shape {axes} a sample and step")
    found.setflags(write=False)
    return found.reshape(axes)


def _cores(cores: Any, axes: tuple[int, ...]) -> int | NDArray[np.int64]:
    """One core for all neurons, or one a neuron in the shape of a sample."""
    found = np.asarray(cores)
    if found.dtype.kind not in "iu" or (found.size and found.min() < 0):
        raise ValueError(f"cores are {found.dtype}, expected whole numbers from 0 on")
    if found.ndim == 0:
        return int(found)
    if found.size != math.prod(axes):
        raise ValueError(f"cores are {found.size}, the data has shape {axes} a sample and step")
    found = found.astype(np.int64).reshape(axes)
    found.setflags(write=False)
    return found


def _check_steps(steps: range, count: int) -> None:
    if not isinstance(steps, range) or steps.start < 0 or steps.step < 1:
        raise ValueError(f"steps are {steps!r}, expected a range that starts at 0 or later and counts upwards")
    if len(steps) != count:
        raise ValueError(f"steps {steps!r} are {len(steps)}, the data has {count}")


def _neurons(neurons: NDArray[np.int64], axes: tuple[int, ...]) -> NDArray[np.int64]:
    found = np.asarray(neurons)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(f"neurons are {found.dtype} of shape {found.shape}, expected a list of flat indices")
    found = found.astype(np.int64)
    if axes != found.shape:
        raise ValueError(f"{found.size} neurons are named, the data has shape {axes} a sample and step")
    if found.size and found.min() < 0:
        raise ValueError(f"neurons hold the negative index {int(found.min())}")
    if np.unique(found).size < found.size:
        raise ValueError("neurons hold an index more than once")
    found.setflags(write=False)
    return found


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    first, second = np.asarray(a), np.asarray(b)
    floats = first.dtype.kind == second.dtype.kind == "f"
    return bool(np.array_equal(first, second, equal_nan=floats))


@dataclass(frozen=True, repr=False)
class Trajectory:
    """All records of one run, with what is needed to repeat and to compare it.

    Attributes:
        records: (node, variable) -> Record.
        output_names: the Output nodes; each has a record of its own.
        target: 'reference', or the chip's name.
        executor: 'reference', 'emulator', 'simulator' or 'chip'.
        convention: what the run followed, where known.
        graph_sha256: `graph.sha256` of the network.
        counters: per node, e.g. 'saturations', 'clamps', 'synaptic_operations'.
        producer: program and version that wrote it.
        complete: whether the run went to its end; False: it was cut off, and `reason` says why.
        reason: why it is not complete, e.g. 'No space left on device'; '' where it is.
        state_at_end: gives the state a reference run ended in; see `state`.
        outline: nodes and edges of the graph, where known.
        graph: the graph itself, where the run was made here; a file holds its outline alone.
        raster: what came in, as it was given and not copied, where the run was made here.
    """

    records: Mapping[tuple[str, str], Record]
    output_names: tuple[str, ...] = ()
    target: str = "reference"
    executor: str = "reference"
    convention: Convention | None = None
    graph_sha256: str = ""
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    producer: str = ""
    complete: bool = True
    reason: str = ""
    state_at_end: Callable[[], Mapping[str, Any]] | None = field(default=None, compare=False, repr=False)
    outline: Outline | None = field(default=None, repr=False)
    graph: nir.NIRGraph | None = field(default=None, compare=False, repr=False)
    raster: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", MappingProxyType(dict(self.records)))

    def __getitem__(self, key: tuple[str, str]) -> Record:
        """The record of (node, variable).

        Raises:
            KeyError: not recorded; the message names what is.
        """
        if key in self.records:
            return self.records[key]
        known = [f"{node}/{variable}" for node, variable in self.records]
        wanted = "/".join(key) if isinstance(key, tuple) else str(key)
        raise KeyError(f"no record {wanted!r}. {suggest(wanted, known)}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.records)

    def __repr__(self) -> str:
        cut = "" if self.complete else f", complete=False, reason={self.reason!r}"
        return f"Trajectory({self.target!r}, {self.executor!r}, n_steps={self.n_steps}, records={list(self)}{cut})"

    @property
    def nodes(self) -> list[str]:
        """Recorded nodes in order of recording."""
        return list(dict.fromkeys(node for node, _ in self.records))

    @property
    def outputs(self) -> Any:
        """Values of the Output node [step, batch, ...]; a dict by name where there are several."""
        found = {name: self.records[name, "output"].values for name in self.output_names}
        return next(iter(found.values())) if len(found) == 1 else found

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return max((record.n_steps for record in self.records.values()), default=0)

    @property
    def state(self) -> Mapping[str, Any] | None:
        """Where a reference run ended, to start the next one with; None for other runs and for files."""
        return None if self.state_at_end is None else self.state_at_end()

    def ending(self, state_at_end: Callable[[], Mapping[str, Any]]) -> Trajectory:
        """The same, knowing the state the run ended in.

        Args:
            state_at_end: called when the state is asked for.
        """
        return replace(self, state_at_end=state_at_end)

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file that `load_trajectory` and `xarray.open_datatree(engine='h5netcdf')` read.

        Packed records stay packed; records read from a file are copied a block at a time.

        Args:
            path: the file.

        Raises:
            FileError: the folder cannot be written, the disk is full, or a name, type or shape is there that a
                file cannot hold; the old file, if any, stays.
        """
        from nirdeploy.trajectory_writer import write

        write(path, self)


def load_trajectory(path: str | Path, *, lazy: bool = False, max_bytes: int | None = None) -> Trajectory:
    """Read a trajectory file written by `Trajectory.save` or a `TrajectoryWriter`, or a recording from outside.

    Args:
        path: the file; a `.toml` is the mapping of a recording (`nirdeploy.recordings`).
        lazy: whether to leave the records in the file and read them on every access to `data`; the file must stay
            as it is.
        max_bytes: most bytes that the records together may take, with `lazy` those of one access; None: 1 GiB, or
            (not with `lazy`) 256 times the file's own size (what silent spikes compress by), whichever is more.

    Returns:
        The trajectory, its records in memory or, with `lazy`, in the file.

    Raises:
        FileError: not HDF5, damaged, another format or a newer version, or too large.
        ConfigurationError: a mapping that is wrong.
    """
    if Path(path).suffix.lower() == ".toml":
        from nirdeploy.recordings import load_recording

        return load_recording(path)
    from nirdeploy.trajectory_reader import read

    return read(path, lazy=lazy, max_bytes=max_bytes)
