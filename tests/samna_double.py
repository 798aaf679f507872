"""A double of samna: the names, fields and calls that sinabs 3.1.3 and SynSense's reference pages show, and no others.

Whatever is not listed here raises, so that a runner cannot lean on something invented: unknown attributes
(AttributeError), values of another type or range (TypeError, as its bindings do). Lists of numbers come back as copies.
Behind it a chip of the datasheet's rules (sections 3.2.4.4 to 3.2.4.6), one neuron at a time, in the time of a clock
that the tests move on. It has the troubles that sinabs's users met: states are random after a configuration, events
written after their time are late, and what the chip sends arrives later than it happened.

It stands for no silicon: that it and the runner agree says that they were written from the same pages.
"""

from __future__ import annotations

import itertools
import math
import types

import numpy as np

LATENCY_S = 0.15  # between a spike and the host's reading it


class Clock:
    """Time that passes only by sleeping or writing."""

    def __init__(self):
        self.now = 100.0

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds

    def monotonic(self):
        return self.now


# ---------------------------------------------------------------- fields


def whole(low, high):
    def check(value):
        if type(value) is not int or not low <= value <= high:
            raise TypeError(f"expected an integer from {low} to {high}, got {value!r}")
        return value

    return check


def flag(value):
    if type(value) is not bool:
        raise TypeError(f"expected a bool, got {value!r}")
    return value


def numbers(low, high, ndim):
    one = whole(low, high)

    def check(value):
        def walk(part, depth):
            if depth == 0:
                return one(part)
            if not isinstance(part, list | tuple):
                raise TypeError(f"expected {ndim} nested lists")
            return [walk(inner, depth - 1) for inner in part]

        return walk(value, ndim)

    return check


class Fixed:
    """An object with these attributes and no others."""

    FIELDS = types.MappingProxyType({})

    def __init__(self):
        for name, (_, default) in self.FIELDS.items():
            object.__setattr__(self, name, default() if callable(default) else default)

    def __setattr__(self, name, value):
        if name not in self.FIELDS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        check, _ = self.FIELDS[name]
        if isinstance(check, type):
            if not isinstance(value, check):
                raise TypeError(f"expected a {check.__name__}")
        elif check is None:
            raise TypeError("cannot be assigned")
        else:
            value = check(value)
        object.__setattr__(self, name, value)

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if name in type(self).FIELDS and isinstance(value, list) and value and not isinstance(value[0], Fixed):
            return _copy(value)
        return value


def _copy(value):
    return [_copy(part) for part in value] if isinstance(value, list) else value


def fields(name, **values):
    return type(name, (Fixed,), {"FIELDS": values})


def pair(name, check, default):
    return fields(name, x=(check, default), y=(check, default))


