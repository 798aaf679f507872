"""A reference is of float32, whatever a program has asked of torch to train faster; the program finds it as it was."""

import threading

import numpy as np
import pytest
import torch
from nets import chain, conv_net, if_node, linear_node, raster

import nirdeploy as nd
from nirdeploy.reference import precision
from nirdeploy.shared_setting import SharedSetting

CONVENTION = nd.convention("sinabs", dt=1e-3, v_min="-threshold")


@pytest.fixture
def lowered():
    """Programs set this for speed: processors that can multiply in bfloat16 then do."""
    before = precision._read()
    torch.set_float32_matmul_precision("medium")
    for kind in precision._KINDS:
        kind.fp32_precision = "bf16"
    yield precision._read()
    precision._write(before)
    torch.set_float32_matmul_precision("highest")


def networks():
    weight = np.random.default_rng(0).normal(size=(64, 256)) * 0.1
    counts = raster((256,), steps=20, batch=16, rate=0.4)
    return (conv_net(), raster((1, 6, 6), steps=20, batch=16, rate=0.4)), (
        chain((256,), fc=linear_node(weight), n=if_node((64,))),
        counts,
    )


def voltages(graph, counts, **rest):
    found = nd.run(graph, counts, convention=CONVENTION, **rest)
    return [record.data for record in found.records.values()]


@pytest.mark.parametrize("method", ["dense", "event", "loop"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_lowered_precision_changes_no_run_and_is_there_afterwards(request, which, method):
    graph, counts = networks()[which]
    expected = voltages(graph, counts, method=method)
    before, seen = request.getfixturevalue("lowered"), []
    found = voltages(graph, counts, method=method, progress=lambda done, total: seen.append(precision._read()))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert seen
    assert all(set(values) <= {"ieee", "highest"} for values in seen)
    assert precision._read() == before
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_lowered_precision_is_there_after_a_run_that_fails(lowered):
    def fails(done, total):
        raise RuntimeError("enough")

    graph, counts = networks()[0]
    with pytest.raises(RuntimeError, match="enough"):
        voltages(graph, counts, progress=fails)
    assert precision._read() == lowered


@pytest.mark.parametrize("which", [0, 1])
def test_autocast_changes_no_run(which):
    graph, counts = networks()[which]
    expected = voltages(graph, counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = voltages(graph, counts)
        assert torch.is_autocast_enabled("cpu")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_evaluations_do_not_depend_on_a_lowered_precision(request):
    graph, counts = networks()[1]
    expected = nd.evaluate(graph, (counts, None), convention=CONVENTION, batch=4)
    _ = request.getfixturevalue("lowered")
    for workers in (1, 2):
        found = nd.evaluate(graph, (counts, None), convention=CONVENTION, batch=4, workers=workers)
        np.testing.assert_array_equal(found.outputs, expected.outputs)


def test_the_last_of_several_calls_restores_a_setting_whichever_began_first():
    value = [1]
    setting = SharedSetting(lambda: value[0], lambda new: value.__setitem__(0, new))
    inside, go_on = threading.Event(), threading.Event()

    def call():
        with setting.changed(lambda before: before + 10):
            inside.set()
            go_on.wait()

    other = threading.Thread(target=call)
    other.start()
    inside.wait()
    with setting.changed(lambda before: before + 20):
        assert value == [21]
        go_on.set()
        other.join()
        assert value == [21]
    assert value == [1]
