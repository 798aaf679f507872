"""Floats of full precision, whatever a program has asked of torch to train faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from nirdeploy.shared_setting import SharedSetting

__all__ = ["full_precision"]

# of oneDNN, which multiplies on the CPU; torch before 2.9 has one setting for all
_KINDS: list[Any] = [
    kind for name in ("matmul", "conv") if hasattr(kind := getattr(torch.backends.mkldnn, name, None), "fp32_precision")
]

_CAST = ("cpu", "cuda", "mps", "xpu")  # devices that have autocast


def _read() -> list[str]:
    return [kind.fp32_precision for kind in _KINDS] or [torch.get_float32_matmul_precision()]


def _write(values: list[str]) -> None:
    if not _KINDS:
        torch.set_float32_matmul_precision(values[0])
    for kind, value in zip(_KINDS, values, strict=False):
        kind.fp32_precision = value


_PRECISION = SharedSetting(_read, _write)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Have float32 multiplied as float32.

    `set_float32_matmul_precision("medium")` lets processors that can multiply in bfloat16, with 8 bits, and so does
    autocast: a reference would depend on both.

    Args:
        device: that is run on; precision is set for the CPU alone, autocast is left out on any.
    """
    full = ["ieee"] * len(_KINDS) or ["highest"]
    casts = device.type in _CAST and torch.is_autocast_enabled(device.type)  # asked first, as leaving it out takes 6 us
    cast = torch.autocast(device.type, enabled=False) if casts else nullcontext()
    with _PRECISION.changed(lambda _: full), cast:
        yield
