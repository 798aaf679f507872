"""Quantisation-aware training: rounding on a grid, targets and backends that do not have it, and digits."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from nets import chain, conv_net, if_node, linear_node, raster

import nirdeploy as nd
from nirdeploy import backend as backends
from nirdeploy import pipeline
from nirdeploy.errors import QuantizationError, UnsupportedError
from nirdeploy.quantization import Grid
from nirdeploy.training import _integers, _Rounded

CONVENTION = nd.Convention(if_gain="r", reset="zero", crossing="inclusive")
ZERO = nd.Convention(dt=1e-3, if_gain="r", reset="zero")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_rounding_is_to_the_nearest_integer_halves_to_even(seed, kind):
    rng = np.random.default_rng(seed)
    grid = Grid(int(rng.integers(128, 256)) * 2.0 ** int(rng.integers(-20, 5)), -8, 7)
    halves = np.arange(-25, 25) / 2 * grid.step  # exact in either type
    values = np.concatenate([halves, rng.normal(0, 6, 200) * grid.step]).astype(np.float32)
    wanted = np.clip(np.rint(values.astype(np.float64) / grid.step), -8, 7)
    given = torch.tensor(values, dtype=kind)
    assert np.array_equal(_integers(given, grid).numpy(), wanted)
    rounded = _Rounded.apply(given, grid)
    assert rounded.dtype == kind
    assert np.array_equal(rounded.double().numpy(), wanted * grid.step)  # the product itself, not its neighbour


class Without:
    """A backend that lacks some of its optional methods, as somebody else's may."""

    def __init__(self, backend, *missing):
        self._backend, self._missing = backend, missing

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(name)
        return getattr(self._backend, name)


class OfOldTimes(Without):
    def quantize(self, graph, target, convention, *, quantizer, calibration):
        return self._backend.quantize(graph, target, convention, quantizer=quantizer, calibration=calibration)


def without(monkeypatch, kind, *missing):
    """Make Loihi's backend one that lacks something."""
    right = backends.backend_of

    def found(name):
        return kind(right(name), *missing) if name == "loihi" else right(name)

    for module in (backends, pipeline):
        monkeypatch.setattr(module, "backend_of", found)


def test_a_target_without_it_is_refused_by_name(monkeypatch):
    graph = chain((4,), fc=linear_node(np.eye(3, 4)), n=if_node((3,)))
    without(monkeypatch, Without, "training_grid")
    assert nd.check(graph, "loihi2", convention=ZERO).ok
    with pytest.raises(UnsupportedError, match="quantisation-aware training is not there for loihi2") as caught:
        nd.quantization_aware(graph, "loihi2", convention=ZERO)
    assert "speck2f" in caught.value.remedy
    assert "loihi2" not in caught.value.remedy


def test_what_a_backend_does_not_have_is_refused_by_name(monkeypatch):
    graph = chain((4,), fc=linear_node(np.eye(3, 4)), n=if_node((3,)))
    without(monkeypatch, OfOldTimes, "quantizers")
    with pytest.raises(QuantizationError, match=r"unknown quantizer 'exact', expected one of \['calibrated', 'max'\]"):
        nd.quantize(graph, "loihi2", quantizer="exact", convention=ZERO)
    with pytest.raises(UnsupportedError, match="quantisation for loihi2 has no option 'weight_bits'"):
        nd.deploy(graph, "loihi2", quantizer="max", convention=ZERO, weight_bits=4)
    assert nd.deploy(graph, "loihi2", quantizer="max", convention=ZERO).quantized.quantizer == "max"


def test_a_single_node_is_no_network():
    with pytest.raises(UnsupportedError, match="Linear is a single node, not a network"):
        nd.quantization_aware(torch.nn.Linear(3, 2), "speck2f", convention=CONVENTION)


def test_the_grid_is_asked_of_the_backend_once(monkeypatch):
    target = nd.targets()["speck2f"]
    right = backends.backend_of(target.backend)
    asked = []

    @dataclasses.dataclass(frozen=True)
    class Counting(type(right)):
        def training_grid(self, *args, **options):
            asked.append(options)
            return super().training_grid(*args, **options)

    monkeypatch.setattr(backends, "backend_of", lambda name: Counting())
    aware = nd.quantization_aware(conv_net(0), "speck2f", bits=5, convention=CONVENTION)
    aware.sequence(torch.ones(3, 2, 1, 6, 6))
    aware.graph()
    assert asked == [{"weight_bits": 5, "calibration": None}]


