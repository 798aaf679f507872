"""Atomic writing and guarded opening, shared by every file format of the package."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nirdeploy.errors import FileError, NirdeployError

__all__ = ["MAX_BYTES", "atomic", "guard", "open_hdf5", "sha256", "text_of", "write_text"]

MAX_BYTES = 1 << 30  # what a file may ask to have allocated, all datasets together
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success rename it into place, on failure remove it.

    Raises:
        FileError: the folder is missing or cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise FileError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def open_hdf5(path: str | Path, what: str, *, max_bytes: int = MAX_BYTES) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading after `guard` has walked it.

    Args:
        path: the file.
        what: what it should be, for messages, e.g. 'a NIR graph'.
        max_bytes: most bytes that all datasets together may declare.

    Raises:
        FileError: missing, not HDF5, truncated, too large, or with links out of the file.
    """
    source = Path(path)
    if not source.exists():
        raise FileError(f"{str(source)!r} does not exist")
    if source.is_dir():
        raise FileError(f"{str(source)!r} is a folder, expected {what}")
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        reason = "is truncated" if "truncated" in str(error) else "is not an HDF5 file or is damaged"
        raise FileError(f"{str(source)!r} {reason}, expected {what}") from error
    try:
        with file:
            guard(file, str(source), max_bytes)
            yield file
    except NirdeployError:
        raise  # some are RuntimeErrors too, being NotImplementedErrors
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        raise FileError(f"{str(source)!r} cannot be read as {what}: {error}") from error


def guard(file: h5py.File, label: str, max_bytes: int = MAX_BYTES) -> None:
    """Walk a file's structure without reading data, refusing what could harm.

    Raises:
        FileError: external or soft links, externally stored or virtual datasets, more declared bytes than
            `max_bytes`, more than 64 levels, or more than a million objects.
    """
    total = count = 0
    stack: list[tuple[h5py.Group, int]] = [(file, 0)]
    while stack:
        group, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise FileError(f"{label!r} nests more than {_MAX_DEPTH} groups")
        for name in group:
            count += 1
            if count > _MAX_OBJECTS:
                raise FileError(f"{label!r} has more than {_MAX_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise FileError(f"{label!r}: {group.name}/{name} is a soft or external link")
            item = group[name]
            if isinstance(item, h5py.Group):
                stack.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                total += _declared_bytes(item, label)
                if total > max_bytes:
                    raise FileError(
                        f"{label!r} declares more than {max_bytes} bytes (at {item.name}, shape {item.shape})",
                        remedy="Raise max_bytes if you trust the file.",
                    )


def _declared_bytes(dataset: h5py.Dataset, label: str) -> int:
    if dataset.is_virtual or dataset.external:
        raise FileError(f"{label!r}: {dataset.name} keeps its data in another file")
    if dataset.shape is None:
        return 0
    size = 1
    for length in dataset.shape:
        size *= int(length)
    return size * int(np.dtype(dataset.dtype).itemsize)


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_of(value: Any) -> str:
    """A string from what h5py returns for one (bytes, str or a 0-d array)."""
    if isinstance(value, np.ndarray):
        value = value.item()
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
