"""Options of a run on the emulator, checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nirdeploy.binning import Order, Origin
from nirdeploy.errors import UnsupportedError
from nirdeploy.names import suggest

__all__ = [
    "CORE_MODELS",
    "LANES",
    "MODES",
    "SWEEPS",
    "EventOptions",
    "Lanes",
    "event_options",
    "require_mode",
    "unknown_option",
]

MODES = ("step", "event")
MOST_HZ = 1_000_000  # a cycle a microsecond, which is what time is counted in
CORE_MODELS = ("in_order", "two_lanes")
SWEEPS = ("yxc", "cyx")
"""Orders of the neurons that one event makes fire; the first is that of the addresses of the chip's neuron memory,
which have the channel in their low bits (sinabs io.py, neuron addresses)."""


@dataclass(frozen=True)
class Lanes:
    """Parameters of `core_model='two_lanes'`.

    Attributes:
        slower_lane: 0 or 1.
        position_us: microseconds of service for each position of the output map that an event reaches.
        ratio: by how much the slower lane is slower.
        fifo: events a lane holds, the one in service included.
        jitter: standard deviation of the logarithm of each service's duration; 0: none.
        seed: of the jitter.
    """

    slower_lane: int
    position_us: float = 19.2
    ratio: float = 1.014
    fifo: int = 10
    jitter: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        text = f"slower_lane {self.slower_lane}, {self.position_us} us a position, ratio {self.ratio}, FIFO {self.fifo}"
        return text + (f", jitter {self.jitter}, seed {self.seed}" if self.jitter else "")


@dataclass(frozen=True)
class EventOptions:
    """What is asked of event mode.

    Attributes:
        order: in which the counts of a raster's step become events, as of `raster_to_events`.
        step_us: microseconds of a step; None: the convention's dt.
        origin: where step 0 of recorded events begins, as of `events_to_raster`.
        sweep: order of the neurons that one event makes fire: 'yxc' or 'cyx'.
        leak_clock_hz: cycles a second of the slow clock, which add the biases; 0: no clock; None: not said.
        leak_fires: whether such a cycle can make a neuron fire.
        core_model: 'in_order' or 'two_lanes'.
        lanes: parameters of the latter.
    """

    order: Order = "sinabs"
    step_us: int | None = None
    origin: Origin = "zero"
    sweep: str = "yxc"
    leak_clock_hz: int | None = None
    leak_fires: bool = True
    core_model: str = "in_order"
    lanes: Lanes = field(default_factory=lambda: Lanes(0))

    @property
    def timed(self) -> bool:
        """Whether the result depends on time, and not on the order of events alone."""
        return self.core_model != "in_order" or bool(self.leak_clock_hz)

    def __str__(self) -> str:
        text = f"mode 'event', order {self.order!r}, sweep {self.sweep!r}, core_model {self.core_model!r}"
        if self.core_model == "two_lanes":
            text += f" ({self.lanes})"
        if self.leak_clock_hz:
            text += f", leak clock {self.leak_clock_hz} Hz, leak_fires {self.leak_fires}"
        return text


# option of `two_lanes` -> field of Lanes
LANES = {
    "slower_lane": "slower_lane",
    "lane_us": "position_us",
    "lane_ratio": "ratio",
    "lane_fifo": "fifo",
    "lane_jitter": "jitter",
    "seed": "seed",
}
_NAMES = ("order", "step_us", "origin", "sweep", "leak_clock_hz", "leak_fires", "core_model", *LANES)


def unknown_option(where: str, name: str, value: Any, known: Iterable[str]) -> UnsupportedError:
    """The error for an option that a kind of run does not have."""
    return UnsupportedError(f"{where} has no option {name!r} (given {value!r})", remedy=suggest(str(name), known))


def require_mode(mode: str | None, options: Mapping[str, Any]) -> str:
    """The mode, 'step' where none is given; options belong to 'event'.

    Raises:
        UnsupportedError: an unknown mode, or options for 'step'.
    """
    chosen = "step" if mode is None else mode
    if not isinstance(chosen, str) or chosen not in MODES:
        raise UnsupportedError(f"mode {mode!r} is unknown", remedy=suggest(str(chosen), MODES))
    for name in sorted(options):
        if name not in _NAMES:
            raise unknown_option("the Speck emulator", name, options[name], _NAMES)
        if chosen == "step":
            raise UnsupportedError(
                f"{name}={options[name]!r} is an option of mode 'event', this is mode 'step'",
                remedy="Use mode='event', or leave it out.",
            )
    return chosen


def event_options(given: Mapping[str, Any]) -> EventOptions:
    """Options of event mode, checked.

    Raises:
        UnsupportedError: a value that is none; naming option, value and what is expected.
    """
    origin = given.get("origin", "zero")
    if not isinstance(origin, str) or origin not in ("zero", "first"):
        _whole("origin", origin, 0)
    lanes = {LANES[name]: value for name, value in given.items() if name in LANES}
    rest = {name: value for name, value in given.items() if name not in LANES}
    for name, known in (
        ("order", ("sinabs", "row_major")),
        ("sweep", SWEEPS),
        ("core_model", CORE_MODELS),
        ("leak_fires", (True, False)),
    ):
        # type and value: an array has no one answer to ==, and a kernel is compiled for each type
        if name in rest and not any(type(rest[name]) is type(value) and rest[name] == value for value in known):
            raise UnsupportedError(f"{name} is {rest[name]!r}, expected {' or '.join(map(repr, known))}")
    for name, least in (("step_us", 1), ("leak_clock_hz", 0)):
        if rest.get(name) is not None:
            rest[name] = _whole(name, rest[name], least)
    if (rest.get("leak_clock_hz") or 0) > MOST_HZ:
        raise UnsupportedError(
            f"leak_clock_hz is {rest['leak_clock_hz']}, at most {MOST_HZ}", remedy="Usual are 10 to 10000."
        )
    if lanes and rest.get("core_model") != "two_lanes":
        name = next(n for n in given if n in LANES)
        raise UnsupportedError(
            f"{name}={given[name]!r} belongs to core_model='two_lanes'", remedy="Give that, or leave it out."
        )
    if rest.get("core_model") == "two_lanes":
        rest["lanes"] = _lanes(lanes)
    return EventOptions(**rest)


def _lanes(given: dict[str, Any]) -> Lanes:
    if type(given.get("slower_lane")) is not int or given["slower_lane"] not in (0, 1):
        raise UnsupportedError(
            f"slower_lane is {given.get('slower_lane')!r}, expected 0 or 1: no rule for it is known",
            remedy="Pass slower_lane=0 or slower_lane=1.",
        )
    for option, name, least in (
        ("lane_us", "position_us", 0.0),
        ("lane_ratio", "ratio", 1.0),
        ("lane_jitter", "jitter", 0.0),
    ):
        value = given.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise UnsupportedError(f"{option} is {value!r}, expected a number from {least:g} on")
    for option, name, least in (("lane_fifo", "fifo", 1), ("seed", "seed", 0)):
        if name in given:
            given[name] = _whole(option, given[name], least)
    return Lanes(**given)


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= 1_000_000_000_000:
        either = "'zero', 'first' or " if name == "origin" else ""
        raise UnsupportedError(f"{name} is {value!r}, expected {either}a whole number from {least} on")
    return number
