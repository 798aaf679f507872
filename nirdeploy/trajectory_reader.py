"""Trajectories out of HDF5, into memory or left in the file until they are looked at."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.bits import PackedSpikes, n_bytes
from nirdeploy.errors import FileError, RasterError
from nirdeploy.names import unescape
from nirdeploy.outline import Outline
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy.trajectory_stream import FORMAT, FORMAT_VERSION

__all__ = ["read"]

Key = tuple[str, str]
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
    files.attribute(dataset, what, float)  # before it is read as it is: HDF5 can hang on damaged text
    number: float = np.asarray(dataset.attrs[what]).item()
    return number