BYTE, FLAG = whole(0, 255), (flag, False)
SIZE = pair("Vec2UnsignedChar", BYTE, 0)
ONES = pair("Vec2UnsignedCharOnes", BYTE, 1)
CORNER = pair("Vec2Cut", BYTE, 127)
FLAGS = pair("Vec2Bool", flag, False)
SHAPE = fields("CnnLayerShape", feature_count=(whole(0, 1024), 0), size=(SIZE, SIZE))
DIMENSIONS = fields(
    "CnnLayerDimensions",
    input_shape=(SHAPE, SHAPE),
    output_shape=(SHAPE, SHAPE),
    kernel_size=(whole(0, 16), 0),
    stride=(ONES, ONES),
    padding=(SIZE, SIZE),
)
DESTINATION = fields(
    "CnnLayerDestination",
    enable=FLAG,
    layer=(whole(0, 15), 0),
    pooling=(whole(1, 4), 1),
    feature_shift=(whole(0, 65535), 0),
)
DVS_DESTINATION = fields("DvsLayerDestination", enable=FLAG, layer=(whole(0, 15), 0))
CNN_LAYER = fields(
    "CnnLayerConfig",
    dimensions=(DIMENSIONS, DIMENSIONS),
    weights=(numbers(-128, 127, 4), list),
    biases=(numbers(-32768, 32767, 1), list),
    neurons_initial_value=(numbers(-32768, 32767, 3), list),
    leak_enable=FLAG,
    leak_internal_slow_clk_enable=FLAG,
    threshold_high=(whole(-32768, 32767), 0),
    threshold_low=(whole(-32768, 32767), 0),
    return_to_zero=FLAG,
    monitor_enable=FLAG,
    destinations=(None, lambda: [DESTINATION(), DESTINATION()]),
    input_congestion_balancer_enable=FLAG,
    output_decimator_enable=FLAG,
    output_decimator_interval=(whole(0, 7), 0),
)
DVS_LAYER = fields(
    "DvsLayerConfig",
    merge=FLAG,
    on_channel=(flag, True),
    off_channel=(flag, True),
    pooling=(ONES, ONES),
    origin=(SIZE, SIZE),
    cut=(CORNER, CORNER),
    mirror=(FLAGS, FLAGS),
    mirror_diagonal=FLAG,
    pass_sensor_events=(flag, True),
    monitor_enable=FLAG,
    raw_monitor_enable=FLAG,
    destinations=(None, lambda: [DVS_DESTINATION(), DVS_DESTINATION()]),
)
DVS_FILTER = fields(
    "DvsFilterConfig",
    enable=FLAG,
    filter_size=(SIZE, SIZE),
    threshold=(whole(0, 65535), 0),
    hot_pixel_filter_enable=FLAG,
    low_pass_mode_enable=FLAG,
    internal_slow_clk=FLAG,
)
READOUT = fields(
    "ReadoutConfig",
    enable=FLAG,
    threshold=(whole(0, 65535), 0),
    readout_configuration_sel=(whole(0, 3), 0),
    output_mode_sel=(whole(0, 3), 0),
    low_pass_filter_disable=FLAG,
    low_pass_filter32_not16=FLAG,
    override_threshold_max=FLAG,
    monitor_enable=FLAG,
    readout_pin_monitor_enable=FLAG,
    output_neuron_num=(whole(0, 15), 0),
    internal_slow_clk=FLAG,
)
FACTORY = fields("FactoryConfig", internal_slow_clk_divider=(whole(14, 17), 14), io_sel=(whole(0, 255), 0))
CONFIGURATION = fields(
    "SpeckConfiguration",
    cnn_layers=(None, lambda: [CNN_LAYER() for _ in range(9)]),
    dvs_layer=(DVS_LAYER, DVS_LAYER),
    dvs_filter=(DVS_FILTER, DVS_FILTER),
    readout=(READOUT, READOUT),
    factory_config=(FACTORY, FACTORY),
)

U32 = whole(0, 2**32 - 1)
WHERE = {"feature": (whole(0, 1023), 0), "y": (BYTE, 0), "x": (BYTE, 0), "timestamp": (U32, 0)}
WORD = {"layer": (BYTE, 0), "address": (U32, 0)}


def event_classes():
    state = {"neuron_state": (whole(-32768, 32767), 0)}
    return types.SimpleNamespace(
        Spike=fields("Spike", layer=(BYTE, 0), **WHERE),
        DvsEvent=fields("DvsEvent", p=FLAG, y=(BYTE, 0), x=(BYTE, 0), timestamp=(U32, 0)),
        ReadNeuronValue=fields("ReadNeuronValue", **WORD),
        WriteNeuronValue=fields("WriteNeuronValue", **WORD, **state),
        NeuronValue=fields("NeuronValue", **WORD, **state),
    )


