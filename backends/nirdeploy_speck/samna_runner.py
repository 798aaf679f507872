"""Run a deployment on a Speck. Tested against a double of samna; never run on silicon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.binning import raster_to_events, whole_microseconds
from nirdeploy.errors import RasterError, UnsupportedError, VendorError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Trajectory
from nirdeploy.version import __version__
from nirdeploy_speck.config import chip_configuration
from nirdeploy_speck.cores import ChipCore, ChipProgram, chip_program
from nirdeploy_speck.network import log2_ceil, lowered
from nirdeploy_speck.options import unknown_option
from nirdeploy_speck.results import core_variables, output_shapes, require_variables, trajectory
from nirdeploy_speck.samna_device import Device, open_device, require_runner

__all__ = ["ChipOptions", "address", "monitored", "run"]

_LAST_US = (1 << 32) - 1  # timestamps are unsigned 32-bit microseconds
_LEAD_US, _LEAD_PER_EVENT = 200_000, 10
_ADDRESS_BITS = 18
_STATE_ADDRESS = ("agreed", "sinabs", "width")


@dataclass(frozen=True)
class ChipOptions:
    """Options of a run on a chip.

    Attributes:
        device: samna's type name of the board, with `:index` where there are several; None: the first that fits.
        step_us: microseconds of a step; None: the convention's dt.
        leak_clock_hz: rate of the slow clock that adds the biases; 0: not started, so that biases do nothing.
        lead_us: microseconds between the start and step 0, in which the events are written; None: by their number.
        state_address: how neurons are numbered for reading v: 'agreed' (refused where the two others differ),
            'sinabs' (calculate_neuron_address of io.py: y above as many bits of x as the height takes) or 'width'
            (as many as the width takes).
        power_hz: readings of the power monitor a second and rail, at most 100 (DS 3.2.6.4); None: none.
        timeout: seconds after the last step in which the chip must fall silent.
    """

    device: str | None = None
    step_us: int | None = None
    leak_clock_hz: float | None = None
    lead_us: int | None = None
    state_address: str = "agreed"
    power_hz: float | None = None
    timeout: float = 30.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ChipOptions:
        """Options by name, checked.

        Raises:
            UnsupportedError: naming option, value and what is expected.
        """
        for name, value in given.items():
            if name not in _CHECKS:
                raise unknown_option("a run on a chip", name, value, _CHECKS)
            expected, check = _CHECKS[name]
            if value is not None and not check(value):
                raise UnsupportedError(f"{name} is {value!r}, expected {expected}")
        return cls(**{name: value for name, value in given.items() if value is not None})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LAST_US


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


_CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "device": ("text", lambda v: isinstance(v, str) and bool(v)),
    "step_us": ("whole microseconds", _whole),
    "leak_clock_hz": ("Hz, 0 for none", _number),
    "lead_us": ("whole microseconds", _whole),
    "state_address": (f"one of {list(_STATE_ADDRESS)}", lambda v: v in _STATE_ADDRESS),
    "power_hz": ("Hz, at most 100", lambda v: _number(v) and 0 < v <= 100),
    "timeout": ("seconds", lambda v: _number(v) and v > 0),
}


def run(
    quantized: Quantized,
    placement: Placement,
    raster: Any,
    *,
    mode: str | None,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    options: Mapping[str, Any],
) -> Trajectory:
    """Run a raster of counts on a device, a sample after the other, states at 0 before each.

    Spikes belong to the step in which the board has stamped them, those after the last step to the last one
    (counted as 'late_spikes'). v_mem is read once a sample, at its end: its records have the last step only.

    Args:
        quantized: the network's integers.
        placement: its cores.
        raster: counts, [step, batch, ...] or [step, ...]; events of a step share one timestamp and are sent in the
            order of sinabs's raster_to_events.
        mode: None or 'event': the chip has no steps.
        record: variables to record.
        nodes: populations to record; None: all.
        options: of `ChipOptions`.

    Raises:
        UnavailableError: samna or the board is missing.
        UnsupportedError: mode 'step', an unknown option, biases without a word on the slow clock, a variable the chip
            does not have, or v_mem where the numbering of neurons is not certain.
        RasterError: wrong shape, negative, NaN or fractional counts, or a run longer than timestamps reach.
        VendorError: samna refused something, or the device answered something else than agreed.
    """
    require_runner(quantized.target.name)
    if mode not in (None, "event"):
        raise UnsupportedError(f"the chip has no mode {mode!r}: it works event by event", remedy="Leave mode out.")
    chosen = ChipOptions.of(options)
    network = lowered(quantized, placement)
    program = chip_program(quantized, placement, network)
    require_variables(record, nodes, network)
    data, batched = check_raster(raster, network.input_shape, integer=True)
    keep = core_variables(program, record, nodes)
    step_us = _step_us(chosen, quantized)
    _require_clock(program, chosen)
    dvs = program.dvs
    if dvs is not None and dvs.sensor:
        raise UnsupportedError("the sensor feeds this network; a raster cannot", remedy="Deploy without dvs.sensor.")
    states = {
        k: [address(core, *at, rule=chosen.state_address) for at in np.ndindex(core.output_shape)]
        for k, core in enumerate(program.cores)
        if "v_mem" in keep[k]
    }
    session = _Session(program, keep, states, chosen, step_us, len(data), dvs is not None)
    moved = network.events(data) if dvs is None else data.reshape(*data.shape[:2], *dvs.input_shape)
    plans = [session.plan(moved[:, sample]) for sample in range(moved.shape[1])]
    with open_device(quantized.target.name, chosen.device) as device:
        fields = monitored(chip_configuration(quantized, placement, program), program, keep)
        with device.power(chosen.power_hz) as power:
            samples = [session.run(device, fields, plan) for plan in plans]
        version = device.version
    found: list[Mapping[str, NDArray[Any]]] = [
        {name: np.stack([sample[k][name] for sample in samples], axis=1) for name in keep[k]}
        for k in range(len(program.cores))
    ]
    return trajectory(
        quantized,
        network,
        program,
        found,
        record=record,
        nodes=nodes,
        batched=batched,
        outputs=output_shapes(quantized, program),
        executor="chip",
        producer=f"nirdeploy {__version__} (samna {version})",
        counters={"chip": {**session.counters, **power}},
        v_mem_steps=range(len(data) - 1, len(data)),
    )


def _step_us(options: ChipOptions, quantized: Quantized) -> int:
    found = options.step_us or whole_microseconds(quantized.convention.dt)
    if found is None:
        problem = f"a step takes whole microseconds on the chip, and the convention's dt is {quantized.convention.dt}"
        raise UnsupportedError(problem, remedy="Pass step_us=.")
    return found


def _require_clock(program: ChipProgram, options: ChipOptions) -> None:
    """Refuse biases without a word on the clock that alone adds them (DS 3.2.6)."""
    for core in program.cores:
        if core.bias is not None and np.any(core.bias) and options.leak_clock_hz is None:
            raise UnsupportedError(
                "has a bias, which the chip adds once a cycle of its slow clock, and not at all without one",
                node=core.layer,
                remedy="Pass leak_clock_hz= (10 to 10000 are usual), or leak_clock_hz=0 to run without the clock.",
            )


def monitored(fields: Mapping[str, Any], program: ChipProgram, keep: list[tuple[str, ...]]) -> dict[str, Any]:
    """The configuration with a monitor on the cores whose spikes are wanted, by number of the core, and no other.

    Positions in a model and numbers of cores are easily confused (sinabs issues 129 and 151).
    """
    cores = {str(core.number): "spikes" in wanted for core, wanted in zip(program.cores, keep, strict=True)}
    layers = {number: {**values, "monitor_enable": cores[number]} for number, values in fields["cnn_layers"].items()}
    found = {**fields, "cnn_layers": layers}
    if "dvs_layer" not in found:
        found["dvs_layer"] = {"pass_sensor_events": False}  # as sinabs: else the sensor's own events come in
    return found


def address(core: ChipCore, channel: int, y: int, x: int, *, rule: str = "agreed") -> int:
    """Number of a neuron's word in its core: y, then x, then the channel in the lowest bits (sinabs io.py).

    How many bits x takes is not documented. sinabs gives it those of the height, and then neurons share words where
    the map is wider than high.

    Raises:
        UnsupportedError: with 'agreed', where the two rules differ; with any rule, where neurons would share a word
            or a number takes more than 18 bits.
    """
    channels, height, width = core.output_shape
    feature = channel * core.spread
    c_bits = log2_ceil(core.features)
    y_bits, x_bits = log2_ceil(height), log2_ceil(width)
    by = {"sinabs": y_bits, "width": x_bits, "agreed": x_bits}[rule]
    if rule == "agreed" and height > 1 and x_bits != y_bits:
        raise UnsupportedError(
            f"the numbering of neurons in a map of {height}x{width} is not documented, so v_mem cannot be read",
            node=core.layer,
            remedy="Pass record=('spikes',), or state_address='width' or 'sinabs' once you have tried it.",
        )
    if (by < x_bits and height > 1) or c_bits + by + y_bits > _ADDRESS_BITS:
        raise UnsupportedError(
            f"state_address={rule!r} gives neurons of a map of {channels}x{height}x{width} no words of their own",
            node=core.layer,
            remedy="Pass record=('spikes',), or another state_address=.",
        )
    return y << (c_bits + by) | x << c_bits | feature


@dataclass(frozen=True)
class _Plan:
    """One sample's input: events in order, [event] time in us from step 0 on, and their addresses."""

    time_us: NDArray[np.int64]
    index: tuple[NDArray[Any], ...]
    lead_us: int


