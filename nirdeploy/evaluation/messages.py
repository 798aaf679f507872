"""Arrays and JSON as bytes: nothing in a message is evaluated or unpickled.

A message is the number of bytes of its JSON (eight, little-endian), the JSON, and the arrays' bytes one after the
other. The JSON has `said`, whatever goes with the arrays, and `arrays`, the name, dtype and shape of each.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import VendorError

__all__ = ["packed", "unpacked"]


def packed(arrays: dict[str, NDArray[Any]], said: dict[str, Any]) -> bytes:
    """One message of arrays of numbers and JSON data."""
    rows = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = json.dumps({"said": said, "arrays": rows}).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *(array.tobytes() for array in arrays.values())])


def unpacked(message: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays, each of its own memory, and the JSON data of a message.

    Raises:
        VendorError: it is no such message.
    """
    try:
        return _taken_apart(message)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise VendorError(f"a message of {len(message)} bytes is damaged: {error}") from error


def _taken_apart(message: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    start = 8 + int.from_bytes(message[:8], "little")
    head = json.loads(message[8:start])
    arrays: dict[str, NDArray[Any]] = {}
    for name, text, shape in head["arrays"]:
        dtype, count = np.dtype(text), math.prod(shape)
        if dtype.kind not in "biuf" or any(n < 0 for n in shape):
            raise ValueError(f"{name} has dtype {dtype} and shape {shape}")
        size = count * dtype.itemsize
        if start + size > len(message):
            raise ValueError(f"{name} has {size} bytes, {len(message) - start} are there")
        # memory of its own is aligned, and may be written
        arrays[name] = np.frombuffer(message[start : start + size], dtype).reshape(shape).copy()
        start += size
    if start != len(message):
        raise ValueError(f"it says that it has {start} bytes")
    return arrays, dict(head["said"])