def validate_configuration(configuration):
    """(valid, why not), for what a wrong translation would show."""
    for number, layer in enumerate(configuration.cnn_layers):
        d = layer.dimensions
        if not d.kernel_size:
            continue
        out, into = d.output_shape, d.input_shape
        expected = (out.feature_count, into.feature_count, d.kernel_size, d.kernel_size)
        if np.shape(layer.weights) != expected:
            return False, f"core {number}: weights are {np.shape(layer.weights)}, expected {expected}"
        if len(layer.biases) != out.feature_count:
            return False, f"core {number}: {len(layer.biases)} biases"
        if np.shape(layer.neurons_initial_value) != (out.feature_count, out.size.x, out.size.y):
            return False, f"core {number}: neurons are {np.shape(layer.neurons_initial_value)}"
        for axis in "xy":
            reach = getattr(into.size, axis) + 2 * getattr(d.padding, axis) - d.kernel_size
            if reach // getattr(d.stride, axis) + 1 != getattr(out.size, axis):
                return False, f"core {number}: output size {axis}"
        if layer.threshold_high < 1 or layer.threshold_low > -1:
            return False, f"core {number}: thresholds"
    return True, ""


# ---------------------------------------------------------------- the chip


def bits(count):
    return math.ceil(math.log2(count)) if count > 1 else 0