class _Session:
    """What all samples of a run have in common; counts what happens."""

    def __init__(
        self,
        program: ChipProgram,
        keep: list[tuple[str, ...]],
        states: Mapping[int, list[int]],
        options: ChipOptions,
        step_us: int,
        n_steps: int,
        through_dvs: bool,
    ) -> None:
        self.program, self.keep, self.states, self.options = program, keep, states, options
        self.step_us, self.n_steps, self.through_dvs = step_us, n_steps, through_dvs
        self.counters = {"input_events": 0, "spikes": 0, "late_spikes": 0, "other_events": 0}

    def plan(self, raster: NDArray[Any]) -> _Plan:
        """The events of one sample [step, channel, y, x].

        Raises:
            RasterError: timestamps do not reach so far.
        """
        events = raster_to_events(raster, step_us=self.step_us, order="sinabs")
        copies = 1 if self.through_dvs else max(1, len(self.program.entry))
        lead = self.options.lead_us or _LEAD_US + _LEAD_PER_EVENT * copies * len(events)
        last = lead + self.step_us * self.n_steps
        if last > _LAST_US:
            raise RasterError(
                f"{self.n_steps} steps of {self.step_us} us end at {last} us, timestamps at {_LAST_US} us",
                remedy="Use a shorter raster or step_us.",
            )
        return _Plan(events.time_us, events.index, lead)

    def run(self, device: Device, fields: Mapping[str, Any], plan: _Plan) -> list[dict[str, NDArray[Any]]]:
        """One sample, from states at 0: for each core what is wanted, [step, channel, y, x]."""
        device.configure(fields)
        if self.options.leak_clock_hz is not None:
            device.slow_clock(None)  # another program may have left it running
        for core in self.program.cores:
            device.write_zeros(core.number, 1 << sum(log2_ceil(n) for n in (core.features, *core.output_shape[1:])))
        events = self._events(device, plan)
        self.counters["input_events"] += len(events)
        came = device.play(
            events,
            first_us=plan.lead_us,
            last_us=plan.lead_us + self.step_us * self.n_steps,
            clock=self.options.leak_clock_hz or None,
            limit=self.options.timeout,
        )
        found = self._spikes(device, came, plan)
        for k, addresses in self.states.items():
            core = self.program.cores[k]
            values = device.read_states(core.number, addresses, limit=self.options.timeout)
            found[k]["v_mem"] = np.array(values, np.int32).reshape(1, *core.output_shape)
        return found

    def _events(self, device: Device, plan: _Plan) -> list[Any]:
        found = []
        rows = zip(plan.time_us.tolist(), *(axis.tolist() for axis in plan.index), strict=True)
        for time_us, channel, y, x in rows:
            at = time_us + plan.lead_us
            if self.through_dvs:
                found.append(device.dvs_event(channel, y, x, at))
                continue
            for to in self.program.entry:
                core = self.program.cores[to.core].number
                found.append(device.spike(core, channel + to.feature_shift, y // to.pooling, x // to.pooling, at))
        return found

    def _spikes(self, device: Device, came: list[Any], plan: _Plan) -> list[dict[str, NDArray[Any]]]:
        """Counts [step, channel, y, x] of every monitored core."""
        found: list[dict[str, NDArray[Any]]] = []
        at: dict[int, int] = {}
        for k, (core, wanted) in enumerate(zip(self.program.cores, self.keep, strict=True)):
            found.append({})
            if "spikes" in wanted:
                at[core.number] = k
                found[k]["spikes"] = np.zeros((self.n_steps, *core.output_shape), np.int32)
        for event in came:
            if not device.is_spike(event):
                self.counters["other_events"] += 1
                continue
            if event.layer not in at:
                raise VendorError(f"core {event.layer} sent a spike, monitored are {sorted(at)}")
            core = self.program.cores[at[event.layer]]
            channel, beside = divmod(int(event.feature), core.spread)
            step = (int(event.timestamp) - plan.lead_us) // self.step_us
            place = (channel, int(event.y), int(event.x))
            if beside or any(not 0 <= n < size for n, size in zip(place, core.output_shape, strict=True)):
                problem = f"core {event.layer} sent a spike of feature {event.feature}, y {event.y}, x {event.x}"
                raise VendorError(f"{problem}; its neurons are {core.output_shape}", node=core.layer)
            if step < 0:
                problem = f"core {event.layer} sent a spike at {event.timestamp} us, before the first input"
                raise VendorError(f"{problem} at {plan.lead_us} us", node=core.layer)
            self.counters["late_spikes"] += step >= self.n_steps
            self.counters["spikes"] += 1
            found[at[event.layer]]["spikes"][(min(step, self.n_steps - 1), *place)] += 1
        return found
