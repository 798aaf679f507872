"""Chip programs run by plain numpy, and random networks for them."""

from __future__ import annotations

import nir
import numpy as np
from nets import conv_node, if_node, input_node, output_node, pool_node

from nirdeploy.graph import make_graph


def simulate(program, events):
    """Spikes [step, channel, y, x] of every core, step by step, one sample; written from the facts alone."""
    states = [np.zeros(core.output_shape, int) for core in program.cores]
    spikes = [np.zeros((len(events), *core.output_shape), int) for core in program.cores]
    for step, frame in enumerate(events):
        inputs = [np.zeros(core.input_shape, int) for core in program.cores]
        deliver(inputs, frame, program.entry)
        for at, core in enumerate(program.cores):
            padded = np.pad(inputs[at], ((0, 0), (core.padding[0],) * 2, (core.padding[1],) * 2))
            kernel = core.weight.shape[2]
            v = states[at]
            for y, x in np.ndindex(core.output_shape[1:]):
                top, left = y * core.stride[0], x * core.stride[1]
                window = padded[:, top : top + kernel, left : left + kernel]
                v[:, y, x] += np.tensordot(core.weight, window, 3)
                v[:, y, x] += 0 if core.bias is None else core.bias
            n = np.where(v > 0, v // core.threshold, 0)
            n = n if core.many else np.minimum(n, 1)
            v = v - n * core.threshold if core.subtract else np.where(n > 0, 0, v)
            states[at], spikes[at][step] = np.maximum(v, core.v_min), n
            deliver(inputs, n, core.destinations)
    return spikes


def deliver(inputs, frame, destinations):
    for to in destinations:
        for channel, y, x in np.argwhere(frame):
            inputs[to.core][channel + to.feature_shift, y // to.pooling, x // to.pooling] += frame[channel, y, x]


# ---------------------------------------------------------------- random networks


def random_net(seed):
    """Up to four populations with sums, residuals, pools and odd kernels; whole weights, each node's largest 127.

    An average pool's weights are multiples of its area, so that 'max' scales every layer by 1.
    """
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 3)), *(int(n) for n in rng.integers(1, 9, 2)))
    nodes, edges, made = {"input": input_node(*shape)}, [], [("input", shape)]
    for i in range(int(rng.integers(1, 5))):
        branches = [_branch(rng, *made[rng.integers(max(0, len(made) - 2), len(made))])]
        if branches[0] is None:
            continue
        out = branches[0][2]
        branches += [_branch(rng, *made[rng.integers(len(made))], out) for _ in range(int(rng.integers(0, 4)))]
        for j, branch in enumerate(b for b in branches if b is not None):
            last = branch[0]
            for k, node in enumerate(branch[1]):
                nodes[f"x{i}_{j}_{k}"] = node
                edges.append((last, f"x{i}_{j}_{k}"))
                last = f"x{i}_{j}_{k}"
            edges.append((last, f"n{i}"))
        nodes[f"n{i}"] = if_node(out, float(rng.integers(100, 600)))
        made.append((f"n{i}", out))
    nodes["output"] = output_node(*made[-1][1])
    return make_graph(nodes, [*edges, (made[-1][0], "output")])


def _branch(rng, source, shape, wanted=None):
    """A pool, perhaps, and a convolution that make `wanted` of `shape`, where there are any; None otherwise."""
    nodes, factor = [], 1
    window, average = int(rng.choice([1, 1, 2, 4])), bool(rng.integers(2))
    if window > 1 and not any(n % window for n in shape[1:]):
        nodes.append(pool_node(nir.AvgPool2d if average else nir.SumPool2d, window))
        shape, factor = (shape[0], shape[1] // window, shape[2] // window), window**2 if average else 1
    taps = [int(n) for n in rng.integers(1, 4, 2)] if rng.random() < 0.4 else [int(rng.integers(1, 4))] * 2
    stride, padding = int(rng.choice([1, 1, 2])), tuple(int(n) for n in rng.integers(0, 2, 2))
    size = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(shape[1:], padding, taps, strict=True)]
    if any(n + 2 * p < k for n, p, k in zip(shape[1:], padding, taps, strict=True)):
        return None
    if wanted is not None and tuple(size) != wanted[1:]:
        return None
    out = int(rng.integers(1, 5)) if wanted is None else wanted[0]
    weight = rng.integers(-60, 127, (out, shape[0], *taps))
    weight.flat[0] = 127
    bias = rng.integers(-5, 5, out) if rng.random() < 0.3 else None
    nodes.append(conv_node(weight * factor, None, stride, padding, bias))
    return source, nodes, (out, *size)
