"""The chip's equations as plain loops over steps, samples and synapses: nothing of the package's arithmetic.

u = wrap(dec(u, decay_u) + 64 a), v = clip(dec(v, decay_v) + u + bias), s = v > threshold, v = 0 where s and for the
refractory steps after; a spike of step t arrives in step t + 1 + delay; sums of a convolution without delays wrap to
signed 24 bits.
"""

import numpy as np

HALF, WHOLE = 1 << 23, 1 << 24


def decayed(x, loss):
    """sign(x) * ((|x| * (4096 - loss)) >> 12)"""
    return np.sign(x) * ((np.abs(x) * (4096 - loss)) >> 12)


def matrix(synapses):
    """Weights and whether there is a synapse, [target, source]; a convolution is written out tap by tap."""
    if synapses.window is None:
        return synapses.weight, np.ones(synapses.weight.shape, bool)
    w = synapses.window
    weight = np.zeros((*w.target_shape, *w.source_shape), np.int64)
    exists = np.zeros(weight.shape, bool)
    out_channels, in_channels, down, across = synapses.weight.shape
    per_group = out_channels // w.groups
    for o, i, ky, kx in np.ndindex(out_channels, in_channels, down, across):
        channel = o // per_group * in_channels + i
        for oy, ox in np.ndindex(*w.target_shape[1:]):
            y = oy * w.stride[0] + ky * w.dilation[0] - w.padding[0]
            x = ox * w.stride[1] + kx * w.dilation[1] - w.padding[1]
            if 0 <= y < w.source_shape[1] and 0 <= x < w.source_shape[2]:
                weight[o, oy, ox, channel, y, x] = synapses.weight[o, i, ky, kx]
                exists[o, oy, ox, channel, y, x] = True
    shape = (synapses.n_targets, synapses.n_sources)
    return weight.reshape(shape), exists.reshape(shape)


class Wires:
    """One connection, and the spikes that are on their way."""

    def __init__(self, synapses):
        self.name, self.source, self.target = synapses.name, synapses.source, synapses.target
        self.weight, self.exists = matrix(synapses)
        self.delay = np.broadcast_to(synapses.delay, self.weight.shape)
        self.wraps = synapses.window is not None and not synapses.delay.any()

    def arriving(self, history, t):
        """Sums of step t, and the synapses that brought them."""
        came = np.zeros(self.weight.shape, np.int64)
        for d in np.unique(self.delay):
            if t - 1 - d >= 0:
                came |= (self.delay == d) & (history[t - 1 - d] != 0)
        total = (came * self.weight).sum(1)
        if self.wraps:
            total = (total + HALF) % WHOLE - HALF
        return total, int((came * self.exists).sum())


class Neurons:
    """One population of one sample."""

    def __init__(self, p):
        self.p = p
        self.u = np.zeros(p.size, np.int64)
        self.v = np.zeros(p.size, np.int64) + p.v_start
        self.left = np.zeros(p.size, np.int64)
        self.counters = dict.fromkeys(("wraps", "saturations", "synaptic_operations", "spikes"), 0)

    def step(self, total, read_out):
        """Advance by a step; u, v as read out, and spikes."""
        p = self.p
        u = decayed(self.u, p.decay_u) + (total << 6)
        self.u = np.where(u > HALF, u - WHOLE, np.where(u <= -HALF, u + WHOLE, u))
        v = decayed(self.v, p.decay_v) + self.u + p.bias
        self.v = np.clip(v, 1 - HALF, HALF - 1)
        self.counters["wraps"] += int((self.u != u).sum())
        self.counters["saturations"] += int((self.v != v).sum())
        self.v[self.left > 0] = 0
        s = self.v > p.threshold
        self.v[s] = 0
        self.left[s] = p.refractory
        seen = np.where(self.left > 0, 128 * self.left, self.v) if read_out == "chip" else self.v
        self.left = np.maximum(self.left - 1, 0)
        self.counters["spikes"] += int(s.sum())
        return self.u.copy(), seen.copy(), s.astype(np.int64)


def execute(program, raster):
    """Traces {(population, 'i_syn' | 'v_mem' | 'spikes'): int32 [step, batch, *shape]} of a raster, likewise."""
    return run(program, raster)[0]


def run(program, raster, read_out="registers"):
    """Traces as `execute`, and {population: counters}."""
    samples, totals = [], {}
    wires = [Wires(s) for s in program.synapses]
    for sample in range(raster.shape[1]):
        states, counters = run_sample(program, wires, raster[:, sample].reshape(len(raster), -1), read_out)
        samples.append(states)
        for name, found in counters.items():
            before = totals.setdefault(name, dict.fromkeys(found, 0))
            totals[name] = {key: before[key] + found[key] for key in found}
    return {key: np.stack([one[key] for one in samples], axis=1) for key in samples[0]}, totals


def run_sample(program, wires, spikes, read_out):
    """One sample [step, input neuron]."""
    history = {program.input: list(spikes)}
    for axons in program.always_on:
        history[axons.name] = [np.full(axons.count, int(t >= axons.start)) for t in range(len(spikes))]
    neurons = {p.name: Neurons(p) for p in program.populations}
    states = {}
    for p in program.populations:
        history[p.name] = []
    for t in range(len(spikes)):
        emitted = {}
        for name, population in neurons.items():
            total = np.zeros(population.p.size, np.int64)
            for wire in (w for w in wires if w.target == name):
                came, count = wire.arriving(history[wire.source], t)
                total += came
                population.counters["synaptic_operations"] += count
            found = population.step(total, read_out)
            for variable, values in zip(("i_syn", "v_mem", "spikes"), found, strict=True):
                states.setdefault((name, variable), []).append(values)
            emitted[name] = found[2]
        for name, now in emitted.items():
            history[name].append(now)
    shape = {p.name: (-1, *p.shape) for p in program.populations}
    traces = {key: np.array(values, dtype=np.int32).reshape(shape[key[0]]) for key, values in states.items()}
    return traces, {n: x.counters for n, x in neurons.items()}
