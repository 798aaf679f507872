"""What a run takes in and what it leaves behind: rasters of every kind, choices of what to record, files, refusals."""

import io
import json
import subprocess
import sys

import h5py
import nir
import numpy as np
import pytest
import torch
from nets import chain, conv_net, if_node, input_node, lif_node, linear_node, output_node, raster

import nirdeploy as nd
from nirdeploy.errors import ConventionError, FileError, GraphError, RasterError, UnsupportedError
from nirdeploy.events import Events
from nirdeploy.graph import make_graph, make_node
from nirdeploy.reference import executor

IF_R = nd.Convention(if_gain="r", v_min=-1.0)
EVERYTHING = ("spikes", "v_mem", "i_syn", "output")
METHODS = ("dense", "event", "loop")


def pair():
    return chain((2,), n=if_node((2,)))


def cuba_net(v_unit="model"):
    rng = np.random.default_rng(0)
    values = {"tau_syn": 4e-3, "tau_mem": 2e-3, "r": 2.0, "v_leak": 0.0, "v_threshold": 0.5, "w_in": 3.0}
    cuba = make_node(nir.CubaLIF, **{k: np.full(4, v, np.float32) for k, v in values.items()})
    li = nir.LI(np.full(2, 4e-3), np.full(2, 0.5), np.zeros(2))
    graph = chain((3,), w=linear_node(rng.normal(0.2, 1, (4, 3))), c=cuba, u=linear_node(rng.normal(size=(2, 4))), l=li)
    return graph, nd.Convention(dt=1e-3, v_unit=v_unit)


@pytest.fixture(params=[2, 4096])
def most_steps(request, monkeypatch):
    monkeypatch.setattr(executor, "_MOST_STEPS", request.param)
    return request.param


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batched", [True, False])
def test_every_choice_is_a_part_of_recording_everything(method, batched, most_steps, tmp_path):
    data = raster((1, 6, 6), steps=11)
    data = data if batched else data[:, 0]
    whole = nd.run(conv_net(), data, convention=IF_R, record=EVERYTHING, method=method)
    mask = np.zeros((3, 6, 6), bool)
    mask[1, 2:4] = True
    neurons = {"if1": mask, "if3": [3, 0], "pool": np.array([5], np.uint8), "output": [1]}
    for steps in (None, slice(3, 9), slice(-4, None), range(1, 11, 3), slice(None, None, 5), range(10, 11)):
        for nodes in (["if1", "pool", "if3"], "if3" if steps is None else None):
            options = {"record": EVERYTHING, "nodes": nodes, "neurons": neurons, "steps": steps, "method": method}
            memory = nd.run(conv_net(), data, convention=IF_R, **options)
            kept = range(11) if steps is None else range(11)[steps] if isinstance(steps, slice) else steps
            asked = set(whole.nodes) if nodes is None else {nodes} if isinstance(nodes, str) else set(nodes)
            assert set(memory.nodes) == asked | {"output"}
            for key in memory:
                one, all_of_it = memory[key], whole[key]
                wanted = all_of_it.batch_data[list(kept)]
                if key[0] in neurons:
                    chosen = np.asarray(neurons[key[0]])
                    chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
                    wanted = wanted[..., chosen]
                    assert one.neurons.tolist() == chosen.tolist()
                # with 'event', nodes whose weight is recorded sum their inputs in another order
                close = 1e-5 if method == "event" and key[1] != "spikes" else 0
                np.testing.assert_allclose(one.batch_data, wanted, rtol=0, atol=close, err_msg=str(key))
                assert one.steps == (None if steps is None else kept)
            file = nd.run(conv_net(), data, convention=IF_R, output=tmp_path / "t.h5", **options)
            assert {k: file[k] == memory[k] for k in memory} == dict.fromkeys(memory, True)
            assert nd.load_trajectory(tmp_path / "t.h5") == file


@pytest.mark.parametrize("method", METHODS)
def test_spikes_may_be_kept_as_bits(method, most_steps, tmp_path):
    data = raster((1, 6, 6), steps=11)
    options = {"convention": IF_R, "method": method, "steps": range(1, 11, 2), "neurons": {"if1": range(0, 90, 7)}}
    plain = nd.run(conv_net(), data, **options)
    for output in (None, tmp_path / "bits.h5"):
        packed = nd.run(conv_net(), data, packed=True, output=output, **options)
        for key in plain:
            assert (packed[key].packed is not None) == (key[1] == "spikes")
            assert np.array_equal(packed[key].data, plain[key].data)


