"""The calibrated quantiser: scale and threshold of each population, chosen by spikes on data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, best
from nirdeploy_loihi.agreement import Cost, Wanted, compared, difference
from nirdeploy_loihi.execute import Executed, execute, part, sums
from nirdeploy_loihi.lower_program import lower_program
from nirdeploy_loihi.network import Layer, Network
from nirdeploy_loihi.problem import Problem
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.registers import integrate
from nirdeploy_loihi.scaling import (
    Layers,
    ceiling,
    contained,
    first_mantissa,
    integers,
    largest_scale,
    misfit,
    never,
    strict_mantissa,
    with_mantissa,
)

__all__ = ["calibrate", "components"]

Ints = NDArray[np.int32]
# below 1 other roundings of the weights are tried, above 1 the largest weights are clipped
_FINER = (1.05, 1.12, 1.25, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0)
FACTORS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.75, 0.7, 0.6, 0.5, *_FINER)
OFFSETS = (0, -1, 1, -2, 2)
MARGIN = 2  # left above the largest v on the data, where no input is known to be the worst
HALVINGS = 8  # of the scale, where u or v is beyond its bits at every other


def calibrate(
    network: Network, problems: list[Problem], start: Quantized, raster: Ints, wanted: Wanted
) -> tuple[Layers, list[str]]:
    """Integers that follow the reference's spikes best, population by population.

    Each population is fed the spikes of the populations already quantised, and those of the reference, shifted by
    their lag, of those later in a loop. The cost is the number of spikes by which it differs from the reference,
    shifted by its lag; of a population that only integrates, the mean error of v. Candidates whose u wraps are left
    out, as are those whose v comes near the largest threshold in a population that only integrates. `start`, the
    choice of `max`, is among the candidates. At the end each population goes back to `start`'s if that helps the
    whole network, which is kept only if it differs no more than `start`'s: on this data the result is never worse,
    unless `start` overflows there.

    Args:
        network: the lowered graph.
        problems: one a population, in execution order.
        start: integers by `max`.
        raster: 0 and 1, [step, batch, *shape of the Input].
        wanted: the reference's run of it.

    Returns:
        The integers, and a sentence on what was found.

    Raises:
        QuantizationError: every candidate of a population overflows; naming it.
    """
    by_name = {problem.layer.name: problem for problem in problems}
    chosen: Layers = dict(start.layers)
    spikes = {network.input: raster}
    for names in components(lower_program(network, start)):
        known = dict(spikes)
        known |= {name: _shifted(wanted.spikes[name], by_name[name].layer.lag) for name in names if len(names) > 1}
        for name in names:
            found, emitted = _best(network, by_name[name], replace(start, layers=chosen), known, wanted)
            chosen.update(found)
            known[name] = emitted
        if len(names) > 1:  # a population by itself has just emitted them
            program = _program(network, replace(start, layers=chosen), names)
            traces = part(program, names, spikes, dict.fromkeys(names, ("spikes",))).traces
            known |= {name: traces[name, "spikes"] for name in names}
        spikes |= {name: known[name] for name in names}
    return _never_worse(network, problems, start, chosen, raster, wanted)


def components(program: Program) -> list[tuple[str, ...]]:
    """Populations each after those it depends on, those of a loop together (strongly connected components)."""
    import networkx as nx  # imported on first use: 0.2 s

    names = [p.name for p in program.populations]
    edges = nx.DiGraph((s.source, s.target) for s in program.synapses if s.source in names)
    edges.add_nodes_from(names)
    loops = nx.condensation(edges)
    return [tuple(sorted(loops.nodes[k]["members"], key=names.index)) for k in nx.topological_sort(loops)]


def _never_worse(
    network: Network, problems: list[Problem], start: Quantized, chosen: Layers, raster: Ints, wanted: Wanted
) -> tuple[Layers, list[str]]:
    def cost(layers: Mapping[str, Any]) -> tuple[bool, Cost]:
        found = execute(lower_program(network, replace(start, layers=layers)), raster, compared(network))
        return _overflows(network, found), difference(network, layers, found, wanted)

    before, after = cost(start.layers), cost(chosen)
    for problem in problems:
        # a population better by itself may be worse for those behind it
        trial = {**chosen, **{name: start.layers[name] for name in problem.names}}
        found = cost(trial)
        if found < after:
            chosen, after = trial, found
    better = after <= before
    if not better:
        chosen, after = dict(start.layers), before
    verb = "kept" if better else "dropped for those of 'max'"
    cells = sum(int(w.sum()) for w in wanted.spikes.values())
    notes = [
        f"calibrated integers {verb}: {after[1][0]:.0f} spikes differ from the reference's {cells} on the calibration "
        f"data, {before[1][0]:.0f} with 'max'"
    ]
    if wanted.v:
        notes.append(
            f"v of {', '.join(sorted(wanted.v))} differs by {after[1][1]:.3g} on average, {before[1][1]:.3g} with 'max'"
        )
    return chosen, notes


def _shifted(values: Ints, lag: int) -> Ints:
    """`lag` steps later, as the chip is."""
    found = np.zeros_like(values)
    found[lag:] = values[: max(0, len(values) - lag)]
    return found


def _overflows(network: Network, found: Executed) -> bool:
    integrating = [found.counters[layer.name] for layer in network.layers if not layer.fires]
    reset = any(counts["saturations"] or counts["spikes"] for counts in integrating)
    return reset or any(counts["wraps"] for counts in found.counters.values())


# ---------------------------------------------------------------- candidates


def _program(network: Network, quantized: Quantized, names: tuple[str, ...]) -> Program:
    """The part of the program that ends in some populations."""
    layers = tuple(layer for layer in network.layers if layer.name in names)
    return lower_program(replace(network, layers=layers, readouts=()), quantized)


def _best(
    network: Network, problem: Problem, quantized: Quantized, spikes: Mapping[str, Ints], wanted: Wanted
) -> tuple[Layers, Ints]:
    layer = problem.layer
    alone = replace(network, layers=(layer,), readouts=())

    def cost(candidate: tuple[Layers, Executed]) -> float:
        spiking, analogue = difference(alone, *candidate, wanted)
        return spiking if layer.fires else analogue

    candidates = _candidates(alone, problem, quantized, spikes)
    first = next(candidates, None)
    if first is None:
        raise QuantizationError(
            "u wraps, or v comes near its largest threshold, at every scale on the calibration data",
            node=layer.name,
            remedy="Use calibration data as sparse as later inputs, or smaller weights and biases.",
        )
    (found, run), _ = best(chain([first], candidates), cost)
    return found, run.traces[layer.name, "spikes"]


def _candidates(
    alone: Network, problem: Problem, quantized: Quantized, spikes: Mapping[str, Ints]
) -> Iterator[tuple[Layers, Executed]]:
    """Integers with what they emit, all within their registers on this data."""
    name = problem.layer.name
    base, _ = largest_scale(problem)
    scales = [base * factor for factor in FACTORS]
    fits = False
    for scale in [*scales, *(base * 0.5**n for n in range(2, HALVINGS))]:
        if fits and scale < min(scales):
            return  # halvings are for populations that overflow at every other scale
        if scale != base and misfit(problem, scale) is not None:
            continue
        mantissas = _mantissas(problem, scale)
        found = integers(problem, scale, first_mantissa(problem, scale))
        if not all(q.weight.any() for q in found.values() if isinstance(q, QuantizedWeight)):
            continue
        program = _program(alone, replace(quantized, layers={**quantized.layers, **found}), (name,))
        step = _stepper(program, spikes, problem.layer)
        for mantissa in mantissas:
            tried = with_mantissa(problem, found, mantissa)
            run = step(tried)
            if not _overflows(alone, run) and _has_room(problem, base, tried, run):
                fits = True
                yield tried, run


def _stepper(program: Program, spikes: Mapping[str, Ints], layer: Layer) -> Callable[[Layers], Executed]:
    """What runs a program's one population with other thresholds: its sums are formed once if it does not feed itself.

    It keeps the spikes, and v of a population that only integrates.
    """
    name = layer.name
    if any(s.source == name for s in program.synapses):
        keep = {name: ("spikes",) if layer.fires else ("spikes", "v_mem")}
        return lambda layers: part(_with(program, layers), (name,), spikes, keep)
    came = sums(program, name, spikes)

    def stepped(layers: Layers) -> Executed:
        (population,) = _with(program, layers).populations
        found = integrate(population, came, keep_v=not layer.fires)
        counts = {"wraps": found.wraps, "saturations": found.clips, "spikes": int(found.s.sum())}
        return Executed({(name, "spikes"): found.s, (name, "v_mem"): found.v}, {}, {name: counts}, {})

    return stepped


def _has_room(problem: Problem, base: float, layers: Layers, run: Executed) -> bool:
    """Whether v of a population that only integrates stays below its threshold: for any input, or twice this one."""
    if problem.layer.fires or contained(problem, layers):
        return True
    bounded = contained(problem, integers(problem, base, first_mantissa(problem, base)))
    # v of what is never reset is all there is
    return not bounded and MARGIN * int(np.abs(run.traces[problem.layer.name, "v_mem"]).max()) < ceiling(problem)


def _mantissas(problem: Problem, scale: float) -> list[NDArray[np.int64]]:
    """Thresholds near the float one, that of `max` first."""
    if not problem.layer.fires:
        return [np.array(never(problem))]
    low, high = problem.table["registers"]["threshold_mantissa"]
    near = (first_mantissa(problem, scale), strict_mantissa(problem, scale))
    tried = {(m + offset).tobytes(): m + offset for offset in OFFSETS for m in near}
    return [m for m in tried.values() if low <= m.min() and m.max() <= high]


def _with(program: Program, layers: Layers) -> Program:
    """The program of one population with another threshold."""
    (population,) = program.populations
    threshold = np.asarray(cast("QuantizedNeuron", layers[population.name]).threshold, dtype=np.int64).reshape(-1)
    return replace(program, populations=(replace(population, threshold=threshold),))
