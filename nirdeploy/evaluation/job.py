"""What a worker computes: a network as the bytes of its file, and for each chunk of samples its rows of results.

Everything crosses as plain arrays and JSON, so that a worker runs nothing that it is sent.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import errors
from nirdeploy import graph as graphs
from nirdeploy.binning import events_to_raster, whole_microseconds
from nirdeploy.errors import NirdeployError, RasterError, UnsupportedError
from nirdeploy.evaluation.messages import packed, unpacked
from nirdeploy.events import Events
from nirdeploy.once import once
from nirdeploy.reference.graph_convention import stored_convention
from nirdeploy.reference.threads import one_thread
from nirdeploy.version import __version__

if TYPE_CHECKING:
    from nirdeploy.pipeline import Deployment
    from nirdeploy.reference.convention import Convention
    from nirdeploy.trajectory import Trajectory

__all__ = [
    "SOFTWARE",
    "Failure",
    "Job",
    "Rows",
    "Runner",
    "answer",
    "decode_reply",
    "decode_samples",
    "encode_reply",
    "encode_samples",
    "settings_of",
]

SOFTWARE = {"nirdeploy": __version__, "Python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def settings_of(
    kind: str,
    *,
    on: str,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    method: str = "dense",
    step_us: int | None = None,
) -> dict[str, Any]:
    """Settings of a job of this software; the arguments are those of `evaluate`."""
    return {
        "software": SOFTWARE,
        "kind": kind,
        "on": on,
        "mode": mode,
        "options": dict(options or {}),
        "method": method,
        "step_us": step_us,
    }


@dataclass(frozen=True, eq=False)
class Job:
    """A network and how to run it.

    Attributes:
        settings: plain JSON data: 'kind' ('graph' or 'deployment'), 'on', 'mode', 'options', 'method', 'step_us',
            'software' of the client.
        network: gives the bytes of a `.nir` file, or of a `deployment.h5`; asked only where they are needed.
        key: the same of jobs that are the same, and of no others.
    """

    settings: dict[str, Any]
    network: Callable[[], bytes]
    key: str

    @property
    def message(self) -> bytes:
        """The job as one message, made once."""
        return once(self, "_packed", self._made)

    def _made(self) -> bytes:
        return packed({"network": np.frombuffer(self.network(), np.uint8)}, self.settings)

    @staticmethod
    def decode(message: bytes) -> Job:
        """The job of a message."""
        arrays, settings = unpacked(message)
        return Job(settings, arrays["network"].tobytes, hashlib.sha256(message).hexdigest())


@dataclass(frozen=True)
class Failure:
    """A sample that could not be run.

    Attributes:
        sample: position in its chunk.
        kind: class of the error.
        text: its message.
    """

    sample: int
    kind: str
    text: str

    def error(self, first: int, kept: str) -> NirdeployError:
        """The error to raise: of the same class where that is one of ours."""
        kind: Any = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, NirdeployError)) or kind is errors.CheckError:
            return errors.VendorError(f"sample {first + self.sample}: {self.kind}: {self.text}", remedy=kept)
        return kind(f"sample {first + self.sample}: {self.text}", remedy=kept)


@dataclass(frozen=True)
class Rows:
    """Results of a chunk.

    Attributes:
        outputs: [sample, class] what each neuron of the Output gave over all steps.
        spikes: [sample, population] spikes.
        steps: [sample] steps.
        populations: names of the populations.
        executor: what ran.
        target: the chip, or what the reference calls itself.
    """

    outputs: NDArray[np.float64]
    spikes: NDArray[np.int64]
    steps: NDArray[np.int64]
    populations: tuple[str, ...]
    executor: str = ""
    target: str = ""

    def encode(self) -> bytes:
        """One message."""
        arrays = {"outputs": self.outputs, "spikes": self.spikes, "steps": self.steps}
        return packed(arrays, {"populations": self.populations, "executor": self.executor, "target": self.target})


def encode_reply(reply: Rows | Failure) -> bytes:
    """One message."""
    return reply.encode() if isinstance(reply, Rows) else packed({}, {"failure": vars(reply)})


def decode_reply(message: bytes) -> Rows | Failure:
    """What a worker answered.

    Raises:
        VendorError: it is damaged.
    """
    arrays, said = unpacked(message)
    if "failure" in said:
        return Failure(**said["failure"])
    outputs, spikes, steps = (arrays.get(name, np.zeros(0)) for name in ("outputs", "spikes", "steps"))
    populations = tuple(said.get("populations", ()))
    if (len(outputs), *spikes.shape) != (len(steps), len(steps), len(populations)) or outputs.ndim != 2:
        raise errors.VendorError(
            f"a reply has outputs {outputs.shape}, spikes {spikes.shape} and steps {steps.shape} "
            f"of {len(populations)} populations"
        )
    return Rows(outputs, spikes, steps, populations, said["executor"], said["target"])


def encode_samples(samples: Sequence[Any]) -> bytes:
    """Counts and Events as one message."""
    arrays: dict[str, NDArray[Any]] = {}
    said: list[dict[str, Any]] = []
    for k, sample in enumerate(samples):
        if not isinstance(sample, Events):
            if sample.dtype.kind not in "biuf":
                raise RasterError(f"the raster has dtype {sample.dtype}, expected counts")
            arrays[f"{k}"] = sample
            said.append({})
            continue
        arrays[f"{k}"] = sample.time_us
        arrays |= {f"{k}.{axis}": index for axis, index in enumerate(sample.index)}
        said.append({"axes": len(sample.index), "shape": sample.shape, "stop_us": sample.stop_us})
    return packed(arrays, {"samples": said})


def decode_samples(message: bytes) -> list[Any]:
    """The samples of a message."""
    arrays, said = unpacked(message)
    found: list[Any] = []
    for k, row in enumerate(said["samples"]):
        if not row:
            found.append(arrays[f"{k}"])
            continue
        index = [arrays[f"{k}.{axis}"] for axis in range(row["axes"])]
        found.append(Events(arrays[f"{k}"], index=index, shape=row["shape"], stop_us=row["stop_us"]))
    return found


# ---------------------------------------------------------------- running


@dataclass(eq=False)
class Runner:
    """A job made ready: the network is read once.

    A chunk always gives the same rows, whoever runs it and when: it is run whole, samples of one length together,
    on one thread.

    Attributes:
        job: the job.
        given: the Deployment of the job, where it is at hand; None: read from the job's bytes.
        network: what is run.
        convention: of the network.
        shape: of a sample at one step.
    """

    job: Job
    given: Deployment | None = None
    network: Any = field(init=False)
    convention: Convention | None = field(init=False)
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name, theirs in self.job.settings["software"].items():
            if theirs != (own := SOFTWARE.get(name)):
                raise UnsupportedError(
                    f"this worker has {name} {own}, the client {theirs}", remedy="Install the same everywhere."
                )
        self.network = _loaded(self.job) if self.given is None else self.given
        graph: nir.NIRGraph = self.network
        if self.job.settings["kind"] == "deployment":
            graph, self.convention = self.network.graph, self.network.convention
        else:
            import torch  # noqa: F401 - `one_thread` can tell it nothing before it is there

            self.convention = stored_convention(self.network)
        inputs = graphs.input_names(graph)
        if len(inputs) != 1:
            raise UnsupportedError(f"an evaluation needs one Input, the graph has {sorted(inputs)}")
        if len(outputs := graphs.output_names(graph)) != 1:
            raise UnsupportedError(f"an evaluation needs one Output, the graph has {sorted(outputs)}")
        self.shape = tuple(graphs.shapes(graph)[inputs[0]].input)

    def run(self, samples: Sequence[Any]) -> Rows | Failure:
        """The rows of a chunk, or the first sample of it that cannot be run, alone."""
        try:
            # more threads would add floats in another order, and every processor is another worker's
            with one_thread():
                return self._rows(samples)
        except Exception as error:  # whatever it is, the sample is named and everything finished stays
            if len(samples) == 1:
                return Failure(0, type(error).__name__, str(error))
            for k, sample in enumerate(samples):
                alone = self.run([sample])
                if isinstance(alone, Failure):
                    return Failure(k, alone.kind, alone.text)
            return Failure(0, type(error).__name__, f"{error} (with {len(samples)} samples in one batch)")

    def trajectory(self, sample: Any) -> Trajectory:
        """The run of one sample, alone."""
        with one_thread():
            return self._trajectory(self._prepared(sample))

    def _rows(self, samples: Sequence[Any]) -> Rows:
        ready = [self._prepared(sample) for sample in samples]
        groups: dict[Any, list[int]] = {}
        for k, sample in enumerate(ready):
            key = k if isinstance(sample, Events) else (sample.shape, sample.dtype.str)
            groups.setdefault(key, []).append(k)
        found: list[tuple[list[int], Rows]] = []
        for members in groups.values():
            first = ready[members[0]]
            raster = first if isinstance(first, Events) else np.stack([ready[k] for k in members], axis=1)
            found.append((members, _summed(self._trajectory(raster))))
        order = np.argsort(np.concatenate([members for members, _ in found]))
        kinds = {(rows.populations, rows.executor, rows.target) for _, rows in found}
        assert len(kinds) == 1  # noqa: S101 - the network alone decides what it records
        outputs, spikes, steps = (
            np.concatenate([getattr(rows, name) for _, rows in found])[order] for name in ("outputs", "spikes", "steps")
        )
        return Rows(outputs, spikes, steps, *kinds.pop())

    def _prepared(self, sample: Any) -> Any:
        settings = self.job.settings
        if isinstance(sample, Events):
            if settings["mode"] == "event":
                return sample
            dt = self.convention.dt if self.convention else None
            step_us = settings["step_us"] or whole_microseconds(dt)
            if dt is not None and step_us is not None and step_us != whole_microseconds(dt):
                raise RasterError(
                    f"step_us={step_us} with a convention whose dt is {dt} s",
                    remedy="Leave step_us, or make them equal.",
                )
            if step_us is None:
                raise RasterError("events have no steps", remedy="Pass step_us=, the length of a step.")
            return events_to_raster(sample, self.shape, step_us=step_us)
        if settings["step_us"] is not None:
            raise RasterError(
                f"step_us={settings['step_us']} with a raster, which has its steps already", remedy="Leave step_us out."
            )
        if sample.ndim != len(self.shape) + 1 or sample.shape[1:] != self.shape:
            wanted = "".join(f", {n}" for n in self.shape)
            raise RasterError(f"the raster has shape {sample.shape}, expected [step{wanted}]")
        return sample

    def _trajectory(self, raster: Any) -> Trajectory:
        settings = self.job.settings
        if settings["kind"] == "deployment":
            deployment: Deployment = self.network
            options = dict(settings["options"])
            if isinstance(raster, Events) and settings["step_us"] is not None:
                options["step_us"] = settings["step_us"]
            return deployment.run(raster, on=settings["on"], mode=settings["mode"], record=("spikes",), **options)
        from nirdeploy.reference.executor import run

        return run(self._module, raster, record=("spikes",), method=settings["method"])

    @property
    def _module(self) -> Any:
        """A graph as what runs it, built once for all chunks."""
        from nirdeploy.convert.build import nir_to_torch

        return once(self, "_built", lambda: nir_to_torch(self.network))


def _summed(trajectory: Trajectory) -> Rows:
    """Sums over the steps: whole numbers as such, floats in float64."""
    record = trajectory.records[trajectory.output_names[0], "output"]
    values = record.batch_data
    total = values.sum(axis=0, dtype=np.int64 if values.dtype.kind in "biu" else np.float64)
    n = total.shape[0]
    if np.any(record.offset):
        total = np.asarray(record.values, dtype=np.float64).reshape(values.shape).sum(axis=0)
    else:
        total = total * np.asarray(record.scale, dtype=np.float64)
    names = sorted(node for node, variable in trajectory.records if variable == "spikes")
    spikes = np.zeros((n, len(names)), np.int64)
    for k, name in enumerate(names):
        data = trajectory.records[name, "spikes"].batch_data
        spikes[:, k] = data.sum(axis=(0, *range(2, data.ndim)), dtype=np.int64)
    steps = np.full(n, trajectory.n_steps, np.int64)
    outputs = np.asarray(total, dtype=np.float64).reshape(n, -1)
    return Rows(outputs, spikes, steps, tuple(names), trajectory.executor, trajectory.target)


def _loaded(job: Job) -> Any:
    with tempfile.TemporaryDirectory(prefix="nirdeploy-") as folder:
        if job.settings["kind"] == "deployment":
            from nirdeploy.storage import load_deployment

            path = Path(folder, "deployment.h5")
            path.write_bytes(job.network())
            return load_deployment(path)
        from nirdeploy.io import read

        path = Path(folder, "net.nir")
        path.write_bytes(job.network())
        return read(path)


_RUNNERS: dict[str, Runner] = {}
_LOCK = threading.Lock()


def answer(job: bytes, samples: bytes) -> bytes:
    """One chunk on a worker of another machine, one at a time; the last network is kept.

    Where the network cannot be run here at all, the reply is a Failure of sample -1.
    """
    with _LOCK:
        key = hashlib.sha256(job).hexdigest()
        try:
            if key not in _RUNNERS:
                _RUNNERS.clear()
                _RUNNERS[key] = Runner(Job.decode(job))
        except NirdeployError as error:
            return encode_reply(Failure(-1, type(error).__name__, str(error)))
        return encode_reply(_RUNNERS[key].run(decode_samples(samples)))
