"""Norse run live: files of its exporter are read as what was trained, and files written for its importer run there."""

from __future__ import annotations

import json
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from norse_graphs import between, importable, steady
from norse_nets import Builder, Drawn, forward, layers, norse
from norse_trips import DT, chain, exported, imported, run_imported, survives
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import metadata

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
CLOSE = 1e-5
GOLDEN = Path(__file__).parent.parent / "golden" / "trips_norse.json"


# ---------------------------------------------------------------- files of the exporter

KEPT = ("LIFCell", "LIFBoxCell", "LIBoxCell", "IAFCell")  # that the exporter knows, reset to 0


@st.composite
def exportable(draw):
    """Dense networks of the cells that Norse exports, with what its exporter keeps of their parameters."""
    build = Builder(draw, False)
    build.dt = DT
    width = build.one(3, 6)
    shape, parts = (width,), []
    for _ in range(build.one(1, 2, 3)):
        name, wider = build.one(*KEPT), build.one(2, 5)
        block = build.block(name, width, wider)
        kept = {"v_reset": torch.tensor(0.0), "reset_method": norse.reset_value}
        block[1].p = block[1].p._replace(**{key: v for key, v in kept.items() if hasattr(block[1].p, key)})
        parts, width = parts + block, wider
    raster = build.rng.poisson(0.7, (25, 3, *shape))
    return Drawn(norse.SequentialState(*parts), torch.tensor(raster, dtype=torch.float32), False)


def each(drawn):
    """One number a neuron for all parameters: of a layer's own, Norse's exporter asks all to have one shape."""
    width = None
    for part in drawn.net:
        width = part.out_features if isinstance(part, nn.Linear) else width
        if hasattr(part, "p"):
            tensors = {k: v for k, v in part.p._asdict().items() if isinstance(v, torch.Tensor) and k != "alpha"}
            part.p = part.p._replace(**{k: v.expand(width).clone() for k, v in tensors.items()})
    return drawn


@settings(max_examples=12, **QUIET)
@given(drawn=exportable(), whole=st.booleans())
def test_files_of_norses_exporter_give_the_networks_own_output(tmp_path_factory, drawn, whole):
    mixed = any(v.ndim for part in drawn.net if hasattr(part, "p") for v in part.p if isinstance(v, torch.Tensor))
    drawn = each(drawn) if whole or mixed else drawn
    watched = layers(drawn)
    assume(all(gap(layer) > 3e-5 * scale_of(layer) for layer in watched))
    path = exported(drawn.net, drawn.sample, tmp_path_factory.mktemp("norse") / "net.nir")
    graph = nd.read(path, exported_by="norse")
    found = nd.run(graph, drawn.raster.numpy(), convention=nd.convention("norse", dt=DT)).outputs
    close = CLOSE * scale_of(watched[-1])
    np.testing.assert_allclose(found, forward(drawn).numpy(), rtol=0, atol=close)


def gap(layer):
    return np.inf if layer.threshold is None else float((layer.v_before - layer.threshold).abs().min())


def scale_of(layer):
    return max(1.0, float(layer.v_before.abs().max()))


def test_each_repair_is_told_and_without_it_the_file_does_not_run(tmp_path):
    net = norse.SequentialState(nn.Linear(5, 3), norse.LIFCell())
    path = exported(net, torch.zeros(4, 5), tmp_path / "net.nir")
    assert metadata(nd.read(path, exported_by="norse"))["repairs"] == [
        ["input", "the exporter counts the batch of its sample: (4, 5) is one of (5,)"],
        ["output", "the exporter counts the batch of its sample: (4, 3) is one of (3,)"],
        ["1", "the exporter multiplied tau_mem by its dt: it is divided by 0.001, the default"],
        ["1", "the exporter multiplied tau_syn by its dt: it is divided by 0.001, the default"],
        ["1", "an input adds 1 to the current in Norse, which the exporter leaves out: w_in is tau_syn / 0.001"],
        ["1", "the exporter leaves out v_reset and the reset method: v is set to 0 after a spike"],
        ["1", "the exporter writes one number for all neurons: each of (3,) gets it"],
    ]
    report = nd.check(nd.read(path, exported_by="norse"), "loihi2", convention=nd.convention("norse", dt=DT))
    assert sum(finding.code == "repaired" for finding in report.findings) == 7
    plain = nd.read(path)
    with pytest.raises(ValueError, match=r"expects \(5,\), got \(4, 5\)"):
        nd.run(plain, np.zeros((3, 1, 5)), convention=nd.convention("norse", dt=DT))


