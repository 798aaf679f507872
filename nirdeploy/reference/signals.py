"""What a node emits over a chunk of steps, in whatever form somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nirdeploy.reference.memory import NUMPY
from nirdeploy.reference.sparse import Rows, from_raster, to_raster

__all__ = ["Check", "Signal"]


class Check(Protocol):
    """Numbers that whoever reads them first has to check.

    Attributes:
        pending: whether they still have to be.
        limit: their bits, read as unsigned integers, are at most this where they are sound (`sparse.survey`).
    """

    pending: bool
    limit: int

    def check(self) -> float | None:
        """Check all that is not yet checked; the share that is not zero, where it was counted. Raises RasterError."""


class Signal:
    """What a node emits over a chunk, in the form it came in and in those that were asked for.

    Args:
        dense: as a tensor.
        rows: as events.
        raw: as an array of any type.
        density: of `raw`, where it is known.
        check: still to be made before `raw` is used.

    Attributes:
        shape: of one sample at one step.
        steps: steps of the chunk.
        batch: samples.
    """

    def __init__(
        self,
        shape: Sequence[int],
        steps: int,
        batch: int,
        *,
        dense: Tensor | None = None,
        rows: Rows | None = None,
        raw: np.ndarray | None = None,
        density: float | None = None,
        check: Check | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.steps, self.batch = tuple(shape), steps, batch
        self._dense, self._rows, self._array, self._check = dense, rows, raw, check
        self._dtype, self._device, self._density = dtype, device, density

    @property
    def size(self) -> int:
        """Numbers a sample."""
        return math.prod(self.shape)

    @property
    def _raw(self) -> np.ndarray | None:
        """The array, checked."""
        if self._check is not None:
            self._density, self._check = self._check.check(), None
        return self._array

    @property
    def unchecked(self) -> np.ndarray | None:
        """[step, batch, number] in the run's type for those who check while they read; else None."""
        found = self._array
        if self._check is None or not self._check.pending or found is None or found.dtype != NUMPY[self._dtype]:
            return None
        return found.reshape(self.steps, self.batch, -1) if found.flags.writeable else None

    def passed(self, highest: int) -> None:
        """Take what one who read `unchecked` found: the highest of all numbers, read as unsigned integers.

        Raises:
            RasterError: there is a number that is not sound.
        """
        check, self._check = self._check, None
        if check is not None and highest > check.limit:
            self._density = check.check()

    def dense(self) -> Tensor:
        """[step, batch, *shape]."""
        if self._dense is None:
            if (raw := self._raw) is not None:
                # torch warns of memory that must not be written to, though nothing here writes to it
                raw = raw if raw.flags.writeable else raw.copy()
                self._dense = torch.from_numpy(raw).to(device=self._device, dtype=self._dtype)
            else:
                assert self._rows is not None
                empty = torch.zeros((self.steps, self.batch, self.size), dtype=self._dtype)
                to_raster(self._rows, empty.numpy())
                self._dense = empty.reshape(self.steps, self.batch, *self.shape)
        return self._dense

    def numbers(self) -> np.ndarray:
        """[step, batch, number], contiguous."""
        shape = (self.steps, self.batch, self.size)
        if self._dense is None and (raw := self._raw) is not None and raw.dtype == NUMPY[self._dtype]:
            return np.ascontiguousarray(raw).reshape(shape)
        return self.dense().detach().cpu().contiguous().reshape(shape).numpy()

    def rows(self, density: float = 1.0) -> Rows | None:
        """The same as events; None where more than this share of the numbers is not zero."""
        if self._rows is not None:
            return self._rows if self._rows.density <= density else None
        raw = self._raw
        if self._density is not None and self._density > density:
            return None
        source = raw if raw is not None else self.dense().detach().numpy()
        flat = np.ascontiguousarray(source).reshape(self.steps, self.batch, self.size)
        self._rows = from_raster(flat, np.empty(0, NUMPY[self._dtype]), density)
        return self._rows
