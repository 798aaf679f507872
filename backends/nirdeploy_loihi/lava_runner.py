"""Run a deployment on a Loihi 2 through lava-loihi. Tested against a stand-in of lava-loihi; never run on silicon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nirdeploy.environments import interpreter
from nirdeploy.errors import FileError, UnavailableError, UnsupportedError, VendorError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy.raster import check_raster
from nirdeploy.trajectory import REFRACTORY_VIEW, Trajectory
from nirdeploy.version import __version__
from nirdeploy.worker import call, job_folder, seconds
from nirdeploy_loihi.lava_job import Job, read, require_lava, write
from nirdeploy_loihi.lower_program import Lowered
from nirdeploy_loihi.simulator import free_shared_memory, kept, trajectory_of

__all__ = ["require_chip", "run"]

_WORKER = Path(__file__).parent / "lava_worker.py"
_TIMEOUT = 3600.0
_PROBES = 4
_GENERATIONS = ("N2A2", "N3B2", "N3B3", "N3C1", "N3D1")  # lava/utils/loihi.py ChipGeneration
_VARIABLES = {
    "generation": "LOIHI_GEN",
    "partition": "PARTITION",
    "board": "BOARD",
    "host": "NXSDKHOST",
    "host_binary": "HOST_BINARY",
}
_OPTIONS = ("probes", "timeout", *_VARIABLES)


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
    """Run a raster on a Loihi 2, a sample after the other, every one from rest.

    Spikes leave through NxToPyAdapter. States are read by StateProbes, of which a chip has few: the populations must be
    named, and where they take more probes than one run has, the sample is run again for the others; spikes must be the
    same each time. v is as the chip shows it: where a neuron has just fired, 128 instead of 0 (`view` says so).

    Args:
        quantized: the network's integers.
        placement: not used: lava-loihi's compiler places by itself.
        raster: 0 and 1, [step, batch, ...] or [step, ...].
        lowered: the same integers as Lava gets them.
        mode: None.
        record: of 'spikes', 'v_mem' and 'i_syn'.
        nodes: populations to record; None: the spikes of all, and no states.
        options: `probes` in one run (4), `timeout` in seconds (3600); `partition` and `board` of SLURM, or `host` and
            `host_binary` of a board on the network; `generation` of the chip (N3B3). What is not given is taken from
            SLURM, PARTITION, BOARD, NXSDKHOST, HOST_BINARY and LOIHI_GEN.

    Raises:
        UnavailableError: the environment 'loihi', lava-loihi or a board is missing.
        UnsupportedError: another target, a mode, an unknown option, states of populations that are not named, or
            integers that Lava does not run as they stand.
        RasterError: a raster of wrong shape, a count other than 0 or 1, or an unknown node.
        VendorError: lava-loihi failed, hung, or answered something else than agreed.
    """
    if quantized.target.name != "loihi2":
        raise UnsupportedError(f"lava-loihi runs loihi2, not {quantized.target.name}", remedy="Deploy to 'loihi2'.")
    if mode is not None:
        raise UnsupportedError(f"the chip has no mode {mode!r}", remedy="Use mode=None.")
    program = lowered.program
    probes, timeout, variables = _options(options)
    data, batched = check_raster(raster, program.input_shape, integer=True, maximum=1)
    states = [name for name in ("v_mem", "i_syn") if name in record]
    if states and nodes is None:
        raise UnsupportedError(
            f"{' and '.join(states)} of all populations take more probes than a chip has",
            remedy="Name the populations: nodes=(...), or record spikes alone.",
        )
    job = Job(program, data, kept(program, record, nodes))
    require_lava(program)
    environment = require_chip(variables)
    with job_folder("lava") as folder:
        write(folder, [job], chip={"probes": probes, "environment": environment})
        try:
            call([interpreter("loihi"), "-I", _WORKER, folder, "--watched"], what="the Loihi worker", timeout=timeout)
        finally:
            free_shared_memory(folder)
        try:
            (traces,), version = read(folder / "trajectory.h5", [job], "lava")
        except FileError as error:
            raise VendorError(f"the Loihi worker left no result that can be read: {error}") from error
    producer = f"nirdeploy {__version__} (lava-nc {version}, lava-loihi)"
    return trajectory_of(quantized, lowered, traces, record, nodes, batched, "chip", producer, REFRACTORY_VIEW)


def _options(options: Mapping[str, Any]) -> tuple[int, float, dict[str, str]]:
    """Probes, timeout, and variables of the environment that were given by name."""
    for name, value in options.items():
        if name not in _OPTIONS:
            problem = f"a run on a chip has no option {name!r} (given {value!r})"
            raise UnsupportedError(problem, remedy=f"Possible: {', '.join(_OPTIONS)}.")
        if name in _VARIABLES and not (isinstance(value, str) and value):
            raise UnsupportedError(f"{name} is {value!r}, expected text")
    generation = options.get("generation")
    if generation is not None and generation not in _GENERATIONS:
        raise UnsupportedError(f"generation is {generation!r}, expected one of {list(_GENERATIONS)}")
    probes = options.get("probes", _PROBES)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise UnsupportedError(f"probes is {probes!r}, expected a whole number from 1 on")
    timeout = seconds("timeout", options.get("timeout", _TIMEOUT))
    return probes, timeout, {_VARIABLES[name]: options[name] for name in _VARIABLES if name in options}


def require_chip(variables: Mapping[str, str]) -> dict[str, str]:
    """What the environment must say for lava-loihi to find the board; lava-loihi is looked for, never imported here.

    Args:
        variables: environment variables that were given as options.

    Raises:
        UnavailableError: the environment 'loihi', modules of lava-loihi, or a word on the board are missing.
        VendorError: the worker failed.
    """
    said = call([interpreter("loihi"), "-I", _WORKER, "--detect"], what="the Loihi worker", timeout=60)
    try:
        found = json.loads(said.splitlines()[-1])
        missing, known = list(found["missing"]), dict(found["environment"])
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise VendorError(f"the Loihi worker cannot tell what is installed; it said: {said!r}") from error
    if missing:
        raise UnavailableError(
            f"on='chip' needs lava-loihi, of which {', '.join(missing)} are missing in {interpreter('loihi')}",
            remedy="Members of Intel's neuromorphic research community get it; install it there, or use on='emulator'.",
        )
    known |= variables
    if "NXSDKHOST" in variables:
        known["NOSLURM"] = "1"
    elif "PARTITION" in variables or "BOARD" in variables:
        known["SLURM"] = "1"
    if not ({"SLURM", "NXSDKHOST"} & known.keys()):
        raise UnavailableError(
            "no Loihi board is named: neither $SLURM nor $NXSDKHOST is set",
            remedy="Pass partition= or board= (SLURM), or host= (a board on the network).",
        )
    return {"LOIHI_GEN": "N3B3", **known}
