"""Runs of a program on its integers: all of it, or some populations with the spikes of their sources given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import GraphError, RasterError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.reference.threads import split
from nirdeploy_loihi.packed import Packed, pack
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.registers import refuse_overflow
from nirdeploy_loihi.run_kernels import OPERATIONS, SATURATIONS, SPIKES, WRAPS, Given, run

__all__ = ["READ_OUTS", "VARIABLES", "Executed", "execute", "part", "sums"]

Ints = NDArray[np.int32]
READ_OUTS = ("registers", "chip")
VARIABLES = ("spikes", "v_mem", "i_syn")
Keep = Mapping[str, Collection[str]]
_TRACED = ("sums", "i_syn", "v_mem", "spikes")  # in the order of the kernel's traces
_LEAST_WORK = 1 << 15  # neurons times steps that are worth a thread
_MOST_WORK = 1 << 23  # that are done between two moments at which Ctrl-C takes effect


@dataclass(frozen=True)
class Executed:
    """What a run leaves.

    Attributes:
        traces: (population, 'spikes' | 'v_mem' | 'i_syn' | 'sums') -> int32 [step, batch, *shape].
        outputs: Output -> what it shows, int32 [step, batch, *its shape].
        counters: per population 'wraps' of u, 'saturations' of v, 'synaptic_operations' (spikes times the synapses
            that they reach before the run ends, those of weight zero included) and 'spikes'.
        peaks: per population the largest |u| before folding.
    """

    traces: Mapping[tuple[str, str], Ints]
    outputs: Mapping[str, Ints]
    counters: Mapping[str, Mapping[str, int]]
    peaks: Mapping[str, int]


def execute(
    program: Program,
    raster: NDArray[Any],
    keep: Keep,
    *,
    read_out: str = "registers",
    progress: Callable[[int, int], None] | None = None,
) -> Executed:
    """Run a raster through all steps, sample by sample, each from rest.

    In step t a neuron receives the sum over its synapses of weight * spike(t - 1 - delay); a convolution's sum
    without delays is wrapped to signed 24 bits (Lava, conv/models.py). The registers do the rest (see `registers`).

    Args:
        program: the network.
        raster: 0 and 1, [step, batch, *input shape].
        keep: population -> variables to return; what the Outputs show is returned in any case.
        read_out: 'registers', or 'chip': v as the chip's probe shows it, 128 times the refractory steps left where a
            neuron spikes or is refractory (nengo-loihi, issue 170; seen on Loihi 2 in the NIR paper's trace).
        progress: called now and then with the steps done and the steps of all samples.

    Raises:
        RasterError: a raster of wrong shape or not of 0 and 1, or an unknown population or variable to keep.
        UnsupportedError: an unknown read-out.
        QuantizationError: u beyond 32 bits, or integers that no register holds; naming the population.
    """
    if read_out not in READ_OUTS:
        raise UnsupportedError(f"read_out={read_out!r} is unknown", remedy=suggest(str(read_out), READ_OUTS))
    if raster.ndim < 2 or raster.shape[2:] != program.input_shape:
        raise RasterError(f"the raster has shape {raster.shape}, expected [step, batch, *{program.input_shape}]")
    wanted = _wanted([p.name for p in program.populations], keep, VARIABLES)
    kept = {name: set(variables) for name, variables in wanted.items()}
    for shown in program.outputs:
        kept[shown.source].add(shown.variable)
    run = _run(pack(program), {program.input: raster}, kept, shown=read_out == "chip", progress=progress)
    outputs = {o.name: run.traces[o.source, o.variable].reshape(*raster.shape[:2], *o.shape) for o in program.outputs}
    traces = {(p, variable): run.traces[p, variable] for p in wanted for variable in VARIABLES if variable in wanted[p]}
    return replace(run, traces=traces, outputs=outputs)


def part(program: Program, names: Collection[str], spikes: Mapping[str, NDArray[Any]], keep: Keep) -> Executed:
    """Some populations alone, for given spikes of their sources; the loops among them are followed.

    Args:
        program: the network, or what of it ends in these populations.
        names: the populations.
        spikes: source -> 0 and 1, [step, batch, source neuron] or [step, batch, *source shape]; of every source
            outside of `names` but the always-on axons.
        keep: population -> 'spikes', 'v_mem', 'i_syn' and 'sums' to return.

    Returns:
        What the populations did; no outputs.

    Raises:
        GraphError: an unknown population, or spikes of a source are missing or have the wrong shape.
        RasterError: spikes other than 0 and 1, or an unknown population or variable to keep.
        QuantizationError: as `execute`.
    """
    known = [p.name for p in program.populations]
    for name in names:
        if name not in known:
            raise GraphError(f"no population {name!r} to run", remedy=suggest(str(name), known))
    run = tuple(name for name in known if name in names)
    return _run(pack(program, only=run), spikes, _wanted(run, keep, _TRACED), shown=False)


def sums(program: Program, name: str, spikes: Mapping[str, NDArray[Any]]) -> Ints:
    """Synaptic sums of one population without a loop onto itself, int32 [step, batch, *shape].

    They do not depend on its registers: `registers.integrate` steps many choices of them on the same sums.

    Raises:
        UnsupportedError: the population feeds itself.
        GraphError, RasterError, QuantizationError: as `part`.
    """
    if any(s.source == name for s in program.into(name)):
        raise UnsupportedError("it feeds itself: its sums depend on its own spikes", node=name, remedy="Use part.")
    return part(program, (name,), spikes, {name: ("sums",)}).traces[name, "sums"]


def _wanted(names: Collection[str], keep: Keep, possible: Collection[str]) -> dict[str, set[str]]:
    """Variables to keep, by population.

    Raises:
        RasterError: an unknown population or variable.
    """
    for name, variables in keep.items():
        if name not in names:
            raise RasterError(f"no population {name!r} to record", remedy=suggest(str(name), names))
        for variable in set(variables) - set(possible):
            raise RasterError(f"no variable {variable!r} to record", node=name)
    return {name: set(keep.get(name, ())) for name in names}


def _named(counts: NDArray[np.int64]) -> dict[str, int]:
    names = {"wraps": WRAPS, "saturations": SATURATIONS, "synaptic_operations": OPERATIONS, "spikes": SPIKES}
    return {name: int(counts[k]) for name, k in names.items()}


def _given(packed: Packed, spikes: Mapping[str, NDArray[Any]]) -> tuple[Given, int, int]:
    """Who spikes in every step and sample, of all sources outside; steps and batch."""
    node = packed.populations[0].name
    if not spikes:
        raise GraphError("no spikes are given, which would tell steps and samples", node=node)
    steps, batch = np.shape(next(iter(spikes.values())))[:2]
    begins, index, used = [], [], 0
    for name, size in packed.given.items():
        if name not in spikes:
            raise GraphError(f"no spikes of {name!r} are given", node=node)
        values = np.asarray(spikes[name])
        if values.shape[:2] != (steps, batch) or values.size != steps * batch * size:
            expected = f"[{steps}, {batch}, {size} neurons]"
            raise GraphError(f"spikes of {name!r} have shape {values.shape}, expected {expected}", node=node)
        place = np.flatnonzero(values != 0)  # four times as fast on bool
        if (other := values.reshape(-1)[place] != 1).any():
            found = values.reshape(-1)[place[other][0]]
            raise RasterError(f"spikes of {name!r} hold a {found}, expected 0 and 1", node=node)
        begins.append(used + np.searchsorted(place, np.arange(steps * batch + 1) * size))
        index.append((place % size).astype(np.int32))
        used += len(place)
    begins = begins or [np.zeros(steps * batch + 1, np.int64)]
    axons = np.arange(packed.axons, dtype=np.int32)
    index = [np.zeros(0, np.int32), *index]
    return Given(np.stack(begins).astype(np.int64), np.concatenate(index), axons), steps, batch


def _run(
    packed: Packed,
    spikes: Mapping[str, NDArray[Any]],
    keep: Keep,
    *,
    shown: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Executed:
    given, steps, batch = _given(packed, spikes)
    at = np.full((len(packed.populations), len(_TRACED)), -1, np.int64)
    size = 0
    for k, p in enumerate(packed.populations):
        for j, variable in enumerate(_TRACED):
            if variable in keep[p.name]:
                at[k, j] = size
                size += steps * batch * p.size
    traces = np.zeros(size, np.int32)
    each = max(1, steps * sum(p.size for p in packed.populations))  # work of a sample
    caller, done = threading.get_ident(), [0]

    def work(first: int, last: int) -> list[tuple[Any, Any]]:
        found, group = [], max(1, _MOST_WORK // each)
        for start in range(first, max(last, first + 1), group):
            stop = min(start + group, last)
            found.append(run(packed.tables, given, traces, at, shown, steps, batch, np.array([start, stop])))
            done[0] += stop - start
            if progress is not None and threading.get_ident() == caller:
                progress(done[0] * steps, batch * steps)
        return found

    parts = split(work, batch, max(1, _LEAST_WORK // each))
    counts, reached = zip(*(one for found in parts for one in found), strict=True)
    low, high = np.min(reached, axis=0)[:, 0], np.max(reached, axis=0)[:, 1]
    for k, p in enumerate(packed.populations):
        refuse_overflow(int(low[k]), int(high[k]), p.name)
    total: NDArray[np.int64] = np.sum(counts, axis=0)
    return Executed(
        {
            (p.name, variable): traces[at[k, j] : at[k, j] + steps * batch * p.size].reshape(steps, batch, *p.shape)
            for k, p in enumerate(packed.populations)
            for j, variable in enumerate(_TRACED)
            if at[k, j] >= 0
        },
        {},
        {p.name: _named(total[k]) for k, p in enumerate(packed.populations)},
        {p.name: int(max(-low[k], high[k])) for k, p in enumerate(packed.populations)},
    )