def test_a_file_of_another_dt_is_refused(tmp_path):
    graph = norse_export(tmp_path, dt=1.0)
    with pytest.raises(
        UnsupportedError, match=r"node '1'.*tau is 0.01, .* is 10 s: the file was written with another dt"
    ):
        nd.read(graph, exported_by="norse")


def norse_export(folder, dt):
    from norse_trips import quiet

    with quiet():
        graph = norse.to_nir(norse.SequentialState(nn.Linear(5, 3), norse.LIFBoxCell()), torch.zeros(4, 5), dt=dt)
        nir.write(folder / "net.nir", graph, compression=None)
    return folder / "net.nir"


# ---------------------------------------------------------------- files for the importer


def written_for_norse(graph, raster, convention, path):
    """What Norse makes of the file that is written for it, against the reference."""
    ours = steady(graph, raster, convention)
    assume(ours is not None)
    nd.write(path, graph, convention=convention, for_library="norse")
    theirs = run_imported(imported(path, convention.dt), torch.tensor(raster))
    np.testing.assert_array_equal(theirs, ours)
    again = nd.run(nd.read(path), raster).outputs
    np.testing.assert_array_equal(again, ours)


@settings(max_examples=15, **QUIET)
@given(case=importable())
def test_files_for_norse_run_there_with_the_same_spikes(tmp_path_factory, case):
    written_for_norse(*case, tmp_path_factory.mktemp("norse") / "net.nir")


@pytest.mark.long
@settings(max_examples=100, **QUIET)
@given(case=importable())
def test_many_files_for_norse_run_there_with_the_same_spikes(tmp_path_factory, case):
    written_for_norse(*case, tmp_path_factory.mktemp("norse") / "net.nir")


@pytest.mark.parametrize("names", [("a", "b"), ("y", "z"), ("z", "y")])
def test_skips_and_long_loops_keep_their_order_whatever_their_names(tmp_path, names):
    a, b = names
    edges = [("node", a), (a, b), (b, "output")]
    raster = np.random.default_rng(2).poisson(6.0, (30, 2, 2)).astype(np.float32)
    for edge in ((b, "node"), (a, "node"), ("node", b)):
        graph = between(a, b, edges=[*edges, edge])
        nd.write(tmp_path / "net.nir", graph, convention=nd.convention("norse", dt=DT), for_library="norse")
        theirs = run_imported(imported(tmp_path / "net.nir"), torch.tensor(raster))
        assert theirs.sum() > 10
        np.testing.assert_array_equal(theirs, nd.run(graph, raster, convention=nd.convention("norse", dt=DT)).outputs)


def test_what_survives_a_trip_is_what_the_table_says():
    found = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    assert found == json.loads(GOLDEN.read_text())
    assert sum(row["to"] == "same" for row in found) >= 8


def test_a_trained_network_goes_to_norse_and_back(tmp_path):
    net = chain("LIFRecurrentCell")
    raster = torch.tensor(np.random.default_rng(1).poisson(0.7, (40, 2, 6)), dtype=torch.float32)
    nd.write(tmp_path / "net.nir", nd.torch_to_nir(net, sample_input=raster[0]), for_library="norse")
    theirs = forward(Drawn(net, raster, False)).numpy()
    assert theirs.sum() > 100
    np.testing.assert_array_equal(run_imported(imported(tmp_path / "net.nir"), raster), theirs)
