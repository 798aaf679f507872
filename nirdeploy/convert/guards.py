"""What tracing a forward must leave as it was: attributes, parameters, buffers and the random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from nirdeploy.convert.memory import Memory
from nirdeploy.errors import ConversionError

__all__ = ["refuse_hooks", "unchanged", "without_chance"]


def refuse_hooks(module: nn.Module, path: str = "") -> None:
    """Refuse a module with forward hooks.

    Raises:
        ConversionError: naming the module.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise ConversionError(
            f"{type(module).__name__} has forward hooks, which NIR cannot hold",
            node=path or None,
            remedy="Remove them.",
        )


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put back attributes that forward sets while it is traced, and refuse: they are memory that NIR cannot hold.

    Raises:
        ConversionError: naming module and attribute.
    """
    memory = Memory(module)
    changed: list[str] = []
    try:
        yield
    finally:
        changed = memory.restored()
    if changed:
        raise ConversionError(
            f"forward changes {', '.join(changed)} of {type(module).__name__}: memory outside its state",
            remedy="Pass it in and out of forward as state.",
        )


@contextmanager
def without_chance(module: nn.Module) -> Iterator[None]:
    """Refuse a forward that draws random numbers, which tracing would freeze, and put the generators back.

    Raises:
        ConversionError: naming the module.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
    same = torch.equal(before[0], after[0]) and repr(before[1]) == repr(after[1]) and before[2] == after[2]
    if not same:
        raise ConversionError(
            f"forward of {type(module).__name__} draws random numbers, so that its output depends on chance",
            remedy="Draw them once, in its constructor, and keep them as a buffer.",
        )
