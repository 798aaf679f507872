"""Kernels in vectors, at sizes where vectors, words and blocks begin and end; held against the step loop."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nir
import numba
import numpy as np
import pytest
import torch
from graphs import HAS_V_RESET
from numba.core.errors import TypingError

import nirdeploy as nd
from nirdeploy.errors import RasterError
from nirdeploy.graph import make_graph
from nirdeploy.nodes import make_node
from nirdeploy.reference import event_kernels, executor, lanes
from nirdeploy.reference.memory import address, aligned

SIZES = (1, 15, 16, 17, 63, 64, 65, 130, 257)


def full(size, **values):
    return {name: np.full(size, value, np.float32) for name, value in values.items()}


def quarters(rng, *shape):
    """Weights whose sums are exact in any order."""
    return (rng.integers(-4, 5, shape) / 4).astype(np.float32)


def network(layers, inputs):
    """Input -> (name, node, name of a matrix back and it, or None)... -> Output."""
    nodes = {"input": make_node(nir.Input, input_type={"input": np.array([inputs])})}
    edges, last = [], "input"
    for name, node, back in layers:
        nodes[name] = node
        edges.append((last, name))
        if back is not None:
            nodes[f"{name}_back"] = back
            edges += [(name, f"{name}_back"), (f"{name}_back", name)]
        last = name
    size = int(np.size(nodes[last].v_threshold)) if hasattr(nodes[last], "v_threshold") else int(np.size(nodes[last].r))
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array([size])})
    return make_graph(nodes, [*edges, (last, "output")])


def same(module, raster, method="dense", **options):
    record = ("spikes", "v_mem", "i_syn", "output")
    wanted = nd.run(module, raster, record=record, method="loop", **options)
    found = nd.run(module, raster, record=record, method=method, **options)
    assert set(found.records) == set(wanted.records)
    for key, record in wanted.records.items():
        np.testing.assert_array_equal(found[key].data, record.data, err_msg=str(key))
    assert any(record.data.any() for key, record in wanted.records.items() if key[1] == "spikes")


def cuba(size, kind=nir.CubaLIF):
    values = {"tau_syn": 2.0, "tau_mem": 4.0, "r": 4.0, "w_in": 2.0, "v_leak": 0.0}
    if kind is nir.CubaLIF:
        values |= {"v_threshold": 1.0, "v_reset": 0.0}
    return make_node(kind, **full(size, **values))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reset", ["zero", "subtract", "v_reset"])
@pytest.mark.parametrize("crossing", ["strict", "inclusive"])
def test_populations_of_any_size(size, reset, crossing):
    rng = np.random.default_rng(size)
    values = full(size, tau=2.0, r=1.0, v_leak=0.25, v_reset=-0.25 if HAS_V_RESET else 0.0)
    values["v_threshold"] = rng.choice(np.array([0.5, 1.0], np.float32), size)
    graph = network([("lif", make_node(nir.LIF, **values), None)], size)
    convention = nd.convention("nir", dt=1.0, reset=reset, crossing=crossing, v_min=-1.0)
    module = nd.nir_to_torch(graph, convention=convention)
    same(module, rng.poisson(1.0, (9, 3, size)))


BAD = {"nan": np.nan, "infinity": np.inf, "negative": -1.0, "tiny": -1e-45, "many": 2.0**24 + 2}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("size", SIZES)
def test_a_scan_that_checks_its_input_names_what_is_wrong(size, value, monkeypatch):
    values = full(size, tau=2.0, r=1.0, v_leak=0.0, v_threshold=1.0, **({"v_reset": 0.0} if HAS_V_RESET else {}))
    graph = network([("lif", make_node(nir.LIF, **values), None)], size)
    module = nd.nir_to_torch(graph, convention=nd.convention("nir", dt=1.0, reset="zero"))
    raster = np.random.default_rng(0).exponential(1.0, (7, 2, size)).astype(np.float32)
    raster[1, 0, 0] = -0.0  # below no number
    sound = nd.run(module, raster)
    for length in (4096, 3):  # all steps at once, and in chunks
        monkeypatch.setattr(executor, "_MOST_STEPS", length)
        np.testing.assert_array_equal(nd.run(module, raster).outputs, sound.outputs)
        for place in {(0, 0, 0), (6, 1, size - 1), (3, 1, size // 2)}:
            bad = raster.copy()
            bad[place] = value
            messages = []
            for method in ("dense", "event", "loop"):
                with pytest.raises(RasterError, match=r"node 'input': the raster holds") as error:
                    nd.run(module, bad, method=method)
                messages.append(str(error.value))
            assert len(set(messages)) == 1
            assert f"the raster holds {bad[place]} at {place}" in messages[0]


def test_a_refused_run_writes_no_file(tmp_path):
    values = full(3, tau=2.0, r=1.0, v_leak=0.0, v_threshold=1.0, **({"v_reset": 0.0} if HAS_V_RESET else {}))
    graph = network([("lif", make_node(nir.LIF, **values), None)], 3)
    raster = np.ones((5, 1, 3), np.float32)
    raster[4, 0, 2] = np.nan
    with pytest.raises(RasterError, match=r"node 'input': the raster holds nan at \(4, 0, 2\)"):
        nd.run(graph, raster, convention=nd.convention("nir", dt=1.0, reset="zero"), output=tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


def test_two_populations_on_one_input_check_it_once_and_both_run():
    values = full(20, tau=2.0, r=1.0, v_leak=0.0, v_threshold=1.0, **({"v_reset": 0.0} if HAS_V_RESET else {}))
    graph = network([("lif", make_node(nir.LIF, **values), None)], 20)
    nodes = {**graph.nodes, "other": make_node(nir.LIF, **{**values, "tau": values["tau"] * 2})}
    graph = make_graph(nodes, [*graph.edges, ("input", "other"), ("other", "output")])
    module = nd.nir_to_torch(graph, convention=nd.convention("nir", dt=1.0, reset="zero"))
    raster = np.random.default_rng(0).exponential(1.0, (7, 2, 20)).astype(np.float32)
    same(module, raster)
    raster[3, 1, 17] = -2
    with pytest.raises(RasterError, match=r"node 'input': the raster holds -2.0 at \(3, 1, 17\)"):
        nd.run(module, raster)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inputs", [1, 5, 70])
def test_recurrent_layers_of_any_size(size, inputs):
    rng = np.random.default_rng(size)
    layers = [
        ("w1", make_node(nir.Affine, weight=quarters(rng, size, inputs), bias=quarters(rng, size)), None),
        ("n1", cuba(size), make_node(nir.Affine, weight=quarters(rng, size, size), bias=quarters(rng, size))),
        ("w2", make_node(nir.Linear, weight=quarters(rng, 20, size)), None),
        ("n2", cuba(20), make_node(nir.Linear, weight=quarters(rng, 20, 20))),
    ]
    graph = network(layers, inputs)
    module = nd.nir_to_torch(graph, convention=nd.convention("nir", dt=1.0, reset="subtract"))
    raster = rng.poisson(0.7, (12, 4, inputs))
    same(module, raster)
    half = nd.run(module, raster[:5])
    rest = nd.run(module, raster[5:], state=half.state)
    whole = nd.run(module, raster)
    np.testing.assert_array_equal(np.concatenate([half.outputs, rest.outputs]), whole.outputs)


def test_an_integrator_ends_a_stack_of_layers():
    rng = np.random.default_rng(0)
    layers = [
        ("w1", make_node(nir.Linear, weight=quarters(rng, 18, 6)), None),
        ("n1", cuba(18), make_node(nir.Linear, weight=quarters(rng, 18, 18))),
        ("w2", make_node(nir.Linear, weight=quarters(rng, 3, 18)), None),
        ("li", make_node(nir.LI, **full(3, tau=4.0, r=1.0, v_leak=0.0)), None),
    ]
    module = nd.nir_to_torch(network(layers, 6), convention=nd.convention("nir", dt=1.0, reset="zero"))
    same(module, rng.poisson(0.8, (12, 4, 6)))


@pytest.mark.parametrize("size", [*SIZES, event_kernels.BLOCK, 3 * event_kernels.BLOCK + 7])
@pytest.mark.parametrize("most", [1, 3])
def test_matrices_driven_by_events_of_any_size(size, most):
    rng = np.random.default_rng(size)
    layers = [
        ("w", make_node(nir.Affine, weight=quarters(rng, size, 40), bias=np.abs(quarters(rng, size)) + 0.25), None),
        ("n", cuba(size), None),
    ]
    module = nd.nir_to_torch(network(layers, 40), convention=nd.convention("nir", dt=1.0, reset="subtract"))
    raster = (rng.random((15, 5, 40)) < 0.1) * rng.integers(1, most + 1, (15, 5, 40))
    same(module, raster, method="event")


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17, 70])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_driven_by_events_of_any_width(channels, stride):
    rng = np.random.default_rng(channels)
    weight = quarters(rng, channels, 2, 3, 3)
    size = {1: 9, 2: 5}[stride]
    nodes = {
        "input": make_node(nir.Input, input_type={"input": np.array([2, 9, 9])}),
        "conv": make_node(
            nir.Conv2d, input_shape=(9, 9), weight=weight, stride=(stride, stride), padding=(1, 1), dilation=(1, 1),
            groups=1, bias=np.abs(quarters(rng, channels)) + 0.25,
        ),
        "n": make_node(nir.IF, **full((channels, size, size), r=1.0, v_threshold=1.0, v_reset=0.0)),
        "output": make_node(nir.Output, output_type={"output": np.array([channels, size, size])}),
    }  # fmt: skip
    graph = make_graph(nodes, [("input", "conv"), ("conv", "n"), ("n", "output")])
    module = nd.nir_to_torch(graph, convention=nd.convention("nir", dt=1.0, reset="zero", if_gain="r"))
    same(module, (rng.random((8, 3, 2, 9, 9)) < 0.05).astype(np.uint8) * 2, method="event")


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("kind", [nir.SumPool2d, nir.AvgPool2d])
def test_pools_add_up_in_the_order_of_torch(window, kind):
    rng = np.random.default_rng(1)
    size = (7 // window[0], 11 // window[1])
    pair = np.array(window)
    nodes = {
        "input": make_node(nir.Input, input_type={"input": np.array([2, 7, 11])}),
        "scale": make_node(nir.Scale, scale=rng.standard_normal((2, 7, 11)).astype(np.float32)),
        "pool": make_node(kind, kernel_size=pair, stride=pair, padding=np.array([0, 0])),
        "n": make_node(nir.IF, **full((2, *size), r=1.0, v_threshold=1.0, v_reset=0.0)),
        "output": make_node(nir.Output, output_type={"output": np.array([2, *size])}),
    }
    edges = [("input", "scale"), ("scale", "pool"), ("pool", "n"), ("n", "output")]
    module = nd.nir_to_torch(
        make_graph(nodes, edges), convention=nd.convention("nir", dt=1.0, reset="zero", if_gain="r")
    )
    same(module, rng.poisson(1.0, (6, 5, 2, 7, 11)))


def test_large_records_are_written_past_the_cache():
    size, steps = 4096, 600  # 9.4 MB of v
    graph = network(
        [("lif", make_node(nir.LIF, **full(size, tau=2.0, r=1.0, v_leak=0.0, v_threshold=1.0, v_reset=0.0)), None)],
        size,
    )
    module = nd.nir_to_torch(graph, convention=nd.convention("nir", dt=1.0, reset="subtract"))
    same(module, np.random.default_rng(0).poisson(0.8, (steps, 1, size)).astype(np.uint8))


# ---------------------------------------------------------------- what kernels are made of


@numba.njit
def _copy_some(source, target, left):
    lanes.store_some(lanes.pointer(target), 0, left, lanes.load_some(lanes.pointer(source), 0, left, 16))


@pytest.mark.parametrize("left", range(17))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_end_of_a_row_is_neither_read_nor_written_beyond(left, dtype):
    source, target = np.arange(1, 17, dtype=dtype), np.full(16, -1, dtype)
    _copy_some(source, target, left)
    np.testing.assert_array_equal(target, [*range(1, left + 1), *[-1] * (16 - left)])


@numba.njit
def _past(source, target):
    lanes.store_past(lanes.pointer(target), 0, lanes.load(lanes.pointer(source), 0, 16))


def test_writing_past_the_cache_arrives():
    source, target = np.arange(16, dtype=np.float32), aligned((16,), np.float32)
    _past(source, target)
    np.testing.assert_array_equal(target, source)
    assert address(target) % 64 == 0


@numba.njit
def _bits(bits, otherwise):
    return lanes.first_set(bits, otherwise), lanes.count_set(bits)


@pytest.mark.parametrize(("bits", "first", "count"), [(0, 99, 0), (1, 0, 1), (0b101000, 3, 2), (1 << 63, 63, 1)])
def test_bits_of_a_word(bits, first, count):
    assert _bits(np.uint64(bits), 99) == (first, count)


@numba.njit
def _begin(array):
    return lanes.get(lanes.pointer(array), 0)


def test_only_contiguous_arrays_have_a_pointer():
    assert _begin(np.arange(3.0)) == 0.0
    with pytest.raises(TypingError, match="pointer to an array of layout 'A', expected a contiguous one"):
        _begin(np.arange(6.0)[::2])


def test_a_kernel_on_disk_is_that_of_all_files_it_is_made_of(tmp_path):
    """In a copy of the package: a change of lanes.py alone changes what a kernel does."""
    package = tmp_path / "nirdeploy"
    shutil.copytree(Path(nd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import numpy as np; from nirdeploy.reference import pool_kernels as k; x = np.ones((1, 2, 2), np.float32);"
        "out = np.zeros((1, 1, 1), np.float32); k.pool(x, 2, 2, np.float32(1), out, 0, 1); print(out[0, 0, 0])"
    )

    def run():
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-B", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run() == "4.0"
    assert list((package / "reference" / "__pycache__").glob("pool_kernels.pool-*.nbc"))
    lanes_file = package / "reference" / "lanes.py"
    text = lanes_file.read_text(encoding="utf-8")
    changed = text.replace("return builder.load(builder.gep(", "return builder.fneg(builder.load(builder.gep(")
    changed = changed.replace("[arguments[1]]))\n\n    return base.dtype", "[arguments[1]])))\n\n    return base.dtype")
    assert changed != text
    lanes_file.write_text(changed, encoding="utf-8")
    assert run() == "-4.0"


# ---------------------------------------------------------------- parameters that change


def square():
    rng = np.random.default_rng(3)
    layers = [("w", make_node(nir.Linear, weight=quarters(rng, 8, 8)), None), ("n", cuba(8), None)]
    return nd.nir_to_torch(network(layers, 8), convention=nd.convention("nir", dt=1.0, reset="zero"))


@pytest.mark.parametrize("method", ["dense", "event"])
@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "data", p.data.T),  # the same memory, read the other way
        lambda p: p.data.mul_(2),
        lambda p: setattr(p, "data", p.data.clone()[:, [1, 0, *range(2, 8)]]),
        lambda p: p.data.__setitem__((7, 7), p.data[7, 7] + 1),
    ],
    ids=["transposed", "scaled", "replaced", "one number"],
)
def test_a_changed_parameter_is_noticed(change, method):
    module, raster = square(), np.random.default_rng(0).poisson(0.3, (10, 2, 8))
    before = nd.run(module, raster, method=method)
    change(dict(module.named_parameters())["w.weight"])
    after = nd.run(module, raster, method=method)
    wanted = nd.run(module, raster, method="loop")
    np.testing.assert_array_equal(after["n", "v_mem"].data, wanted["n", "v_mem"].data)
    assert not np.array_equal(before["n", "v_mem"].data, after["n", "v_mem"].data)


def test_parameters_that_are_not_contiguous_are_read_anew_each_time():
    module, raster = square(), np.random.default_rng(0).poisson(0.3, (10, 2, 8))
    weight = dict(module.named_parameters())["w.weight"]
    weight.data = torch.as_strided(weight.data.clone(), (8, 8), (1, 8))
    first = nd.run(module, raster)
    weight.data[3, 5] += 1
    second = nd.run(module, raster)
    np.testing.assert_array_equal(second["n", "v_mem"].data, nd.run(module, raster, method="loop")["n", "v_mem"].data)
    assert not np.array_equal(first["n", "v_mem"].data, second["n", "v_mem"].data)


@pytest.mark.parametrize("convention", [{"reset": "zero"}, {"reset": "subtract", "spikes_per_step": "many"}])
@pytest.mark.parametrize("method", ["dense", "event"])
def test_a_run_leaves_nothing_to_the_garbage_collector(convention, method):
    rng = np.random.default_rng(0)
    weight = make_node(nir.Linear, weight=quarters(rng, 18, 6))
    layers = [("w1", weight, None), ("n1", cuba(18), make_node(nir.Linear, weight=quarters(rng, 18, 18)))]
    module = nd.nir_to_torch(network(layers, 6), convention=nd.convention("nir", dt=1.0, **convention))
    raster = rng.poisson(0.8, (12, 4, 6))
    nd.run(module, raster, method=method)
    gc.collect()
    gc.disable()
    try:
        nd.run(module, raster, method=method)
        assert gc.collect() == 0
    finally:
        gc.enable()
