"""Square kernels: convolutions and matrices of any shape as one kernel of the chip, where that is exact.

The chip's kernels are square and have one stride and padding an axis (DS 2.4). A kernel of k taps with padding p is the
same as one of K >= k taps, zero beyond its own, with padding P and offset P - p: output i covers inputs i s - p ... .
Several kernels over several inputs add up to one over all of their channels, conv(a; u) + conv(b; w) =
conv([a; b]; [u; w]), as soon as K, P and s are common to them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Axis", "Square", "square"]

# strides the chip has (DS 2.4); where there is one output position only, any of them will do
_STRIDES = (1, 2, 4, 8)
_FURTHER = 8  # how much larger than need be a kernel is tried; the parity of what is left repeats after the stride


@dataclass(frozen=True)
class Axis:
    """One axis of what is to become one kernel; a tuple has an entry for each part.

    Attributes:
        taps: of each kernel.
        paddings: of each kernel.
        strides: of each kernel.
        size: of the largest input map.
        positions: of the output map.
    """

    taps: tuple[int, ...]
    paddings: tuple[int, ...]
    strides: tuple[int, ...]
    size: int
    positions: int

    def fit(self, kernel: int) -> tuple[int, int] | None:
        """Padding and stride, both least, with which a kernel of that many taps does it; None if none does."""
        if self.positions == 1:
            strides = self.strides[:1] if self.strides[0] in _STRIDES else ()
            strides = (*strides, *(s for s in _STRIDES if s not in strides))
        elif len(set(self.strides)) == 1:
            strides = self.strides[:1]
        else:
            return None
        reach = max(k - p for k, p in zip(self.taps, self.paddings, strict=True))
        for padding in range(max(self.paddings), kernel - reach + 1):
            rest = self.size + 2 * padding - kernel
            for stride in strides:
                if rest >= 0 and rest // stride + 1 == self.positions:
                    return padding, stride
        return None


@dataclass(frozen=True)
class Square:
    """A kernel that stands for several.

    Attributes:
        kernel: its side.
        stride, padding: (y, x).
    """

    kernel: int
    stride: tuple[int, int]
    padding: tuple[int, int]


def square(y: Axis, x: Axis) -> Square | None:
    """The smallest square kernel that computes the same, with the least padding; None where there is none."""
    least = max(
        max(axis.paddings) + max(k - p for k, p in zip(axis.taps, axis.paddings, strict=True)) for axis in (y, x)
    )
    for kernel in range(least, least + _FURTHER + 1):
        found = y.fit(kernel), x.fit(kernel)
        if found[0] is not None and found[1] is not None:
            return Square(kernel, (found[0][1], found[1][1]), (found[0][0], found[1][0]))
    return None
