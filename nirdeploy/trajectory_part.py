"""The file of a trajectory while it is written: beside its path, with space for finishing it, kept or thrown away.

How a full disk is survived: before HDF5 is handed any data, the writer reserves the file's space for it, for the
steps still in its buffers and for closing the file. So the disk is found full while HDF5 has nothing half written,
and what was reserved before is enough to finish the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nirdeploy import files
from nirdeploy.errors import FileError

__all__ = ["WRITE_BYTES", "Part", "mark", "reason"]

WRITE_BYTES = 16 << 20
"""Handed to HDF5 at once."""
_FLUSH_BYTES = 64 << 20
_MARGIN_FILE = 256 << 10  # HDF5's own structures
_REASON_BYTES = 240


class Part:
    """The temporary file, from its making to its renaming.

    Attributes:
        path: what it is renamed to.
        temporary: where it lies.
        file: as HDF5 has it; None before it is made and after its end.
        margin: bytes that finishing it can take.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = Path()
        self.file: Any = None
        self.margin = _MARGIN_FILE
        self._atomic: Any = None
        self._unflushed = 0

    def open(self, attributes: Mapping[str, str | int]) -> None:
        """Make the file, with these attributes and an empty group 'nodes'.

        Raises:
            FileError: the folder cannot be written, or a part is used twice.
        """
        if self._atomic is not None:
            raise FileError(f"the writer of {str(self.path)!r} was used before", remedy="Make a new one.")
        self._atomic = files.atomic(self.path)
        self.temporary = self._atomic.__enter__()
        try:
            # without a cache of chunks, so that data are written when they are handed over
            self.file = h5py.File(self.temporary, "w", rdcc_nbytes=0)
            for name, value in attributes.items():
                files.set_attribute(self.file, name, value)
            files.set_attribute(self.file, "reason", "", _REASON_BYTES)
            self.file.create_group("nodes")
            self.reserve(0)
        except (OSError, RuntimeError) as error:
            self.abandon()
            self.leave(keep=False)
            raise FileError(f"cannot write {str(self.path)!r}: {reason(error)}") from error

    def check_open(self) -> None:
        """Refuse what needs an open file.

        Raises:
            FileError: there is none.
        """
        if self.file is None:
            raise FileError(f"the writer of {str(self.path)!r} is not open", remedy="Use it in a `with` block.")

    def reserve(self, size: int) -> None:
        """Take the file's space for `size` bytes and for all that finishing it can need."""
        handle, start = self.file.id.get_vfd_handle(), self.file.id.get_filesize()
        needed = size + self.margin
        if os.fstat(handle).st_size >= start + needed:
            return
        try:
            files.reserve(handle, start, needed + WRITE_BYTES)  # ahead, to ask seldom
        except OSError:
            files.reserve(handle, start, needed)

    def has_grown(self, size: int) -> bool:
        """Count bytes handed over; whether there are enough by now to flush them."""
        self._unflushed += size
        if self._unflushed <= _FLUSH_BYTES:
            return False
        self._unflushed = 0
        return True

    def close(self) -> None:
        """Hand all to the disk, and cut the file to its own size."""
        self.file.flush()
        self.file.close()
        # opening a file for writing makes HDF5 cut it to its own size, without what was reserved
        with h5py.File(self.temporary, "r+"):
            pass

    def abandon(self) -> None:
        """Let go of the file as it lies on the disk, also where HDF5 can write nothing more to it."""
        file = self.file
        if file is None or not file.id.valid:
            return
        with suppress(OSError, RuntimeError):
            handle = file.id.get_vfd_handle()
            if os.path.samestat(os.fstat(handle), self.temporary.stat()):
                # what HDF5 still wants to write goes nowhere: closing then succeeds
                sink = os.memfd_create("sink") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
                os.dup2(sink, handle)
                os.close(sink)
        with suppress(OSError, RuntimeError):
            file.close()

    def leave(self, *, keep: bool) -> None:
        """Rename the temporary file into place, or remove it."""
        self.file = None
        if keep:
            self._atomic.__exit__(None, None, None)
            return
        discard = _Discarded()
        with suppress(_Discarded):
            self._atomic.__exit__(_Discarded, discard, None)


class _Discarded(Exception):  # noqa: N818 - never leaves this module
    """Tells `files.atomic` to remove the temporary file."""


def mark(file: Any, step: int, trouble: str | None) -> None:
    """Say in the file's own attributes, in place, whether it is complete."""
    file.attrs.modify("complete", int(trouble is None))
    file.attrs.modify("n_steps", step)
    text = (trouble or "").encode("utf-8", "replace")[:_REASON_BYTES].decode("utf-8", "ignore")
    file.attrs.modify("reason", np.array(text.encode(), dtype=h5py.string_dtype("utf-8", _REASON_BYTES)))


def reason(error: BaseException) -> str:
    """What the system said, from its own error or from HDF5's report of it."""
    found = re.search(r"error message = '([^']+)'", str(error))
    return found.group(1) if found else getattr(error, "strerror", None) or str(error)