def test_bits_are_refused_where_a_step_can_have_several_spikes():
    convention = nd.Convention(if_gain="r", overrides={"if2": {"spikes_per_step": "many"}})
    with pytest.raises(RasterError, match=r"'if2': several spikes a step do not fit a bit. Record without packed"):
        nd.run(conv_net(), raster((1, 6, 6)), convention=convention, packed=True)
    nd.run(conv_net(), raster((1, 6, 6)), convention=convention, packed=True, nodes=["if1"])


def test_more_spikes_than_32_bits_count_are_refused():
    convention = nd.Convention(if_gain="r", spikes_per_step="many", reset="subtract")
    graph = chain((1,), w=linear_node([[1000.0]]), n=if_node((1,), 0.25))
    for method in METHODS:
        with pytest.raises(RasterError, match="'n': 6[0-9.e+]* spikes in a step do not fit 32 bits"):
            nd.run(graph, np.full((1, 1), 2**24 - 1), convention=convention, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_v_and_threshold_are_recorded_in_the_unit_of_the_convention(method, most_steps):
    data = raster((3,), rate=0.8)
    graph, convention = cuba_net()
    plain = nd.run(graph, data, convention=convention, record=EVERYTHING, method=method)
    assert plain["c", "spikes"].data.any()
    assert plain["c", "v_mem"].threshold == 0.5
    # w_in dt / tau_syn * r dt / tau_mem, and r dt / tau of the integrator
    for unit, name, divisors in (("gain", "input gain", (0.75, 0.125)), ("threshold", "threshold", (0.5, 1.0))):
        found = nd.run(cuba_net()[0], data, convention=cuba_net(unit)[1], record=EVERYTHING, method=method)
        for node, divisor in zip(("c", "l"), divisors, strict=True):
            np.testing.assert_allclose(found[node, "v_mem"].data * divisor, plain[node, "v_mem"].data, rtol=1e-6)
        assert found["c", "v_mem"].units == name
        assert found["c", "v_mem"].threshold == pytest.approx(0.5 / divisors[0])
        for key in (("c", "spikes"), ("c", "i_syn"), ("l", "output")):
            assert np.array_equal(found[key].data, plain[key].data)
    few = nd.run(graph, data, convention=cuba_net("gain")[1], neurons={"c": [2, 1]}, method=method)
    np.testing.assert_allclose(few["c", "v_mem"].data * 0.75, plain["c", "v_mem"].data[..., [2, 1]], rtol=1e-6)


def test_thresholds_of_neurons_are_those_of_the_neurons_recorded():
    graph = chain((3,), n=if_node((3,)))
    graph.nodes["n"].v_threshold[:] = [1, 2, 4]
    found = nd.run(graph, np.ones((2, 3)), convention=IF_R, neurons={"n": [2, 0]})
    assert found["n", "v_mem"].threshold.tolist() == [4, 1]


@pytest.mark.parametrize("method", METHODS)
def test_integrators_emit_v_and_only_synapses_have_a_current(method):
    graph, convention = cuba_net()
    found = nd.run(graph, raster((3,)), convention=convention, record=EVERYTHING, method=method)
    assert [k for k in found if k[1] == "i_syn"] == [("c", "i_syn")]
    assert ("l", "spikes") not in found
    assert np.array_equal(found["l", "output"].data, found["l", "v_mem"].data)
    assert np.array_equal(found.outputs, found["l", "output"].data)


def test_a_file_is_read_when_asked_and_not_held(tmp_path):
    found = nd.run(conv_net(), raster((1, 6, 6)), convention=IF_R, output=tmp_path / "t.h5")
    assert not isinstance(found["if1", "v_mem"].storage, np.ndarray)
    assert found["if1", "v_mem"].read(2, 4).shape == (2, 3, 3, 6, 6)
    (tmp_path / "t.h5").unlink()
    with pytest.raises(FileError, match=r"t.h5"):
        found["if1", "v_mem"].data  # noqa: B018


def test_a_run_that_fails_leaves_what_it_had_done(tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "_MOST_STEPS", 2)
    with h5py.File(io.BytesIO(), "w") as file:
        data = raster((1, 6, 6), steps=8).astype("f4")
        data[5, 0, 0, 1, 1] = -1
        file["x"] = data
        with pytest.raises(RasterError, match=r"'input': in steps 4 to 5.*the raster holds -1.0 at \(1, 0, 0, 1, 1\)"):
            nd.run(conv_net(), file["x"], convention=IF_R, output=tmp_path / "t.h5")
    found = nd.load_trajectory(tmp_path / "t.h5") if (tmp_path / "t.h5").exists() else None
    assert found is None or not found.complete


# ---------------------------------------------------------------- what goes in


def as_dataset(data, _):
    file = h5py.File(io.BytesIO(), "w")
    return file.create_dataset("x", data=data, chunks=(1, *data.shape[1:]), compression="gzip")


def as_memmap(data, folder):
    found = np.memmap(folder / "x.bin", data.dtype, "w+", shape=data.shape)
    found[...] = data
    found.flush()
    return np.memmap(folder / "x.bin", data.dtype, "r", shape=data.shape)


def read_only(data, _):
    found = data.copy()
    found.setflags(write=False)
    return found


KINDS = {
    "dataset": as_dataset,
    "memmap": as_memmap,
    "fortran memmap": lambda x, f: np.memmap(f / "y", x.dtype, "w+", shape=x.shape, order="F") + x,
    "read-only": read_only,
    "fortran": lambda x, _: np.asfortranarray(x),
    "strided": lambda x, _: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x, _: x[::-1].copy()[::-1],
    "broadcast": lambda x, _: np.broadcast_to(x[..., None], (*x.shape, 1))[..., 0],
    "bool": lambda x, _: x.astype(bool),
    "int8": lambda x, _: x.astype("i1"),
    "uint16": lambda x, _: x.astype("u2"),
    "uint64": lambda x, _: x.astype("u8"),
    "float16": lambda x, _: x.astype("f2"),
    "float32": lambda x, _: x.astype("f4"),
    "big endian": lambda x, _: x.astype(">i4"),
    "long double": lambda x, _: x.astype(np.longdouble),
    "objects": lambda x, _: x.astype(object),
    "list": lambda x, _: x.tolist(),
    "masked nowhere": lambda x, _: np.ma.masked_array(x, mask=False),
    "tensor": lambda x, _: torch.tensor(x),
    "tensor with grad": lambda x, _: torch.tensor(x, dtype=torch.float32, requires_grad=True),
    "bfloat16": lambda x, _: torch.tensor(x, dtype=torch.bfloat16),
    "half": lambda x, _: torch.tensor(x, dtype=torch.float16),
    "bool tensor": lambda x, _: torch.tensor(x).bool(),
    "sparse tensor": lambda x, _: torch.tensor(x).to_sparse(),
    "transposed tensor": lambda x, _: torch.tensor(x).transpose(0, 1).contiguous().transpose(0, 1),
    "dict": lambda x, _: {"input": x},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_rasters_of_every_kind_give_the_same_run(kind, method, tmp_path):
    for batched in (True, False):
        data = raster((1, 6, 6), steps=5)
        data = data if batched else data[:, 0]
        wanted = nd.run(conv_net(), data, convention=IF_R, method="loop")
        given = KINDS[kind](data, tmp_path)
        before = np.array(given, copy=True) if isinstance(given, np.ndarray) else None
        found = nd.run(conv_net(), given, convention=IF_R, method=method)
        for key in wanted:
            assert np.array_equal(found[key].data, wanted[key].data) or key[1] == "v_mem"
            np.testing.assert_allclose(found[key].data, wanted[key].data, atol=1e-5)
        assert before is None or np.array_equal(given, before)


def test_events_are_counted_into_steps_of_dt():
    events = Events([0, 1, 1000, 2500], [0, 0, 0, 0], [1, 1, 2, 3], [0, 0, 5, 2])
    convention = nd.Convention(if_gain="r", dt=1e-3)
    data = np.zeros((3, 1, 6, 6), int)
    data[0, 0, 1, 0], data[1, 0, 2, 5], data[2, 0, 3, 2] = 2, 1, 1
    wanted = nd.run(conv_net(), data, convention=convention)
    assert nd.run(conv_net(), events, convention=convention) == wanted
    for dt in (None, 1e-7, 1.5e-6):
        with pytest.raises(RasterError, match=f"'input': events need steps of whole microseconds.* dt={dt}"):
            nd.run(conv_net(), events, convention=nd.Convention(if_gain="r", dt=dt))


def test_a_plain_module_takes_the_shape_of_events():
    from nirdeploy.reference.neurons import IF

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), IF(convention=nd.Convention(dt=1e-3)))
    events = Events([0, 1500], [0, 0], [1, 2], [2, 2], shape=(1, 5, 5))
    assert nd.run(net, events)["1", "spikes"].data.shape == (2, 2, 3, 3)


