"""What an HDF5 file holds of a record: its dataset with named axes, and beside it the arrays with an entry a neuron."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.names import escape
from nirdeploy.trajectory_stream import Stream, arrays_of

__all__ = ["Datasets"]

_DIMENSION = "This is a netCDF dimension but not a netCDF variable. {:10d}"  # netCDF-4's own words
_AXES = {1: ("neuron",), 2: ("y", "x"), 3: ("channel", "y", "x")}


class Datasets:
    """The datasets of one open trajectory file, made with the first rows of their records.

    Args:
        nodes: the group that has a group for each node.
    """

    def __init__(self, nodes: Any) -> None:
        self._nodes = nodes
        self._scales: dict[tuple[str, range | None, int | None], Any] = {}

    def put(self, stream: Stream, rows: NDArray[Any]) -> None:
        """Add rows behind those that the dataset has; the first make it."""
        with files.uninterrupted():
            if stream.dataset is None:
                self._create(stream, max(1, min(stream.chunk, len(rows))))
            stop = stream.stored + len(rows)
            stream.dataset.resize(stop, axis=0)
            if rows.size:
                stream.dataset[stream.stored : stop] = rows
            stream.stored = stop

    def _create(self, stream: Stream, chunk: int) -> None:
        record, variable = stream.template, stream.template.variable
        group = self._nodes.require_group(escape(record.node))
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
        for name, value in arrays_of(record).items():
            if value is not None and np.ndim(value):
                # arrays are datasets: attributes stop at 64 KiB
                group.create_dataset(f"{variable}.{name}", data=np.asarray(value).reshape(-1))
                _attach_axes(group, group[f"{variable}.{name}"], ("cell",))
            elif value is not None:
                details[name] = value

    def _step_scale(self, group: Any, stream: Stream) -> Any:
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

    def settle(self, stream: Stream, rows: int) -> None:
        """Bring the file to this many rows, from the buffer where it lacks some."""
        missing = max(0, rows - stream.stored)
        if stream.buffer is None:
            stream.buffer = np.empty((0, *stream.row), stream.dtype)
        self.put(stream, stream.buffer[:missing])
        stream.filled = 0
        if stream.dataset.shape[0] != rows:
            stream.dataset.resize(rows, axis=0)
        stream.stored = rows
        if stream.scale.shape[0] != rows:
            stream.scale.resize(rows, axis=0)


def _step_name(stream: Stream) -> str:
    """Name of the dimension that counts rows."""
    return "step" if stream.steps is None else "recorded_step"


def _axis_names(stream: Stream) -> tuple[str, ...]:
    """Names of the dimensions of the data as the file holds them."""
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
