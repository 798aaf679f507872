"""A Speck behind samna: the one module that imports it, and only the real one, when a device is opened.

The order of calls is that of sinabs 3.1.3 (dynapcnn_network.py `to` and `hw_forward`); where its users met trouble
(sinabs issues 144, 148, 165, 259) this differs and says so. Nothing here has been run on silicon: the tests use a
double of samna.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nirdeploy.environments import samna_state
from nirdeploy.errors import NirdeployError, UnavailableError, VendorError
from nirdeploy_speck.samna_fields import set_fields

__all__ = ["CHIPS", "Chip", "Device", "open_device", "require_runner"]

_SETTLE = 1.0  # seconds a configuration takes to be written (sinabs dynapcnn_network.py)
_POLL, _QUIET = 0.1, 3  # seconds between reads of events; reads in a row that bring nothing at the end
_RAILS = ("io", "ram", "logic", "pixel_digital", "pixel_analog")  # channels of the power monitor, DS 3.2.6.4
_AT_ONCE = 4096  # neuron reads under way at once


@dataclass(frozen=True)
class Chip:
    """samna's names of one chip (sinabs io.py, chips/speck2e.py, chips/speck2f.py).

    Attributes:
        module: of samna.
        devices: `device_type_name` of the boards that carry it.
        source: class of the node that events are written to.
        sink: class of the node that events are read from.
    """

    module: str
    devices: tuple[str, ...]
    source: str
    sink: str


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "speck2e": Chip(
            "speck2e",
            ("Speck2eDevKit", "Speck2eTestBoard"),
            "BasicSourceNode_speck2e_event_speck2e_input_event",
            "BasicSinkNode_speck2e_event_output_event",
        ),
        "speck2f": Chip(
            "speck2f",
            ("Speck2fDevKit", "Speck2fModuleDevKit"),
            "BasicSourceNode_speck2f_event_input_event",
            "BasicSinkNode_speck2f_event_output_event",
        ),
    }
)


def require_runner(target: str) -> Chip:
    """samna's names of a target, where it can be run; samna is looked for and not imported.

    Raises:
        UnavailableError: no names are known, samna is missing, or what is there is the installer of PyPI.
    """
    if target not in CHIPS:
        raise UnavailableError(
            f"samna's names for {target!r} are not known here", remedy=f"Targets with a runner: {', '.join(CHIPS)}."
        )
    state = samna_state()
    if state == "installer":
        raise UnavailableError(
            "running on a chip needs samna; what is installed is the installer of PyPI, which runs pip when imported",
            remedy="Run `python -c 'import samna'` yourself to let it install the real one.",
        )
    if state != "real":
        raise UnavailableError(
            "running on a chip needs samna, which is not installed",
            remedy="Install samna as SynSense describes, or use on='emulator' or on='simulator'.",
        )
    return CHIPS[target]


def _import_samna() -> Any:
    try:
        return importlib.import_module("samna")
    except ImportError as error:
        raise UnavailableError(f"samna cannot be imported: {error}", remedy="Install it again.") from error


class Device:
    """An open device with its nodes; use `open_device`.

    Args:
        samna: the module.
        chip: its names.
        handle: what samna's `open_device` gave.
        source: node that events are written to.
        sink: node that events are read from.
    """

    def __init__(self, samna: Any, chip: Chip, handle: Any, source: Any, sink: Any) -> None:
        self._samna, self._handle, self._source, self._sink = samna, handle, source, sink
        self._module = getattr(samna, chip.module)

    @property
    def version(self) -> str:
        """samna's version, 'unknown' where it has none."""
        return str(getattr(self._samna, "__version__", "unknown"))

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Give the chip a configuration: samna's default with `fields`, checked by samna.

        Raises:
            VendorError: samna has no such field, refuses a value, or the configuration as a whole.
        """
        configuration = self._module.configuration.SpeckConfiguration()
        set_fields(configuration, fields)
        valid, why = self._module.validate_configuration(configuration)
        if not valid:
            raise VendorError(f"samna refuses the configuration: {why}")
        self._handle.get_model().apply_configuration(configuration)
        time.sleep(_SETTLE)

    def slow_clock(self, hertz: float | None) -> None:
        """Start the external slow clock, which makes biases act (DS 3.2.6), or stop it with None."""
        io = self._handle.get_io_module()
        if hertz is None:
            io.set_slow_clk(False)
            return
        io.set_slow_clk(True)
        io.set_slow_clk_rate(hertz)

    # ------------------------------------------------------------ events

    def spike(self, core: int, feature: int, y: int, x: int, time_us: int) -> Any:
        """An input event for a core."""
        return self._event("Spike", layer=core, feature=feature, y=y, x=x, timestamp=time_us)

    def dvs_event(self, polarity: int, y: int, x: int, time_us: int) -> Any:
        """An event as if the sensor had sent it."""
        return self._event("DvsEvent", p=bool(polarity), y=y, x=x, timestamp=time_us)

    def play(
        self, events: Sequence[Any], *, first_us: int, last_us: int, clock: float | None, limit: float
    ) -> list[Any]:
        """Send timestamped events and give everything that comes back until nothing does.

        What is written after its time would be played in a burst (sinabs issue 144), so the first event must lie
        `first_us` after the start of the stopwatch, and writing must not take longer. Reading goes on after the last
        event until several reads bring nothing (issue 165).

        Args:
            events: samna's events, in order.
            first_us: the time of step 0; the slow clock starts then.
            last_us: the end of the last step; the slow clock stops then.
            clock: rate of the slow clock in Hz, None for none.
            limit: seconds after the last step in which the chip must fall silent.

        Raises:
            VendorError: events were written too late, or the chip does not fall silent.
        """
        self._sink.get_events()  # of before
        watch = self._handle.get_stop_watch()
        watch.reset()
        watch.start()
        began = time.monotonic()
        self._source.write(list(events))
        taken = time.monotonic() - began
        if taken * 1e6 >= first_us:
            raise VendorError(
                f"writing {len(events)} events took {taken:.3f} s, the first were due after {first_us / 1e6:.3f} s: "
                "the chip played them late and in a burst",
                remedy="Pass a longer lead_us=.",
            )
        found: list[Any] = []
        self._read_until(began + first_us / 1e6, found)
        if clock is not None:
            self.slow_clock(clock)
        self._read_until(began + last_us / 1e6, found)
        if clock is not None:
            self.slow_clock(None)
        quiet, end = 0, time.monotonic() + limit
        while quiet < _QUIET:
            time.sleep(_POLL)
            new = self._sink.get_events()
            found.extend(new)
            quiet = 0 if new else quiet + 1
            if time.monotonic() > end:
                raise VendorError(
                    f"events still come {limit:g} s after the last input",
                    remedy="Pass a longer timeout=, or look for a loop that keeps itself alive.",
                )
        watch.stop()
        return found

    def _read_until(self, end: float, found: list[Any]) -> None:
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(_POLL, left))
            found.extend(self._sink.get_events())

    def is_spike(self, event: Any) -> bool:
        """Whether an event that came back is a spike."""
        return isinstance(event, self._module.event.Spike)

    # ------------------------------------------------------------ states

    def write_zeros(self, core: int, addresses: int) -> None:
        """Set v of the first `addresses` neuron words of a core to 0.

        Applying a configuration with zero states left random ones (sinabs issue 148), and sinabs's own second part
        of the reset does not run.
        """
        self._source.write(
            [
                self._event("WriteNeuronValue", layer=core, address=address, neuron_state=0)
                for address in range(addresses)
            ]
        )
        time.sleep(_POLL)
        self._sink.get_events()

    def read_states(self, core: int, addresses: Sequence[int], *, limit: float) -> list[int]:
        """v at each address, in their order; a read is one event and the answers are told apart by address.

        These events have no timestamp (sinabs issue 259), so they are written and read here directly.

        Raises:
            VendorError: an address did not answer, or answered twice.
        """
        found: dict[int, int] = {}
        for first in range(0, len(addresses), _AT_ONCE):
            wanted = addresses[first : first + _AT_ONCE]
            self._source.write([self._event("ReadNeuronValue", layer=core, address=address) for address in wanted])
            missing, end = set(wanted), time.monotonic() + limit
            while missing:
                for event in self._sink.get_events():
                    if not isinstance(event, self._module.event.NeuronValue) or event.layer != core:
                        continue
                    if event.address not in missing:
                        raise VendorError(
                            f"core {core} sent a state of address {event.address}, not or not again asked for"
                        )
                    missing.discard(event.address)
                    found[event.address] = int(event.neuron_state)
                if missing and time.monotonic() > end:
                    raise VendorError(
                        f"core {core}: {len(missing)} of {len(addresses)} neurons did not tell their state"
                    )
                if missing:
                    time.sleep(_POLL / 10)
        return [found[address] for address in addresses]

    # ------------------------------------------------------------ power

    @contextmanager
    def power(self, hertz: float | None) -> Iterator[dict[str, int]]:
        """Measure while the block runs; afterwards the mapping holds the mean of each rail in microwatts.

        Readings carry an offset of up to 50 uW a rail (DS 3.2.6.4). With None nothing is measured.
        """
        found: dict[str, int] = {}
        if hertz is None:
            yield found
            return
        monitor = self._handle.get_power_monitor()
        sink = self._samna.BasicSinkNode_unifirm_modules_events_measurement()
        graph = self._samna.graph.EventFilterGraph()
        graph.sequential([monitor.get_source_node(), sink])
        graph.start()
        try:
            sink.get_events()  # of before
            monitor.start_auto_power_measurement(hertz)
            try:
                yield found
            finally:
                monitor.stop_auto_power_measurement()
            readings: dict[int, list[float]] = {}
            for reading in sink.get_events():
                readings.setdefault(int(reading.channel), []).append(float(reading.value))
            for channel, watts in sorted(readings.items()):
                if not 0 <= channel < len(_RAILS):
                    raise VendorError(f"the power monitor has sent channel {channel}, expected 0 to {len(_RAILS) - 1}")
                found[f"power_{_RAILS[channel]}_uw"] = round(1e6 * sum(watts) / len(watts))
        finally:
            graph.stop()

    def _event(self, kind: str, **fields: int | bool) -> Any:
        event = getattr(self._module.event, kind)()
        for name, value in fields.items():
            setattr(event, name, value)
        return event


@contextmanager
def open_device(target: str, name: str | None) -> Iterator[Device]:
    """Open a board that carries the target, connect its events, and close it again.

    Args:
        target: e.g. 'speck2f'.
        name: `device_type_name`, with `:index` where there are several; None: the first that carries the target.

    Raises:
        UnavailableError: no name in samna is known of this target, samna or the board is missing, or it cannot be
            opened.
        VendorError: samna fails while the device is in use.
    """
    chip, samna = require_runner(target), _import_samna()
    with ExitStack() as stack:
        handle = samna.device.open_device(_choose(samna, chip, name))
        if handle is None:
            raise UnavailableError("samna found the device and cannot open it", remedy="Is another program using it?")
        stack.callback(samna.device.close_device, handle)
        source, sink = getattr(samna, chip.source)(), getattr(samna, chip.sink)()
        model = handle.get_model()
        for nodes in ([source, model.get_sink_node()], [model.get_source_node(), sink]):
            graph = samna.graph.EventFilterGraph()
            graph.sequential(nodes)
            graph.start()
            stack.callback(graph.stop)
        try:
            yield Device(samna, chip, handle, source, sink)
        except NirdeployError:
            raise  # some of ours are RuntimeErrors, too
        except RuntimeError as error:
            raise VendorError(f"samna failed: {error}") from error


def _choose(samna: Any, chip: Chip, name: str | None) -> Any:
    """The device asked for; several of one type are numbered by USB address (sinabs io.py get_device_map)."""
    every = sorted(samna.device.get_all_devices(), key=lambda info: (info.device_type_name, info.usb_device_address))
    kind, _, number = (name or "").partition(":")
    wanted = chip.devices if name is None else (kind,)
    index = int(number) if number.isdecimal() else 0
    found = [info for info in every if info.device_type_name in wanted]
    if kind and kind not in chip.devices:
        raise UnavailableError(
            f"device {name!r} does not carry this chip", remedy=f"Boards: {', '.join(chip.devices)}."
        )
    if (number and not number.isdecimal()) or index >= len(found):
        listed = ", ".join(sorted(info.device_type_name for info in every)) or "none"
        shown = name or " or ".join(chip.devices)
        raise UnavailableError(f"no device {shown!r} is connected (there: {listed})", remedy="Plug it in.")
    return found[index]
