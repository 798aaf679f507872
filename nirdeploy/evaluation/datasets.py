"""Data sets of an evaluation: samples by number, read a stretch at a time, with a fingerprint that tells them apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.errors import FileError, NirdeployError, RasterError
from nirdeploy.event_files import is_event_file, load_events
from nirdeploy.events import Events
from nirdeploy.raster import as_array, load_raster

__all__ = ["Sample", "Samples", "open_samples"]

Sample = tuple[Any, int | None]  # counts [step, *shape] or Events, and the class
_PROBES = 16  # samples of a torch Dataset that its fingerprint is made of
_EVENT_SUFFIXES = (".bin", ".npz", ".dat", ".raw", ".es", ".aedat4")
_MOST_BYTES = 1 << 50  # of an HDF5 data set: it is read a stretch at a time, so that memory sets no limit


@dataclass(frozen=True)
class Samples:
    """A data set.

    Attributes:
        name: for messages.
        count: samples.
        fingerprint: sha256 of what it holds; see `open_samples`.
        read: `read(first, last)` gives samples first to last - 1.
    """

    name: str
    count: int
    fingerprint: str
    read: Callable[[int, int], list[Sample]]


@contextmanager
def open_samples(dataset: Any) -> Iterator[Samples]:
    """Open what `evaluate` takes as a data set.

    Args:
        dataset: a path: `.npz` as of `load_raster` ('raster' [step, sample, ...] and perhaps 'labels' [sample]), HDF5
            with datasets of these names, or a folder of recordings (every file `load_events` knows by its suffix,
            in the order of their paths, the class being the whole number that the file's folder is named after, as
            in N-MNIST); a pair (raster, labels); what has a length and gives (counts or Events, label) by number,
            e.g. a torch Dataset; or `Samples`, which stay as they are.

    The fingerprint of files and arrays is made of all that they hold; that of a torch Dataset of its length and of up
    to 16 samples spread over it, as reading all of it can take as long as the evaluation.

    Raises:
        FileError: missing, another format, or damaged.
        RasterError: no samples, labels of another number, or an object that is no data set.
    """
    if isinstance(dataset, Samples):
        found = dataset
    elif isinstance(dataset, str | Path):
        path = Path(dataset)
        if path.is_dir():
            found = _of_folder(path)
        elif reason := files.unreadable(path):
            raise FileError(f"{str(path)!r} {reason}, expected a data set (.npz, HDF5 or a folder of recordings)")
        elif h5py.is_hdf5(path):
            with files.open_hdf5(path, "a data set", max_bytes=_MOST_BYTES) as file:
                yield _filled(_of_hdf5(file, path))
            return
        else:
            found = _of_arrays(*load_raster(path), name=str(path))
    elif isinstance(dataset, tuple) and len(dataset) == 2 and not isinstance(dataset[0], tuple | Events):
        raster, labels = dataset
        if raster is None:
            raise RasterError("the data set has no raster")
        found = _of_arrays(as_array(raster), _labels(labels), name="the arrays given")
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not hasattr(dataset, "dtype"):
        found = _of_object(dataset)
    else:
        raise RasterError(
            f"a {type(dataset).__name__} is no data set",
            remedy="Give a path, (raster, labels) or (raster, None), or an object with a length that gives "
            "(raster, label) by number.",
        )
    yield _filled(found)


def _filled(samples: Samples) -> Samples:
    if not samples.count:
        raise RasterError(f"{samples.name} has no samples")
    return samples


# ---------------------------------------------------------------- arrays


def _labels(labels: Any) -> NDArray[Any] | None:
    try:
        return None if labels is None else as_array(labels)
    except RasterError as error:
        raise RasterError("labels are no array of whole numbers, one a sample") from error


def _of_arrays(raster: NDArray[Any], labels: NDArray[Any] | None, *, name: str) -> Samples:
    _check_arrays(raster, labels, name)

    def read(first: int, last: int) -> list[Sample]:
        return [(raster[:, i], None if labels is None else int(labels[i])) for i in range(first, last)]

    return Samples(name, raster.shape[1], _hash_of([(raster, labels)]), read)


def _of_hdf5(file: h5py.File, path: Path) -> Samples:
    raster = files.member(file, "raster", h5py.Dataset)
    if raster.dtype.kind not in "biuf":
        raise FileError(f"{str(path)!r}: 'raster' holds {raster.dtype}, expected counts")
    labels = files.numbers(files.member(file, "labels", h5py.Dataset)) if "labels" in file else None
    _check_arrays(raster, labels, str(path))

    def read(first: int, last: int) -> list[Sample]:
        block = np.asarray(raster[:, first:last])
        return [(block[:, i - first], None if labels is None else int(labels[i])) for i in range(first, last)]

    return Samples(str(path), raster.shape[1], files.sha256(path), read)


def _check_arrays(raster: Any, labels: NDArray[Any] | None, name: str) -> None:
    if raster.ndim < 2:
        raise RasterError(f"{name}: the raster has shape {raster.shape}, expected [step, sample, ...]")
    if labels is None:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise RasterError(
            f"{name}: labels are {labels.dtype} of shape {labels.shape}, expected a whole number a sample"
        )
    if len(labels) != raster.shape[1]:
        raise RasterError(
            f"{name} has {len(labels)} labels for {raster.shape[1]} samples (the raster is [step, sample, ...])"
        )


# ---------------------------------------------------------------- recordings


def _of_folder(folder: Path) -> Samples:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _EVENT_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()!r} {files.sha256(path)}\n".encode())

    def read(first: int, last: int) -> list[Sample]:
        return [_recording(path) for path in paths[first:last]]

    return Samples(str(folder), len(paths), digest.hexdigest(), read)


def _recording(path: Path) -> Sample:
    if not is_event_file(path):
        raise FileError(f"{str(path)!r} holds no events", remedy="Keep one kind of file in the folder.")
    events = load_events(path)
    if events.label is not None:
        return events, events.label
    name = path.parent.name
    return events, int(name) if name.isascii() and name.isdigit() else None


# ---------------------------------------------------------------- objects


def _of_object(dataset: Any) -> Samples:
    name, count = f"the {type(dataset).__name__} given", len(dataset)

    def read(first: int, last: int) -> list[Sample]:
        return [_item(dataset, i) for i in range(first, last)]

    probes = sorted({count * k // _PROBES for k in range(_PROBES)} | {count - 1}) if count else []
    digest = _hash_of([_item(dataset, i) for i in probes])
    return Samples(name, count, hashlib.sha256(f"{count} {digest}".encode()).hexdigest(), read)


def _item(dataset: Any, index: int) -> Sample:
    try:
        found = dataset[index]
    except NirdeployError as error:
        raise type(error)(f"sample {index}: {error}") from error
    except Exception as error:  # a data set of the user's own may fail in any way
        raise RasterError(f"sample {index}: the data set raises {type(error).__name__}: {error}") from error
    if isinstance(found, Events):
        return found, found.label
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != 2:
        raise RasterError(f"sample {index} of the data set is a {type(found).__name__}, expected (raster, label)")
    counts, label = found
    if not isinstance(counts, Events):
        try:
            counts = np.array(as_array(counts))  # its own: samples are read ahead, and a data set may fill one buffer
        except RasterError as error:
            raise RasterError(f"sample {index}: {error}") from error
    return counts, _label(label, index)


def _label(label: Any, index: int) -> int | None:
    if label is None:
        return None
    value = label.detach().cpu().numpy() if hasattr(label, "detach") else np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise RasterError(f"sample {index}: the label is {label!r}, expected one whole number")
    return int(value.reshape(-1)[0])


def _hash_of(samples: Sequence[tuple[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for counts, label in samples:
        arrays: list[NDArray[Any]]
        if isinstance(counts, Events):
            arrays = [counts.time_us, *counts.index]
            digest.update(f"{counts.shape} {counts.stop_us} ".encode())
        else:
            arrays = [counts]
        for array in [*arrays, *([] if label is None else [np.asarray(label)])]:
            digest.update(f"{array.dtype.str} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(os.fsencode("\n"))
    return digest.hexdigest()
