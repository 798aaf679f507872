"""sinabs's exporter and importer, live: files of the one are read, files for the other written; what survives.

Runs in sinabs's environment. `python tests/frameworks/live_sinabs_files.py`, with `tests` on the path, writes the table
of it, tests/golden/trips_sinabs.json.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
from pathlib import Path

import nir
import numpy as np
import pytest
import sinabs.layers as sl
import torch
from frameworks.nets_sinabs import check_drawn, fill, networks, reset, step_first
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sinabs import activation
from sinabs.nir import from_nir, to_nir
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.graph import make_graph, make_node

GOLDEN = Path(__file__).parents[1] / "golden" / "trips_sinabs.json"
STEPS, BATCH = 14, 2
FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def raster_of(*shape, seed=0):
    counts = np.random.default_rng(seed).choice(3, (STEPS, BATCH, *shape), p=(0.5, 0.3, 0.2))
    return torch.tensor(counts, dtype=torch.float32)


def squeezed(raster):
    return raster.transpose(0, 1).flatten(0, 1)


def dense(*layers, seed=1):
    """Layers of 4 neurons behind a Linear of 5 inputs, then 3 neurons that sinabs's files hold."""
    last = sl.IAFSqueeze(batch_size=BATCH, min_v_mem=-1.0)
    network = nn.Sequential(nn.Linear(5, 4), *layers, nn.Linear(4, 3), last)
    return fill(network, np.random.default_rng(seed)).eval()


def low(network):
    """The network with v below minus the threshold."""
    network[0].bias.data -= 0.75
    return network


def maps(*layers, flat, seed=1):
    """Layers on maps of 2 x 6 x 6, then a Linear and 3 neurons."""
    conv = (nn.Conv2d(1, 2, 3, padding=1), sl.IAFSqueeze(batch_size=BATCH, min_v_mem=-1.0))
    last = sl.IAFSqueeze(batch_size=BATCH, min_v_mem=-1.0)
    network = nn.Sequential(*conv, *layers, nn.Flatten(), nn.Linear(flat, 3), last)
    return fill(network, np.random.default_rng(seed)).eval()


def own(network, raster):
    """What the network itself puts out, [step, batch, ...]."""
    reset(network)
    with torch.no_grad():
        out = network(squeezed(raster))
    reset(network)
    return step_first(out, raster)


