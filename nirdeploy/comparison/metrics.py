"""Measures of how far two aligned records are apart: pure functions on arrays [step, batch, neuron].

Sums add up over blocks of steps (`SpikeSums`, `ErrorSums`), so no caller needs whole records at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ErrorSums",
    "SpikeSums",
    "accuracy",
    "agreement",
    "cosine",
    "error_sums",
    "first_difference",
    "max_error",
    "rmse",
    "spike_agreement",
    "spike_sums",
]


@dataclass(frozen=True)
class SpikeSums:
    """What spike agreement is made of; sums of two blocks add.

    Attributes:
        shared: sum(min(reference, chip)) over entries: spikes at the same neuron in the same step.
        reference: spikes of the reference.
        chip: spikes of the chip.
        differing: entries whose counts differ.
        entries: number of (step, sample, neuron) entries.
    """

    shared: int = 0
    reference: int = 0
    chip: int = 0
    differing: int = 0
    entries: int = 0

    def __add__(self, other: SpikeSums) -> SpikeSums:
        return SpikeSums(
            self.shared + other.shared,
            self.reference + other.reference,
            self.chip + other.chip,
            self.differing + other.differing,
            self.entries + other.entries,
        )

    @property
    def agreement(self) -> float:
        """`agreement` of these sums."""
        return agreement(self.shared, self.reference, self.chip)


@dataclass(frozen=True)
class ErrorSums:
    """What voltage errors are made of; sums of two blocks add.

    Attributes:
        squares: sum((reference - chip)**2) in squared units.
        largest: max(|reference - chip|) in units.
        differing: entries that are not equal.
        entries: number of (step, sample, neuron) entries.
    """

    squares: float = 0.0
    largest: float = 0.0
    differing: int = 0
    entries: int = 0

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.squares + other.squares,
            float(np.maximum(self.largest, other.largest)),  # unlike max(), keeps NaN
            self.differing + other.differing,
            self.entries + other.entries,
        )

    @property
    def rmse(self) -> float:
        """sqrt(squares / entries); 0 where there are no entries."""
        return math.sqrt(self.squares / self.entries) if self.entries else 0.0


def accuracy(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of samples whose most active output is the label; ties go to the lower class.

    Args:
        outputs: counts or values, [step, batch, class].
        labels: class of each sample, [batch].
    """
    return float((outputs.sum(axis=0).argmax(axis=-1) == labels).mean())


def agreement(shared: int, reference: int, chip: int) -> float:
    """2 * shared / (reference + chip): the Dice coefficient of spike multisets; 1.0 when both are silent."""
    total = reference + chip
    return 2 * shared / total if total else 1.0


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """sum(a b) / sqrt(sum(a a) sum(b b)) of two arrays of one shape, e.g. counts or rates; no unit.

    1.0 where both are silent, 0.0 where one is. It is blind to scale and to time: spikes that all come late, or twice
    as many of each neuron, have a cosine of 1.

    Raises:
        ValueError: two shapes.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if x.shape != y.shape:
        raise ValueError(f"a cosine of shapes {x.shape} and {y.shape}")
    product, norms = float((x * y).sum()), math.sqrt(float((x * x).sum())) * math.sqrt(float((y * y).sum()))
    if norms:
        return product / norms
    return float(not x.any() and not y.any())


def spike_sums(reference: NDArray[Any], chip: NDArray[Any]) -> SpikeSums:
    """The `SpikeSums` of two arrays of whole counts, of one shape."""
    return SpikeSums(
        shared=int(np.minimum(reference, chip).sum(dtype=np.int64)),
        reference=int(reference.sum(dtype=np.int64)),
        chip=int(chip.sum(dtype=np.int64)),
        differing=int(np.count_nonzero(reference != chip)),
        entries=int(reference.size),
    )


def spike_agreement(reference: NDArray[Any], chip: NDArray[Any]) -> float:
    """2 * sum(min(r, c)) / (sum(r) + sum(c)) over all entries: the Dice coefficient of two spike multisets.

    1.0 when every spike is at the same neuron in the same step, and when both are silent; symmetric.
    """
    return spike_sums(reference, chip).agreement


def error_sums(reference: NDArray[Any], chip: NDArray[Any], unit: float | NDArray[np.float64] = 1.0) -> ErrorSums:
    """The `ErrorSums` of two arrays of one shape.

    Args:
        reference: [..., neuron].
        chip: the same shape.
        unit: what to divide differences by, e.g. the threshold; a number or one a neuron.
    """
    with np.errstate(invalid="ignore"):
        difference = np.subtract(reference, chip, dtype=np.float64)
        if difference.size and np.isnan(difference.max()):
            difference[reference == chip] = 0.0  # inf - inf, the same on both sides; NaN equals nothing
        wide = reference.dtype.kind in "iu" and max(reference.itemsize, chip.itemsize) > 4
        differing = int(np.count_nonzero(reference != chip if wide else difference))  # floats do not tell 2**53 + 1
        difference /= unit
    largest = float(max(difference.max(), -difference.min())) if difference.size else 0.0
    with np.errstate(over="ignore"):
        np.square(difference, out=difference)  # not a dot product: BLAS threads would decide the last bits
    return ErrorSums(float(difference.sum()), largest, differing, int(difference.size))


def rmse(reference: NDArray[Any], chip: NDArray[Any], unit: float | NDArray[np.float64] = 1.0) -> float:
    """sqrt(mean(((reference - chip) / unit)**2)) over all entries."""
    return error_sums(reference, chip, unit).rmse


def max_error(reference: NDArray[Any], chip: NDArray[Any], unit: float | NDArray[np.float64] = 1.0) -> float:
    """max(|reference - chip| / unit) over all entries."""
    return error_sums(reference, chip, unit).largest


def first_difference(reference: NDArray[Any], chip: NDArray[Any]) -> tuple[int, ...] | None:
    """Index of the first entry in row-major order (step, then sample, then neuron) that differs, or None."""
    mask = reference != chip
    flat = int(mask.argmax()) if mask.size else 0
    if not mask.size or not mask.flat[flat]:
        return None
    return tuple(int(i) for i in np.unravel_index(flat, mask.shape))
