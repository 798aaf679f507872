"""The samna runner against a strict double of samna (`samna_double`); nothing here has seen silicon."""

import copy
import dataclasses
import sys
import types

import nir
import numpy as np
import pytest
import samna_double
from nets import chain, conv_net, conv_node, flatten_node, if_node, linear_node, pool_node, raster
from nirdeploy_speck.config import chip_configuration
from nirdeploy_speck.cores import chip_program
from nirdeploy_speck.samna_fields import set_fields
from nirdeploy_speck.samna_runner import address

import nirdeploy as nd
from nirdeploy.environments import samna_state
from nirdeploy.errors import RasterError, UnavailableError, UnsupportedError, VendorError

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
# without negative weights, and with every weight below the threshold, events give the counts of frames
SUBTRACT = nd.Convention(if_gain="r", reset="subtract", spikes_per_step="many", crossing="inclusive", v_min=-4.0)


def positive_net(seed=0):
    """Two convolutions and a matrix, no weight negative and none above the threshold."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.uniform(0.0, 0.9, shape)

    return chain(
        (2, 8, 8),
        conv1=conv_node(draw(4, 2, 3, 3), (8, 8), padding=1),
        if1=if_node((4, 8, 8)),
        pool=pool_node(nir.SumPool2d, 2),
        conv2=conv_node(draw(5, 4, 3, 3) / 3, (4, 4)),
        if2=if_node((5, 2, 2)),
        flatten=flatten_node((5, 2, 2)),
        fc=linear_node(draw(3, 20) / 2),
        if3=if_node((3,)),
    )


@pytest.fixture
def net():
    return nd.deploy(positive_net(), "speck2f", convention=SUBTRACT, quantizer="max")


DATA = raster((2, 8, 8), 6, 2, rate=0.05, binary=False)


# ---------------------------------------------------------------- a run


def test_spikes_and_final_states_come_back_from_every_core(world, net):
    assert samna_state() == "real"
    found, expected = net.run(DATA, on="chip", step_us=1000), net.run(DATA)
    for name in ("if1", "if2", "if3"):
        assert np.array_equal(found[name, "spikes"].data, expected[name, "spikes"].data)
        last = found[name, "v_mem"]
        assert last.steps == range(5, 6)
        assert np.array_equal(last.data, expected[name, "v_mem"].data[-1:])
        assert (last.scale, last.threshold) == (expected[name, "v_mem"].scale, expected[name, "v_mem"].threshold)
    assert np.array_equal(found["output", "output"].data, expected["output", "output"].data)
    assert expected["if3", "spikes"].data.sum() > 10
    assert (found.executor, found.target) == ("chip", "speck2f")
    assert "samna 0.0-double" in found.producer
    counters = found.counters["chip"]
    assert counters["input_events"] == DATA.sum()
    assert counters["spikes"] == sum(expected[n, "spikes"].data.sum() for n in ("if1", "if2", "if3"))
    assert counters["late_spikes"] == counters["other_events"] == world.chip.late == 0


def test_the_calls_have_sinabss_order_and_everything_is_closed(world, net):
    net.run(DATA[:, 0], on="chip", step_us=1000, power_hz=50)
    assert [entry[0] for entry in world.log] == [
        "open_device",
        "graph.start",
        "graph.start",
        "graph.start",
        "power.start",
        "apply_configuration",
        "stop_watch.reset",
        "stop_watch.start",
        "stop_watch.stop",
        "power.stop",
        "graph.stop",
        "graph.stop",
        "graph.stop",
        "close_device",
    ]
    assert ("graph.start", "Source", "chip in") in world.log
    assert ("graph.start", "chip out", "Sink") in world.log


def test_power_is_the_mean_of_each_rail(world, net):
    counters = net.run(DATA[:, 0], on="chip", step_us=1000, power_hz=50).counters["chip"]
    rails = ("io", "ram", "logic", "pixel_digital", "pixel_analog")
    assert [counters[f"power_{rail}_uw"] for rail in rails] == pytest.approx([1005, 2005, 3005, 4005, 5005], abs=1)


def test_only_cores_that_are_asked_for_are_monitored_by_core_number(world):
    net = nd.deploy(positive_net(), "speck2f", convention=SUBTRACT, quantizer="max", cores={"conv1": 6, "conv2": 2})
    found = net.run(DATA[:, 0], on="chip", step_us=1000, record="spikes", nodes="if2")
    layers = world.chip.configuration.cnn_layers
    numbers = {name: net.placement.cores[name][0] for name in ("if1", "if2", "if3")}
    assert numbers["if1"] == 6
    assert numbers["if2"] == 2
    # the Output reads if3, so its spikes are needed, too
    assert [n for n, layer in enumerate(layers) if layer.monitor_enable] == sorted([numbers["if2"], numbers["if3"]])
    assert set(found.records) == {("if2", "spikes"), ("output", "output")}
    assert np.array_equal(found["if2", "spikes"].data, net.run(DATA[:, 0])["if2", "spikes"].data)


def test_the_sensors_own_events_are_kept_out(world, net):
    net.run(DATA[:, 0], on="chip", step_us=1000, record="spikes")
    assert world.chip.configuration.dvs_layer.pass_sensor_events is False


def test_states_are_at_zero_before_every_sample_although_a_configuration_leaves_them_random(world, net):
    same = np.repeat(DATA[:, :1], 3, axis=1)
    found = net.run(same, on="chip", step_us=1000)
    for name in ("if1", "if2", "if3"):
        for variable in ("spikes", "v_mem"):
            data = found[name, variable].data
            assert np.array_equal(data[:, 0], data[:, 1])
            assert np.array_equal(data[:, 0], data[:, 2])


def test_a_step_lasts_what_the_convention_says(world):
    convention = dataclasses.replace(SUBTRACT, dt=5e-4)
    net = nd.deploy(positive_net(), "speck2f", convention=convention, quantizer="max")
    assert np.array_equal(net.run(DATA, on="chip")["if3", "spikes"].data, net.run(DATA)["if3", "spikes"].data)
    silent = nd.deploy(positive_net(), "speck2f", convention=SUBTRACT, quantizer="max")
    with pytest.raises(UnsupportedError, match=r"whole microseconds .* dt is None. Pass step_us="):
        silent.run(DATA, on="chip")


def test_spikes_after_the_last_step_count_there_and_are_told(world, net):
    data = DATA[:, 0]
    found = net.run(data, on="chip", step_us=2, record="spikes")  # the double stamps spikes 3 us later
    expected = net.run(data)
    for name in ("if1", "if2", "if3"):
        spikes, frames = found[name, "spikes"].data, expected[name, "spikes"].data
        assert not spikes[0].any()
        assert np.array_equal(spikes[1:-1], frames[:-2])
        assert np.array_equal(spikes[-1], frames[-2] + frames[-1])
    late = sum(int(expected[name, "spikes"].data[-1].sum()) for name in ("if1", "if2", "if3"))
    assert found.counters["chip"]["late_spikes"] == late > 0


def test_one_input_for_two_cores_is_sent_to_both(world):
    rng = np.random.default_rng(1)
    nodes = chain((2,), a=linear_node(rng.uniform(0, 0.9, (3, 2))), n=if_node((3,))).nodes
    nodes = {**nodes, "b": linear_node(rng.uniform(0, 0.9, (2, 2))), "m": if_node((2,))}
    nodes["more"] = nir.Output({"output": np.array([2])})
    edges = [("input", "a"), ("a", "n"), ("n", "output"), ("input", "b"), ("b", "m"), ("m", "more")]
    net = nd.deploy(nd.graph.make_graph(nodes, edges), "speck2f", convention=SUBTRACT, quantizer="max")
    data = raster((2,), 8, 1, binary=False)
    found, expected = net.run(data, on="chip", step_us=1000), net.run(data)
    for name in ("n", "m"):
        assert np.array_equal(found[name, "spikes"].data, expected[name, "spikes"].data)
        assert np.array_equal(found[name, "v_mem"].data, expected[name, "v_mem"].data[-1:])
    assert found.counters["chip"]["input_events"] == 2 * data.sum()


def test_another_chip_has_its_own_names(world):
    world.boards = [samna_double.Info("Speck2eTestBoard", 2), samna_double.Info("Speck2eDevKit", 9)]
    net = nd.deploy(positive_net(), "speck2e", convention=SUBTRACT, quantizer="max")
    net.run(DATA[:, 0], on="chip", step_us=1000, device="Speck2eTestBoard")
    assert world.log[0] == ("open_device", "Speck2eTestBoard", 2)


def test_of_several_boards_the_numbered_one_is_opened(world, net):
    world.boards = [samna_double.Info("Speck2fDevKit", 7), samna_double.Info("Speck2fDevKit", 3)]
    net.run(DATA[:, 0], on="chip", step_us=1000, device="Speck2fDevKit:1")
    assert world.log[0] == ("open_device", "Speck2fDevKit", 7)


# ---------------------------------------------------------------- the slow clock


def biased():
    conv = conv_node(np.full((1, 1, 1, 1), 0.5), (2, 2), bias=[0.25])
    graph = chain((1, 2, 2), conv=conv, n=if_node((1, 2, 2), 8.0))
    return nd.deploy(graph, "speck2f", convention=SUBTRACT, quantizer="max")


def test_biases_need_a_word_on_the_slow_clock(world):
    with pytest.raises(UnsupportedError, match=r"'n': has a bias, .*slow clock.*leak_clock_hz=0"):
        biased().run(np.zeros((4, 1, 2, 2), int), on="chip", step_us=10000)


def test_the_slow_clock_runs_from_the_first_step_to_the_last(world):
    net = biased()
    found = net.run(np.zeros((40, 1, 2, 2), int), on="chip", step_us=10000, leak_clock_hz=100)
    assert np.all(found["n", "v_mem"].data == 40 * net.quantized["conv"].bias[0])
    _, (_, on, begin), (_, off, end) = [entry for entry in world.log if entry[0] == "set_slow_clk"]
    assert (on, off) == (True, False)
    assert end - begin == pytest.approx(0.4, abs=1e-6)


def test_without_the_slow_clock_biases_do_nothing(world):
    found = biased().run(np.zeros((4, 1, 2, 2), int), on="chip", step_us=10000, leak_clock_hz=0)
    assert not found["n", "v_mem"].data.any()
    assert [entry[1] for entry in world.log if entry[0] == "set_slow_clk"] == [False]


# ---------------------------------------------------------------- what goes wrong


def test_events_that_are_written_too_late_are_refused(world, net):
    world.prepare = lambda chip: setattr(chip, "write_s", 0.01)
    with pytest.raises(
        VendorError, match=r"writing \d+ events took .* played them late and in a burst. Pass a longer lead_us"
    ):
        net.run(DATA, on="chip", step_us=1000, record="spikes")
    assert world.log[-1] == ("close_device",)
    found = net.run(DATA[:, 0], on="chip", step_us=1000, record="spikes", lead_us=5_000_000)
    assert world.chip.late == 0
    assert np.array_equal(found["if3", "spikes"].data, net.run(DATA[:, 0])["if3", "spikes"].data)


def test_a_chip_that_does_not_fall_silent_is_refused(world, net, monkeypatch):
    def read(chip, real=samna_double.Chip.read):
        chip.send_spike(net.placement.cores["if3"][0], 0, 0, 0, 2**31, chip.clock.now)
        return real(chip)

    monkeypatch.setattr(samna_double.Chip, "read", read)
    with pytest.raises(VendorError, match="events still come 2 s after the last input"):
        net.run(DATA[:, 0], on="chip", step_us=1000, record="spikes", timeout=2)


def stray(world, **values):
    def prepare(chip):
        spike = chip.event.Spike()
        for name, value in values.items():
            setattr(spike, name, value)
        chip.noise = [spike]

    world.prepare = prepare


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer": 8}, r"core 8 sent a spike, monitored are \[2, 3, 4\]"),
        ({"layer": 3, "feature": 900, "timestamp": 10**6}, r"feature 900, y 0, x 0; its neurons are"),
        ({"layer": 2, "timestamp": 5}, r"'if1': core 2 sent a spike at 5 us, before the first input at \d+ us"),
    ],
)
def test_spikes_that_cannot_be_are_refused(world, net, values, words):
    stray(world, **values)
    with pytest.raises(VendorError, match=words):
        net.run(DATA[:, 0], on="chip", step_us=1000, record="spikes")


def test_neurons_that_do_not_answer_are_told(world, net):
    world.prepare = lambda chip: setattr(chip, "readable", False)
    with pytest.raises(VendorError, match=r"core 2: 256 of 256 neurons did not tell their state"):
        net.run(DATA[:, 0], on="chip", step_us=1000, timeout=3)


def test_what_samna_raises_becomes_an_error_of_ours(world, net, monkeypatch):
    def broken(*_):
        raise RuntimeError("USB gone")

    monkeypatch.setattr(samna_double.Model, "apply_configuration", broken)
    with pytest.raises(VendorError, match="samna failed: USB gone"):
        net.run(DATA[:, 0], on="chip", step_us=1000)
    assert world.log[-1] == ("close_device",)


def test_a_configuration_that_samna_refuses_is_an_error(world, net, monkeypatch):
    monkeypatch.setattr(samna_double, "validate_configuration", lambda configuration: (False, "too large"))
    with pytest.raises(VendorError, match="samna refuses the configuration: too large"):
        net.run(DATA[:, 0], on="chip", step_us=1000)


@pytest.mark.parametrize(
    ("boards", "options", "words"),
    [
        ([], {}, r"no device 'Speck2fDevKit or Speck2fModuleDevKit' is connected \(there: none\)"),
        (["Davis 346"], {}, r"there: Davis 346"),
        (["Speck2fDevKit"], {"device": "Speck2fDevKit:1"}, r"no device 'Speck2fDevKit:1' is connected"),
        (["Speck2fDevKit"], {"device": "Speck2fDevKit:x"}, r"no device 'Speck2fDevKit:x' is connected"),
        (["Speck2eDevKit"], {"device": "Speck2eDevKit"}, r"'Speck2eDevKit' does not carry this chip.*Speck2fDevKit"),
    ],
)
def test_a_missing_board_is_unavailable(world, net, boards, options, words):
    world.boards = [samna_double.Info(name, n) for n, name in enumerate(boards)]
    with pytest.raises(UnavailableError, match=words):
        net.run(DATA[:, 0], on="chip", step_us=1000, **options)


def test_a_board_that_does_not_open_is_unavailable(world, net):
    world.opens = False
    with pytest.raises(UnavailableError, match="cannot open it. Is another program using it"):
        net.run(DATA[:, 0], on="chip", step_us=1000)


def test_a_target_without_names_in_samna_is_unavailable(world):
    small = chain((2,), fc=linear_node(np.eye(2)), n=if_node((2,)))
    net = nd.deploy(small, "dynapcnn", convention=SUBTRACT, quantizer="max")
    with pytest.raises(UnavailableError, match="names for 'dynapcnn' are not known here. .*speck2e, speck2f"):
        net.run(np.zeros((2, 2), int), on="chip", step_us=1000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "step"}, "no mode 'step': it works event by event"),
        ({"speed": 3}, r"no option 'speed' \(given 3\)"),
        ({"step_us": 0}, "step_us is 0, expected whole microseconds"),
        ({"step_us": 1.5}, "step_us is 1.5"),
        ({"lead_us": True}, "lead_us is True"),
        ({"power_hz": 200}, "power_hz is 200, expected Hz, at most 100"),
        ({"timeout": 0}, "timeout is 0, expected seconds"),
        ({"leak_clock_hz": -1}, "leak_clock_hz is -1"),
        ({"state_address": "x"}, "state_address is 'x', expected one of"),
        ({"device": 3}, "device is 3, expected text"),
        ({"record": "i_syn"}, "'i_syn' does not exist"),
        ({"nodes": "if9"}, "no population 'if9'"),
    ],
)
def test_options_are_checked_before_anything_is_opened(world, net, options, words):
    with pytest.raises(UnsupportedError, match=words):
        net.run(DATA, on="chip", **{"step_us": 1000, **options})
    assert not world.log
    assert "samna" not in sys.modules


def test_a_run_longer_than_timestamps_is_refused(world, net):
    with pytest.raises(RasterError, match=r"6 steps of 1000000000 us end at 6\d+ us, timestamps at 4294967295"):
        net.run(DATA, on="chip", step_us=10**9)


# ---------------------------------------------------------------- samna itself


def test_a_missing_samna_is_unavailable_and_nothing_is_installed(net, monkeypatch):
    monkeypatch.setattr("nirdeploy_speck.samna_device.samna_state", lambda: "missing")
    with pytest.raises(UnavailableError, match="samna, which is not installed. .*on='emulator'"):
        net.run(DATA, on="chip", step_us=1000)


def test_the_installer_of_pypi_is_recognised_and_not_imported(net, monkeypatch, tmp_path):
    (tmp_path / "samna").mkdir()
    (tmp_path / "samna" / "__init__.py").write_text("PYPI_SAMNA = True\nraise SystemExit('pip would run now')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert samna_state() == "installer"
    with pytest.raises(UnavailableError, match="the installer of PyPI, which runs pip when imported"):
        net.run(DATA, on="chip", step_us=1000)
    assert "samna" not in sys.modules


def test_a_samna_that_does_not_import_says_why(net, monkeypatch, tmp_path):
    (tmp_path / "samna").mkdir()
    (tmp_path / "samna" / "__init__.py").write_text("import nosuchlibrary\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnavailableError, match="samna cannot be imported: No module named 'nosuchlibrary'"):
        net.run(DATA, on="chip", step_us=1000)


# ---------------------------------------------------------------- fields


@pytest.fixture
def fields(net):
    return chip_configuration(net.quantized, net.placement)


def test_every_field_of_the_configuration_is_set(fields):
    target = samna_double.CONFIGURATION()
    set_fields(target, fields)
    core, values = next(iter(fields["cnn_layers"].items()))
    found = target.cnn_layers[int(core)]
    assert found.dimensions.input_shape.size.x == values["dimensions"]["input_shape"]["size"]["x"]
    assert found.weights == values["weights"]
    assert found.destinations[0].layer == values["destinations"][0]["layer"]
    assert found.destinations[0].enable is True
    assert found.threshold_high == values["threshold_high"]
    assert samna_double.validate_configuration(target) == (True, "")
    assert target.cnn_layers[8].dimensions.kernel_size == 0


def changed(fields, change):
    found = copy.deepcopy(fields)
    change(found["cnn_layers"][next(iter(found["cnn_layers"]))], found)
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda core, _: core.update(threshold_hihg=3),
            r"CnnLayerConfig has no 'configuration.cnn_layers\[2\].threshold_hihg'. Did you mean 'threshold_high'",
        ),
        (
            lambda core, _: core["dimensions"]["stride"].update(z=1),
            r"no 'configuration.cnn_layers\[2\].dimensions.stride.z'",
        ),
        (lambda core, _: core.update(threshold_high=40000), r"refuses 40000 for .*threshold_high'"),
        (lambda core, _: core.update(leak_enable=1), r"refuses 1 for .*leak_enable'"),
        (lambda core, _: core.update(threshold_low=np.int64(-3)), r"for .*threshold_low'"),
        (lambda core, _: core["destinations"].append({"enable": False}), r"has 2 elements, 3 are to be set"),
        (lambda _, every: every["cnn_layers"].update({"9": {}}), r"cnn_layers' has 9 elements, there is no 9"),
        (lambda _, every: every.update(cnn_layer={}), r"no 'configuration.cnn_layer'. Did you mean 'cnn_layers'"),
    ],
)
def test_a_field_that_samna_does_not_have_or_take_is_refused(fields, change, words):
    with pytest.raises(VendorError, match=words):
        set_fields(samna_double.CONFIGURATION(), changed(fields, change))


def test_none_leaves_samnas_default(fields):
    target = samna_double.CONFIGURATION()
    set_fields(target, {**fields, "dvs_layer": {"pass_sensor_events": None, "on_channel": None}})
    assert target.dvs_layer.pass_sensor_events is True


def test_objects_that_are_copies_are_noticed():
    class Copies:
        @property
        def size(self):
            return types.SimpleNamespace(x=0, y=0)

    with pytest.raises(VendorError, match=r"samna did not keep configuration.size.x"):
        set_fields(Copies(), {"size": {"x": 3}})


def test_texts_become_members_of_the_attributes_enumeration():
    import enum

    kind = enum.Enum("Mode", ["Low", "High"])
    target = types.SimpleNamespace(mode=kind.Low)
    set_fields(target, {"mode": "High"})
    assert target.mode is kind.High
    with pytest.raises(VendorError, match=r"'configuration.mode' has no value 'Hihg'. Did you mean 'High'"):
        set_fields(target, {"mode": "Hihg"})


# ---------------------------------------------------------------- addresses


def core_of(shape):
    (core,) = chip_program(*_placed(shape)).cores
    return core


def _placed(shape):
    graph = chain((1, *shape[1:]), conv=conv_node(np.ones((shape[0], 1, 1, 1)), None), n=if_node(shape))
    net = nd.deploy(graph, "speck2f", convention=SUBTRACT, quantizer="max")
    return net.quantized, net.placement


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 7), (1, 1, 1), (2, 1, 6), (5, 6, 5)])
def test_addresses_are_sinabss_where_it_gives_each_neuron_its_own(shape):
    core = core_of(shape)
    found = {address(core, *at) for at in np.ndindex(shape)}
    assert len(found) == np.prod(shape)
    channels, height, _ = shape
    c_bits, y_bits = (int(np.ceil(np.log2(n))) for n in (channels, height))
    if height > 1:
        assert address(core, *(n - 1 for n in shape)) == (
            shape[1] - 1 << c_bits + y_bits | shape[2] - 1 << c_bits | shape[0] - 1
        )


def test_addresses_are_refused_where_they_are_not_certain():
    wide, high = core_of((4, 8, 32)), core_of((4, 32, 8))
    for core in (wide, high):
        with pytest.raises(
            UnsupportedError, match=r"'n': the numbering of neurons .* is not documented.*state_address"
        ):
            address(core, 0, 0, 0)
        assert len({address(core, *at, rule="width") for at in np.ndindex(core.output_shape)}) == 1024
    assert len({address(high, *at, rule="sinabs") for at in np.ndindex(high.output_shape)}) == 1024
    with pytest.raises(UnsupportedError, match=r"state_address='sinabs' gives neurons of a map of 4x8x32 no words"):
        address(wide, 0, 0, 0, rule="sinabs")


def test_a_map_whose_numbering_is_uncertain_still_runs_for_its_spikes(world):
    rng = np.random.default_rng(0)
    graph = chain((1, 4, 16), conv=conv_node(rng.uniform(0, 0.9, (2, 1, 3, 3)), (4, 16)), n=if_node((2, 2, 14)))
    net = nd.deploy(graph, "speck2f", convention=SUBTRACT, quantizer="max")
    data = raster((1, 4, 16), 4, 1, rate=0.1)
    with pytest.raises(UnsupportedError, match="numbering of neurons in a map of 2x14"):
        net.run(data, on="chip", step_us=1000)
    assert not world.log
    found = net.run(data, on="chip", step_us=1000, record="spikes")
    assert np.array_equal(found["n", "spikes"].data, net.run(data)["n", "spikes"].data)
    states = net.run(data, on="chip", step_us=1000, state_address="width")["n", "v_mem"].data
    assert np.array_equal(states, net.run(data)["n", "v_mem"].data[-1:])


def test_the_double_itself_is_strict():
    target = samna_double.CONFIGURATION()
    with pytest.raises(AttributeError, match="no attribute 'layers'"):
        target.layers = []
    with pytest.raises(TypeError, match="cannot be assigned"):
        target.cnn_layers = []
    with pytest.raises(AttributeError):
        samna_double.Model(None, []).set_slow_clk(True)
    assert not hasattr(types.SimpleNamespace(**samna_double.names(samna_double.World())), "log")


def test_a_signed_net_runs_too(world):
    net = nd.deploy(conv_net(), "speck2f", convention=PLAIN, quantizer="max")
    found = net.run(raster((1, 6, 6)), on="chip", step_us=1000)
    assert found["if1", "spikes"].data.sum() > 0
    assert found["if1", "v_mem"].data.min() >= net.quantized["if1"].v_min
