"""Atomic writing and guarded opening, shared by every file format of the package."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import FileError, NirdeployError
from nirdeploy.heaps import check_heaps, text_bytes

__all__ = [
    "MAX_BYTES",
    "UNFINISHED",
    "atomic",
    "attribute",
    "guard",
    "integers",
    "locked",
    "member",
    "new_hdf5",
    "numbers",
    "open_hdf5",
    "put_text",
    "reopen",
    "reserve",
    "set_attribute",
    "sha256",
    "stamp",
    "text_of",
    "uninterrupted",
    "unreadable",
    "write_text",
]

MAX_BYTES = 1 << 30  # what a file may ask to have allocated, all datasets together
UNFINISHED: set[Path] = set()  # temporary files of writes under way in this process
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_BOMB_BYTES, _BOMB_RATIO = 64 << 20, 1000  # gzip reaches 230 on silent spikes as we write them
_LOCK_SECONDS = 10.0
_LEFT_OVER_SECONDS = 86_400.0  # a run may write its file for hours, in pieces
T = TypeVar("T", str, int, float)

# ---------------------------------------------------------------- writing


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success rename it into place, on failure remove it.

    A symbolic link is followed: the file it points to is replaced, the link stays. Temporary files of the same name
    that killed processes left more than a day ago are removed.

    Raises:
        FileError: the folder is missing or cannot be written, or `path` is there and is no regular file.
    """
    target = _destination(Path(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    temporary = Path(name)
    UNFINISHED.add(temporary)
    _remove_leftovers(target)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise FileError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        UNFINISHED.discard(temporary)


@contextmanager
def new_hdf5(path: str | Path, mode: Literal["w", "r+"] = "w") -> Iterator[h5py.File]:
    """Give an empty HDF5 file in memory, or with 'r+' the one at `path`; on success it is written there at once.

    HDF5 that fails to write, as on a full disk, keeps what it could not write, and ends the process when it is cleaned
    up. Here it never writes.
    """
    with h5py.File(path, mode, driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    Path(path).write_bytes(image)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back to the end of a block in which h5py writes.

    h5py lets go of its objects through callbacks, and Python drops what is raised in those: Ctrl-C while HDF5 writes
    would be lost, as the callback is the first of Python that runs again.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if held:
            usual(*held[0])


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of `target` that nobody has written for a day, or holds open in HDF5."""
    pattern = re.compile(re.escape(f".{target.name[:80]}.") + r"[a-z0-9_]{8}\.part")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and Path(entry.path) not in UNFINISHED:
                with suppress(OSError):  # another process may have removed it
                    if _is_left_over(entry):
                        Path(entry.path).unlink()


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < _LEFT_OVER_SECONDS:
        return False
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    handle = os.open(entry.path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # HDF5 locks what it has open for writing
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _destination(path: Path) -> Path:
    """Where writing to `path` ends up; refuses what a rename would destroy or could not replace."""
    try:
        real = Path(os.path.realpath(path))
        mode = real.stat().st_mode
    except FileNotFoundError:
        return real
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise FileError(f"cannot write {str(path)!r}: it is {_kind(mode)}", remedy="Name a regular file.")
    return real


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def reserve(handle: int, start: int, size: int) -> None:
    """Take `size` bytes of an open file from `start` on, so that writing them later finds the space.

    Where the file system cannot reserve, zeros are written; what lies there already stays.

    Raises:
        OSError: the disk is full, or the file may not grow so far.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, start, size)
        return
    position, end = max(start, os.fstat(handle).st_size), start + size
    while position < end and hasattr(os, "pwrite"):  # not on Windows
        position += os.pwrite(handle, bytes(min(1 << 20, end - position)), position)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder's advisory lock, so that files which belong together change together.

    Where the system has no such locks, or the file system none, nothing is held.

    Raises:
        FileError: another process held it for ten seconds.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"cannot open folder {str(folder)!r}: {error.strerror or error}") from error
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FileError(
                        f"{str(folder)!r} is in use by another process for {_LOCK_SECONDS:.0f} s",
                        remedy="Write to a folder of your own.",
                    ) from error
                time.sleep(0.02)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(handle)


# ---------------------------------------------------------------- opening


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")


def unreadable(path: Path) -> str:
    """Why a path is no regular file, e.g. 'does not exist' or 'is a pipe'; '' where it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return "" if stat.S_ISREG(mode) else f"is {_kind(mode)}"


@contextmanager
def open_hdf5(path: str | Path, what: str, *, max_bytes: int = MAX_BYTES) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading after `guard` has walked it.

    Args:
        path: the file.
        what: what it should be, for messages, e.g. 'a NIR graph'.
        max_bytes: most bytes that all datasets together may declare.

    Raises:
        FileError: missing, no regular file, not HDF5, damaged, too large, or with links out of the file.
    """
    source = Path(path)
    if reason := unreadable(source):
        raise FileError(f"{str(source)!r} {reason}, expected {what}")
    try:
        file = h5py.File(source, "r")
    except (OSError, RuntimeError, ValueError) as error:
        reason = "is truncated" if "truncated" in str(error) else "is not an HDF5 file or is damaged"
        if isinstance(error, BlockingIOError):
            reason = "is being written by another process"
        raise FileError(f"{str(source)!r} {reason}, expected {what}") from error
    with _explained(source, what), file:
        guard(file, str(source), max_bytes)
        yield file


@contextmanager
def _explained(source: Path, what: str) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into FileErrors."""
    try:
        yield
    except NirdeployError:
        raise  # some are RuntimeErrors too, being NotImplementedErrors
    # what h5py raises for damaged bytes is not documented: all of these were met by mutating files
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FileError(f"{str(source)!r} cannot be read as {what}: {error}") from error
    except MemoryError as error:
        raise FileError(f"{str(source)!r} asks for more memory than there is, expected {what}") from error


def stamp(path: str | Path) -> tuple[int, ...]:
    """What tells a file from a later one of the same name: device, inode, size in bytes, time of change in ns.

    Raises:
        FileError: it cannot be read.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise FileError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def reopen(path: Path, what: str, expected: tuple[int, ...]) -> Iterator[h5py.File]:
    """Open a file again that `open_hdf5` has guarded when its `stamp` was `expected`.

    Raises:
        FileError: it is gone or has changed since, or it is damaged.
    """
    if stamp(path) != expected:
        raise FileError(f"{str(path)!r} has changed since it was loaded as {what}", remedy="Load it again.")
    with _explained(path, what), h5py.File(path, "r") as file:
        yield file


def guard(file: h5py.File, label: str, max_bytes: int = MAX_BYTES) -> None:
    """Walk a file's structure without reading data, refusing what could harm.

    Raises:
        FileError: external or soft links, a group with two names, externally stored or virtual datasets, more
            declared bytes than `max_bytes`, a dataset above 64 MiB that declares more than 1000 times what it stores,
            more than 64 levels, more than a million objects, or text whose heap has no end.
    """
    total = count = 0
    stack: list[tuple[h5py.Group, int]] = [(file, 0)]
    seen = {h5py.h5o.get_info(file.id).addr}
    texts: list[h5py.Dataset] = []
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
                place = h5py.h5o.get_info(item.id).addr
                if place in seen:
                    raise FileError(f"{label!r}: {group.name}/{name} is a group that another name has, too")
                seen.add(place)
                stack.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                size = _declared_bytes(item, label)
                total += size
                if total > max_bytes:
                    raise FileError(
                        f"{label!r} declares more than {max_bytes} bytes (at {item.name}, shape {item.shape})",
                        remedy="Raise max_bytes if you trust the file.",
                    )
                _refuse_bomb(item, size, label)
                if item.dtype.kind == "O" and item.shape is not None:
                    texts.append(item)
    if texts:
        text_bytes(texts, check_heaps(file, label), max_bytes - total, label)


def _declared_bytes(dataset: h5py.Dataset, label: str) -> int:
    if dataset.is_virtual or dataset.external:
        raise FileError(f"{label!r}: {dataset.name} keeps its data in another file")
    if not _is_plain(dataset):
        raise FileError(f"{label!r}: {dataset.name} holds neither numbers nor text")
    if dataset.shape is None:
        return 0
    size = int(np.dtype(dataset.dtype).itemsize)
    for length in dataset.shape:
        size *= int(length)
    return size


def _refuse_bomb(dataset: h5py.Dataset, size: int, label: str) -> None:
    stored = int(dataset.id.get_storage_size())
    if size > _BOMB_BYTES and size > _BOMB_RATIO * stored:
        raise FileError(
            f"{label!r}: {dataset.name} declares {size} bytes and stores {stored}; at most {_BOMB_RATIO} times "
            "as many are read",
            remedy="Write it with less compression.",
        )


# ---------------------------------------------------------------- reading what may be anything


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def put_text(group: h5py.Group, name: str, value: Any) -> None:
    """Write text (one, or an array of such) with a length of its own: HDF5 can hang on damaged text of any length."""
    encoded = np.array(
        [v if isinstance(v, bytes) else str(v).encode() for v in np.asarray(value, dtype=object).reshape(-1)], dtype="S"
    ).reshape(np.shape(value))
    kind = h5py.string_dtype("utf-8", max(1, encoded.dtype.itemsize))
    group.create_dataset(name, data=encoded.astype(kind), dtype=kind)


def set_attribute(item: Any, name: str, value: Any, size: int = 1) -> None:
    """Set an attribute; text with a length of its own, of at least `size` bytes, as in `put_text`."""
    if not isinstance(value, str):
        item.attrs[name] = value
        return
    encoded = value.encode()
    kind = h5py.string_dtype("utf-8", max(size, len(encoded)))
    item.attrs.create(name, np.array(encoded, dtype=kind), dtype=kind)


def text_of(value: Any) -> str:
    """A string from what h5py returns for one (bytes, str or a 0-d array).

    Raises:
        FileError: it is no single string.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
            return str(value)
    except UnicodeError as error:
        raise FileError(f"{value!r} is no UTF-8 text") from error
    raise FileError(f"expected text, found {type(value).__name__}")


def member(group: h5py.Group, name: str, kind: type[h5py.Group] | type[h5py.Dataset]) -> Any:
    """A group or dataset of a group.

    Raises:
        FileError: it is missing, or something else.
    """
    found = group.get(name)
    if not isinstance(found, kind):
        what = "missing" if found is None else f"a {type(found).__name__}, expected a {kind.__name__}"
        raise FileError(f"{group.name.rstrip('/')}/{name} is {what}")
    return found


def numbers(dataset: Any, kinds: str = "biuf") -> NDArray[Any]:
    """The array a dataset holds; `kinds` are numpy's letters for boolean, signed, unsigned and float.

    Raises:
        FileError: no dataset, or one without data or of another type.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise FileError(f"{getattr(dataset, 'name', '?')} is a {type(dataset).__name__}, expected numbers")
    if dataset.shape is None or dataset.dtype.kind not in kinds:
        what = "nothing" if dataset.shape is None else f"{dataset.dtype}"
        raise FileError(f"{dataset.name} holds {what}, expected numbers")
    return np.asarray(dataset[()])


def _is_plain(stored: Any) -> bool:
    """Whether a dataset or attribute holds numbers or strings; HDF5 crashes on reading damaged lists."""
    return stored.dtype.kind != "O" or h5py.check_string_dtype(stored.dtype) is not None


def _stored(item: h5py.HLObject, name: str) -> Any:
    """An attribute's value; None where it is missing, or no number or text."""
    if name not in item.attrs:
        return None
    found = item.attrs.get_id(name)
    if not _is_plain(found):
        return None
    if found.dtype.kind == "O":
        check_heaps(item.file, item.file.filename)
    return item.attrs[name]


def attribute(item: h5py.HLObject, name: str, kind: type[T]) -> T:
    """One attribute as str, int or float.

    Raises:
        FileError: it is missing or of another type.
    """
    value = _stored(item, name)
    if kind is str:
        try:
            return kind(text_of(value))
        except FileError as error:
            raise FileError(f"attribute {name!r} of {item.name}: {error}") from error
    number = np.asarray(value)
    if number.shape == () and number.dtype.kind in ("biu" if kind is int else "biuf"):
        return kind(number.item())
    found = "missing" if value is None else f"{value!r}"[:80]
    raise FileError(f"attribute {name!r} of {item.name} is {found}, expected {kind.__name__}")


def integers(item: h5py.HLObject, name: str) -> tuple[int, ...]:
    """One attribute as whole numbers, at most 64 of them.

    Raises:
        FileError: it is missing or of another type.
    """
    value = _stored(item, name)
    found = np.asarray(value)
    # an empty list is a list of floats to numpy
    if found.ndim != 1 or found.size > 64 or (found.size and found.dtype.kind not in "iu"):
        shown = "missing" if value is None else f"{value!r}"[:80]
        raise FileError(f"attribute {name!r} of {item.name} is {shown}, expected whole numbers")
    return tuple(int(number) for number in found)
