"""Spike rasters of one bit a neuron and step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import RasterError

__all__ = ["PackedSpikes"]


@dataclass(frozen=True, eq=False, repr=False)
class PackedSpikes:
    """A raster of zeros and ones [step, ...], eight neurons a byte.

    Bit order: within a step the entries are taken in row-major order; entry `8 * i + j` is bit `7 - j` (the most
    significant first, numpy's `packbits` default) of byte `i`. Each step begins a new byte; unused bits are zero.

    Attributes:
        bits: uint8 [step, byte], `ceil(n / 8)` bytes a step for n entries a step; read-only.
        shape: shape of the unpacked raster, [step, ...].

    Raises:
        RasterError: `bits` is not uint8, does not fit `shape`, or has unused bits that are set.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(int(length) for length in self.shape)
        if not shape or min(shape) < 0:
            raise RasterError(f"packed spikes of shape {shape}, expected [step, ...]")
        bits = np.asarray(self.bits)
        expected = (shape[0], n_bytes(shape[1:]))
        if bits.dtype != np.uint8 or bits.shape != expected:
            raise RasterError(
                f"packed spikes of shape {shape} take uint8 {expected}, found {bits.dtype} {bits.shape}",
                remedy="Use PackedSpikes.pack.",
            )
        unused = -math.prod(shape[1:]) % 8
        if unused and (bits[:, -1] & ((1 << unused) - 1)).any():
            raise RasterError(f"packed spikes of shape {shape} have unused bits that are set")
        view = bits.view()
        view.setflags(write=False)
        object.__setattr__(self, "bits", view)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def pack(cls, array: NDArray[Any]) -> PackedSpikes:
        """Pack a raster [step, ...] of booleans or of the integers 0 and 1.

        Raises:
            RasterError: another type, no step axis, or another count, named by position and value.
        """
        counts = np.asarray(array)
        if counts.ndim == 0 or counts.dtype.kind not in "biu":
            raise RasterError(f"packed spikes of {counts.dtype} {counts.shape}, expected integers [step, ...]")
        if counts.dtype.kind != "b" and counts.size and not 0 <= counts.min() <= counts.max() <= 1:
            position = tuple(int(i) for i in np.argwhere((counts < 0) | (counts > 1))[0])
            raise RasterError(
                f"{counts[position]} at {position}: packed spikes are 0 or 1", remedy="Keep these counts unpacked."
            )
        flat = counts.reshape(counts.shape[0], math.prod(counts.shape[1:]))
        return cls(np.packbits(flat, axis=1), counts.shape)

    @classmethod
    def concatenate(cls, parts: Iterable[PackedSpikes]) -> PackedSpikes:
        """Join packed rasters along the step.

        Raises:
            RasterError: none given, or their steps have different shapes.
        """
        found = list(parts)
        shapes = {part.shape[1:] for part in found}
        if len(shapes) != 1:
            raise RasterError(f"cannot join packed spikes with steps of shapes {sorted(shapes)}")
        steps = sum(part.n_steps for part in found)
        return cls(np.concatenate([part.bits for part in found]), (steps, *shapes.pop()))

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that `bits` takes."""
        return int(self.bits.nbytes)

    def steps(self, start: int = 0, stop: int | None = None) -> PackedSpikes:
        """Steps [start, stop), counted as in a slice; a view."""
        bits = self.bits[start:stop]
        return PackedSpikes(bits, (bits.shape[0], *self.shape[1:]))

    def unpack(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Steps [start, stop), counted as in a slice, as zeros and ones [step, ...]."""
        bits = self.bits[start:stop]
        flat = np.unpackbits(bits, axis=1, count=math.prod(self.shape[1:]))
        return flat.reshape(bits.shape[0], *self.shape[1:])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedSpikes):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.bits, other.bits))

    __hash__ = None  # type: ignore[assignment]  # Python's way to say unhashable, which typeshed does not know

    def __repr__(self) -> str:
        return f"PackedSpikes(shape={self.shape}, nbytes={self.nbytes})"


def n_bytes(shape: tuple[int, ...]) -> int:
    """Bytes that one step of this shape takes when packed."""
    return -(-math.prod(shape) // 8)