def test_the_best_so_far_can_be_kept_as_a_copy_or_a_state_dict():
    aware = nd.quantization_aware(conv_net(0), "speck2f", bits=4, convention=CONVENTION)
    x = torch.ones(5, 2, 1, 6, 6)
    before = aware.sequence(x)[0].detach().clone()
    kept, state = copy.deepcopy(aware), {name: value.clone() for name, value in aware.state_dict().items()}
    with torch.no_grad():
        for parameter in aware.parameters():
            if parameter.requires_grad:
                parameter.neg_()
    assert not torch.equal(aware.sequence(x)[0], before)
    assert torch.equal(kept.sequence(x)[0], before)
    aware.load_state_dict(state)
    assert torch.equal(aware.sequence(x)[0], before)
    for node, own in kept.integers().items():
        assert np.array_equal(own["weight"], aware.integers()[node]["weight"])


@pytest.mark.parametrize("target", ["speck2f", "loihi2"])
def test_a_network_in_training_can_be_pickled(target):
    aware = nd.quantization_aware(conv_net(0), target, bits=4, convention=ZERO)
    again = pickle.loads(pickle.dumps(aware))  # noqa: S301 - our own
    assert again.target == aware.target
    for node, own in aware.integers().items():
        assert np.array_equal(again.integers()[node]["weight"], own["weight"])
    assert again.graph().nodes["if1"].v_threshold.tolist() == aware.graph().nodes["if1"].v_threshold.tolist()


def test_a_pickled_target_stays_read_only():
    again = pickle.loads(pickle.dumps(nd.targets()["loihi2"]))  # noqa: S301 - our own
    assert again == nd.targets()["loihi2"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        again.table["cores"] = {}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_floats_too_short_for_exact_sums_are_refused(kind):
    aware = nd.quantization_aware(conv_net(0), "loihi2", bits=8, convention=ZERO).to(kind)
    words = f"'conv1': weight is {str(kind)[6:]}, in which sums of the chip's integers are not exact"
    with pytest.raises(QuantizationError, match=words):
        aware.sequence(torch.ones(3, 2, 1, 6, 6, dtype=kind))
    with pytest.raises(QuantizationError, match=words):
        aware.graph()


@pytest.mark.parametrize("target", ["speck2f", "loihi2"])
def test_autocast_and_tf32_do_not_reach_a_forward_pass(target, monkeypatch):
    aware = nd.quantization_aware(conv_net(0), target, bits=8, convention=ZERO)
    x = torch.tensor(raster((1, 6, 6), steps=30, batch=4, rate=0.5), dtype=torch.float32)
    wanted, during, sums = aware.sequence(x)[0], [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def watched(*arguments, **keywords):
        during.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return sums(*arguments, **keywords)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(aware.sequence(x)[0], wanted)
        aware(x[0])
    assert during
    assert set(during) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32


def test_a_nan_among_the_weights_is_named_and_never_an_integer():
    aware = nd.quantization_aware(conv_net(0), "speck2f", bits=4, convention=CONVENTION)
    with torch.no_grad():
        aware.network.get(("conv2",)).weight[0, 0, 0, 0] = torch.nan
    words = r"'conv2': weight holds 1 of \d+ values that are NaN"
    with pytest.raises(QuantizationError, match=words):
        aware.integers()
    with pytest.raises(QuantizationError, match=words):
        aware.graph()


@pytest.mark.parametrize("target", ["speck2f", "loihi2"])
def test_thresholds_that_something_else_has_moved_are_named(target):
    aware = nd.quantization_aware(conv_net(0), target, bits=4, convention=ZERO)
    state = {name: value.clone() for name, value in aware.double().state_dict().items()}
    aware.graph()  # 64 bits hold what 32 did
    with torch.no_grad():
        aware.network.get(("if1",)).v_threshold.mul_(2)
    with pytest.raises(QuantizationError, match=r"'if1': v_threshold is .*, while .* has .*: it does not train"):
        aware.graph()
    aware.load_state_dict(state)
    aware.graph()


@pytest.mark.long
@pytest.mark.parametrize(("target", "bits", "start"), [("speck2f", 3, "rounded"), ("loihi2", 2, "calibrated")])
def test_digits_of_few_bits_win_back_half_of_what_rounding_loses(target, bits, start):
    """The benchmark's experiment, small: one seed, where rounding costs some 7 % of the images."""
    import importlib.util
    from pathlib import Path

    from nirdeploy.demonstration import digits
    from nirdeploy.reference.threads import one_thread

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "quantization_aware.py"
    spec = importlib.util.spec_from_file_location("benchmark_quantization_aware", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with one_thread():
        floats, _, _, calibrated, aware = script.experiment(digits(), (4, 8), bits, 0, 6, start, target)
    assert floats - calibrated >= 12
    assert aware - calibrated >= (floats - calibrated) / 2
