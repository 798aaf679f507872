"""The results of a run, a row a sample, in memory and in one HDF5 file.

Every dataset is made in its full size, and its place on the disk taken, before the first row is written. What follows
is bytes at known places: no structure of the file changes any more, so that a client killed at any moment leaves a
file that can be read, and a disk that fills up later takes nothing away. Rows are written before they are marked as
done.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy import files
from nirdeploy.errors import FileError
from nirdeploy.evaluation.job import Rows
from nirdeploy.version import __version__

__all__ = ["FORMAT", "FORMAT_VERSION", "UNLABELLED", "Identity", "Store", "Table", "begun", "read_table"]

FORMAT = "nirdeploy-evaluation"
FORMAT_VERSION = 1
UNLABELLED = np.iinfo(np.int64).min
_WHAT = "results of an evaluation"
_COLUMNS = {"label": "i8", "prediction": "i8", "steps": "i8", "outputs": "f8", "spikes": "i8", "done": "u1"}


@dataclass(frozen=True)
class Identity:
    """What a run is of; a file of another one is not continued.

    Attributes:
        graph_sha256: of the float graph.
        deployment_sha256: of the integers and their placement; '' for the reference.
        convention: JSON.
        settings: JSON: on, mode, options, method, step_us.
        data: fingerprint of the data set.
        samples: their number.
        batch: samples a chunk.
    """

    graph_sha256: str
    deployment_sha256: str
    convention: str
    settings: str
    data: str
    samples: int
    batch: int

    def differences(self, other: Identity) -> list[str]:
        """In words, what is another than in `other`."""
        words = {
            "graph_sha256": "another network",
            "deployment_sha256": "another deployment of the network (integers or placement)",
            "convention": "another convention",
            "settings": "other settings",
            "data": "another data set",
            "samples": "another number of samples",
            "batch": "another batch",
        }
        found = []
        for name, word in words.items():
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                shown = "" if name.endswith("sha256") or name == "data" else f" ({theirs} in the file, {ours} asked)"
                found.append(word + shown)
        return found


@dataclass(frozen=True)
class Table:
    """Columns of results, a row a sample.

    Attributes:
        identity: of the run.
        populations: names, in the order of `spikes`.
        executor: what ran.
        target: the chip, or what the reference calls itself.
        columns: 'label', 'prediction', 'steps', 'done' [sample], 'outputs' [sample, class], 'spikes' [sample,
            population].
    """

    identity: Identity
    populations: tuple[str, ...]
    executor: str
    target: str
    columns: dict[str, NDArray[Any]]

    @property
    def done(self) -> NDArray[np.bool_]:
        """[sample] whether it has been run."""
        return self.columns["done"].astype(bool)

    @classmethod
    def empty(cls, identity: Identity, rows: Rows) -> Table:
        """A table for all samples, after the first rows have shown its columns."""
        wide = {"outputs": rows.outputs.shape[1], "spikes": len(rows.populations)}
        columns = {
            name: np.zeros((identity.samples, wide[name]) if name in wide else identity.samples, kind)
            for name, kind in _COLUMNS.items()
        }
        return cls(identity, rows.populations, rows.executor, rows.target, columns)


class Store:
    """A run's table, and its file where it has one; only the client writes.

    Args:
        identity: of the run.
        path: the file; None: in memory alone.
        resume: whether to go on where a file ends.

    Raises:
        FileError: the file is there and resume is False, or it is of another run, or in use.
    """

    def __init__(self, identity: Identity, path: Path | None, *, resume: bool) -> None:
        self.identity, self.path = identity, path
        self.table: Table | None = None
        self._file: h5py.File | None = None
        if path is None:
            return
        if not os.path.lexists(path):
            if not path.absolute().parent.is_dir():
                raise FileError(f"cannot write {str(path)!r}: there is no folder {str(path.absolute().parent)!r}")
            return
        if not resume:
            raise FileError(
                f"{str(path)!r} is there already",
                remedy="Pass resume=True (--resume) to go on with it, or another output.",
            )
        found = begun(path)
        if differences := identity.differences(found.identity):
            raise FileError(
                f"{str(path)!r} holds {'; '.join(differences)}", remedy="Resume with what it was begun with."
            )
        self.table = found
        if not found.done.all():
            self._file = _opened(path)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except (OSError, RuntimeError) as problem:  # a damaged file, or a full disk
            if error is None:
                raise _unwritable(self.path, problem) from problem

    @property
    def done(self) -> NDArray[np.bool_]:
        """[sample] whether it has been run."""
        return np.zeros(self.identity.samples, bool) if self.table is None else self.table.done

    def add(self, first: int, labels: Sequence[int | None], rows: Rows) -> None:
        """Keep the rows of samples `first` and following; those that are there already stay.

        Raises:
            FileError: the file cannot be written.
        """
        if self.table is None:
            self.table = Table.empty(self.identity, rows)
            if self.path is not None:
                _create(self.path, self.table)
                self._file = _opened(self.path)
        columns = self.table.columns
        if rows.populations != self.table.populations or rows.outputs.shape[1] != columns["outputs"].shape[1]:
            raise FileError(f"sample {first} has other populations or classes than those before")
        new = first + np.flatnonzero(columns["done"][first : first + len(rows.steps)] == 0)
        at = new - first
        columns["label"][new] = [UNLABELLED if labels[k] is None else labels[k] for k in at.tolist()]
        columns["prediction"][new] = rows.outputs[at].argmax(axis=1)
        for name in ("outputs", "spikes", "steps"):
            columns[name][new] = getattr(rows, name)[at]
        columns["done"][new] = 1
        if self._file is None:
            return
        part = slice(first, first + len(rows.steps))
        try:
            with files.uninterrupted():
                for name in columns:  # 'done' is the last
                    if name == "done":
                        self._file.flush()
                    if columns[name].size:
                        self._file[name][part] = columns[name][part]
                self._file.flush()
        except (OSError, RuntimeError, ValueError) as error:
            raise _unwritable(self.path, error) from error


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r+")
    except (OSError, RuntimeError) as error:
        busy = "lock" in str(error)
        why = "another process is writing it" if busy else str(error)
        raise FileError(f"cannot write {str(path)!r}: {why}") from error


def _create(path: Path, table: Table) -> None:
    """Make the file with nothing done, under another name, and link it into place where nothing is yet."""
    own = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        with files.atomic(own) as temporary, files.new_hdf5(temporary) as file:
            _fill(file, table)
        try:
            _link(own, path)
        finally:
            own.unlink(missing_ok=True)
    except FileExistsError as error:
        raise FileError(f"{str(path)!r} has been made by another process meanwhile") from error
    except (OSError, RuntimeError, ValueError, FileError) as error:
        cause = error.__cause__ if isinstance(error, FileError) and isinstance(error.__cause__, Exception) else error
        raise _unwritable(path, cause) from error


def _unwritable(path: Path | None, error: Exception) -> FileError:
    """What h5py raises where it cannot write; of a full disk it says so in the middle of a page."""
    found = re.search(r"error message = '([^']*)'", str(error))
    reason = found[1] if found else getattr(error, "strerror", None) or str(error)
    full = "Free space, or choose another disk." if reason == os.strerror(errno.ENOSPC) else None
    return FileError(f"cannot write {str(path)!r}: {reason}", remedy=full)


def _link(own: Path, path: Path) -> None:
    """Give a file its name unless there is one of that name."""
    try:
        os.link(own, path)
    except OSError:  # perhaps a file system without links
        if os.path.lexists(path):
            raise FileExistsError from None
        own.replace(path)


def _fill(file: h5py.File, table: Table) -> None:
    for name, value in {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "producer": f"nirdeploy {__version__}",
        "executor": table.executor,
        "target": table.target,
        **vars(table.identity),
    }.items():
        if name not in ("convention", "settings"):
            files.set_attribute(file, name, value)
    for name in ("convention", "settings"):  # attributes stop at 64 KiB
        files.put_text(file, name, getattr(table.identity, name))
    files.put_text(file, "population", json.dumps(table.populations))
    for name, column in table.columns.items():
        if not column.size:  # a network without populations that spike
            file.create_dataset(name, shape=column.shape, dtype=column.dtype)
            continue
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
        space = h5py.h5s.create_simple(column.shape)
        kind = h5py.h5t.py_create(column.dtype)
        h5py.h5d.create(file.id, name.encode(), kind, space, plan)


def begun(path: Path) -> Table:
    """The table of a file to go on with.

    Raises:
        FileError: not such a file, or damaged.
    """
    try:
        return read_table(path)
    except FileError as error:
        if error.remedy:
            raise
        raise FileError(f"{error}", remedy="Remove it: what it should hold is then computed again.") from error


def read_table(path: str | Path) -> Table:
    """Read a file of results, finished or not.

    Raises:
        FileError: not such a file, or damaged.
    """
    with files.open_hdf5(path, _WHAT) as file:
        if "format" not in file.attrs or files.attribute(file, "format", str) != FORMAT:
            raise FileError(f"{str(path)!r} is HDF5 but holds no {_WHAT}")
        if files.attribute(file, "version", int) > FORMAT_VERSION:
            raise FileError(f"{str(path)!r} has a newer format than this nirdeploy reads", remedy="Update nirdeploy.")
        texts = {n: files.text_of(files.member(file, n, h5py.Dataset)[()]) for n in ("convention", "settings")}
        graph, deployment, data = (files.attribute(file, n, str) for n in ("graph_sha256", "deployment_sha256", "data"))
        samples, batch = (files.attribute(file, n, int) for n in ("samples", "batch"))
        identity = Identity(graph, deployment, texts["convention"], texts["settings"], data, samples, batch)
        names = json.loads(files.text_of(files.member(file, "population", h5py.Dataset)[()]))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileError(f"{str(path)!r}: 'population' holds no names")
        columns = {name: files.numbers(files.member(file, name, h5py.Dataset)) for name in _COLUMNS}
        _check(columns, identity, len(names), str(path))
        executor, target = (files.attribute(file, n, str) for n in ("executor", "target"))
        return Table(identity, tuple(names), executor, target, columns)


def _check(columns: dict[str, NDArray[Any]], identity: Identity, populations: int, label: str) -> None:
    for name, column in columns.items():
        wanted: tuple[int, ...] = (identity.samples,)
        if name in ("outputs", "spikes"):
            wanted = (identity.samples, populations if name == "spikes" else column.shape[-1] if column.ndim else 0)
        if column.shape != wanted or column.dtype != np.dtype(_COLUMNS[name]):
            raise FileError(
                f"{label!r}: {name} is {column.dtype} of shape {column.shape}, expected {_COLUMNS[name]} {wanted}"
            )
    classes = columns["outputs"].shape[1]
    if identity.samples < 1 or identity.batch < 1 or classes < 1:
        raise FileError(f"{label!r} has {identity.samples} samples, {classes} classes and a batch of {identity.batch}")
    for name in ("label", "prediction"):
        values = columns[name][columns["done"] != 0]
        values = values[values != UNLABELLED] if name == "label" else values
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise FileError(f"{label!r}: {name} holds {values.max()} with {classes} classes")
