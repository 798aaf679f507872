"""Recordings from outside as trajectories: columns of a CSV, arrays of an .npz or .npy, and nir's NIRGraphData.

A small TOML file beside the data says what is what:

    [trajectory]
    target = "loihi2"
    executor = "chip"
    producer = "lab dump of 2026-01-12"

    [[records]]
    node = "lif"
    variable = "v_mem"
    file = "trace.csv"       # or data.npz with key = "v", or v.npy
    columns = [1]            # of a CSV, counted from 0
    scale = 6.25e-5          # model units of one unit of the file
    threshold = 1600.0       # in units of the file
    lag = 1
    view = "refractory_128"
"""

from __future__ import annotations

import math
import tomllib
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nirdeploy.errors import ConfigurationError, FileError
from nirdeploy.files import unreadable
from nirdeploy.names import suggest
from nirdeploy.raster import DAMAGE, load_array
from nirdeploy.trajectory import Record, Trajectory

__all__ = ["from_nir_data", "load_recording"]

_MAX_MAPPING = 1 << 20
_MAX_BYTES = 1 << 30
_AXES = ("step", "batch", "channel", "y", "x", "neuron")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Run(_Strict):
    target: str = "unknown"
    executor: Literal["reference", "emulator", "simulator", "chip"] = "chip"
    producer: str = ""
    outputs: tuple[str, ...] = ()


class _Entry(_Strict):
    """One record; the fields that `Record` has mean the same here."""

    node: str
    variable: Literal["spikes", "v_mem", "i_syn", "output"]
    file: Path
    key: str | None = None
    columns: tuple[int, ...] | None = None
    skip_rows: int = Field(default=0, ge=0)
    axes: tuple[Literal["step", "batch", "channel", "y", "x", "neuron"], ...] | None = None
    first_step: int = Field(default=0, ge=0)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    offset: float = Field(default=0.0, allow_inf_nan=False)
    units: str = ""
    source: str = ""
    lag: int = 0
    view: str | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    neurons: tuple[int, ...] | None = None


class _Mapping(_Strict):
    trajectory: _Run = _Run()
    records: tuple[_Entry, ...] = Field(min_length=1)


def load_recording(path: str | Path) -> Trajectory:
    """A trajectory from the data that a mapping file names; its paths are relative to it.

    `axes` names the axes of the data in their order; without it a CSV is (step, neuron) and an array (step, then one
    neuron axis or channel, y, x, with 'batch' second where there is one more). Steps before `first_step` are dropped.

    Raises:
        ConfigurationError: the mapping is no TOML or has unknown or wrong fields; naming the field.
        FileError: data that are missing, of another shape, not finite, or spikes that are no counts; naming the node.
    """
    target = Path(path)
    found = _mapping(target)
    records: dict[tuple[str, str], Record] = {}
    for entry in found.records:
        key = entry.node, entry.variable
        if key in records:
            raise ConfigurationError(f"{str(target)!r} has {entry.node}/{entry.variable} twice")
        records[key] = _record(entry, target.parent)
    return Trajectory(
        records,
        output_names=found.trajectory.outputs,
        target=found.trajectory.target,
        executor=found.trajectory.executor,
        producer=found.trajectory.producer or f"recording {target.name}",
    )


def _mapping(path: Path) -> _Mapping:
    if reason := unreadable(path):
        raise ConfigurationError(f"{str(path)!r} {reason}, expected a mapping of a recording")
    if path.stat().st_size > _MAX_MAPPING:
        raise ConfigurationError(f"{str(path)!r} has more than {_MAX_MAPPING} bytes")
    try:
        return _Mapping.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{str(path)!r}: {field}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise ConfigurationError(f"{str(path)!r} is no TOML: {error}") from error


