"""Integers from outside are held against the chip's registers, not against what Lava on CPU lets pass."""

from dataclasses import replace

import numpy as np
import pytest
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.program import Compartments, Program, Synapses, Window
from nirdeploy_loihi.rules import integer_findings

ZERO = np.zeros((1, 1), np.int64)


def population(**changes):
    values = {"decay_u": 4096, "decay_v": 100, "threshold": 100 << 6, "bias_mantissa": 0, "v_start": 0} | changes
    others = {"bias_exponent": values.pop("bias_exponent", 6), "refractory": values.pop("refractory", 1)}
    return Compartments("n", (2,), **{key: np.atleast_1d(np.array(v)) for key, v in values.items()}, **others)


def found(weight=((2, -4), (6, 8)), delay=ZERO, window=None, target="loihi2", **registers):
    synapses = Synapses("w", "input", "n", np.array(weight), np.array(delay), window)
    program = Program("input", (synapses.n_sources,), (population(**registers),), (synapses,), (), ())
    return {f.code: f for f in integer_findings(program, BACKEND.targets()[target])}


@pytest.mark.parametrize("target", ["loihi1", "loihi2"])
def test_registers_within_their_widths_have_no_findings(target):
    assert found(target=target) == {}
    assert found(target=target, threshold=131071 << 6, bias_mantissa=-4095, bias_exponent=7, decay_v=4096) == {}


@pytest.mark.parametrize(
    ("registers", "code", "words"),
    [
        ({"threshold": 131072 << 6}, "threshold", "mantissa is 131072, 1 to 131071"),
        ({"threshold": [64, 0]}, "threshold", "mantissa is 0, 1 to 131071"),
        ({"threshold": 6401}, "threshold", "the threshold is 6401, which is no mantissa << 6"),
        ({"bias_mantissa": [0, 5000]}, "bias", "mantissa is 5000, -4095 to 4095"),
        ({"bias_exponent": 8}, "bias", "exponent is 8, 0 to 7"),
        ({"decay_u": 4097}, "decay", "decay_u is 4097, 0 to 4096"),
        ({"decay_v": [5, -1]}, "decay", "decay_v is -1, 0 to 4096"),
        ({"v_start": -(1 << 23)}, "v_start", "v at the start is -8388608, -8388607 to 8388607"),
        ({"refractory": 65}, "refractory", "refractory period is 65, 1 to 63"),
    ],
)
def test_registers_beyond_their_widths_are_errors(registers, code, words):
    finding = found(**registers)[code]
    assert words in finding.problem
    assert (finding.node, finding.severity) == ("n", "error")


@pytest.mark.parametrize(
    ("weight", "code", "words", "severity"),
    [
        ([[3, -4], [2, 2]], "odd_weights", "1 weights are odd", "error"),
        ([[300, 1], [2, 2]], "weights", "a weight of positive ones is 300, 0 to 255", "error"),
        ([[-256, 0], [-2, -2]], "weights", "a weight of negative ones is -256, -255 to 0", "error"),
        ([[-258, 2], [2, 2]], "weights", "a weight of mixed ones is -258, -256 to 254", "error"),
        ([[0, 0], [0, 0]], "zero_weights", "all weights are 0", "error"),
        ([[-201, 0], [-3, -2]], "lava_weights", "Lava's scaling changes negative weights from -201 to 0", "warning"),
    ],
)
def test_weights_lava_lets_pass_are_named(weight, code, words, severity):
    report = found(weight)
    assert list(report) == [code]
    assert words in report[code].problem
    assert (report[code].node, report[code].severity) == ("w", severity)


def test_delays_beyond_six_bits_are_errors():
    assert found(delay=[[62]]) == {}
    assert "a delay is 63, 0 to 62 is possible" in found(delay=[[0, 63]])["delay"].problem


def test_sums_that_wrap_u_are_a_warning():
    finding = found([[254] * 600, [2] * 600])["synaptic_sum"]
    assert (finding.severity, finding.value, finding.limit) == ("warning", 152400, 131071)


def test_kernels_count_every_tap():
    window = Window((1, 2, 1), (1, 2, 1), (1, 1), (0, 0), (1, 1), 1)
    kernel = np.full((1, 1, 20, 26), 254)
    assert found(kernel, window=window)["synaptic_sum"].value == 254 * 520
    # Lava's convolution takes odd negative kernels as they are
    assert found([[[[-201]]], [[[-3]]]], window=replace(window, target_shape=(2, 1, 1))) == {}
