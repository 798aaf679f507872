"""The vendor's own software as an executor: sinabs, in an interpreter of its own (`sinabs_worker`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nirdeploy.environments import interpreter
from nirdeploy.errors import FileError, UnsupportedError, VendorError
from nirdeploy.files import attribute, member, numbers, open_hdf5
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Trajectory
from nirdeploy.version import __version__
from nirdeploy.worker import call, job_folder, seconds
from nirdeploy_speck.cores import ChipProgram, Destination, chip_program
from nirdeploy_speck.network import lowered
from nirdeploy_speck.options import unknown_option
from nirdeploy_speck.results import core_variables, output_shapes, require_variables, trajectory

__all__ = ["Job", "Simulated", "run", "simulate"]

_FORMAT = 1
_WORKER = Path(__file__).parent / "sinabs_worker.py"
_TIMEOUT = 3600.0
_OPTIONS = ("timeout",)


@dataclass(frozen=True)
class Job:
    """One network to simulate.

    Attributes:
        program: its cores.
        events: counts [step, batch, channel, y, x], as `program.entry` sends them on.
        keep: for each core which of 'spikes' and 'v_mem' to give.
    """

    program: ChipProgram
    events: NDArray[Any]
    keep: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Simulated:
    """What sinabs made of one network.

    Attributes:
        cores: for each core the variables asked for, int32 [step, batch, channel, y, x].
        versions: of sinabs and torch, and whether samna was 'real' or a 'stand-in'.
    """

    cores: tuple[Mapping[str, NDArray[np.int32]], ...]
    versions: Mapping[str, str]


def run(
    quantized: Quantized,
    placement: Placement,
    raster: Any,
    *,
    mode: str | None,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    options: Mapping[str, Any],
) -> Trajectory:
    """Run a raster of counts through sinabs's layers with the integers of the deployment.

    Args:
        quantized: the network's integers.
        placement: its cores.
        raster: counts, [step, batch, ...] or [step, ...].
        mode: None or 'step': sinabs works in frames.
        record: variables to record.
        nodes: populations to record; None: all.
        options: `timeout`, seconds after which sinabs is stopped (3600).

    Raises:
        UnavailableError: the environment 'speck' is not built.
        UnsupportedError: another mode, an unknown option, or a variable the chip does not have.
        RasterError: wrong shape, negative, NaN or fractional counts.
        VendorError: sinabs failed, or its 32-bit floats cannot hold a sum exactly.
    """
    if mode not in (None, "step"):
        raise UnsupportedError(f"sinabs has no mode {mode!r}", remedy="Use mode='step'.")
    timeout = _timeout(options)
    network = lowered(quantized, placement)
    program = chip_program(quantized, placement, network)
    require_variables(record, nodes, network)
    data, batched = check_raster(raster, network.input_shape, integer=True)
    keep = core_variables(program, record, nodes)
    (found,) = simulate([Job(program, network.events(data), keep)], timeout=timeout)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return trajectory(
        quantized,
        network,
        program,
        list(found.cores),
        record=record,
        nodes=nodes,
        batched=batched,
        outputs=output_shapes(quantized, program),
        executor="simulator",
        producer=f"nirdeploy {__version__} ({versions})",
    )


def _timeout(options: Mapping[str, Any]) -> float:
    for name in options:
        if name not in _OPTIONS:
            raise unknown_option("a run in sinabs", name, options[name], _OPTIONS)
    return seconds("timeout", options.get("timeout", _TIMEOUT))


def simulate(jobs: Sequence[Job], *, timeout: float = _TIMEOUT) -> tuple[Simulated, ...]:
    """Run networks in one worker, one after the other.

    Raises:
        UnavailableError: the environment 'speck' is not built.
        VendorError: the worker failed, hung, or left something else than was agreed.
    """
    python = interpreter("speck")
    with job_folder("sinabs") as folder:
        _write(folder, jobs)
        call([python, "-I", _WORKER, folder, "--watched"], what="the sinabs worker", timeout=timeout)
        try:
            return _read(folder / "trajectory.h5", jobs)
        except FileError as error:
            raise VendorError(f"the sinabs worker left no result that can be read: {error}") from error


def _write(folder: Path, jobs: Sequence[Job]) -> None:
    described = [
        {
            "entry": [_destination(to) for to in job.program.entry],
            "cores": [
                {
                    "stride": list(core.stride),
                    "padding": list(core.padding),
                    "input_shape": list(core.input_shape),
                    "threshold": core.threshold,
                    "v_min": core.v_min,
                    "subtract": core.subtract,
                    "many": core.many,
                    "destinations": [_destination(to) for to in core.destinations],
                    "keep": list(keep),
                }
                for core, keep in zip(job.program.cores, job.keep, strict=True)
            ],
        }
        for job in jobs
    ]
    text = json.dumps({"format": _FORMAT, "networks": described})
    (folder / "job.json").write_text(text, encoding="utf-8")
    with h5py.File(folder / "input.h5", "w") as file:
        for n, job in enumerate(jobs):
            file[f"networks/{n}/raster"] = job.events
            for k, core in enumerate(job.program.cores):
                file[f"networks/{n}/cores/{k}/weight"] = core.weight
                if core.bias is not None:
                    file[f"networks/{n}/cores/{k}/bias"] = core.bias


def _destination(to: Destination) -> dict[str, int]:
    return {"core": to.core, "pooling": to.pooling, "feature_shift": to.feature_shift}


# ---------------------------------------------------------------- results


def _read(path: Path, jobs: Sequence[Job]) -> tuple[Simulated, ...]:
    """The worker's results, each of the shape and type asked for; whatever else is there is refused."""
    expected = sum(
        4 * math.prod(job.events.shape[:2]) * math.prod(core.output_shape) * len(keep)
        for job in jobs
        for core, keep in zip(job.program.cores, job.keep, strict=True)
    )
    with open_hdf5(path, "results of the sinabs worker", max_bytes=expected + (1 << 20)) as file:
        version = attribute(file, "format", int)
        if version != _FORMAT:
            raise VendorError(f"the sinabs worker answered in format {version}, expected {_FORMAT}")
        versions = {name: attribute(file, name, str) for name in ("sinabs", "torch", "samna")}
        return tuple(
            Simulated(tuple(_core(file, n, k, job) for k in range(len(job.program.cores))), versions)
            for n, job in enumerate(jobs)
        )


def _core(file: h5py.File, n: int, k: int, job: Job) -> dict[str, NDArray[np.int32]]:
    core = job.program.cores[k]
    shape = (*job.events.shape[:2], *core.output_shape)
    found = {}
    for name in job.keep[k]:
        values = numbers(member(file, f"networks/{n}/cores/{k}/{name}", h5py.Dataset), "i")
        if values.shape != shape or values.dtype != np.int32:
            problem = f"the sinabs worker answered {name} as {values.dtype} {values.shape}, expected int32 {shape}"
            raise VendorError(problem, node=core.layer)
        low = 0 if name == "spikes" else core.v_min
        if values.min() < low:
            problem = f"the sinabs worker answered {name} {values.min()}, which is less than {low}"
            raise VendorError(problem, node=core.layer)
        found[name] = values
    return found