def _record(entry: _Entry, folder: Path) -> Record:
    data, batched = _ordered(entry, _read(entry, folder / entry.file))
    data = data[entry.first_step :]
    if not len(data):
        raise FileError(f"no step is left behind step {entry.first_step}", node=entry.node)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise FileError(f"{entry.variable} holds values that are not finite", node=entry.node)
    if entry.variable == "spikes":
        data = _counts(data, entry.node)
    usual = "count" if entry.variable == "spikes" else "model"
    try:
        return Record(
            entry.node,
            entry.variable,
            data,
            scale=entry.scale,
            units=entry.units or usual,
            source=entry.source,
            lag=entry.lag,
            view=entry.view,
            threshold=entry.threshold,
            batched=batched,
            neurons=None if entry.neurons is None else np.array(entry.neurons, dtype=np.int64),
            offset=entry.offset,
        )
    except ValueError as error:
        raise FileError(str(error), node=entry.node) from error


def _counts(data: NDArray[Any], node: str) -> NDArray[Any]:
    """Spikes as whole counts; 1.0 is 1."""
    if data.dtype.kind == "b":
        return data.astype(np.int32)
    whole: NDArray[Any] = np.rint(data)
    if (whole != data).any() or (data < 0).any() or (data > np.iinfo(np.int32).max).any():
        wrong = data[(whole != data) | (data < 0)]
        raise FileError(f"spikes hold {wrong.flat[0] if wrong.size else data.max()}, expected counts", node=node)
    counts: NDArray[Any] = whole.astype(np.int32)
    return counts


# ---------------------------------------------------------------- data


def _read(entry: _Entry, path: Path) -> NDArray[Any]:
    if reason := unreadable(path):
        raise FileError(f"{str(path)!r} {reason}, expected data", node=entry.node)
    if path.stat().st_size > _MAX_BYTES:
        raise FileError(f"{str(path)!r} has more than {_MAX_BYTES} bytes", node=entry.node)
    kind = path.suffix.lower()
    if kind not in (".csv", ".npy", ".npz"):
        raise FileError(f"{str(path)!r} is no .csv, .npz or .npy", node=entry.node)
    try:
        if kind == ".csv":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a table without rows, which is refused below
                table = np.loadtxt(path, delimiter=",", skiprows=entry.skip_rows, ndmin=2, encoding="utf-8-sig")
            return _columns(entry, table)
        data = _member(entry, path) if kind == ".npz" else _array(path)
    except FileError as error:
        raise error if error.node else FileError(str(error), node=entry.node) from error
    except DAMAGE as error:
        raise FileError(f"{str(path)!r} cannot be read: {error}", node=entry.node) from error
    if data.dtype.kind not in "biuf":
        raise FileError(f"{str(path)!r} holds {data.dtype}, expected numbers", node=entry.node)
    return data


def _array(path: Path) -> NDArray[Any]:
    with path.open("rb") as stream:
        return load_array(stream, path.name, _MAX_BYTES)


def _columns(entry: _Entry, table: NDArray[np.float64]) -> NDArray[np.float64]:
    count = table.shape[1]
    if entry.columns is None:
        return table
    wrong = [c for c in entry.columns if not 0 <= c < count]
    if wrong:
        raise FileError(f"column {wrong[0]} does not exist, {entry.file} has 0 to {count - 1}", node=entry.node)
    return table[:, list(entry.columns)]


def _member(entry: _Entry, path: Path) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if entry.key is None:
            raise FileError(f"{str(path)!r} needs a key, the name of its array", remedy=suggest("", names))
        if entry.key not in names:
            raise FileError(f"{str(path)!r} has no array {entry.key!r}", remedy=suggest(entry.key, names))
        with archive.open(f"{entry.key}.npy") as stream:
            return load_array(stream, f"{path.name}:{entry.key}", _MAX_BYTES)


