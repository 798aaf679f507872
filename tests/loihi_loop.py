"""Loihi's fixed-point equations written out in numpy, one step at a time: what a program of integers does."""

from __future__ import annotations

import numpy as np
import torch

STATE = 1 << 23
BATCH_OF_STEPS = 8


def execute(program, raster, resets=None):
    """u, v and spikes [step, neuron] of every population of a network whose only loops are from a population to itself.

    Args:
        program: a `nirdeploy_loihi.program.Program`.
        raster: spikes [step, ...] of the Input.
        resets: population -> steps at the start of which u and v are zeroed.
    """
    steps = len(raster)
    spikes = {program.input: np.asarray(raster).reshape(steps, -1).astype(np.int64)}
    for axons in program.always_on:
        spikes[axons.name] = np.repeat((np.arange(steps) >= axons.start)[:, None], axons.count, 1).astype(np.int64)
    found = {}
    for population in program.populations:
        arriving = np.zeros((steps, population.size), np.int64)
        loops = []
        for synapses in program.into(population.name):
            if synapses.source == population.name:
                loops.append(synapses)
            else:
                arriving += delivered(synapses, spikes[synapses.source])
        found[population.name] = _states(population, arriving, loops, set((resets or {}).get(population.name, ())))
        spikes[population.name] = found[population.name]["s"]
    return found


def delivered(synapses, spikes):
    """What arrives at each target in each step, [step, target]: a spike takes a step and its synapse's delay."""
    steps = len(spikes)
    total = np.zeros((steps + 64, synapses.n_targets), np.int64)
    if synapses.window:
        total[1 : steps + 1] = _convolved(synapses, spikes)
        return total[:steps]
    shape = synapses.weight.shape
    delay = np.broadcast_to(synapses.delay, shape)
    for d in np.unique(delay):
        weight = np.where(delay == d, synapses.weight, 0).astype(float)  # sums far below 2**53: exact
        total[1 + d : 1 + d + steps] += np.rint(spikes.astype(float) @ weight.T).astype(np.int64)
    return total[:steps]


def _convolved(synapses, spikes):
    window = synapses.window
    kernel = torch.from_numpy(synapses.weight.astype(float))
    given = torch.from_numpy(spikes.astype(float)).reshape(-1, *window.source_shape)
    parts = [
        torch.nn.functional.conv2d(
            part, kernel, stride=window.stride, padding=window.padding, dilation=window.dilation, groups=window.groups
        )
        for part in given.split(BATCH_OF_STEPS)
    ]
    assert tuple(parts[0].shape[1:]) == window.target_shape
    found = torch.cat(parts).round().to(torch.int64).reshape(len(spikes), -1).numpy()
    return (found + STATE) % (2 * STATE) - STATE  # Lava's Conv wraps its sum to 24 bits


def _decayed(value, decay):
    return np.sign(value) * ((np.abs(value) * (4096 - decay)) >> 12)


def _states(population, arriving, loops, resets):
    u = np.zeros(population.size, np.int64)
    v = np.zeros(population.size, np.int64) + population.v_start
    rows = {"u": [], "v": [], "s": []}
    arriving = np.concatenate([arriving, np.zeros((64, population.size), np.int64)])
    for step in range(len(arriving) - 64):
        if step in resets:
            u, v = np.zeros_like(u), np.zeros_like(v)
        u = _decayed(u, population.decay_u) + (arriving[step] << 6)
        u = np.where(u > STATE, u - 2 * STATE, np.where(u <= -STATE, u + 2 * STATE, u))
        v = np.clip(_decayed(v, population.decay_v) + u + population.bias, 1 - STATE, STATE - 1)
        s = (v > population.threshold).astype(np.int64)
        v = np.where(s, 0, v)
        for loop in loops:
            delay = np.broadcast_to(loop.delay, loop.weight.shape)
            for d in np.unique(delay):
                arriving[step + 1 + d] += np.where(delay == d, loop.weight, 0) @ s
        for name, value in (("u", u), ("v", v), ("s", s)):
            rows[name].append(value)
    return {name: np.stack(values) for name, values in rows.items()}
