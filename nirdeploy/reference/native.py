"""How kernels are compiled: by numba, without fastmath, releasing the interpreter's lock, kept on disk.

numba takes a kernel from disk as long as the file that it stands in has not changed. Kernels here are made of functions
of several files, so that a change of any of them counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba

__all__ = ["inline", "kernel"]

_MADE_OF = ("dynamics", "lanes", "native", "sparse", "surrogates", "watch", "kernels")
_STAMPS = tuple(
    (path.name, path.stat().st_mtime_ns, path.stat().st_size)
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem.endswith(_MADE_OF)
)
inline: Any = numba.njit(inline="always", nogil=True, error_model="numpy")


def kernel(function: Any) -> Any:
    """Compile a function when it is first called with arguments of a type."""
    compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    compiled._cache._cache_file._source_stamp = _STAMPS  # numba has no public way
    return compiled