class Chip:
    """Cores, states and what is on its way to the host."""

    def __init__(self, event, clock, log):
        self.event, self.clock, self.log = event, clock, log
        self.configuration = None
        self.states = {}
        self.pending = []  # (time it can be read, event)
        self.watch = None  # when the stopwatch was started
        self.late = 0
        self.write_s = 0.0  # what writing an event takes
        self.readable = True  # whether neurons answer
        self.noise = []  # events to send with the next
        self.rng = np.random.default_rng(5)

    def configure(self, configuration):
        assert isinstance(configuration, CONFIGURATION)
        self.configuration = configuration
        for number, layer in enumerate(configuration.cnn_layers):
            out = layer.dimensions.output_shape
            shape = (out.feature_count, out.size.y, out.size.x)
            self.states[number] = self.rng.integers(-900, 900, shape)  # sinabs issue 148

    def write(self, events):
        for event in events:
            kind = type(event)
            if kind is self.event.WriteNeuronValue:
                at = self.place(event)
                if at is not None:
                    self.states[event.layer][at] = event.neuron_state
            elif kind is self.event.ReadNeuronValue:
                if self.readable:
                    self.answer(event)
            elif kind in (self.event.Spike, self.event.DvsEvent):
                self.play(event)
            else:
                raise TypeError(f"the chip takes no {kind.__name__}")
        self.clock.now += self.write_s * len(events)

    def place(self, event):
        """Neuron of an address, by the width rule; None for words of no neuron."""
        channels, height, width = self.states[event.layer].shape
        c_bits, x_bits = bits(channels), bits(width)
        at = (
            event.address & (1 << c_bits) - 1,
            event.address >> (c_bits + x_bits),
            event.address >> c_bits & (1 << x_bits) - 1,
        )
        return at if at[0] < channels and at[1] < height and at[2] < width else None

    def answer(self, event):
        found = self.event.NeuronValue()
        found.layer, found.address = event.layer, event.address
        found.neuron_state = int(self.states[event.layer][self.place(event)])
        self.pending.append((self.clock.now + LATENCY_S, found))

    def play(self, event):
        assert self.watch is not None, "the stopwatch does not run"
        when = self.watch + event.timestamp / 1e6
        self.late += when < self.clock.now
        if isinstance(event, self.event.Spike):
            self.deliver(event.layer, event.feature, event.y, event.x, event.timestamp, when)
            return
        dvs = self.configuration.dvs_layer
        y, x = event.y // dvs.pooling.y - dvs.origin.y, event.x // dvs.pooling.x - dvs.origin.x
        for to in dvs.destinations:
            if to.enable:
                self.deliver(to.layer, 0 if dvs.merge else int(event.p), y, x, event.timestamp, when)

    def deliver(self, number, feature, y, x, timestamp, when):
        layer, states = self.configuration.cnn_layers[number], self.states[number]
        d, weights = layer.dimensions, self.weights(number)
        fired = []
        for o, oy, ox in np.ndindex(states.shape):
            ky, kx = y + d.padding.y - oy * d.stride.y, x + d.padding.x - ox * d.stride.x
            if not (0 <= ky < d.kernel_size and 0 <= kx < d.kernel_size):
                continue
            v = int(states[o, oy, ox] + weights[o, feature, kx, ky])
            if v >= layer.threshold_high:
                fired.append((o, oy, ox))
                v = 0 if layer.return_to_zero else v - layer.threshold_high
            states[o, oy, ox] = min(max(v, layer.threshold_low), 32767)
        for o, oy, ox in fired:
            if layer.monitor_enable:
                self.send_spike(number, o, oy, ox, timestamp, when)
            for to in layer.destinations:
                if to.enable and to.layer < 9:
                    self.deliver(to.layer, o + to.feature_shift, oy // to.pooling, ox // to.pooling, timestamp, when)

    def weights(self, number):
        """Kept as an array: lists come back as copies."""
        layer = self.configuration.cnn_layers[number]
        return np.array(object.__getattribute__(layer, "weights"))

    def send_spike(self, number, feature, y, x, timestamp, when):
        spike = self.event.Spike()
        spike.layer, spike.feature, spike.y, spike.x = number, int(feature), int(y), int(x)
        spike.timestamp = timestamp + 3
        self.pending.append((when + LATENCY_S, spike))

    def leak(self, cycles):
        for number, layer in enumerate(self.configuration.cnn_layers):
            if layer.leak_enable:
                self.states[number] += cycles * np.array(layer.biases)[:, None, None]

    def read(self):
        ready = [event for when, event in self.pending if when <= self.clock.now]
        self.pending = [(when, event) for when, event in self.pending if when > self.clock.now]
        more, self.noise = (self.noise, []) if ready else ([], self.noise)
        return [*ready, *more]


# ---------------------------------------------------------------- nodes and device


class Source:
    __slots__ = ("_chip",)

    def __init__(self, chip):
        self._chip = chip

    def write(self, events):
        assert isinstance(events, list)
        self._chip.write(events)


class Sink:
    __slots__ = ("_read",)

    def __init__(self, read):
        self._read = read

    def get_events(self):
        return self._read()


class Node:
    """An end of the device; it only has to be connected."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class Graph:
    __slots__ = ("_log", "_names")

    def __init__(self, log):
        self._log, self._names = log, ()

    def sequential(self, nodes):
        assert isinstance(nodes, list)
        assert len(nodes) == 2
        self._names = tuple(getattr(node, "name", type(node).__name__) for node in nodes)

    def start(self):
        assert self._names, "nothing is connected"
        self._log.append(("graph.start", *self._names))

    def stop(self):
        self._log.append(("graph.stop", *self._names))


class Model:
    __slots__ = ("_chip", "_log")

    def __init__(self, chip, log):
        self._chip, self._log = chip, log

    def apply_configuration(self, configuration):
        self._log.append(("apply_configuration",))
        self._chip.configure(configuration)

    def get_sink_node(self):
        return Node("chip in")

    def get_source_node(self):
        return Node("chip out")


class StopWatch:
    __slots__ = ("_chip", "_log")

    def __init__(self, chip, log):
        self._chip, self._log = chip, log

    def reset(self):
        self._log.append(("stop_watch.reset",))

    def start(self):
        self._log.append(("stop_watch.start",))
        self._chip.watch = self._chip.clock.now

    def stop(self):
        self._log.append(("stop_watch.stop",))
        self._chip.watch = None


class IoModule:
    __slots__ = ("_chip", "_log", "_rate", "_since")

    def __init__(self, chip, log):
        self._chip, self._log, self._since, self._rate = chip, log, None, 0

    def set_slow_clk(self, on):
        flag(on)
        self._log.append(("set_slow_clk", on, self._chip.clock.now))
        if not on and self._since is not None:
            self._chip.leak(round((self._chip.clock.now - self._since) * self._rate))
        self._since = self._chip.clock.now if on else None

    def set_slow_clk_rate(self, hertz):
        assert self._since is not None
        self._rate = hertz


class PowerMonitor:
    __slots__ = ("_clock", "_log", "_rate", "_since")

    def __init__(self, clock, log):
        self._clock, self._log, self._since, self._rate = clock, log, None, 0.0

    def get_source_node(self):
        return Node("power")

    def start_auto_power_measurement(self, hertz):
        assert 0 < hertz <= 100
        self._log.append(("power.start",))
        self._since, self._rate = self._clock.now, hertz

    def stop_auto_power_measurement(self):
        self._log.append(("power.stop",))
        self._rate *= self._clock.now - self._since  # number of readings

    def readings(self):
        if self._since is None:
            return []
        kind = fields("Measurement", channel=(BYTE, 0), value=(float, 0.0))
        found = []
        for channel, n in itertools.product(range(5), range(int(self._rate))):
            reading = kind()
            reading.channel, reading.value = channel, 1e-3 * (channel + 1) + 1e-5 * (n % 2)
            found.append(reading)
        return found


class DeviceHandle:
    __slots__ = ("_io", "_model", "_power", "_watch", "chip")

    def __init__(self, chip, log):
        self.chip, self._model, self._watch = chip, Model(chip, log), StopWatch(chip, log)
        self._io, self._power = IoModule(chip, log), PowerMonitor(chip.clock, log)

    def get_model(self):
        return self._model

    def get_stop_watch(self):
        return self._watch

    def get_io_module(self):
        return self._io

    def get_power_monitor(self):
        return self._power


class Info:
    __slots__ = ("device_type_name", "usb_device_address")

    def __init__(self, name, number):
        self.device_type_name, self.usb_device_address = name, number


class World:
    """What a test can look at and change: the clock, the log of calls, the boards, the one that is open."""

    def __init__(self):
        self.clock, self.log = Clock(), []
        self.boards = [Info("Speck2fDevKit", 4), Info("Davis 346", 1)]
        self.opens = True
        self.handle = None
        self.chip = None
        self.prepare = lambda chip: None


WORLD = World()


def names(world):
    """The attributes of the module `samna`."""
    chips = {}
    for name in ("speck2e", "speck2f"):
        configuration = types.SimpleNamespace(SpeckConfiguration=CONFIGURATION)
        chips[name] = types.SimpleNamespace(
            configuration=configuration, event=event_classes(), validate_configuration=validate_configuration
        )

    def open_device(info):
        world.log.append(("open_device", info.device_type_name, info.usb_device_address))
        if not world.opens:
            return None
        kind = "speck2e" if info.device_type_name.startswith("Speck2e") else "speck2f"
        world.chip = Chip(chips[kind].event, world.clock, world.log)
        world.prepare(world.chip)
        world.handle = DeviceHandle(world.chip, world.log)
        return world.handle

    def close_device(handle):
        assert handle is world.handle
        world.log.append(("close_device",))

    def source():
        return Source(world.chip)

    def sink():
        return Sink(world.chip.read)

    return {
        "__version__": "0.0-double",
        **chips,
        "device": types.SimpleNamespace(
            get_all_devices=lambda: list(world.boards), open_device=open_device, close_device=close_device
        ),
        "graph": types.SimpleNamespace(EventFilterGraph=lambda: Graph(world.log)),
        "BasicSourceNode_speck2e_event_speck2e_input_event": source,
        "BasicSinkNode_speck2e_event_output_event": sink,
        "BasicSourceNode_speck2f_event_input_event": source,
        "BasicSinkNode_speck2f_event_output_event": sink,
        "BasicSinkNode_unifirm_modules_events_measurement": lambda: Sink(
            lambda: world.handle.get_power_monitor().readings()
        ),
    }