def exported(network, raster, folder):
    """The file that sinabs and nir write, read again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = to_nir(network, squeezed(raster))
    reset(network)
    try:
        nir.write(folder / "theirs.nir", graph)
    except TypeError:  # of convolutions, whose input_shape the exporter leaves open
        nd.write(folder / "theirs.nir", graph)
    return nd.read(folder / "theirs.nir", exported_by="sinabs")


def imported(graph, raster, folder, convention=None):
    """What sinabs makes of the file that we write for it, [step, batch, ...]."""
    nd.write(folder / "ours.nir", graph, convention, for_library="sinabs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = from_nir(nir.read(folder / "ours.nir"), batch_size=raster.shape[1])
    with torch.no_grad():
        out, _ = network(squeezed(raster))
    return step_first(out, raster)


def same(ours, theirs):
    return ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())


# ---------------------------------------------------------------- what survives

EACH = {"tau_mem": torch.tensor([3.0, 5.0, 9.0, 17.0]), "spike_threshold": torch.tensor([0.5, 1.0, 1.0, 0.7])}
B = {"batch_size": BATCH}


def recurrent(kind, **options):
    return sl.UnflattenTime(BATCH), kind(rec_connect=nn.Linear(4, 4), **options), sl.FlattenTime()


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.left, self.b, self.right = nn.Linear(5, 4), sl.IAFSqueeze(**B), nn.Linear(5, 4), sl.IAFSqueeze(**B)
        self.merge, self.c, self.out = sl.Merge(), nn.Linear(4, 3), sl.IAFSqueeze(**B, min_v_mem=-1.0)

    def forward(self, x):
        return self.out(self.c(self.merge(self.left(self.a(x)), self.right(self.b(x)))))


class Added(Merged):
    def forward(self, x):
        return self.out(self.c(self.left(self.a(x)) + self.right(self.b(x))))


CASES = [
    ("IAF", "defaults (no min_v_mem)", lambda: low(dense(sl.IAFSqueeze(**B)))),
    ("IAF", "min_v_mem = -threshold", lambda: dense(sl.IAFSqueeze(**B, spike_threshold=1.5, min_v_mem=-1.5))),
    ("IAF", "min_v_mem of another size", lambda: dense(sl.IAFSqueeze(**B, min_v_mem=-0.25))),
    ("IAF", "spike_fn=SingleSpike", lambda: dense(sl.IAFSqueeze(**B, min_v_mem=-1.0, spike_fn=activation.SingleSpike))),
    ("IAF", "reset_fn=MembraneReset()", lambda: dense(sl.IAFSqueeze(**B, reset_fn=activation.MembraneReset()))),
    ("IAF", "tau_syn", lambda: dense(sl.IAFSqueeze(**B, min_v_mem=-1.0, tau_syn=3.0))),
    ("LIF", "norm_input=False", lambda: dense(sl.LIFSqueeze(tau_mem=6.0, norm_input=False, **B))),
    (
        "LIF",
        "norm_input=False, one tau and threshold a neuron",
        lambda: dense(sl.LIFSqueeze(**EACH, norm_input=False, **B)),
    ),
    ("LIF", "defaults (norm_input=True)", lambda: dense(sl.LIFSqueeze(tau_mem=2.0, spike_threshold=0.5, **B))),
    ("LIF", "train_alphas", lambda: dense(sl.LIFSqueeze(tau_mem=6.0, norm_input=False, train_alphas=True, **B))),
    ("LIF", "min_v_mem", lambda: dense(sl.LIFSqueeze(tau_mem=6.0, norm_input=False, min_v_mem=-0.25, **B))),
    ("LIF", "tau_syn", lambda: dense(sl.LIFSqueeze(tau_mem=6.0, tau_syn=3.0, norm_input=False, **B))),
    ("ExpLeak", "defaults (norm_input=False)", lambda: dense(sl.ExpLeakSqueeze(tau_mem=4.0, **B))),
    ("ExpLeak", "norm_input=True", lambda: dense(sl.ExpLeakSqueeze(tau_mem=4.0, norm_input=True, **B))),
    ("ExpLeak", "one tau a neuron", lambda: dense(sl.ExpLeakSqueeze(tau_mem=EACH["tau_mem"], **B))),
    ("IAFRecurrent", "", lambda: dense(*recurrent(sl.IAFRecurrent, min_v_mem=-1.0))),
    ("LIFRecurrent", "norm_input=False", lambda: dense(*recurrent(sl.LIFRecurrent, tau_mem=6.0, norm_input=False))),
    ("Merge", "", lambda: fill(Merged().eval(), np.random.default_rng(4))),
    ("a + b", "", lambda: fill(Added().eval(), np.random.default_rng(4))),
    ("Linear", "bias=False", lambda: dense(nn.Linear(4, 4, bias=False), sl.IAFSqueeze(**B, min_v_mem=-1.0))),
    ("Conv2d", "", lambda: maps(flat=72)),
    ("Conv2d", "groups=2", lambda: maps(nn.Conv2d(2, 4, 3, groups=2), flat=64)),
    ("SumPool2d", "", lambda: maps(sl.SumPool2d(2), flat=18)),
    ("AvgPool2d", "", lambda: maps(nn.AvgPool2d(2), flat=18)),
    ("LIF", "on maps", lambda: maps(nn.Conv2d(2, 2, 1), sl.LIFSqueeze(tau_mem=6.0, norm_input=False, **B), flat=72)),
]


def input_of(network):
    first = next(module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return raster_of(5) if isinstance(first, nn.Linear) else raster_of(1, 6, 6)


def to_sinabs(network, raster, folder):
    """Whether its importer makes of our file what the network does."""
    reset(network)
    try:
        out = imported(nd.torch_to_nir(network, sample_input=squeezed(raster)), raster, folder)
    except UnsupportedError as error:
        return f"refused: {error}"
    return "same" if same(out, own(network, raster)) else "other output"


def from_sinabs(network, raster, folder):
    """Whether we make of its exporter's file what the network does."""
    try:
        graph = exported(network, raster, folder)
    except UnsupportedError as error:
        return f"refused: {error}"
    except (NotImplementedError, AttributeError) as error:
        return f"sinabs writes no file: {type(error).__name__}"
    if same(nd.run(graph, raster).outputs, own(network, raster)):
        return "same"
    return "other output: the file does not say it, the convention must"


