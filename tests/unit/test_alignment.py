"""Origins: neurons moved, merged, padded and pooled; cores; lags found; what arrived at the first difference."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest

import nirdeploy as nd
from nirdeploy.errors import ComparisonError
from nirdeploy.graph import make_graph, make_node
from nirdeploy.outline import Outline
from nirdeploy.trajectory import Record, Trajectory, load_trajectory


def spikes(steps: int = 40, batch: int = 2, *shape: int, rate: float = 0.2, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).random((steps, batch, *(shape or (6,)))) < rate).astype(np.int32)


def run(*records: Record, **fields: Any) -> Trajectory:
    return Trajectory({(r.node, r.variable): r for r in records}, **fields)


def of(node: str, data: Any, **fields: Any) -> Record:
    return Record(node, "spikes", data, units="count", **fields)


# ---------------------------------------------------------------- origins


def test_populations_merged_into_one_on_the_chip_are_told_apart_by_their_maps():
    a, b = spikes(seed=1), spikes(seed=2)
    order = np.random.default_rng(3).permutation(14)  # twelve neurons and two that stand for none
    merged = np.concatenate([a, b, np.ones_like(a[:, :, :2])], axis=2)[:, :, order]
    maps = {name: np.where(order // 6 == k, order % 6, -1) for k, name in enumerate("ab")}
    chip = run(*(of(f"core 3, {n}", merged, source=n, index_map=maps[n]) for n in "ab"), target="x")
    found = nd.compare(run(of("a", a), of("b", b)), chip)
    assert found.equal
    assert [node.entries for node in found.per_node.values()] == [40 * 2 * 6] * 2
    changed = merged.copy()
    changed[11, 1, list(order).index(8)] ^= 1  # neuron 2 of b
    chip = run(*(of(f"core 3, {n}", changed, source=n, index_map=maps[n]) for n in "ab"), target="x")
    first = nd.compare(run(of("a", a), of("b", b)), chip).first_divergence
    assert first is not None
    assert (first.node, first.neuron, first.sample, first.step) == ("b", (2,), 1, 11)


def test_transposed_maps_are_compared_at_the_same_neurons():
    a = spikes(20, 2, 2, 3, 4)
    moved = a.transpose(0, 1, 4, 3, 2)  # x, y, channel
    index = np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0).reshape(-1)
    found = nd.compare(run(of("a", a)), run(of("a", moved, index_map=index), target="x"))
    assert found.equal
    assert found.per_node["a"].entries == a.size


def test_spikes_shown_before_a_pool_are_those_of_what_feeds_it(tmp_path):
    outline = Outline.from_json(
        '{"nodes": [["if1", "IF", [1, 4, 4]], ["pool", "SumPool2d", [1, 2, 2]], ["if2", "IF", [4]]],'
        ' "edges": [["if1", "pool"], ["pool", "if2"]], "feedback": []}'
    )
    a = spikes(20, 2, 1, 4, 4)
    reference = run(of("if1", a), outline=outline)
    chip = run(of("core 0", a, source="pool", view="before_pool"), target="x")
    found = nd.compare(reference, chip)
    assert found.equal
    assert list(found.per_node) == ["if1"]
    assert found.notes == ("pool spikes: read before it pools, compared as those of if1",)
    assert nd.compare(reference, run(of("if1", a, view="before_pool"), target="x")).equal
    with pytest.raises(ComparisonError, match="its source 'pool' is not recorded"):
        nd.compare(run(of("if1", a)), chip)  # nothing tells what the pool is
    reference.save(tmp_path / "r.h5")
    assert nd.compare(load_trajectory(tmp_path / "r.h5"), chip).equal


def test_the_first_difference_names_the_core(tmp_path):
    a = spikes()
    wrong = a.copy()
    wrong[7, 0, 4] ^= 1
    chip = run(of("a", wrong, cores=np.array([0, 0, 0, 2, 2, 2])), target="x")
    chip.save(tmp_path / "c.h5")
    for one in (chip, load_trajectory(tmp_path / "c.h5")):
        first = nd.compare(run(of("a", a)), one).first_divergence
        assert first is not None
        assert first.core == 2
        assert "a neuron 4 (core 2), sample 0, step 7" in str(first)
    halves = [
        of(f"a.{k}", wrong[:, :, 3 * k : 3 * k + 3], source="a", index_map=np.arange(3) + 3 * k, cores=5 + k)
        for k in range(2)
    ]
    first = nd.compare(run(of("a", a)), run(*halves, target="x")).first_divergence
    assert first is not None
    assert first.core == 6
    with pytest.raises(ValueError, match="cores are 2, the data has shape"):
        of("a", a, cores=np.array([0, 1]))


# ---------------------------------------------------------------- lags


def later(data: Any, steps: int) -> Any:
    return np.concatenate([np.zeros_like(data[:steps]), data[: len(data) - steps]])


def test_finds_the_lag_of_each_node():
    a, b, silent = spikes(seed=1), spikes(seed=2), spikes(rate=0)
    v = np.random.default_rng(4).random(a.shape)
    reference = run(of("a", a), of("b", b), of("s", silent), Record("v", "v_mem", v))
    chip = run(
        of("a", later(a, 1)),
        of("b", later(b, 3), lag=2),
        of("s", silent, lag=1),
        Record("v", "v_mem", later(v, 4)),
        target="x",
    )
    found = nd.compare(reference, chip, lag="find")
    assert {name: node.lag for name, node in found.per_node.items()} == {"a": 1, "b": 3, "s": 1, "v": 4}
    assert found.spike_agreement == 1.0
    assert found.per_node["v"].v_mem_max_error == 0
    assert any(note.startswith("a: found a lag of 1 (100.00 % of spikes agree, ") for note in found.notes)
    assert not any(note.startswith("s: found") for note in found.notes)
    assert nd.compare(reference, chip).per_node["a"].lag == 0
    with pytest.raises(ComparisonError, match="lag is 'auto', expected a whole number of steps or 'find'"):
        nd.compare(reference, chip, lag="auto")  # type: ignore[arg-type]


def test_a_lag_of_runs_that_agree_is_the_declared_one():
    a = np.ones((12, 1, 2), dtype=np.int32)  # any lag fits
    assert nd.compare(run(of("a", a)), run(of("a", a, lag=2), target="x"), lag="find").per_node["a"].lag == 2
    one = spikes(1, 1, 3)
    assert nd.compare(run(of("a", one)), run(of("a", one), target="x"), lag="find").equal


# ---------------------------------------------------------------- what arrived


def chain(delay: float = 0.0) -> nir.NIRGraph:
    rng = np.random.default_rng(0)
    ones = np.ones
    nodes: dict[str, nir.NIRNode] = {
        "input": make_node(nir.Input, input_type={"input": np.array([1, 4, 4])}),
        "conv": make_node(
            nir.Conv2d,
            input_shape=(4, 4),
            weight=rng.integers(-3, 4, (2, 1, 3, 3)).astype(np.float64),
            stride=1,
            padding=1,
            dilation=1,
            groups=1,
            bias=np.zeros(2),
        ),
        "if1": make_node(nir.IF, r=ones((2, 4, 4)), v_threshold=2 * ones((2, 4, 4)), v_reset=np.zeros((2, 4, 4))),
        "pool": make_node(
            nir.SumPool2d, kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.zeros(2, int)
        ),
        "flat": make_node(nir.Flatten, input_type={"input": np.array([2, 2, 2])}, start_dim=0, end_dim=-1),
        "fc": make_node(nir.Linear, weight=rng.integers(-3, 4, (3, 8)).astype(np.float64)),
        "wait": make_node(nir.Delay, delay=np.array([0.0, delay, delay])),
        "if2": make_node(nir.IF, r=ones(3), v_threshold=3 * ones(3), v_reset=np.zeros(3)),
        "back": make_node(nir.Linear, weight=np.arange(9.0).reshape(3, 3)),
        "output": make_node(nir.Output, output_type={"output": np.array([3])}),
    }
    edges = [
        ("input", "conv"),
        ("conv", "if1"),
        ("if1", "pool"),
        ("pool", "flat"),
        ("flat", "fc"),
        ("fc", "wait"),
        ("wait", "if2"),
        ("if2", "back"),
        ("back", "if2"),
        ("if2", "output"),
    ]
    return make_graph(nodes, edges)


def broken(trajectory: Trajectory, node: str, step: int, neuron: int) -> Trajectory:
    """The same run with one spike more or less."""
    from dataclasses import replace

    record = trajectory[node, "spikes"]
    data = np.array(record.data)
    data.reshape(len(data), -1)[step, neuron] ^= 1
    changed = {**trajectory.records, (node, "spikes"): replace(record, data=data)}
    return replace(trajectory, records=changed, target="x")


@pytest.mark.parametrize("delay", [0.0, 2e-3])
def test_tells_what_arrived_at_the_first_difference(delay: float):
    graph = chain(delay)
    raster = (np.random.default_rng(1).random((12, 1, 4, 4)) < 0.4).astype(np.float32)
    reference = nd.run(graph, raster, convention=nd.convention("nir", dt=1e-3, if_gain="r"))
    first = nd.compare(reference, broken(reference, "if2", 8, 1)).first_divergence
    assert first is not None
    assert (first.node, first.neuron, first.step, first.inputs_note) == ("if2", (1,), 8, "")
    late = round(delay / 1e-3)
    fc, back = graph.nodes["fc"].weight, graph.nodes["back"].weight
    before = reference["if1", "spikes"].data[8 - late].reshape(2, 4, 4)
    expected = {
        ("if1", (int(c), int(y), int(x)), float(fc[1, 4 * c + 2 * (y // 2) + x // 2]), late)
        for c, y, x in zip(*np.nonzero(before), strict=True)
    }
    own = reference["if2", "spikes"].data[7].reshape(-1)
    expected |= {("if2", (int(n),), float(back[1, n]), 1) for n in np.flatnonzero(own)}
    expected = {one for one in expected if one[2]}
    assert {(i.source, i.neuron, i.weight, i.delay) for i in first.inputs} == expected
    assert len(expected) > 3
    assert all(i.reference == i.chip == 1 for i in first.inputs)
    assert f"In that step {len(expected)} inputs arrived, together " in first.arrived()


def test_an_input_arrives_from_the_raster(tmp_path):
    graph = chain()
    raster = 2.0 * (np.random.default_rng(1).random((12, 1, 1, 4, 4)) < 0.4).astype(np.float32)
    reference = nd.run(graph, raster, convention=nd.convention("nir", dt=1e-3, if_gain="r"))
    wrong = broken(reference, "if1", 5, 16 + 5)  # channel 1, at 1, 1
    first = nd.compare(reference, wrong).first_divergence
    assert first is not None
    kernel = graph.nodes["conv"].weight[1, 0]
    frame = raster[5, 0, 0, :3, :3] * (kernel != 0)
    expected = {(0, int(y), int(x)): float(kernel[y, x]) for y, x in zip(*np.nonzero(frame), strict=True)}
    assert {i.neuron: i.weight for i in first.inputs} == expected
    assert all((i.source, i.reference, i.chip) == ("input", 2, 2) for i in first.inputs)
    assert f"together {sum(2 * w for w in expected.values()):g}: " in first.arrived()
    # files know neither weights nor raster
    reference.save(tmp_path / "r.h5")
    wrong.save(tmp_path / "w.h5")
    stored, other = load_trajectory(tmp_path / "r.h5"), load_trajectory(tmp_path / "w.h5")
    bare = nd.compare(stored, other).first_divergence
    assert bare is not None
    assert (bare.inputs, bare.arrived()) == ((), "")
    told = nd.compare(stored, other, graph=graph).first_divergence
    assert told is not None
    assert told.arrived() == "Spikes that arrived: the raster of 'input' is not known."
    assert nd.compare(stored, other, graph=graph, raster=raster).first_divergence == first


def test_spikes_that_differ_come_first():
    graph = chain()
    raster = (np.random.default_rng(1).random((12, 1, 4, 4)) < 0.6).astype(np.float32)
    reference = nd.run(graph, raster, convention=nd.convention("nir", dt=1e-3, if_gain="r"), record=("spikes",))
    wrong = broken(broken(reference, "if1", 6, 9), "if2", 6, 2)
    records = {k: r for k, r in wrong.records.items() if k != ("if1", "spikes")}
    records["if1", "spikes"] = wrong["if1", "spikes"]
    found = nd.compare(reference, wrong)
    assert found.first_divergence is not None
    assert found.first_divergence.node == "if1"
    only = Trajectory({("if2", "spikes"): wrong["if2", "spikes"]}, graph=graph, target="x")
    first = nd.compare(reference, only).first_divergence
    assert first is not None
    assert first.inputs_note == "spikes of 'if1' are not compared in step 6"


# ---------------------------------------------------------------- units and choices


def lif(tau: Any = 1e-2) -> nir.NIRGraph:
    full = np.ones(3)
    nodes = {
        "input": make_node(nir.Input, input_type={"input": np.array([3])}),
        "lif": make_node(
            nir.LIF, tau=tau * full, r=full, v_leak=0 * full, v_threshold=np.array([0.1, 0.2, 0.4]), v_reset=0 * full
        ),
        "output": make_node(nir.Output, output_type={"output": np.array([3])}),
    }
    return make_graph(nodes, [("input", "lif"), ("lif", "output")])


@pytest.mark.parametrize("tau", [1e-2, np.array([1e-2, 2e-2, 4e-2])])
def test_v_in_other_units_is_brought_to_the_references(tau: Any):
    raster = (np.random.default_rng(0).random((60, 2, 3)) < 0.4).astype(np.float32)
    model = nd.run(lif(tau), raster, convention=nd.convention("snntorch", dt=1e-3, v_unit="model"))
    for unit, name in (("gain", "input gain"), ("threshold", "threshold")):
        other = nd.run(lif(tau), raster, convention=nd.convention("snntorch", dt=1e-3, v_unit=unit))
        found = nd.compare(model, other)
        assert found.per_node["lif"].v_mem_max_error < 1e-6  # float32 of both
        assert found.per_node["lif"].spike_agreement == 1.0
        told = f"lif v_mem: in units of {name!r}, brought to 'model' by the thresholds"
        assert told in found.notes
        assert nd.compare(other, model).per_node["lif"].v_mem_max_error < 1e-6


def test_v_in_units_that_nothing_relates_is_listed():
    v = np.ones((4, 1, 2))
    ours = run(of("a", v), Record("a", "v_mem", v))
    theirs = run(of("a", v), Record("a", "v_mem", v, units="input gain"), target="x")
    found = nd.compare(ours, theirs)
    assert [tuple(e) for e in found.unaligned] == [
        ("a", "v_mem", "in units of 'model' in reference, 'input gain' in x (reference)")
    ]


def test_compares_chosen_nodes_alone():
    a, b = spikes(seed=1), spikes(seed=2)
    dump = run(of("a", a), target="x")
    assert not nd.compare(run(of("a", a), of("b", b)), dump).equal
    found = nd.compare(run(of("a", a), of("b", b)), dump, nodes=["a"])
    assert found.equal
    assert list(found.per_node) == ["a"]
    with pytest.raises(ComparisonError, match=r"node 'c': is recorded by neither. Did you mean"):
        nd.compare(run(of("aa", a), of("cc", b)), dump, nodes=["c"])


def test_lags_of_spikes_before_a_pool_are_those_of_what_feeds_it():
    outline = Outline.from_json(
        '{"nodes": [["if1", "IF", [1, 4, 4]], ["pool", "SumPool2d", [1, 2, 2]]], "edges": [["if1", "pool"]],'
        ' "feedback": []}'
    )
    a = spikes(30, 1, 1, 4, 4)
    one, other = (
        run(of("core 0", data, source="pool", view="before_pool"), target=target, outline=outline)
        for data, target in ((a, "x"), (later(a, 1), "y"))
    )
    for lag in ("find", {"if1": 1}):
        found = nd.compare(one, other, lag=lag)
        assert (found.per_node["if1"].lag, found.spike_agreement) == (1, 1.0)
    with pytest.raises(ComparisonError, match="lag names the unknown node 'pool'"):
        nd.compare(one, other, lag={"pool": 1})
