"""Programs of a chip built by hand, and what they do, written out one neuron at a time."""

from __future__ import annotations

import numpy as np
from nirdeploy_speck.cores import ChipCore, ChipProgram, Destination


def size_of(shape, weight, stride, padding):
    """(channel, y, x) of a convolution's output."""
    kernel = weight.shape[2:]
    return (
        weight.shape[0],
        *((n + 2 * p - k) // s + 1 for n, p, k, s in zip(shape[1:], padding, kernel, stride, strict=True)),
    )


def core(number, layer, weight, shape, stride=(1, 1), padding=(0, 0), to=(), **fields):
    """A core; `to` lists (core, pooling, feature_shift)."""
    weight = np.asarray(weight, np.int64)
    values = {"threshold": 100, "v_min": -100, "subtract": True, "many": True, "bias": None, "first": 0} | fields
    return ChipCore(
        number=number,
        layer=layer,
        weight=weight,
        stride=stride,
        padding=padding,
        input_shape=shape,
        output_shape=size_of(shape, weight, stride, padding),
        scale=0.5,
        destinations=tuple(Destination(*d) for d in to),
        **values,
    )


def program(cores, entry, shape, layers=None):
    named = layers or {c.layer: (n,) for n, c in enumerate(cores)}
    return ChipProgram(tuple(cores), tuple(Destination(*d) for d in entry), shape, named, {})


def draw(rng, *shape, low=-60, high=90):
    return rng.integers(low, high, shape)


def chain_of_two(rng, pooling=2, **fields):
    """Conv (2, 6, 6) -> (3, 6, 6), pooled, conv -> (2, y, x)."""
    first = core(2, "a", draw(rng, 3, 2, 3, 3), (2, 6, 6), padding=(1, 1), to=[(1, pooling, 0)], **fields)
    side = 6 // pooling
    second = core(3, "b", draw(rng, 2, 3, 2, 2), (3, side, side), **fields)
    return program([first, second], [(0,)], (2, 6, 6))


def residual(rng, **fields):
    """a -> b -> c and a -> c: two sources name one destination."""
    a = core(2, "a", draw(rng, 3, 1, 3, 3), (1, 4, 4), padding=(1, 1), to=[(1, 1, 0), (2, 2, 0)], **fields)
    b = core(3, "b", draw(rng, 3, 3, 3, 3), (3, 4, 4), padding=(1, 1), to=[(2, 2, 0)], **fields)
    c = core(4, "c", draw(rng, 4, 3, 2, 2), (3, 2, 2), **fields)
    return program([a, b, c], [(0,)], (1, 4, 4))


def split(whole):
    """The chain with its first layer on two cores, by channels: 2 and 1 of the 3."""
    first, second = whole.cores
    parts = []
    for number, (begin, end) in zip((5, 6), ((0, 2), (2, 3)), strict=True):
        pooling = first.destinations[0].pooling
        bias = None if first.bias is None else first.bias[begin:end]
        parts.append(
            core(
                number,
                "a",
                first.weight[begin:end],
                first.input_shape,
                first.stride,
                first.padding,
                [(2, pooling, begin)],
                threshold=first.threshold,
                v_min=first.v_min,
                subtract=first.subtract,
                many=first.many,
                bias=bias,
                first=begin,
            )
        )
    return program([*parts, second], [(0,), (1,)], whole.input_map, {"a": (0, 1), "b": (2,)})


def reached(one, c, y, x):
    """(channel, y, x) and weight of every neuron that an event at a core reaches, y, x, channel by channel."""
    _, height, width = one.output_shape
    (sy, sx), (py, px), (ky, kx) = one.stride, one.padding, one.weight.shape[2:]
    for oy in range(height):
        for ox in range(width):
            i, j = y + py - oy * sy, x + px - ox * sx
            if 0 <= i < ky and 0 <= j < kx:
                for o in range(one.output_shape[0]):
                    yield (o, oy, ox), int(one.weight[o, c, i, j])


class SlowChip:
    """Event mode as its definition reads: recursion, one neuron at a time."""

    def __init__(self, whole, sweep="yxc"):
        self.whole, self.sweep = whole, sweep
        self.v = [np.zeros(c.output_shape, int) for c in whole.cores]
        self.spikes = [np.zeros(c.output_shape, int) for c in whole.cores]
        self.sent = []
        names = ("saturations", "clamps", "synaptic_operations", "input_events", "spikes")
        self.counters = [dict.fromkeys(names, 0) for _ in whole.cores]

    def send(self, destinations, c, y, x):
        for to in destinations:
            self.receive(to.core, c + to.feature_shift, y // to.pooling, x // to.pooling)

    def fire(self, k, fired):
        if self.sweep == "cyx":
            fired = sorted(fired)
        for address in fired:
            self.sent.append((k, *address))
            self.send(self.whole.cores[k].destinations, *address)

    def update(self, k, address, by, fires=True):
        one, v = self.whole.cores[k], self.v[k]
        now = v[address] + by
        if now > 32767:
            now, self.counters[k]["saturations"] = 32767, self.counters[k]["saturations"] + 1
        if now < one.v_min:
            now, self.counters[k]["clamps"] = one.v_min, self.counters[k]["clamps"] + 1
        hit = fires and now >= one.threshold
        if hit:
            now = now - one.threshold if one.subtract else 0
            self.spikes[k][address] += 1
            self.counters[k]["spikes"] += 1
        v[address] = now
        return hit

    def receive(self, k, c, y, x):
        self.counters[k]["input_events"] += 1
        fired = []
        for address, weight in reached(self.whole.cores[k], c, y, x):
            self.counters[k]["synaptic_operations"] += 1
            if self.update(k, address, weight):
                fired.append(address)
        self.fire(k, fired)

    def cycle(self, fires=True):
        """One cycle of the slow clock."""
        for k, one in enumerate(self.whole.cores):
            if one.bias is None or not one.bias.any():
                continue
            outputs, height, width = one.output_shape
            order = [(o, y, x) for y in range(height) for x in range(width) for o in range(outputs)]
            self.fire(k, [a for a in order if self.update(k, a, int(one.bias[a[0]]), fires)])


def fired(v, threshold, v_min, subtract, many):
    """Spikes at the end of a step, as many as the threshold fits into v or one, and v after them, not below v_min."""
    n = np.where(v > 0, v // threshold, 0)
    n = n if many else np.minimum(n, 1)
    return n, np.maximum(np.where(n > 0, v - n * threshold if subtract else 0, v), v_min)


def slow_steps(whole, raster):
    """Step mode as its definition reads: spikes and v [step][core] of one sample [step, channel, y, x]."""
    v = [np.zeros(c.output_shape, int) for c in whole.cores]
    out = []
    for frame in raster:
        given = [np.zeros(c.input_shape, int) for c in whole.cores]
        deliver(whole.entry, frame, given)
        row = []
        for k, one in enumerate(whole.cores):
            v[k] = v[k] + (0 if one.bias is None else one.bias[:, None, None])
            for (c, y, x), count in np.ndenumerate(given[k]):
                for address, weight in reached(one, c, y, x) if count else ():
                    v[k][address] += int(count) * weight
            n, v[k] = fired(v[k], one.threshold, one.v_min, one.subtract, one.many)
            deliver(one.destinations, n, given)
            row.append((n, v[k].copy()))
        out.append(row)
    return out


def deliver(destinations, counts, given):
    for to in destinations:
        for (c, y, x), count in np.ndenumerate(counts):
            given[to.core][c + to.feature_shift, y // to.pooling, x // to.pooling] += count
