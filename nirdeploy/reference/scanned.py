"""A population as one native scan over the steps of a chunk, into the records where they are wanted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nirdeploy.reference import kernels, scan_kernels
from nirdeploy.reference.lanes import WIDTH
from nirdeploy.reference.memory import LINE, address
from nirdeploy.reference.signals import Signal
from nirdeploy.reference.threads import LEAST, share, split
from nirdeploy.schedule import NodePath

if TYPE_CHECKING:
    from nirdeploy.reference.engine import Engine

__all__ = ["scanned"]

_PAST = 8 << 20  # bytes of a record from which on it does not stay in the cache


def scanned(engine: Engine, path: NodePath) -> None:
    """Compute what a population emits in this chunk from the sum of its inputs."""
    given = _unchecked(engine, path)
    shape, size = engine.shapes[path].output, math.prod(engine.shapes[path].output)
    if given is not None:
        flat, own = torch.from_numpy(given.unchecked), False
    else:
        x, own = engine.input(path)
        flat = x.contiguous().reshape(engine.steps, engine.batch, size)
    out = _record_of_output(engine, path, flat)
    if out is None:
        out = flat if own else torch.empty_like(flat)
    _scan(engine, path, flat.numpy(), out.numpy(), given)
    engine.signals[path] = engine.emitted(path, out.reshape(engine.steps, engine.batch, *shape))
    engine.put_emitted(path, out)


def _unchecked(engine: Engine, path: NodePath) -> Signal | None:
    """An Input's numbers that nobody has checked yet, where a scan in vectors is what reads them."""
    source = engine.program.direct(path)
    found = None if source is None else engine.signal(source)
    if found is None or found.unchecked is None:
        return None
    return found if engine.program.native(path, engine.dtype).how[0] in (kernels.ONE, kernels.INTEGRATE) else None


def _record_of_output(engine: Engine, path: NodePath, like: Tensor) -> Tensor | None:
    """The record of an Output that a population alone feeds, to be written to without a copy in between."""
    output = engine.program.straight.get(path)
    target = None if output is None else engine.sink.target(output, "output", engine.start, engine.steps)
    if target is None or target.shape != tuple(like.shape) or target.dtype != like.numpy().dtype:
        return None
    engine.written.add(output)  # type: ignore[arg-type]
    return torch.from_numpy(target)


def _scan(engine: Engine, path: NodePath, x: np.ndarray, out: np.ndarray, unchecked: Signal | None) -> None:
    native = engine.program.native(path, engine.dtype)
    v, i = engine.held(path)
    v_record, i_record, none = engine.targets(path, x.dtype)
    mode, inclusive, subtract, _, uniform, _ = native.how
    steps, batch, neurons = x.shape
    if mode in (kernels.ONE, kernels.INTEGRATE):
        past = all(_past_cache(record) for record in (v_record, i_record) if record is not none)
        most = scan_kernels.BLOCK * (4 if uniform else 1)  # those of one kind have no parameters to keep near
        block = share(neurons, batch, WIDTH, most, steps * batch * neurons // LEAST)

        def work(first: int, last: int) -> int:
            found: int = scan_kernels.scan(
                x, v, i, native.p, native.q, mode == kernels.ONE, inclusive, subtract, uniform, out, v_record,
                i_record, past, unchecked is not None, block, first, last,
            )  # fmt: skip
            return found

        highest = split(work, batch * -(-neurons // block), max(1, LEAST // max(1, steps * block)))
        if unchecked is not None:
            unchecked.passed(max(highest))
    else:
        direct = out is not x and not np.may_share_memory(x, out)

        def generic(first: int, last: int) -> None:
            kernels.scan(
                x, v, i, native.p, native.q, native.how, native.dt, out, direct, v_record, i_record, first, last
            )

        split(generic, batch, max(1, LEAST // max(1, steps * neurons)))
    engine.put_states(path, v_record, i_record, none)


def _past_cache(record: np.ndarray) -> bool:
    """Whether a chunk is part of a record too large for the cache, and lies where vectors may be written past it."""
    whole = record.base
    large = isinstance(whole, np.ndarray) and whole.nbytes >= _PAST
    rows = record.shape[2] * record.itemsize
    return large and rows % LINE == 0 and address(record) % LINE == 0
