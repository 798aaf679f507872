"""Quantisation-aware training: rounding on a grid, targets and backends that do not have it, and digits."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from nets import chain, conv_net, if_node, linear_node

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