def survives():
    """What survives the trip: layer, option, to sinabs's importer, back from its exporter."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        for layer, option, make in CASES:
            network = make()
            raster, folder = input_of(network), Path(name)
            found.append((layer, option, to_sinabs(network, raster, folder), from_sinabs(network, raster, folder)))
    return found


def table():
    return [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]


def test_what_survives_is_what_the_table_says():
    found = table()
    assert found == json.loads(GOLDEN.read_text())
    assert not any(row["to"] == "other output" for row in found)
    assert sum(row["to"] == "same" for row in found) >= 14
    assert sum(row["back"] == "same" for row in found) >= 9


# ---------------------------------------------------------------- files of its exporter

SAID = [
    (sl.IAFSqueeze(**B), {"overrides": {"7": {}}}),
    (sl.IAFSqueeze(**B, min_v_mem=-0.25), {"v_min": -0.25}),
    (sl.IAFSqueeze(**B, min_v_mem=-1.0, spike_fn=activation.SingleSpike), {"spikes_per_step": "one"}),
    (sl.IAFSqueeze(**B, min_v_mem=-1.0, reset_fn=activation.MembraneReset()), {"reset": "zero"}),
    (sl.LIFSqueeze(tau_mem=2.0, spike_threshold=0.5, **B), {"gain": "decay", "v_min": None}),
    (sl.LIFSqueeze(tau_mem=6.0, norm_input=False, min_v_mem=-0.25, **B), {"v_min": -0.25}),
    (sl.ExpLeakSqueeze(tau_mem=4.0, norm_input=True, **B), {"gain": "decay"}),
]


@pytest.mark.parametrize(("layer", "fields"), SAID)
def test_what_the_file_does_not_say_is_said_by_the_convention(layer, fields, tmp_path):
    network, raster = low(dense(layer)), raster_of(5)
    graph = exported(network, raster, tmp_path)
    stored = nd.convention("sinabs", dt=1e-4)
    overrides = {"1": {"v_min": None, **{k: v for k, v in fields.items() if k != "overrides"}}}
    if isinstance(layer, sl.IAFSqueeze) and layer.min_v_mem is not None and "v_min" not in fields:
        overrides["1"]["v_min"] = "-threshold"
    told = nd.convention("sinabs", dt=1e-4, overrides={**stored.overrides, **overrides})
    assert same(nd.run(graph, raster, convention=told).outputs, own(network, raster))
    assert not same(nd.run(graph, raster, convention=stored).outputs, own(network, raster))


def test_repairs_are_told(tmp_path):
    network = nn.Sequential(
        nn.Linear(5, 4), sl.LIF(tau_mem=8.0, norm_input=False), nn.Linear(4, 2), sl.ExpLeak(tau_mem=4.0)
    )
    fill(network, np.random.default_rng(2)).eval()
    raster = raster_of(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        nir.write(tmp_path / "n.nir", to_nir(network, raster.transpose(0, 1)))
    reset(network)
    with pytest.raises(GraphError):
        nd.run(nd.read(tmp_path / "n.nir"), raster, convention=nd.convention("sinabs", dt=1.0))
    graph = nd.read(tmp_path / "n.nir", exported_by="sinabs")
    told = {(f.node, f.problem) for f in nd.check(graph, "loihi2").findings if f.code == "repaired"}
    assert ("input", "its shape (14, 5) counts the steps of a sample; read as (5,)") in told
    assert ("1", "one number stands for all its neurons; they are (4,)") in told
    assert ("1", "its tau of 8 counts steps; read as seconds, of dt=0.0001") in told
    assert {node for node, _ in told} == {"input", "1", "3", ""}
    assert any("leaves out min_v_mem, norm_input, tau_syn" in problem for node, problem in told if node == "")
    with torch.no_grad():
        own_run = network(raster.transpose(0, 1)).transpose(0, 1).numpy()
    assert same(nd.run(graph, raster).outputs, own_run)


def test_a_file_that_lost_edges_is_refused_and_one_of_ours_left_alone(tmp_path):
    network = fill(Added().eval(), np.random.default_rng(4))
    with pytest.raises(UnsupportedError, match=r"node '[bc]': nothing feeds it: .*a \+ b. Convert the network itself"):
        exported(network, raster_of(5), tmp_path)
    graph = nd.torch_to_nir(network, input_shape=(5,))
    nd.write(tmp_path / "own.nir", graph)
    found = nd.read(tmp_path / "own.nir", exported_by="sinabs")
    assert not any(f.code == "repaired" for f in nd.check(found, "loihi2").findings)
    assert np.array_equal(nd.run(found, raster_of(5)).outputs, nd.run(graph, raster_of(5)).outputs)


# ---------------------------------------------------------------- files for its importer

IMPORTED = {
    "integrator": "exponential",
    "gain": "unit",
    "reset": "subtract",
    "crossing": "inclusive",
    "spikes_per_step": "many",
}


def chain(shape, *named):
    nodes = {"input": make_node(nir.Input, input_type={"input": np.array(shape)}), **dict(named)}
    last = {"output": make_node(nir.Output, output_type={"output": np.array(shape)})}
    names = [*nodes, "output"]
    return make_graph({**nodes, **last}, list(itertools.pairwise(names)))


def full(shape, **values):
    return {name: np.full(shape, value, np.float32) if np.ndim(value) == 0 else value for name, value in values.items()}


@pytest.mark.parametrize("integrator", ["euler", "exponential"])
@pytest.mark.parametrize("gain", ["euler", "decay", "unit"])
def test_gains_and_integrators_of_others_are_brought_to_what_the_importer_knows(integrator, gain, tmp_path):
    tau, r = np.array([2e-3, 5e-3, 9e-3], np.float32), np.array([0.5, 2.0, 3.0], np.float32)
    threshold = np.array([0.41, 0.23, 0.31], np.float32) * (4 if gain == "unit" else 1)
    lif = make_node(nir.LIF, **full(3, tau=tau, r=r, v_leak=0.0, v_threshold=threshold, v_reset=0.0))
    mean = make_node(nir.LI, **full(3, tau=tau, r=r, v_leak=0.0))
    weight = np.random.default_rng(0).integers(-20, 60, (3, 3)).astype(np.float32) / 64
    graph = chain((3,), ("fc", make_node(nir.Linear, weight=weight)), ("lif.a", lif), ("forward", mean))
    convention = nd.convention("nir", dt=1e-3, **{**IMPORTED, "integrator": integrator, "gain": gain})
    ours = nd.run(graph, raster_of(3), convention=convention)
    assert ours["lif.a", "spikes"].data.sum() > 5
    assert same(ours.outputs, imported(graph, raster_of(3), tmp_path, convention))
    again = nd.run(nd.read(tmp_path / "ours.nir"), raster_of(3))  # with the convention of the file
    assert np.array_equal(again["lif_a", "spikes"].data, ours["lif.a", "spikes"].data)
    assert same(again.outputs, ours.outputs)


def test_scales_pools_and_groups_become_convolutions(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", groups=2),
        sl.IAFSqueeze(**B, min_v_mem=-1.0),
        nn.AvgPool2d(2, padding=1),
        nn.Flatten(),
        nn.Linear(64, 3),
        sl.IAFSqueeze(**B, min_v_mem=-1.0),
    )
    raster = raster_of(2, 6, 6)
    graph = nd.torch_to_nir(fill(network, np.random.default_rng(3)), sample_input=squeezed(raster))
    scale = make_node(nir.Scale, scale=np.broadcast_to(np.array([0.5, 2, 1, 4], np.float32)[:, None, None], (4, 6, 6)))
    nodes = {**graph.nodes, "scale": scale}
    edges = [*(edge for edge in graph.edges if edge != ("0", "1")), ("0", "scale"), ("scale", "1")]
    scaled = make_graph(nodes, edges, graph.metadata)
    ours = nd.run(scaled, raster)
    assert ours["1", "spikes"].data.sum() > 10
    assert same(ours.outputs, imported(scaled, raster, tmp_path))


def lif_of(shape=(3,), **values):
    return make_node(nir.LIF, **full(shape, **{"tau": 5e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, **values}))


NOT_IMPORTED = {
    "v_leak": (lambda: chain((3,), ("n", lif_of(v_leak=0.1))), {}, "'n': v_leak is not 0"),
    "CubaLIF": (
        lambda: chain(
            (3,),
            (
                "n",
                make_node(
                    nir.CubaLIF, **full(3, tau_syn=1e-3, tau_mem=1e-3, r=1.0, v_leak=0.0, v_threshold=1.0, w_in=1.0)
                ),
            ),
        ),
        {},
        "'n': CubaLIF is a type that sinabs's importer leaves out",
    ),
    "reset": (
        lambda: chain((3,), ("n", lif_of())),
        {"reset": "zero"},
        "'n': its convention has reset='zero'.*'subtract'",
    ),
    "strict": (lambda: chain((3,), ("n", lif_of())), {"crossing": "strict"}, "crossing='strict'.*'inclusive'"),
    "one": (lambda: chain((3,), ("n", lif_of())), {"spikes_per_step": "one"}, "spikes_per_step='one'"),
    "late": (lambda: chain((3,), ("n", lif_of())), {"reset_time": "next_step"}, "reset_time='next_step'"),
    "bound": (lambda: chain((3,), ("n", lif_of())), {"v_min": -1.0}, "v_min=-1.0.*with None"),
    "no bound": (
        lambda: chain((3,), ("n", make_node(nir.IF, **full(3, r=1.0, v_threshold=1.0)))),
        {},
        "v_min=None.*'-threshold'",
    ),
    "dt": (
        lambda: chain((3,), ("n", lif_of(tau=1e-4))),
        {"integrator": "euler"},
        "'n': it decays by -9 a step.*dt below tau",
    ),
    "gain": (lambda: chain((3,), ("n", lif_of(r=-1.0))), {"gain": "decay"}, "'n': its input gain is -0.18.*takes 1"),
    "map": (
        lambda: chain((1, 1, 2), ("n", lif_of((1, 1, 2), tau=np.array([[[1e-3, 2e-3]]], np.float32)))),
        {},
        "'n': tau differs between neurons of a map",
    ),
    "delay": (lambda: chain((3,), ("n", make_node(nir.Delay, delay=np.zeros(3)))), {}, "Delay is a type .* leaves out"),
}


@pytest.mark.parametrize("what", NOT_IMPORTED)
def test_what_the_importer_would_make_something_else_of_is_refused(what, tmp_path):
    make, changes, message = NOT_IMPORTED[what]
    with pytest.raises(UnsupportedError, match=message):
        nd.write(
            tmp_path / "n.nir", make(), nd.convention("nir", dt=1e-3, **{**IMPORTED, **changes}), for_library="sinabs"
        )
    assert not (tmp_path / "n.nir").exists()


def test_ways_that_part_or_meet_or_turn_back_are_refused(tmp_path):
    merged = nd.torch_to_nir(fill(Merged().eval(), np.random.default_rng(0)), input_shape=(5,))
    with pytest.raises(
        UnsupportedError, match=r"node 'c': left, right lead into it, and sinabs's importer runs chains"
    ):
        nd.write(tmp_path / "n.nir", merged, for_library="sinabs")
    back = nd.torch_to_nir(dense(*recurrent(sl.IAFRecurrent, min_v_mem=-1.0)), input_shape=(5,))
    with pytest.raises(UnsupportedError, match=r"node '2.neuron': .* lead into it"):
        nd.write(tmp_path / "n.nir", back, for_library="sinabs")
    with pytest.raises(UnsupportedError, match=r"the graph carries no convention.*nd.convention\('sinabs'"):
        nd.write(tmp_path / "n.nir", chain((3,), ("n", lif_of())), for_library="sinabs")


@FEW
@given(data=st.data())
def test_what_is_written_for_sinabs_is_imported_as_it_is_or_refused(data, tmp_path_factory):
    drawn = data.draw(networks(recurrent=False, kind=data.draw(st.sampled_from(["dense squeezed", "squeezed"]))))
    graph = check_drawn(drawn, methods=("dense",))
    try:
        out = imported(graph, drawn.raster, tmp_path_factory.mktemp("drawn"))
    except UnsupportedError:
        return  # named, as the tests above say
    assert same(nd.run(graph, drawn.raster).outputs, out)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(table(), indent=2) + "\n")