def _ordered(entry: _Entry, data: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """[step, batch, channel, y, x] or [step, batch, neuron], and whether there is a batch axis."""
    usual: Mapping[int, tuple[str, ...]] = {
        1: ("step",),
        2: ("step", "neuron"),
        3: ("step", "batch", "neuron"),
        4: ("step", "channel", "y", "x"),
        5: ("step", "batch", "channel", "y", "x"),
    }
    axes = entry.axes or usual.get(data.ndim, ())
    if len(axes) != data.ndim or len(set(axes)) != len(axes) or "step" not in axes:
        raise FileError(
            f"{entry.file} has shape {data.shape}, its axes are {list(axes)}", node=entry.node, remedy="Name its axes."
        )
    order = sorted(range(len(axes)), key=lambda i: _AXES.index(axes[i]))
    moved = data.transpose(order)
    if axes == ("step",):
        moved = moved[:, None]
    return moved, "batch" in axes


# ---------------------------------------------------------------- nir's own data


def from_nir_data(
    data: Any, *, dt: float, variables: Mapping[str, str] | None = None, n_steps: int | None = None
) -> Trajectory:
    """A trajectory from nir's NIRGraphData.

    Event times become whole steps, floor(time / dt) with what is within 1e-6 of the next step counted there (nir's own
    conversion loses such spikes); several spikes of a bin are counted.

    Args:
        data: nodes with observables, TimeGriddedData or EventData.
        dt: step in seconds.
        variables: observable -> variable; None: 'spikes', 'v' or 'v_mem', 'i' or 'i_syn'.
        n_steps: steps of events; None: t_max / dt.

    Raises:
        FileError: an observable of another dt, of no known name or type, or of events that no raster holds; naming the
            node.
    """
    if not 0 < dt < math.inf:
        raise FileError(f"dt is {dt}, expected seconds above 0")
    names = {"spikes": "spikes", "v": "v_mem", "v_mem": "v_mem", "i": "i_syn", "i_syn": "i_syn", **(variables or {})}
    records: dict[tuple[str, str], Record] = {}
    for node, observed in data.nodes.items():
        for observable, values in observed.observables.items():
            if observable not in names:
                raise FileError(f"unknown observable {observable!r}", node=node, remedy=suggest(observable, names))
            variable = names[observable]
            gridded = _gridded(node, values, dt, n_steps)
            gridded = _counts(gridded, node) if variable == "spikes" else gridded
            records[node, variable] = Record(
                node, variable, gridded, units="count" if variable == "spikes" else "model"
            )
    return Trajectory(records, target="unknown", executor="reference", producer="nir data")


def _gridded(node: str, values: Any, dt: float, n_steps: int | None) -> NDArray[Any]:
    """[step, sample, neuron]."""
    if hasattr(values, "data"):
        if abs(values.dt - dt) > 1e-9 * dt:
            raise FileError(f"recorded with dt {values.dt}, expected {dt}", node=node)
        return np.ascontiguousarray(np.moveaxis(np.asarray(values.data), 0, 1))
    if hasattr(values, "value") or not hasattr(values, "idx"):
        raise FileError(f"{type(values).__name__} is neither gridded data nor plain events", node=node)
    index, time = np.asarray(values.idx), np.asarray(values.time)
    if index.ndim != 2 or index.shape != time.shape or index.dtype.kind not in "iu":
        raise FileError(
            f"events of {index.dtype} {index.shape} at times {time.shape}, expected [sample, event]", node=node
        )
    if n_steps is None and not 0 <= values.t_max < math.inf:
        raise FileError(f"t_max is {values.t_max}, expected seconds from 0 on", node=node)
    length = round(values.t_max / dt) if n_steps is None else n_steps
    if min(length, values.n_neurons) < 0 or 4 * length * len(index) * values.n_neurons > _MAX_BYTES:
        shape = (length, len(index), values.n_neurons)
        raise FileError(f"events for a raster of shape {shape}, at most {_MAX_BYTES} bytes", node=node)
    found = np.zeros((length, len(index), int(values.n_neurons)), dtype=np.int32)
    for sample, neuron, step in _events(index, time, dt):
        if not (0 <= neuron < values.n_neurons and 0 <= step < length):
            raise FileError(f"a spike of neuron {neuron} in step {step} is outside {found.shape}", node=node)
        found[step, sample, neuron] += 1
    return found


def _events(index: NDArray[Any], time: NDArray[Any], dt: float) -> Iterable[tuple[int, int, int]]:
    samples, places = np.nonzero(index != -1)
    for sample, place in zip(samples.tolist(), places.tolist(), strict=True):
        exact = float(time[sample, place]) / dt
        if not np.isfinite(exact):
            raise FileError(f"an event at time {time[sample, place]}")
        whole = round(exact)
        yield sample, int(index[sample, place]), whole if abs(exact - whole) <= 1e-6 else int(np.floor(exact))
