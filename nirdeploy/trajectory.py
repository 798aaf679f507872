"""What a run leaves behind: states and spikes of every recorded node, in memory and in HDF5."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.errors import FileError
from nirdeploy.names import escape, suggest, unescape, unstorable
from nirdeploy.reference.convention import Convention

__all__ = ["VARIABLES", "Record", "Trajectory", "load_trajectory"]

FORMAT = "nirdeploy-trajectory"
FORMAT_VERSION = 1
_SPIKES_RATIO = 256  # gzip, level 1, of spikes that never come: measured 228
_MOST_BYTES = 16 * files.MAX_BYTES
VARIABLES = ("spikes", "v_mem", "i_syn", "output")


@dataclass(frozen=True)
class Record:
    """One variable of one node over a run.

    Attributes:
        node: name of the node in the run's own network.
        variable: 'spikes' (counts), 'v_mem' (after the reset), 'i_syn' or 'output'.
        data: [step, batch, ...] or, where the raster had no batch axis, [step, ...]; integers stay integers.
        scale: model units an integer of `data` stands for.
        units: unit of `values`: 'count', or 'model' for model units.
        source: name of the node in the original graph that this is a copy of; `node` unless it moved.
        index_map: for each neuron of `data` in row-major order, the flat index in the source node; None: the same.
        lag: steps by which this record is later than the source node in a run without delays.
        view: what hides the state from comparison, e.g. 'before_pool'; None: nothing.
        threshold: firing threshold in the units of `data`, a number or one a neuron; None: no threshold.
        batched: whether axis 1 of `data` is the batch.
    """

    node: str
    variable: str
    data: NDArray[Any]
    scale: float = 1.0
    units: str = "model"
    source: str = ""
    index_map: NDArray[np.int64] | None = None
    lag: int = 0
    view: str | None = None
    threshold: float | NDArray[Any] | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        if self.variable not in VARIABLES:
            raise ValueError(f"unknown variable {self.variable!r}; expected one of {VARIABLES}")
        if not self.source:
            object.__setattr__(self, "source", self.node)
        # a view: the caller's own array stays writable
        data = np.asarray(self.data).view()
        data.setflags(write=False)
        object.__setattr__(self, "data", data)

    @property
    def values(self) -> NDArray[Any]:
        """`data` in model units."""
        return self.data if self.scale == 1.0 else self.data * self.scale

    @property
    def n_steps(self) -> int:
        """Number of recorded steps."""
        return int(self.data.shape[0])

    @property
    def neuron_axes(self) -> tuple[int, ...]:
        """Shape of one sample at one step."""
        return tuple(self.data.shape[2 if self.batched else 1 :])

    @property
    def batch_data(self) -> NDArray[Any]:
        """`data` as [step, batch, neuron], a view."""
        steps, batch = self.data.shape[0], self.data.shape[1] if self.batched else 1
        return self.data.reshape(steps, batch, int(np.prod(self.neuron_axes, dtype=np.int64)))


@dataclass(frozen=True)
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
    """

    records: Mapping[tuple[str, str], Record]
    output_names: tuple[str, ...] = ()
    target: str = "reference"
    executor: str = "reference"
    convention: Convention | None = None
    graph_sha256: str = ""
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    producer: str = ""

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

    def save(self, path: str | Path) -> None:
        """Write an HDF5 file that `load_trajectory` and `xarray.open_datatree(engine='h5netcdf')` read.

        Raises:
            FileError: the folder cannot be written, or a name is there that a file cannot hold.
        """
        for record in self.records.values():
            for name in (record.node, record.source, record.variable):
                if reason := unstorable(name):
                    raise FileError(f"the name {reason}; a file cannot hold it", node=name, remedy="Rename the node.")
        with files.atomic(path) as temporary, h5py.File(temporary, "w") as file:
            _store(file, self)


_AXES = {1: ("neuron",), 2: ("y", "x"), 3: ("channel", "y", "x")}


def _axis_names(record: Record) -> tuple[str, ...]:
    rank = len(record.neuron_axes)
    names = _AXES.get(rank, tuple(f"axis{i}" for i in range(rank)))
    return ("step", "batch", *names) if record.batched else ("step", *names)


