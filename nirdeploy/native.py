"""How kernels are compiled: by numba, without fastmath, releasing the interpreter's lock, kept on disk.

numba takes a kernel from disk as long as the file that it stands in has not changed. Kernels are made of functions and
constants of several files, so that here a change of any of those counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numba

__all__ = ["Compiler", "compiler", "inline"]

F = TypeVar("F", bound=Callable[..., Any])


class Compiler(Protocol):
    """A decorator: what it gives is called like the function, and compiled then."""

    def __call__(self, function: F, /) -> F:
        """The compiled function."""
        ...


_inline: Any = numba.njit(inline="always", nogil=True, error_model="numpy")
inline: Compiler = _inline


def compiler(made_of: Iterable[Path], **options: Any) -> Compiler:
    """A decorator for kernels that are made of some files.

    Args:
        made_of: the files.
        **options: numba's own, instead of these.
    """
    stats = [(path.name, path.stat()) for path in sorted(made_of)]
    stamps = tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
    chosen = {"nogil": True, "error_model": "numpy", **options}

    def kernel(function: F, /) -> F:
        compiled: Any = numba.njit(cache=True, **chosen)(function)
        compiled._cache._cache_file._source_stamp = stamps  # numba has no public way
        found: F = compiled
        return found

    return kernel
