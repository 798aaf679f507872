"""Small programs for placement, and what they take and send, counted neuron by neuron from the definitions."""

import dataclasses
import itertools
import math

import numpy as np
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.program import AlwaysOn, Compartments, Program, Synapses, Window

from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention


def population(name, *shape, decay_v=0, threshold=64, **fields):
    def register(value):
        return np.atleast_1d(np.asarray(value, dtype=np.int64))

    return Compartments(
        name=name,
        shape=shape,
        decay_u=register(4096),
        decay_v=register(decay_v),
        threshold=register(threshold),
        bias_mantissa=register(0),
        bias_exponent=0,
        v_start=register(0),
        **fields,
    )


def dense(source, target, weight, delay=0):
    delay = np.broadcast_to(np.asarray(delay, dtype=np.int64), (1, 1))
    return Synapses(f"{source}->{target}", source, target, np.asarray(weight, dtype=np.int64), delay)


def conv(source, target, given, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    weight = np.asarray(weight, dtype=np.int64)
    spans = [(weight.shape[2 + a] - 1) * dilation[a] + 1 for a in (0, 1)]
    size = [(given[1 + a] + 2 * padding[a] - spans[a]) // stride[a] + 1 for a in (0, 1)]
    window = Window(given, (len(weight), *size), stride, padding, dilation, groups)
    return Synapses(f"{source}->{target}", source, target, weight, np.zeros((1, 1), np.int64), window)


def program(*parts, shape=(4,)):
    return Program(
        input="input",
        input_shape=shape,
        populations=tuple(p for p in parts if isinstance(p, Compartments)),
        synapses=tuple(p for p in parts if isinstance(p, Synapses)),
        always_on=tuple(p for p in parts if isinstance(p, AlwaysOn)),
        outputs=(),
    )


def limited(target="loihi1", activity=(), **limits):
    """Integers of nothing, for a chip with other limits; None takes one out of the table."""
    chip = BACKEND.targets()[target]
    cores = {k: v for k, v in {**chip.table["cores"], **limits}.items() if v is not None}
    chip = dataclasses.replace(chip, table={**chip.table, "cores": cores})
    return Quantized(None, chip, Convention(dt=1e-3), "given", {}, activity=dict(activity))


# ---------------------------------------------------------------- definitions


def connected(synapses):
    """Whether there is a synapse, [target neuron, source neuron]."""
    window = synapses.window
    if window is None:
        return synapses.weight != 0
    outs, per_group, taps_y, taps_x = synapses.weight.shape
    found = np.zeros((*window.target_shape, *window.source_shape), dtype=bool)
    for o, y, x in np.ndindex(*window.target_shape):
        first = o // (outs // window.groups) * per_group
        for i, ky, kx in np.ndindex(per_group, taps_y, taps_x):
            sy = y * window.stride[0] + ky * window.dilation[0] - window.padding[0]
            sx = x * window.stride[1] + kx * window.dilation[1] - window.padding[1]
            inside = 0 <= sy < window.source_shape[1] and 0 <= sx < window.source_shape[2]
            if inside and synapses.weight[o, i, ky, kx]:
                found[o, y, x, first + i, sy, sx] = True
    return found.reshape(math.prod(window.target_shape), -1)


def neurons_of(shape, block):
    """Flat neurons of a block."""
    return [
        i
        for i, place in enumerate(np.ndindex(*shape))
        if all(a <= p < b for p, (a, b) in zip(place, block, strict=True))
    ]


def homes(given, placement):
    """(population, neuron) -> core; refuses a neuron that has none or two."""
    found = {}
    for p in given.populations:
        for core, block in zip(placement.cores[p.name], placement.tiles[p.name], strict=True):
            for neuron in neurons_of(p.shape, block):
                assert (p.name, neuron) not in found
                found[p.name, neuron] = core
    assert len(found) == sum(p.size for p in given.populations)
    return found


def reached(given, home):
    """(source, neuron) -> cores on which it has a synapse."""
    found = {}
    for synapses in given.synapses:
        for target, source in zip(*np.nonzero(connected(synapses)), strict=True):
            found.setdefault((synapses.source, int(source)), set()).add(home[synapses.target, int(target)])
    return found


def sent(given, home, activity=()):
    """Messages a step: each spike to every other core."""
    measured = dict(activity)
    total = 0.0
    for (source, neuron), cores in reached(given, home).items():
        spikes = measured[source][neuron] if source in measured else 1.0
        total += spikes * len(cores - {home.get((source, neuron))})
    return total


def axon_memory(weights, bits):
    """Bits of an axon: up to 64 weights an entry, 10 bits of header, words of 64."""
    entries = [64] * (weights // 64) + [weights % 64] * (weights % 64 > 0)
    return sum(math.ceil((n * bits + 10) / 64) * 64 for n in entries)


def taken(given, home):
    """Core -> what it takes."""
    cores = {}
    for core in set(home.values()):
        here = {key for key, c in home.items() if c == core}
        index = max(6, math.ceil(math.log2(max(2, len(here)))))
        memory, heard, formats = 0, set(), set()
        for synapses in given.synapses:
            rows = [n for name, n in sorted(here) if name == synapses.target]
            counts = connected(synapses)[rows].sum(axis=0)
            bits = 8 + 6 * bool(synapses.delay.any())
            for source in np.flatnonzero(counts):
                sparse = axon_memory(int(counts[source]), bits + index)
                memory += min(sparse, axon_memory(len(rows), bits))
                heard.add((synapses.source, int(source)))
                low, high = synapses.weight.min(), synapses.weight.max()
                formats.add((low >= 0, high <= 0, bits))
        links = reached(given, home)
        kinds = [(given.population(name), neuron) for name, neuron in here]

        def of(values, neuron):
            return int(np.broadcast_to(values, (neuron + 1,))[neuron] if len(values) == 1 else values[neuron])

        cores[core] = {
            "neurons": len(here),
            "synapse_bits": memory,
            "in_axons": len(heard),
            "out_axons": sum(len(links.get(key, ())) for key in here),
            "compartment_configs": len({(of(p.decay_u, n), of(p.decay_v, n), p.refractory) for p, n in kinds}),
            "threshold_configs": len({of(p.threshold, n) for p, n in kinds}),
            "synapse_configs": len(formats),
        }
    return cores


def least(given, placement, table, activity=()):
    """The fewest messages of any assignment of these tiles to cores that fits, by trying all."""
    tiles = [(p, block) for p in given.populations for block in placement.tiles[p.name]]
    members = [[(p.name, n) for n in neurons_of(p.shape, block)] for p, block in tiles]
    best = math.inf
    for groups in itertools.product(*(range(i + 1) for i in range(len(tiles)))):
        if any(g > max(groups[:i], default=-1) + 1 for i, g in enumerate(groups)):
            continue  # the same partition under other numbers
        if len(set(zip((p.name for p, _ in tiles), groups, strict=True))) < len(tiles):
            continue  # two tiles of a population on one core
        if len(set(groups)) > table["cores"]["count"]:
            continue
        home = {key: g for g, keys in zip(groups, members, strict=True) for key in keys}
        fits = all(
            used <= table["cores"].get(resource, used)
            for found in taken(given, home).values()
            for resource, used in found.items()
        )
        if fits:
            best = min(best, sent(given, home, activity))
    return best