def _store(file: h5py.File, trajectory: Trajectory) -> None:
    attributes = file.attrs
    attributes["format"], attributes["version"] = FORMAT, FORMAT_VERSION
    attributes["producer"] = trajectory.producer
    attributes["target"], attributes["executor"] = trajectory.target, trajectory.executor
    attributes["convention"] = trajectory.convention.to_json() if trajectory.convention else ""
    attributes["graph_sha256"] = trajectory.graph_sha256
    attributes["outputs"] = json.dumps(list(trajectory.output_names))
    attributes["counters"] = json.dumps({k: dict(v) for k, v in trajectory.counters.items()})
    attributes["order"] = json.dumps([list(key) for key in trajectory.records])
    nodes = file.create_group("nodes")
    for (node, variable), record in trajectory.records.items():
        group = nodes.require_group(escape(node))
        # chunked by step, so that a run can be appended to
        length = max(1, (1 << 18) // max(1, record.data[:1].nbytes)) if record.data.size else 1
        chunks = (min(length, max(1, record.data.shape[0])), *(max(1, n) for n in record.data.shape[1:]))
        compression = "gzip" if variable == "spikes" else None
        dataset = group.create_dataset(
            variable,
            data=record.data,
            maxshape=(None, *record.data.shape[1:]),
            chunks=chunks,
            compression=compression,
            compression_opts=1 if compression else None,
            shuffle=bool(compression),
        )
        _attach_axes(group, dataset, _axis_names(record))
        details = dataset.attrs
        details["scale"], details["units"] = record.scale, record.units
        details["source"], details["lag"] = record.source, record.lag
        details["view"], details["batched"] = record.view or "", int(record.batched)
        for name, value in (("index_map", record.index_map), ("threshold", record.threshold)):
            if value is not None and np.ndim(value):
                # arrays are datasets: attributes stop at 64 KiB
                group.create_dataset(f"{variable}.{name}", data=np.asarray(value).reshape(-1))
                _attach_axes(group, group[f"{variable}.{name}"], ("cell",))
            elif value is not None:
                details[name] = value


def _attach_axes(group: h5py.Group, dataset: h5py.Dataset, names: tuple[str, ...]) -> None:
    for axis, name in enumerate(names):
        length = dataset.shape[axis]
        label = name
        while label in group and group[label].shape != (length,):
            label += "_"
        if label not in group:
            group.create_dataset(label, data=np.arange(length)).make_scale(label)
        dataset.dims[axis].label = name
        dataset.dims[axis].attach_scale(group[label])


def load_trajectory(path: str | Path, *, max_bytes: int | None = None) -> Trajectory:
    """Read a trajectory file written by `Trajectory.save`.

    Args:
        path: the file.
        max_bytes: most bytes that the records together may take; None: 1 GiB, or 256 times the file's own size
            (what silent spikes compress by), whichever is more.

    Raises:
        FileError: not HDF5, damaged, another format or a newer version, or too large.
    """
    source = Path(path)
    if max_bytes is None:
        size = 0 if files.unreadable(source) else source.stat().st_size
        max_bytes = max(files.MAX_BYTES, min(_SPIKES_RATIO * size, _MOST_BYTES))
    with files.open_hdf5(source, "a trajectory", max_bytes=max_bytes) as file:
        if "format" not in file.attrs or files.attribute(file, "format", str) != FORMAT:
            raise FileError(f"{str(path)!r} is HDF5 but not a trajectory")
        version = files.attribute(file, "version", int)
        if version > FORMAT_VERSION:
            raise FileError(
                f"{str(path)!r} has trajectory format {version}, this nirdeploy reads up to {FORMAT_VERSION}",
                remedy="Update nirdeploy.",
            )
        try:
            return _load(file)
        # FileErrors are ValueErrors; the rest is what wrong types and damaged bytes raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{str(path)!r} is a damaged trajectory: {error}") from error


def _load(file: h5py.File) -> Trajectory:
    records: dict[tuple[str, str], Record] = {}
    nodes = files.member(file, "nodes", h5py.Group)
    stored = {unescape(name): name for name in nodes}
    for node, variable in json.loads(files.attribute(file, "order", str)):
        group = files.member(nodes, stored[node], h5py.Group)
        records[node, variable] = _load_record(group, node, variable)
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
    )


def _counters(values: Any) -> dict[str, dict[str, int]]:
    for found in values.values():
        for name, count in found.items():
            if not isinstance(count, int):
                raise FileError(f"counter {name!r} is {count!r}, expected a whole number")
    return {str(node): dict(found) for node, found in values.items()}


def _load_record(group: h5py.Group, node: str, variable: str) -> Record:
    dataset = files.member(group, variable, h5py.Dataset)
    data = files.numbers(dataset)
    batched = bool(files.attribute(dataset, "batched", int))
    rank = 2 if batched else 1
    if data.ndim < rank:
        raise FileError(f"{dataset.name} has shape {data.shape}, expected at least {rank} axes")
    scale = files.attribute(dataset, "scale", float)
    if not (math.isfinite(scale) and scale > 0):
        raise FileError(f"{dataset.name} has scale {scale}, expected a positive number")
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
        index_map=_index_map(group, dataset, data.shape[rank:]),
        threshold=_threshold(group, dataset, data.shape[rank:]),
    )


def _index_map(group: h5py.Group, dataset: h5py.Dataset, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    name = f"{dataset.name.rpartition('/')[2]}.index_map"
    if name not in group:
        return None
    found = files.numbers(group[name], "iu")
    if found.shape != (math.prod(shape),) or (found.size and not 0 <= found.min() <= found.max() < 1 << 31):
        raise FileError(f"{group.name}/{name} does not fit {dataset.name}: shape {found.shape}")
    return found.astype(np.int64, copy=False)


def _threshold(group: h5py.Group, dataset: h5py.Dataset, shape: tuple[int, ...]) -> float | NDArray[Any] | None:
    name = f"{dataset.name.rpartition('/')[2]}.threshold"
    if name in group:
        return files.numbers(group[name]).reshape(shape)
    if "threshold" not in dataset.attrs:
        return None
    value = dataset.attrs["threshold"]
    files.attribute(dataset, "threshold", float)
    number: float = np.asarray(value).item()
    return number
