"""The vendor's own software as an executor: Lava on the CPU, in an interpreter of its own (`lava_worker`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nirdeploy.environments import interpreter
from nirdeploy.errors import FileError, RasterError, UnsupportedError, VendorError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import Trajectory
from nirdeploy.version import __version__
from nirdeploy.worker import call, job_folder, seconds
from nirdeploy_loihi.lava_job import Job, Traces, read, require_lava, write
from nirdeploy_loihi.lower_program import Lowered
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.results import trajectory

__all__ = ["Job", "Simulated", "free_shared_memory", "kept", "run", "simulate", "trajectory_of"]

_WORKER = Path(__file__).parent / "lava_worker.py"
_TIMEOUT = 3600.0
_SEGMENT = re.compile(r"/?psm_[0-9a-f]{4,32}")  # multiprocessing.shared_memory's names


@dataclass(frozen=True)
class Simulated:
    """What Lava made of one network.

    Attributes:
        traces: (population, variable) -> int32 [step, batch, *shape of the population].
        version: of lava-nc.
    """

    traces: Traces
    version: str


def run(
    quantized: Quantized,
    placement: Placement,
    raster: Any,
    *,
    lowered: Lowered,
    mode: str | None,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    options: Mapping[str, Any],
) -> Trajectory:
    """Run a raster through Lava's fixed-point processes with the integers of the deployment.

    Args:
        quantized: the network's integers.
        placement: its cores; Lava on the CPU has none.
        raster: 0 and 1, [step, batch, ...] or [step, ...]; every sample starts from rest.
        lowered: the same integers as Lava gets them.
        mode: None.
        record: of 'spikes', 'v_mem' and 'i_syn'.
        nodes: populations to record; None: all. Outputs are always recorded.
        options: `timeout`, seconds after which Lava is stopped (3600).

    Raises:
        UnavailableError: the environment 'loihi' is not built.
        UnsupportedError: a mode, an unknown option, or integers that Lava does not run as they stand.
        RasterError: a raster of wrong shape, a count other than 0 or 1, or an unknown node.
        VendorError: Lava failed, hung, or answered something else than agreed.
    """
    if mode is not None:
        raise UnsupportedError(f"Lava has no mode {mode!r}", remedy="Use mode=None.")
    for name, value in options.items():
        if name != "timeout":
            raise UnsupportedError(
                f"a run in Lava has no option {name!r} (given {value!r})", remedy="Possible: timeout."
            )
    timeout = seconds("timeout", options.get("timeout", _TIMEOUT))
    program = lowered.program
    data, batched = check_raster(raster, program.input_shape, integer=True, maximum=1)
    keep = kept(program, record, nodes)
    (found,) = simulate([Job(program, data, keep)], timeout=timeout)
    producer = f"nirdeploy {__version__} (lava-nc {found.version})"
    return trajectory_of(quantized, lowered, found.traces, record, nodes, batched, "simulator", producer)


def simulate(jobs: Sequence[Job], *, timeout: float = _TIMEOUT) -> tuple[Simulated, ...]:
    """Run networks in one worker, one after the other.

    Raises:
        UnavailableError: the environment 'loihi' is not built.
        UnsupportedError: integers that Lava does not run as they stand.
        VendorError: the worker failed, hung, or left something else than was agreed.
    """
    for job in jobs:
        require_lava(job.program)
    python = interpreter("loihi")
    with job_folder("lava") as folder:
        write(folder, jobs)
        try:
            call([python, "-I", _WORKER, folder, "--watched"], what="the Lava worker", timeout=timeout)
        finally:
            free_shared_memory(folder)
        try:
            traces, version = read(folder / "trajectory.h5", jobs, "lava")
        except FileError as error:
            raise VendorError(f"the Lava worker left no result that can be read: {error}") from error
    return tuple(Simulated(found, version) for found in traces)


def free_shared_memory(folder: Path) -> None:
    """Free what a worker that was killed had allocated and noted in its folder."""
    log = folder / "shared_memory.txt"
    if log.is_file():
        for name in log.read_text(encoding="utf-8").split():
            if _SEGMENT.fullmatch(name):
                Path("/dev/shm", name.lstrip("/")).unlink(missing_ok=True)  # noqa: S108 - where Linux keeps it


# ---------------------------------------------------------------- trajectories


def kept(program: Program, record: tuple[str, ...], nodes: tuple[str, ...] | None) -> dict[str, tuple[str, ...]]:
    """Variables that are needed of each population.

    Raises:
        RasterError: an unknown node.
    """
    names = [population.name for population in program.populations]
    known = [*names, *(shown.name for shown in program.outputs)]
    for name in nodes or ():
        if name not in known:
            raise RasterError(f"no population {name!r} to record", remedy=suggest(str(name), known))
    wanted = {name: set(record) if nodes is None or name in nodes else set() for name in names}
    for shown in program.outputs:
        wanted[shown.source].add(shown.variable)
    return {name: tuple(v for v in ("spikes", "v_mem", "i_syn") if v in found) for name, found in wanted.items()}


def trajectory_of(
    quantized: Quantized,
    lowered: Lowered,
    traces: Traces,
    record: tuple[str, ...],
    nodes: tuple[str, ...] | None,
    batched: bool,
    executor: str,
    producer: str,
    view: str | None = None,
) -> Trajectory:
    """Traces as records; `view` marks those of v."""
    wanted = {key: data for key, data in traces.items() if key[1] in record and (nodes is None or key[0] in nodes)}
    outputs = {
        shown.name: _shown(traces[shown.source, shown.variable], shown.shape) for shown in lowered.program.outputs
    }
    return trajectory(
        quantized,
        lowered.program,
        wanted,
        outputs,
        lags=lowered.lags,
        batched=batched,
        executor=executor,
        producer=producer,
        view=view,
    )


def _shown(data: Any, shape: tuple[int, ...]) -> Any:
    return data.reshape(*data.shape[:2], *shape)
