"""What a run takes in: rasters of any kind, read and checked chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from nirdeploy.binning import events_to_raster, whole_microseconds
from nirdeploy.convert.build import GraphModule
from nirdeploy.errors import RasterError
from nirdeploy.events import Events
from nirdeploy.raster import check_raster
from nirdeploy.reference.signals import Signal
from nirdeploy.reference.sparse import as_bits, survey
from nirdeploy.schedule import NodePath, dotted

__all__ = ["Source", "sources_of"]

_QUICK = ("|b1", "|u1", "|i1", "<i2", "<i4", "<i8", "<f4", "<f8")  # what torch takes as it is, without '<u2' and so on


class Source:
    """The raster of one Input.

    Shape and type are checked at once, numbers by whoever reads them first: a pass over a raster takes as long as a
    scan of neurons.

    Args:
        raster: an array, a tensor, or what gives arrays when it is sliced (an HDF5 dataset, a memory map).
        shape: of the Input.
        dtype: that the run computes in.
        node: name of the Input.

    Attributes:
        steps: steps.
        batch: samples.
        batched: whether the raster has a batch axis.
        pending, limit: as of `signals.Check`.

    Raises:
        RasterError: wrong shape or type; now, or where numbers are read, negative, NaN, infinite or too large counts.
    """

    def __init__(self, raster: Any, shape: tuple[int, ...], dtype: torch.dtype, node: str) -> None:
        self.shape, self.node = shape, node
        self._exact = 2.0 ** (53 if dtype == torch.float64 else 24)
        self._lazy = _is_lazy(raster)
        self.pending, self.limit = False, 0
        self._density: float | None = None
        if self._lazy:
            given = tuple(raster.shape)
            self.batched = len(given) == len(shape) + 2
            if not (self.batched or len(given) == len(shape) + 1) or given[len(given) - len(shape) :] != shape:
                raise RasterError(f"the raster has shape {given}, expected [step, batch, *{shape}]", node=node)
            if 0 in given:
                raise RasterError(f"the raster is empty: shape {given}", node=node)
            self._data = raster
            self.steps, self.batch = given[0], given[1] if self.batched else 1
            return
        if isinstance(raster, torch.Tensor) and _is_readable(raster):
            raster = raster.detach() if raster.requires_grad else raster
            raster = raster.cpu() if raster.is_cuda else raster
            raster = raster.numpy() if raster.dtype not in (torch.bfloat16,) and not raster.is_quantized else raster
        found = self._quick(raster)
        if found is None:
            with self._named():
                self._data, self.batched, self._density = self._slow(raster)
        else:
            self._data, self.batched = found
            self.pending, self.limit = True, as_bits(self._exact, self._data.dtype)
        self.steps, self.batch = self._data.shape[:2]

    def check(self) -> float | None:
        """Check the numbers, if they are not yet; their density where it was counted."""
        if self.pending:
            sound, filled = survey(self._data, self._exact)
            if not sound:
                with self._named():
                    self._slow(self._data if self.batched else self._data[:, 0])
            self._density, self.pending = filled / self._data.size if sound else None, False
        return self._density

    def _quick(self, raster: Any) -> tuple[np.ndarray, bool] | None:
        """A raster with a batch axis, and whether it came with one, where nothing but its numbers may be wrong."""
        quick = isinstance(raster, np.ndarray) and raster.dtype.str in _QUICK and not np.ma.isMaskedArray(raster)
        rank = len(self.shape)
        if not (quick and raster.size and raster.ndim in (rank + 1, rank + 2) and raster.shape[-rank:] == self.shape):
            return None
        batched = raster.ndim == rank + 2
        found = np.ascontiguousarray(raster if batched else raster[:, None])
        return (found.view(np.uint8) if found.dtype == np.bool_ else found), batched

    def _counted(self, data: np.ndarray) -> float | None:
        """The density of a raster with a batch axis, counted in the one pass over it where nothing is wrong."""
        sound, filled = survey(data, self._exact)
        return filled / data.size if sound else self._slow(data if self.batched else data[:, 0])[2]

    def _slow(self, raster: Any) -> tuple[np.ndarray, bool, float | None]:
        """Everything checked, with the place of what is wrong."""
        data, batched = check_raster(raster, self.shape, integer=False)
        data = data.astype(np.float32) if data.dtype == np.float16 else data  # the kernels know no half precision
        highest = data.max().item()  # in Python's numbers, as float16 has none so large
        if highest > self._exact:
            where = tuple(int(n[0]) for n in np.nonzero(data == data.max()))
            where = where if batched else (where[0], *where[2:])
            raise RasterError(
                f"the raster holds {highest} at {where}, beyond {self._exact:.0f}, up to which floats count exactly"
            )
        return data, batched, None

    @contextmanager
    def _named(self, before: str = "") -> Iterator[None]:
        """Say which Input is wrong, and what comes before that."""
        try:
            yield
        except RasterError as error:
            raise RasterError(f"{before}{error}", node=self.node) from error

    def signal(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Signal:
        """Steps `start` to `stop`."""
        if self._lazy:
            given = np.asarray(self._data[start:stop])
            found = self._quick(given)
            with self._named(f"in steps {start} to {stop - 1}, counted from {start}: "):
                part, density = (found[0], self._counted(found[0])) if found else self._slow(given)[::2]
        else:
            part, density = self._data[start:stop], self._density
        check = self if self.pending else None
        return Signal(
            self.shape, stop - start, self.batch, raw=part, density=density, check=check, dtype=dtype, device=device
        )


def _is_readable(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_complex() and not tensor.is_meta


def _is_lazy(raster: Any) -> bool:
    """Whether a raster should be read chunk by chunk."""
    if isinstance(raster, np.memmap):
        return True
    return not isinstance(raster, np.ndarray | torch.Tensor) and all(
        hasattr(raster, name) for name in ("shape", "dtype", "__getitem__")
    )


def sources_of(module: GraphModule, raster: Any, dtype: torch.dtype) -> dict[NodePath, Source]:
    """The raster of every Input.

    Raises:
        RasterError: an Input without one, one for no Input, or rasters of different length or batch.
    """
    inputs = module.plan.inputs
    if isinstance(raster, Mapping):
        given = {str(name): value for name, value in raster.items()}
        names = [dotted(path) for path in inputs]
        if sorted(given) != sorted(names):
            raise RasterError(f"rasters of {sorted(given)} given, the graph has the Inputs {names}")
    elif len(inputs) != 1:
        raise RasterError(
            f"one raster for {len(inputs)} Inputs",
            remedy=f"Pass a dict with {', '.join(repr(dotted(p)) for p in inputs)}.",
        )
    else:
        given = {dotted(inputs[0]): raster}
    found = {}
    for path in inputs:
        name, shape = dotted(path), module.shapes[path].input
        value = given[name]
        if isinstance(value, Events):
            value = _binned(value, shape, module.convention.dt, name)
        found[path] = Source(value, shape, dtype, name)
    first = next(iter(found.values()))
    for source in found.values():
        mine, its = (source.steps, source.batch, source.batched), (first.steps, first.batch, first.batched)
        if mine != its:
            raise RasterError(
                f"its raster has {mine[0]} steps of {mine[1]} samples, that of {first.node!r} {its[0]} of {its[1]}",
                node=source.node,
                remedy="Give all Inputs as many steps and samples, all with a batch axis or none.",
            )
    return found


def _binned(events: Events, shape: tuple[int, ...], dt: float | None, node: str) -> np.ndarray:
    """Events counted into steps of dt."""
    step_us = whole_microseconds(dt)
    if step_us is None:
        raise RasterError(
            f"events need steps of whole microseconds, the convention has dt={dt}",
            node=node,
            remedy="Give the convention such a dt, or count them yourself with nd.events_to_raster.",
        )
    return events_to_raster(events, shape, step_us=step_us)
