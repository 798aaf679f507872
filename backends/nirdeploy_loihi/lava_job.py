"""What the Lava worker is given and what it answers: programs as files, and what Lava would not run as it stands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import UnsupportedError, VendorError
from nirdeploy.files import attribute, member, numbers, open_hdf5
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.program import LONGEST_DELAY, SYNAPSE_SHIFT, Compartments, Program, Synapses
from nirdeploy_loihi.weights import sign_mode

__all__ = ["Job", "Traces", "expanded", "read", "require_lava", "write"]

FORMAT = 1
_CELLS = 1 << 24  # of DelayDense: synapses times delays, which it goes through in every step
_SUM = 1 << 18  # below it one fold a step keeps u within 24 bits (lif/models.py wraps once)
_REGISTERS = {
    "decay_u": (0, 4096),
    "decay_v": (0, 4096),
    "threshold": (0, 131071 << SYNAPSE_SHIFT),
    "bias_mantissa": (-4096, 4095),
    "v_start": (1 - STATE_LIMIT, STATE_LIMIT - 1),
}
_RANGES = {"spikes": (0, 1), "v_mem": (1 - STATE_LIMIT, STATE_LIMIT - 1), "i_syn": (1 - STATE_LIMIT, STATE_LIMIT)}
_EMULATOR = "Run it on='emulator'."

Integers = NDArray[np.int64]
Traces = Mapping[tuple[str, str], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Job:
    """One network to run.

    Attributes:
        program: its integers.
        raster: 0 and 1, [step, batch, *input shape].
        keep: population -> which of 'spikes', 'v_mem' and 'i_syn' to give.
    """

    program: Program
    raster: NDArray[Any]
    keep: Mapping[str, Sequence[str]]


# ---------------------------------------------------------------- what Lava can hold


def require_lava(program: Program) -> None:
    """Refuse what Lava's fixed-point processes would change, or do not have.

    Sources: lif/models.py (registers, no refractory period), dense/models.py and weightutils.py (8 bits and a sign,
    63 delays), conv/models.py (no delays).

    Raises:
        UnsupportedError: naming node, value, limit and remedy.
    """
    for population in program.populations:
        _require_registers(population)
        sums = sum(synapses.largest_sum for synapses in program.into(population.name))
        if sums > _SUM:
            problem = f"its synapses can add up to {sums} in one step, more than {_SUM}, which Lava folds but once"
            raise UnsupportedError(problem, node=population.name, remedy=_EMULATOR)
    for synapses in program.synapses:
        _as_given(synapses)


def _require_registers(population: Compartments) -> None:
    if population.refractory > 1:
        problem = f"is refractory for {population.refractory} steps; Lava's fixed-point LIF knows 1"
        raise UnsupportedError(problem, node=population.name, remedy=_EMULATOR)
    if not 0 <= population.bias_exponent <= 7:
        problem = f"bias_exponent is {population.bias_exponent}, Lava has 0 to 7"
        raise UnsupportedError(problem, node=population.name, remedy=_EMULATOR)
    for name, (low, high) in _REGISTERS.items():
        values = np.asarray(getattr(population, name))
        for value in (int(values.min()), int(values.max())):
            if not low <= value <= high:
                problem = f"{name} is {value}, Lava has {low} to {high}"
                raise UnsupportedError(problem, node=population.name, remedy=_EMULATOR)
    if np.any(population.threshold % (1 << SYNAPSE_SHIFT)):
        odd = int(population.threshold[population.threshold % (1 << SYNAPSE_SHIFT) != 0][0])
        problem = f"threshold is {odd}, Lava has multiples of {1 << SYNAPSE_SHIFT}"
        raise UnsupportedError(problem, node=population.name, remedy=_EMULATOR)


def _as_given(synapses: Synapses) -> tuple[Synapses, int]:
    """Synapses as Lava gets them and the bits their weights are stored up; a kernel with delays is written out."""
    if synapses.window is not None:
        if not synapses.delay.any():
            return synapses, 0
        _require_cells(synapses)
        synapses = expanded(synapses)
    elif synapses.delay.any():
        _require_cells(synapses)
    return synapses, _shift(synapses)


def _require_cells(synapses: Synapses) -> None:
    delays = int(synapses.delay.max()) + 1
    if not 0 <= int(synapses.delay.min()) < delays <= LONGEST_DELAY + 1:
        bounds = f"{int(synapses.delay.min())} to {delays - 1}"
        problem = f"synapses {synapses.name!r} have delays of {bounds} steps, possible are 0 to {LONGEST_DELAY}"
        raise UnsupportedError(problem, node=synapses.target, remedy=_EMULATOR)
    cells = synapses.n_sources * synapses.n_targets * delays
    if cells > _CELLS:
        what = "the convolution" if synapses.window else "the synapses"
        problem = (
            f"{what} {synapses.name!r} with delays is {synapses.n_targets} x {synapses.n_sources} x {delays} delays "
            f"= {cells} values in Lava's DelayDense, more than {_CELLS}"
        )
        raise UnsupportedError(problem, node=synapses.target, remedy=_EMULATOR)


def _shift(synapses: Synapses) -> int:
    """Bits that Dense's weights are stored up so that none is lost.

    Dense (weightutils.py) clips to 8 bits and a sign and drops the last bit of mixed signs; odd ones it keeps if they
    are stored one bit up, and the sum one bit down again, which is exact as every term is even.

    Raises:
        UnsupportedError: weights that Dense would clip or truncate.
    """
    weight = synapses.weight
    low, high = int(weight.min()), int(weight.max())
    mode = sign_mode(weight)
    odd = mode == "mixed" and bool(np.any(weight % 2))
    limits = {"mixed": (-128, 127) if odd else (-256, 254), "positive": (0, 255), "negative": (-255, 0)}[mode]
    if low < limits[0] or high > limits[1]:
        found = f"{'odd ' if odd else ''}weights from {low} to {high}"
        problem = f"synapses {synapses.name!r} have {found}; Lava keeps {limits[0]} to {limits[1]} of them"
        raise UnsupportedError(problem, node=synapses.target, remedy=_EMULATOR)
    return int(odd)


def expanded(synapses: Synapses) -> Synapses:
    """Synapses of a convolution one by one, [target neurons, source neurons]."""
    window = synapses.window
    if window is None:
        return synapses
    (channels, height, width), (outs, rows, columns) = window.source_shape, window.target_shape
    per_group, targets = channels // window.groups, outs // window.groups
    matrix = np.zeros((outs, rows, columns, channels, height, width), np.int64)
    for ky, kx in np.ndindex(*synapses.weight.shape[2:]):
        y = np.arange(rows) * window.stride[0] - window.padding[0] + ky * window.dilation[0]
        x = np.arange(columns) * window.stride[1] - window.padding[1] + kx * window.dilation[1]
        row, column = np.flatnonzero((y >= 0) & (y < height)), np.flatnonzero((x >= 0) & (x < width))
        for out, own in np.ndindex(outs, per_group):
            source = out // targets * per_group + own
            at = np.ix_(row, column)
            matrix[out, at[0], at[1], source, y[row][:, None], x[column][None]] = synapses.weight[out, own, ky, kx]
    return replace(synapses, weight=matrix.reshape(synapses.n_targets, synapses.n_sources), window=None)


# ---------------------------------------------------------------- to the worker


def write(folder: Path, jobs: Sequence[Job], **more: Any) -> None:
    """Write `job.json` and `input.h5`, as lava_worker.py describes them, with more entries of `job.json`."""
    networks = []
    with h5py.File(folder / "input.h5", "w") as file:
        for n, job in enumerate(jobs):
            networks.append(_network(job, file.create_group(f"networks/{n}")))
    text = json.dumps({"format": FORMAT, "networks": networks, **more})
    (folder / "job.json").write_text(text, encoding="utf-8")


def _network(job: Job, group: h5py.Group) -> dict[str, Any]:
    program = job.program
    steps, batch = job.raster.shape[:2]
    flat = np.swapaxes(np.asarray(job.raster).reshape(steps, batch, -1), 0, 1)
    group["raster"] = flat.astype(np.uint8)
    sources = {name: k for k, name in enumerate(program.sizes)}
    targets = {population.name: k for k, population in enumerate(program.populations)}
    given = [_as_given(synapses) for synapses in program.synapses]
    images: dict[str, list[int]] = {}
    for synapses, _ in given:
        if synapses.window is not None:
            images.setdefault(synapses.target, list(synapses.window.target_shape))
            if synapses.source == program.input:
                images.setdefault(synapses.source, list(synapses.window.source_shape))
    populations = []
    for k, population in enumerate(program.populations):
        for name in _REGISTERS:
            values = np.asarray(getattr(population, name), np.int64)
            group[f"populations/{k}/{name}"] = values >> SYNAPSE_SHIFT if name == "threshold" else values
        populations.append(
            {
                "name": population.name,
                "shape": list(population.shape),
                "image": images.get(population.name),
                "bias_exponent": population.bias_exponent,
                "keep": list(job.keep.get(population.name, ())),
            }
        )
    described = []
    for k, (synapses, shift) in enumerate(given):
        group[f"synapses/{k}/weight"] = synapses.weight
        delayed = bool(synapses.delay.any())
        if delayed:
            group[f"synapses/{k}/delay"] = np.broadcast_to(synapses.delay, synapses.weight.shape)
        source, target = sources[synapses.source], targets[synapses.target]
        described.append(
            {
                "name": synapses.name,
                "source": source,
                "target": target,
                "shift": shift,
                "delayed": delayed,
                "window": None if synapses.window is None else vars(synapses.window),
            }
        )
    return {
        "input": list(program.input_shape),
        "image": images.get(program.input),
        "always_on": [{"count": axons.count, "start": axons.start} for axons in program.always_on],
        "populations": populations,
        "synapses": described,
    }


# ---------------------------------------------------------------- from the worker


def read(path: Path, jobs: Sequence[Job], version: str) -> tuple[tuple[Traces, ...], str]:
    """The worker's answer, each trace of the shape, type and range agreed: traces of every job, and a version.

    Args:
        path: its file.
        jobs: what it was given.
        version: name of the attribute that holds the version of its software.

    Raises:
        FileError: no such file, or one that is damaged.
        VendorError: another answer than agreed; naming population, variable and value.
    """
    expected = sum(4 * _size(job, name) * len(keep) for job in jobs for name, keep in job.keep.items())
    with open_hdf5(path, "results of the Lava worker", max_bytes=expected + (1 << 20)) as file:
        found = attribute(file, "format", int)
        if found != FORMAT:
            raise VendorError(f"the Lava worker answered in format {found}, expected {FORMAT}")
        traces = tuple(_traces(file, n, job) for n, job in enumerate(jobs))
        return traces, attribute(file, version, str)


def _size(job: Job, population: str) -> int:
    return math.prod(job.raster.shape[:2]) * job.program.population(population).size


def _traces(file: h5py.File, n: int, job: Job) -> Traces:
    steps, batch = job.raster.shape[:2]
    found: dict[tuple[str, str], NDArray[np.int32]] = {}
    for k, population in enumerate(job.program.populations):
        for variable in job.keep.get(population.name, ()):
            values = numbers(member(file, f"networks/{n}/populations/{k}/{variable}", h5py.Dataset), "i")
            shape = (steps, batch, population.size)
            if values.shape != shape or values.dtype != np.int32:
                problem = f"Lava answered {variable} as {values.dtype} {values.shape}, expected int32 {shape}"
                raise VendorError(problem, node=population.name)
            low, high = _RANGES[variable]
            for value in (int(values.min()), int(values.max())):
                if not low <= value <= high:
                    problem = f"Lava answered {variable} {value}, possible are {low} to {high}"
                    raise VendorError(problem, node=population.name)
            found[population.name, variable] = values.reshape(steps, batch, *population.shape)
    return found
