"""Guard against damaged global heaps, where HDF5 keeps text and lists of variable length.

HDF5 walks a heap from object to object by their sizes. A size that makes the next object the same one (0 of free
space, or one that wraps around with its header) has it walk for ever: seen in HDF5 1.14 and 2.0, and not to be
interrupted from Python. The layout is that of the HDF5 File Format Specification, section III.E.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from nirdeploy.errors import FileError

__all__ = ["check_heaps", "text_bytes"]

_SIGNATURE: Final = b"GCOL\x01"  # and the version
_SMALLEST: Final = 4096  # of a heap; HDF5 refuses smaller ones itself
_MAX_OBJECTS: Final = 10_000_000
_BLOCK_BYTES: Final = 64 << 20


def check_heaps(file: h5py.File, label: str) -> int:
    """Walk every global heap of a file as HDF5 would, without HDF5; a file that has not changed is walked once.

    Returns:
        Bytes of the largest object in them.

    Raises:
        FileError: a heap that HDF5 would never come to the end of, or more than ten million objects in heaps.
    """
    path = Path(file.filename)
    found = path.stat()
    return _check(
        path, int(file.id.get_create_plist().get_sizes()[1]), label, (found.st_size, found.st_ino, found.st_mtime_ns)
    )


@lru_cache(maxsize=64)
def _check(path: Path, length: int, label: str, stamp: tuple[int, int, int]) -> int:
    size = stamp[0]
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        heaps = _heaps(data, size, length)
        # those that end last come first: what they have walked need not be walked again
        heaps.sort(key=lambda heap: -heap[1])
        walked: set[int] = set()
        return max((_walk(data, start, end, length, walked, label) for start, end in heaps), default=0)


def _heaps(data: mmap.mmap, size: int, length: int) -> list[tuple[int, int]]:
    """First and last position of each heap; what HDF5 refuses by itself is left out."""
    found = []
    at = data.find(_SIGNATURE)
    while at >= 0:
        held = int.from_bytes(data[at + 8 : at + 8 + length], "little")
        if _SMALLEST <= held <= size - at:
            found.append((at, at + held))
        at = data.find(_SIGNATURE, at + 1)
    return found


def _walk(data: mmap.mmap, start: int, end: int, length: int, walked: set[int], label: str) -> int:
    """Bytes of the largest object from `start` on that was not `walked` before."""
    header = _aligned(8 + length)  # of the heap, and as much of each object
    largest = 0
    wrap = (1 << 64) - 1
    at = start + header
    while at + header <= end and at not in walked:
        walked.add(at)
        if len(walked) > _MAX_OBJECTS:
            raise FileError(f"{label!r} holds more than {_MAX_OBJECTS} pieces of text of variable length")
        number = int.from_bytes(data[at : at + 2], "little")
        size = int.from_bytes(data[at + 8 : at + 8 + length], "little")
        need = size if number == 0 else (header + _aligned(size)) & wrap
        if need == 0:
            raise FileError(
                f"{label!r} is damaged: the text of variable length at byte {at} has no end",
                remedy="Write the file again, or have its text written with a fixed length.",
            )
        largest = max(largest, min(size, end - at))
        at += need
    return largest


def text_bytes(datasets: Sequence[h5py.Dataset], largest: int, limit: int, label: str) -> int:
    """Bytes of text that datasets of variable length hold, each counted as often as something refers to it.

    They are read only where they could be more than `limit`: many entries may refer to one large text.

    Args:
        datasets: the datasets.
        largest: what `check_heaps` found.
        limit: most bytes.
        label: the file, for messages.

    Raises:
        FileError: more than `limit`.
    """
    bound = sum(int(dataset.size) for dataset in datasets) * largest
    if bound <= limit:
        return bound
    total = 0
    for dataset in datasets:
        for block in _blocks(dataset, largest, limit, label):
            total += sum(len(text) for text in np.ravel(np.asarray(block, dtype=object)))
            if total > limit:
                raise FileError(
                    f"{label!r}: the text of {dataset.name} and before is more than {limit} bytes",
                    remedy="Raise max_bytes if you trust the file.",
                )
    return total


def _blocks(dataset: h5py.Dataset, largest: int, limit: int, label: str) -> Iterator[Any]:
    if dataset.shape == ():
        yield dataset[()]
        return
    row = max(1, math.prod(dataset.shape[1:]) * largest)
    if row > limit:
        raise FileError(f"{label!r}: one row of {dataset.name} may hold {row} bytes of text, at most {limit} are read")
    many = max(1, _BLOCK_BYTES // row)
    for start in range(0, dataset.shape[0], many):
        yield dataset[start : start + many]


def _aligned(size: int) -> int:
    return (size + 7) // 8 * 8
