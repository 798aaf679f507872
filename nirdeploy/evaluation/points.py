"""The points of a sweep: the product of its axes, each with a name that a file can bear."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from nirdeploy.backend import backend_of, find_target, targets
from nirdeploy.errors import ConfigurationError, TargetError
from nirdeploy.names import escape, suggest
from nirdeploy.quantization import QUANTIZERS, require_calibration

__all__ = ["REFERENCE", "Axes", "Point", "axes_of", "axis"]

REFERENCE = "reference"
_RESERVED = "/\\:*?\"<>| _'`$&;()[]{}~#!"  # of file systems and shells, and what parts a name's pieces


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        target: a chip, or 'reference'.
        quantizer: '' for the reference.
        bits: of a weight; None: the chip's own, or the reference's floats.
        dt: seconds of a step; None where the convention has none.
    """

    target: str
    quantizer: str = ""
    bits: int | None = None
    dt: float | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it is the float reference."""
        return self.target == REFERENCE

    @property
    def name(self) -> str:
        """For files: its values, joined by '_'; other points have other names."""
        bits = "" if self.bits is None else f"{self.bits}bits"
        dt = "" if self.dt is None else f"dt{self.dt!r}"
        return "_".join(escape(part, _RESERVED) for part in (self.target, self.quantizer, bits, dt) if part)

    def __str__(self) -> str:
        bits = "" if self.bits is None else f"{self.bits} bits"
        dt = "" if self.dt is None else f"dt {self.dt:g} s"
        return ", ".join(part for part in (self.target, self.quantizer, bits, dt) if part)


@dataclass(frozen=True)
class Axes:
    """The values a sweep goes through.

    Attributes:
        chips: targets without the reference.
        quantizers: names.
        bits: of a weight; None: the chip's own.
        dt: seconds; None: the convention's.
    """

    chips: tuple[str, ...]
    quantizers: tuple[str, ...]
    bits: tuple[int | None, ...]
    dt: tuple[float | None, ...]

    def points(self, own: float | None) -> tuple[Point, ...]:
        """For every dt the reference and then the chips; `own` is the convention's dt.

        The reference has no quantiser and no bits: it is one point a dt, however many of them there are.

        Raises:
            ConfigurationError: dt names the convention's own twice.
        """
        steps = axis([own if dt is None else dt for dt in self.dt], "dt")
        found: list[Point] = []
        for dt in steps:
            found.append(Point(REFERENCE, dt=dt))
            found += [Point(*values, dt) for values in product(self.chips, self.quantizers, self.bits)]
        return tuple(found)


def axes_of(given: Any, quantizers: Any, bits: Any, dt: Any, calibration: Any) -> Axes:
    """The axes of `sweep`'s arguments, looked at before anything runs.

    Raises:
        TargetError: an unknown target.
        QuantizationError: a quantiser that no target here has, or 'calibrated' without calibration data.
        ConfigurationError: values of another type, none, or one twice.
    """
    chips = [name for name in axis(given, "targets") if name != REFERENCE]
    for name in chips:
        _require_target(name)
    chosen = axis(quantizers, "quantizers")
    if chips:
        known = dict.fromkeys(q for name in chips for q in _quantizers(name))
        for name in chosen:
            require_calibration(name, calibration, tuple(known))
    widths, steps = axis(bits, "bits"), axis(dt, "dt")
    for value in widths:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"bits has {value!r}, expected whole numbers from 1 on, or None: the chip's own")
    for value in steps:
        if value is not None and not _positive(value):
            raise ConfigurationError(f"dt has {value!r}, expected seconds above 0, or None: the convention's own")
    return Axes(tuple(chips), chosen, widths, tuple(None if value is None else float(value) for value in steps))


def axis(values: Any, name: str) -> tuple[Any, ...]:
    """One value or several as a tuple.

    Raises:
        ConfigurationError: none, or one twice.
    """
    one = isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", None) == 0
    found: Sequence[Any] = [_plain(value) for value in ((values,) if one else values)]
    if not found:
        raise ConfigurationError(f"{name} has no value", remedy="Give one at least.")
    seen: set[str] = set()
    for value in found:
        if repr(value) in seen:
            raise ConfigurationError(f"{name} has {value!r} twice", remedy="Give each value once.")
        seen.add(repr(value))
    return tuple(found)


def _plain(value: Any) -> Any:
    """Python's own number for a scalar of numpy or torch."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _require_target(name: Any) -> None:
    if not isinstance(name, str) or name not in targets():
        known = [*targets(), REFERENCE]
        raise TargetError(f"unknown target {name!r}", remedy=suggest(str(name), known))


def _quantizers(target: str) -> tuple[str, ...]:
    return tuple(getattr(backend_of(find_target(target).backend), "quantizers", QUANTIZERS))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