LONG = """
import json, resource, sys, h5py, numpy as np
import nirdeploy as nd, nir
from nirdeploy.graph import make_graph
folder, steps = sys.argv[1], int(sys.argv[2])
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def graph():
    full = lambda n, v: np.full(n, v, np.float32)
    nodes = {
        "in": nir.Input({"input": np.array([1000])}),
        "w": nir.Linear(np.full((20, 1000), 0.02, np.float32)),
        "n": nir.IF(full(20, 1), full(20, 1)),
        "out": nir.Output({"output": np.array([20])}),
    }
    return make_graph(nodes, [("in", "w"), ("w", "n"), ("n", "out")])
convention = nd.Convention(if_gain="r")
with h5py.File(folder + "/x.h5", "w") as file:
    x = file.create_dataset("x", (steps, 1000), "f4", chunks=(100, 1000), compression="gzip")
    nd.run(graph(), np.ones((300, 1000), "f4"), convention=convention, method=sys.argv[3])
    x[:100] = 1
    start = peak = resident()
    from nirdeploy.reference import input as inputs
    plain = inputs.Source.signal
    def watched(*a):
        global peak
        peak = max(peak, resident())
        return plain(*a)
    inputs.Source.signal = watched
    found = nd.run(graph(), x, convention=convention, output=folder + "/t.h5", packed=True, method=sys.argv[3])
    print(json.dumps([peak - start, found.n_steps, int(found["n", "spikes"].read(0, 200).sum())]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["dense", "event"])
def test_a_long_run_from_file_to_file_does_not_grow_in_memory(method, tmp_path):
    """100,000 steps of 1000 neurons: 400 MB, nearly all of it silent."""
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path), "100000", method], capture_output=True, text=True, check=True
    )
    grown, steps, spikes = json.loads(done.stdout)
    assert grown < 150 << 20
    assert (steps, spikes) == (100_000, 2000)


# ---------------------------------------------------------------- refusals


def changed(value, dtype="f4"):
    data = np.ones((4, 3, 2), dtype)
    data[2, 1, 0] = value
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(-1), r"the raster holds -1.0 at \(2, 1, 0\): a negative count"),
        (changed(-3, "i8"), r"the raster holds -3 at \(2, 1, 0\): a negative count"),
        (changed(-1)[:, 1], r"holds -1.0 at \(2, 0\)"),
        (changed(np.nan), r"holds nan at \(2, 1, 0\): expected finite counts"),
        (changed(np.inf), r"holds inf at \(2, 1, 0\): expected finite counts"),
        (changed(-np.inf), r"holds -inf at \(2, 1, 0\)"),
        (changed(2**25), r"holds 33554432.0 at \(2, 1, 0\), beyond 16777216, up to which floats count exactly"),
        (changed(2**25, "i8"), r"holds 33554432 at \(2, 1, 0\), beyond 16777216"),
        (changed(2**25, "i8")[:, 1], r"holds 33554432 at \(2, 0\), beyond 16777216"),
        (np.ones((4, 3, 3)), r"has shape \(4, 3, 3\), expected \[step, 2\] or \[step, batch, 2\]"),
        (np.ones((4, 3, 1, 2)), r"has shape \(4, 3, 1, 2\)"),
        (np.ones(4), r"has shape \(4,\)"),
        (np.float64(3), r"has shape \(\)"),
        (np.ones((4, 3, 2), complex), "has dtype complex128, expected counts"),
        (torch.ones(4, 3, 2, dtype=torch.complex64), "has dtype complex64, expected counts"),
        (np.ones((4, 3, 2), str), "has dtype <U1, expected counts"),
        (np.array([[None, 1.0], [1.0, 2.0]]), "has dtype object, expected counts"),
        ([[1, 2], [1]], "is no array of counts"),
        (None, "has dtype object"),
        (np.zeros((4, 3, 2), "M8[s]"), "has dtype datetime64"),
        (np.ones((0, 3, 2)), r"is empty: shape \(0, 3, 2\)"),
        (np.ones((4, 0, 2)), r"is empty: shape \(4, 0, 2\)"),
        (torch.ones(4, 3, 2, device="meta"), "is no array of counts"),
        (np.ma.masked_array(np.ones((4, 3, 2)), mask=changed(0) == 0), "has masked values. Fill them"),
    ],
)
def test_rasters_that_are_no_counts_are_refused_naming_the_input(data, words):
    for method in METHODS:
        with pytest.raises(RasterError, match=f"'input': the raster {words.removeprefix('the raster ')}"):
            nd.run(pair(), data, convention=IF_R, method=method)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(-1), r"in steps 2 to 3, counted from 2: the raster holds -1.0 at \(0, 1, 0\)"),
        (changed(np.nan), r"in steps 2 to 3, counted from 2: the raster holds nan"),
        (changed(2**25), r"in steps 2 to 3, counted from 2: the raster holds 33554432.0"),
        (np.ones((4, 3, 2), "S1"), "dtype |S1"),
        (np.ones((0, 3, 2)), "is empty"),
        (np.ones((4, 3, 3)), r"has shape \(4, 3, 3\)"),
        (np.float64(3), r"has shape \(\)"),
    ],
)
def test_datasets_that_are_no_counts_are_refused_where_they_are(data, words, monkeypatch):
    monkeypatch.setattr(executor, "_MOST_STEPS", 2)
    with h5py.File(io.BytesIO(), "w") as file:
        file["x"] = data
        with pytest.raises(RasterError, match=f"node 'input': .*{words}"):
            nd.run(pair(), file["x"], convention=IF_R)


def test_wider_modules_count_further():
    module = nd.nir_to_torch(pair(), convention=IF_R, dtype=torch.float64)
    assert nd.run(module, changed(2**25 + 1, "i8"), steps=slice(2, 3)).outputs.sum() == 1


def two_inputs():
    nodes = {"x": input_node(2), "y": input_node(3), "w": linear_node(np.ones((2, 3))), "n": if_node((2,))}
    nodes["out"] = output_node(2)
    return make_graph(nodes, [("x", "n"), ("y", "w"), ("w", "n"), ("n", "out")])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.ones((4, 2)), r"one raster for 2 Inputs. Pass a dict with 'x', 'y'"),
        ({"x": np.ones((4, 2))}, r"rasters of \['x'\] given, the graph has the Inputs \['x', 'y'\]"),
        ({"x": 1, "y": 2, "z": 3}, r"rasters of \['x', 'y', 'z'\] given"),
        ({"x": np.ones((4, 2)), "y": np.ones((5, 3))}, "'y': its raster has 5 steps of 1 samples, that of 'x' 4 of 1"),
        ({"x": np.ones((4, 6, 2)), "y": np.ones((4, 5, 3))}, "4 steps of 5 samples, that of 'x' 4 of 6"),
        ({"x": np.ones((4, 1, 2)), "y": np.ones((4, 3))}, "all with a batch axis or none"),
        ({"x": np.ones((4, 2)), "y": np.ones((4, 2))}, r"'y': the raster has shape \(4, 2\), expected \[step, 3\]"),
    ],
)
def test_rasters_of_several_inputs_must_fit_together(data, words):
    with pytest.raises(RasterError, match=words):
        nd.run(two_inputs(), data, convention=IF_R)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "x"}, "method 'x' is not known. Use one of dense, event, loop"),
        ({"nodes": ["m"]}, "no node 'm' to record"),
        ({"nodes": [3]}, "no node 3 to record"),
        ({"nodes": 5}, "nodes is 5, expected names"),
        ({"record": ["v_men"]}, "cannot record 'v_men'. Did you mean 'v_mem'"),
        ({"record": 3}, "record is 3, expected names"),
        ({"neurons": {"n": [0, 5]}}, "'n': neuron 5 to record, there are 2"),
        ({"neurons": {"n": [-1, 0]}}, "'n': neuron -1 to record, there are 2"),
        ({"neurons": {"n": [1, 1]}}, "'n': a neuron to record is named twice"),
        ({"neurons": {"n": [0.5]}}, "'n': neurons to record are not a row of flat indices"),
        ({"neurons": {"n": []}}, "not a row of flat indices"),
        ({"neurons": {"n": [[0, 1]]}}, "not a row of flat indices"),
        ({"neurons": {"n": np.array([False, False])}}, "not a row of flat indices"),
        ({"neurons": {"n": np.array([True])}}, "not a row of flat indices"),
        ({"neurons": {"m": [0]}}, "no node 'm' to record neurons of"),
        ({"neurons": [0]}, "neurons is a list, expected a dict"),
        *(
            ({"steps": steps}, "expected a slice or range that goes up within the run's 4 steps")
            for steps in (
                range(2, 9),
                range(-2, 2),
                range(3, -1, -1),
                slice(3, 1),
                slice(9, 12),
                slice(None, None, -1),
                slice(0, 4, 0),
                slice(1.5, 2),
                slice("a", "b"),
                [0, 1],
                3,
            )
        ),
        ({"state": 3}, "the state is a int, expected a dict"),
        ({"state": {"m": torch.zeros(3, 2)}}, "the state has an entry 'm'"),
        ({"state": {"n": torch.zeros(9, 2)}}, r"'n': state of shape \(9, 2\), expected \(3, 2\)"),
        ({"state": {"n": torch.zeros(3, 1)}}, r"'n': state of shape \(3, 1\)"),
        ({"state": {"n": np.zeros((3, 2))}}, "'n': state of type ndarray, expected a tensor"),
        ({"state": {"n": 0.5}}, "'n': state of type float, expected a tensor"),
        ({"state": {"n": {"v_mem": torch.zeros(3, 2)}}}, r"'n': state of type \['v_mem'\] is not that of a IF"),
    ],
)
def test_options_that_name_nothing_are_refused(options, words):
    for method in METHODS:
        with pytest.raises((RasterError, UnsupportedError, ConventionError), match=words):
            nd.run(pair(), np.ones((4, 3, 2)), convention=IF_R, **{"method": method, **options})


def test_slices_end_with_the_run_as_slices_do():
    found = nd.run(pair(), np.ones((4, 3, 2)), convention=IF_R, steps=slice(2, 9))
    assert found["n", "spikes"].steps == range(2, 4)


def looped():
    nodes = {"in": input_node(2), "d": nir.Delay(np.array([1e-3, 2e-3])), "w": linear_node(np.eye(2) / 2)}
    nodes |= {"c": cuba(), "out": output_node(2)}
    inner = make_graph({"i": input_node(2), "n": lif_node((2,)), "o": output_node(2)}, [("i", "n"), ("n", "o")])
    nodes["sub"] = inner
    edges = [("in", "c"), ("c", "d"), ("d", "w"), ("w", "c"), ("c", "sub"), ("sub", "out")]
    return make_graph(nodes, edges)


def cuba():
    values = {"tau_syn": 2e-3, "tau_mem": 2e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "w_in": 1.0}
    return make_node(nir.CubaLIF, **{k: np.full(2, v, np.float32) for k, v in values.items()})


V = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"c": V}, "'c': state of type Tensor is not that of a CubaLIF"),
        ({"c": {"v_mem": V}}, r"'c': state of type \['v_mem'\] is not that of a CubaLIF"),
        ({"c": {}}, r"'c': state of type \[\] is not that"),
        ({"c": {"v_mem": V, "i_syn": V[:1]}}, r"'c': i_syn of shape \(1, 2\), expected \(3, 2\)"),
        ({"c": {"v_mem": V, "i_syn": None}}, r"'c': i_syn of type NoneType"),
        ({"d": V}, r"'d': state of shape \(3, 2\), expected \(2, 3, 2\)"),
        ({"d": torch.zeros(1, 3, 2)}, r"'d': state of shape \(1, 3, 2\), expected \(2, 3, 2\)"),
        ({"d": torch.zeros(5, 3, 2)}, r"'d': state of shape \(5, 3, 2\)"),
        ({"d": 3}, "'d': state of type int"),
        ({"w->c": torch.zeros(2, 2)}, r"state 'w->c' of shape \(2, 2\), expected \(3, 2\)"),
        ({"w->c": 1.0}, "state 'w->c' of type float, expected a tensor"),
        ({"sub": V}, "'sub': state of type Tensor, expected a dict"),
        ({"sub": {"typo": V}}, r"the state has an entry 'sub.typo'. Did you mean|the state has an entry 'sub.typo'"),
        ({"sub": {"n": V[:2]}}, r"'sub.n': state of shape \(2, 2\)"),
    ],
)
def test_states_of_another_kind_or_batch_are_refused_by_name(state, words):
    for method in METHODS:
        with pytest.raises(ConventionError, match=words):
            nd.run(looped(), np.ones((4, 3, 2)), convention=nd.Convention(dt=1e-3), state=state, method=method)


def test_a_state_of_another_precision_is_converted():
    state = {"d": torch.ones(2, 3, 2, dtype=torch.float64), "w->c": torch.ones(3, 2, dtype=torch.int64), "sub": None}
    options = {"convention": nd.Convention(dt=1e-3), "state": state}
    runs = [nd.run(looped(), np.ones((4, 3, 2)), method=method, **options) for method in METHODS]
    assert runs[0] == runs[1]
    assert np.array_equal(runs[0]["c", "v_mem"].data, runs[2]["c", "v_mem"].data)


def test_parameters_that_are_no_numbers_are_refused_by_name():
    graph = pair()
    graph.nodes["n"].v_threshold[1] = np.nan
    with pytest.raises(GraphError, match="'n'.*v_threshold.*NaN|'n': v_threshold"):
        nd.run(graph, np.ones((4, 2)), convention=IF_R)
    module = nd.nir_to_torch(pair(), convention=IF_R)
    with torch.no_grad():
        module.get(("n",)).r[0] = torch.inf
    with pytest.raises(GraphError, match="'n': r holds NaN or infinity. Train or load it again"):
        nd.run(module, np.ones((4, 2)))


def test_a_missing_dt_is_told_before_the_run():
    with pytest.raises(TypeError, match="'n': LIF with a time constant needs dt"):
        nd.run(chain((2,), n=lif_node((2,))), np.ones((4, 2)), convention=nd.Convention())
    with pytest.raises(TypeError, match="'n': IF whose input gain is r dt needs dt"):
        nd.run(pair(), np.ones((4, 2)), convention=nd.Convention())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    module = nd.nir_to_torch(pair(), convention=IF_R).to(dtype)
    with pytest.raises(UnsupportedError, match=r"a run in torch.b?float16. Use module.float\(\)"):
        nd.run(module, np.ones((4, 2)))


def test_more_spikes_than_the_closed_form_counts_are_refused_by_every_method():
    convention = nd.Convention(dt=1e-3, integrator="exact", gain="decay", spikes_per_step="many", if_gain="r")
    nodes = {"in": input_node(1), "n": if_node((1,)), "w": linear_node([[0.0]]), "out": output_node(1)}
    cyclic = make_graph(nodes, [("in", "n"), ("n", "w"), ("w", "n"), ("n", "out")])
    for graph in (chain((1,), n=if_node((1,))), cyclic):
        for method in METHODS:
            assert nd.run(graph, [[9998]], convention=convention, method=method).outputs.item() == 9998
            with pytest.raises(ConventionError, match="'n': more than 10000 spikes in a step. Use a smaller dt"):
                nd.run(graph, [[10500]], convention=convention, method=method)


FULL = """
import json, resource, sys, numpy as np
import nirdeploy as nd, nir
from nirdeploy.graph import make_graph
from nirdeploy.reference import executor
executor._MOST_STEPS = 50
nodes = {
    "in": nir.Input({"input": np.array([200])}),
    "n": nir.IF(np.ones(200, np.float32), np.full(200, 1e6, np.float32)),
    "out": nir.Output({"output": np.array([200])}),
}
graph = make_graph(nodes, [("in", "n"), ("n", "out")])
convention = nd.Convention(if_gain="r")
nd.run(graph, np.ones((60, 200), np.uint8), convention=convention)  # what is compiled now is kept in a file
resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
try:
    nd.run(graph, np.ones((20000, 200), np.uint8), convention=convention, output=sys.argv[1])
except nd.errors.FileError as error:
    print(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_leaves_a_run_readable_up_to_the_last_step(tmp_path):
    path = tmp_path / "t.h5"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    found = nd.load_trajectory(path)
    assert f"its first {found.n_steps} steps are kept" in done.stdout
    assert (found.complete, found.reason) == (False, "File too large")
    assert 1000 < found.n_steps < 20000
    ramp = np.broadcast_to(np.arange(1, found.n_steps + 1)[:, None], (found.n_steps, 200))
    assert np.array_equal(found["n", "v_mem"].data, ramp)
    assert not found["n", "spikes"].data.any()
