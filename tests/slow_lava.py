"""The chip's equations as plain loops over steps, synapse by synapse: nothing of the package's arithmetic.

u = wrap(dec(u, decay_u) + 64 a), v = clip(dec(v, decay_v) + u + bias), s = v > threshold, v = 0 where s; a spike of
step t arrives in step t + 1 + delay; sums of a convolution wrap to signed 24 bits.
"""

from collections import defaultdict

import numpy as np

HALF, WHOLE = 1 << 23, 1 << 24


def decayed(x, d):
    return np.sign(x) * ((np.abs(x) * (4096 - d)) >> 12)


def synapses_of(s):
    """(target, source, delay, weight) of every synapse, in lists."""
    if s.window is None:
        delay = np.broadcast_to(s.delay, s.weight.shape)
        return [(int(t), int(j), int(delay[t, j]), int(s.weight[t, j])) for t, j in np.argwhere(s.weight)]
    w = s.window
    (c_in, height, width), (c_out, rows, columns) = w.source_shape, w.target_shape
    delay = np.broadcast_to(s.delay, (s.n_targets, s.n_sources))
    found = []
    for o, own, ky, kx in np.argwhere(s.weight):
        c = own + (o // (c_out // w.groups)) * (c_in // w.groups)
        for i in range(rows):
            for j in range(columns):
                y = i * w.stride[0] - w.padding[0] + ky * w.dilation[0]
                x = j * w.stride[1] - w.padding[1] + kx * w.dilation[1]
                if 0 <= y < height and 0 <= x < width:
                    t, source = (o * rows + i) * columns + j, (c * height + y) * width + x
                    found.append((int(t), int(source), int(delay[t, source]), int(s.weight[o, own, ky, kx])))
    return found


def execute(program, raster):
    """Traces {(population, variable): int32 [step, batch, *shape]} of a raster [step, batch, *input shape]."""
    samples = [one_sample(program, raster[:, b]) for b in range(raster.shape[1])]
    return {key: np.stack([found[key] for found in samples], axis=1).astype(np.int32) for key in samples[0]}


def one_sample(program, raster):
    steps = len(raster)
    given = {program.input: raster.reshape(steps, -1).astype(np.int64)}
    for axons in program.always_on:
        given[axons.name] = np.repeat((np.arange(steps) >= axons.start)[:, None], axons.count, 1).astype(np.int64)
    tables = [(s, np.array(synapses_of(s), np.int64).reshape(-1, 4)) for s in program.synapses]
    under_way = defaultdict(int)  # (step, connection) -> sums of the target's neurons
    u = {p.name: np.zeros(p.size, np.int64) for p in program.populations}
    v = {p.name: np.broadcast_to(p.v_start, (p.size,)).copy() for p in program.populations}
    traces = {(p.name, k): [] for p in program.populations for k in ("spikes", "v_mem", "i_syn")}
    for t in range(steps):
        spikes = {name: values[t] for name, values in given.items()}
        for p in program.populations:
            a = np.zeros(p.size, np.int64)
            for k, (s, _) in enumerate(tables):
                if s.target == p.name:
                    came = under_way.pop((t, k), np.zeros(p.size, np.int64))
                    a += (came + HALF) % WHOLE - HALF if s.window else came
            now = decayed(u[p.name], p.decay_u) + 64 * a
            now = np.where(now > HALF, now - WHOLE, np.where(now <= -HALF, now + WHOLE, now))
            volt = np.clip(decayed(v[p.name], p.decay_v) + now + p.bias, 1 - HALF, HALF - 1)
            fired = volt > p.threshold
            u[p.name], v[p.name] = now, np.where(fired, 0, volt)
            spikes[p.name] = fired.astype(np.int64)
            for key, values in (("spikes", fired), ("v_mem", v[p.name]), ("i_syn", now)):
                traces[p.name, key].append(values.reshape(p.shape).copy())
        for k, (s, table) in enumerate(tables):
            live = table[spikes[s.source][table[:, 1]] != 0]
            for delay in np.unique(live[:, 2]):
                part = live[live[:, 2] == delay]
                sums = np.zeros(s.n_targets, np.int64)
                np.add.at(sums, part[:, 0], part[:, 3])
                under_way[t + 1 + int(delay), k] = under_way[t + 1 + int(delay), k] + sums
    return {key: np.stack(values) for key, values in traces.items()}
