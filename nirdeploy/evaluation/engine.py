"""evaluate: a network over a data set, chunk by chunk, whoever computes them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nir

from nirdeploy import graph as graphs
from nirdeploy.errors import ConfigurationError, ConventionError, RasterError, UnsupportedError, VendorError
from nirdeploy.evaluation.crew import Reply, Task
from nirdeploy.evaluation.datasets import Samples, open_samples
from nirdeploy.evaluation.file import Identity, Store, begun
from nirdeploy.evaluation.job import Failure, Job, Runner, settings_of
from nirdeploy.evaluation.result import Evaluation, load_evaluation, result_of
from nirdeploy.evaluation.workers import by_processes, in_process
from nirdeploy.pipeline import Deployment
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.graph_convention import resolve_convention
from nirdeploy.worker import seconds

__all__ = ["evaluate", "require_whole"]

BATCH = 16
_METHODS = ("dense", "event", "loop")


def evaluate(
    network: nir.NIRGraph | Deployment,
    dataset: Any,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    patience: float = 60.0,
    output: str | Path | None = None,
    resume: bool = False,
    on: str = "emulator",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    convention: Convention | None = None,
    method: str = "dense",
    step_us: int | None = None,
    batch: int | None = None,
    against: Evaluation | str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run the reference, an emulator, a simulator or a chip over a data set.

    Args:
        network: a NIRGraph, for the reference, or a Deployment.
        dataset: a path (`.npz`, HDF5, a folder of recorded events), (raster, labels), or an object with a length that
            gives (raster or Events, label) by number, e.g. a torch Dataset; see `open_samples`. Samples may differ
            in length.
        workers: processes to compute with, this one among them; None: this one alone. The results do not depend on
            their number. The others stay for a minute, for further calls; they end with this process.
        scheduler: address of a dask scheduler, e.g. 'tcp://host:8786', whose workers compute instead; 'local' starts
            one on this machine with as many workers as `workers` says (None: a processor each).
        patience: seconds to wait for a first or another worker of `scheduler` while it has none.
        output: an HDF5 file that every finished chunk is added to at once, by this process alone.
        resume: go on where `output` ends, should it be there; it must be of the same network, convention, settings
            and data set.
        on: of a deployment: 'emulator', 'simulator' or 'chip'.
        mode: of a deployment, e.g. 'event' on Speck.
        options: of a deployment's run.
        convention: of a graph; None: the one it carries.
        method: of a graph, as of `run`.
        step_us: microseconds of a step for recorded events, where the convention has no dt; None: the convention's dt.
        batch: samples that are run together, and between two writes; None: 16, or what `output` was begun with.
        against: results of another run of this network over this data set, to count which samples it predicts
            alike; an Evaluation or its file.
        progress: called with the samples done and all samples, after each chunk.

    Returns:
        The results, a row a sample.

    A chunk is run whole, on one thread, with samples of the same length side by side, so that its floats are added
    in the same order by whoever runs it. The first sample that cannot be run stops the evaluation: chunks that others
    have begun are finished, everything finished is kept in `output`, and the error names the sample.

    A worker process that is killed, answers nonsense, gives no sign of life for 60 s, or takes longer than ten minutes
    and 20 times the slowest chunk before, is replaced, and its chunk computed again, five times at the most; this
    process itself has no such limit. If this process is killed, `resume` loses no finished chunk. A dask worker that
    gives no sign of life is given up by its scheduler, after `distributed.scheduler.worker-ttl` (five minutes; 60 s
    with 'local'). Workers on other machines compute the same integers; their floats are the same where torch is.

    Raises:
        FileError: a data set that cannot be read; an `output` that is there without `resume`, or that is of another
            network, convention or data set.
        RasterError: no samples, labels for some only, labels beyond the classes, samples of another shape.
        ComparisonError: `against` is of another network or data set.
        UnavailableError: `scheduler` without dask's distributed, or nobody answers there.
        VendorError: workers that end again and again, a scheduler that is lost, or that has no workers for `patience`.
    """
    _check_arguments(workers, scheduler, output, resume, batch, step_us)
    patience = seconds("patience", patience)
    if on == "chip" and (workers or 1) > 1:
        raise ConfigurationError(f"workers is {workers} with on='chip'", remedy="One process holds a chip: leave it.")
    path = None if output is None else Path(output)
    other = against if isinstance(against, Evaluation) or against is None else load_evaluation(against)
    job, graph_sha256, deployment_sha256, used = _job(network, convention, on, mode, options, method, step_us)
    runner = Runner(job, network if isinstance(network, Deployment) else None)
    with open_samples(dataset) as samples:
        identity = Identity(
            graph_sha256,
            deployment_sha256,
            json.dumps(used.to_dict(), sort_keys=True),
            json.dumps({k: v for k, v in job.settings.items() if k != "software"}, sort_keys=True),
            samples.fingerprint,
            samples.count,
            _batch(batch, path, resume),
        )
        with Store(identity, path, resume=resume) as store:
            _fill(store, samples, progress, partial(_replies, job, runner, workers, scheduler, patience))
            assert store.table is not None  # noqa: S101 - there is at least one sample
            found = result_of(store.table, path)
    return found if other is None else found.against(other)


def require_whole(name: str, value: Any) -> None:
    """Refuse a number of things that is none; None is none given.

    Raises:
        ConfigurationError: naming it.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name} is {value!r}, expected a whole number from 1 on")


def _check_arguments(workers: Any, scheduler: Any, output: Any, resume: bool, batch: Any, step_us: Any) -> None:
    for name, value in (("workers", workers), ("batch", batch), ("step_us", step_us)):
        require_whole(name, value)
    if workers is not None and scheduler not in (None, "local"):
        raise ConfigurationError("workers and scheduler are both given", remedy="Leave one: dask has its own workers.")
    if resume and output is None:
        raise ConfigurationError("resume needs output, the file to go on with")


def _job(
    network: Any,
    convention: Convention | None,
    on: str,
    mode: str | None,
    options: Mapping[str, Any] | None,
    method: str,
    step_us: int | None,
) -> tuple[Job, str, str, Convention]:
    """The job, what identifies the network, and the convention."""
    if isinstance(network, Deployment):
        if convention is not None:
            raise ConventionError("a deployment has its convention already", remedy="Leave convention=.")
        if method != "dense":
            raise UnsupportedError("method= is the reference's", remedy="Leave it for deployments.")
        from nirdeploy.storage import layers_sha256, write_main_file

        settings = settings_of("deployment", on=on, mode=mode, options=_plain(options), step_us=step_us)
        digest = f"{network.target.name} {layers_sha256(network)}"
        graph_sha256, used = graphs.sha256(network.graph), network.convention
        key = _key(settings, graph_sha256, digest, used.to_dict(), repr(dict(network.target.table)))
        # only workers need the file, which takes ten milliseconds
        job = Job(settings, partial(_bytes, partial(write_main_file, network)), key)
        return job, graph_sha256, digest, used
    if not isinstance(network, nir.NIRGraph):
        raise UnsupportedError(
            f"an evaluation of a {type(network).__name__}",
            remedy="Give a NIRGraph (torch_to_nir makes one of a module) or a Deployment.",
        )
    if mode is not None or options:
        raise UnsupportedError("mode= and options= are those of deployments", remedy="Leave them for a graph.")
    if on != "emulator":  # the default, which says nothing of a graph
        raise UnsupportedError(
            f"on={on!r} with a graph, which the reference runs", remedy="Give the deployment that deploy(...) makes."
        )
    if method not in _METHODS:
        raise UnsupportedError(f"method {method!r} is not known", remedy=f"Use one of {', '.join(_METHODS)}.")
    from nirdeploy.io import write

    used = resolve_convention(network, convention)
    stored = _bytes(lambda path: write(path, network, convention=used))
    settings = settings_of("graph", on="reference", method=method, step_us=step_us)
    # the order of nodes and edges, too: floats are added in it
    key = _key(settings, hashlib.sha256(stored).hexdigest())
    return Job(settings, lambda: stored, key), graphs.sha256(network), "", used


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _bytes(write: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="nirdeploy-") as folder:
        write(path := Path(folder, "network"))
        return path.read_bytes()


def _plain(options: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"options are {options!r}, expected names with numbers, text or lists") from error
    return found


def _batch(given: int | None, path: Path | None, resume: bool) -> int:
    if given is None and resume and path is not None and path.is_file():
        return begun(path).identity.batch
    return BATCH if given is None else given


# ---------------------------------------------------------------- running


def _fill(
    store: Store,
    samples: Samples,
    progress: Callable[[int, int], None] | None,
    compute: Callable[[Iterator[Task]], Generator[Reply, None, None]],
) -> None:
    """Compute every chunk that is not whole yet; stop reading at the first sample that fails."""
    labels: dict[int, list[int | None]] = {}
    problems: list[tuple[int, Failure | Exception]] = []  # of chunks, raised when what has been begun is finished
    batch, done = store.identity.batch, store.done

    def tasks() -> Iterator[Task]:
        labelled: bool | None = None
        for first in range(0, samples.count, batch):
            last = min(first + batch, samples.count)
            if done[first:last].all():
                continue
            if problems:
                return
            try:
                found = samples.read(first, last)
                if labelled is None:
                    labelled = (found if first == 0 else samples.read(0, 1))[0][1] is not None
                _check_labels(found, first, labelled)
            except Exception as error:
                problems.append((first, error))
                return
            labels[first] = [label for _, label in found]
            yield first, [sample for sample, _ in found]

    with closing(compute(tasks())) as replies, _naming_what_is_kept(store):
        for first, reply in replies:
            if isinstance(reply, Failure):
                problems.append((first, reply))
                continue
            try:
                _check_classes(labels[first], first, reply.outputs.shape[1])
            except RasterError as error:
                problems.append((first, error))
                continue
            store.add(first, labels.pop(first), reply)
            if progress is not None:
                progress(int(store.done.sum()), samples.count)
    if problems:
        first, problem = min(problems, key=lambda found: found[0])
        if isinstance(problem, Failure):
            raise problem.error(first, _kept(store))
        problem.add_note(_kept(store))
        raise problem


def _replies(
    job: Job, runner: Runner, workers: int | None, scheduler: str | None, patience: float, tasks: Iterator[Task]
) -> Generator[Reply, None, None]:
    if scheduler is not None:
        from nirdeploy.evaluation.daskwise import by_dask

        return by_dask(job, tasks, scheduler, workers or os.cpu_count() or 1, patience)
    count = workers or 1
    return in_process(runner, tasks) if count == 1 else by_processes(job, tasks, count, runner)


@contextmanager
def _naming_what_is_kept(store: Store) -> Iterator[None]:
    try:
        yield
    except VendorError as error:
        raise VendorError(str(error), remedy=_kept(store), log=error.log) from error


def _kept(store: Store) -> str:
    n = int(store.done.sum())
    if store.path is None:
        return f"{n} samples were finished; with output= they would be kept."
    if not n:
        return "No sample is finished."
    return f"{n} samples are kept in {str(store.path)!r}; resume=True goes on from there."


def _check_labels(found: list[Any], first: int, labelled: bool) -> None:
    for k, (_, label) in enumerate(found):
        if (label is not None) != labelled:
            raise RasterError(
                f"sample {first + k} has {'no' if label is None else 'a'} label, sample 0 has "
                f"{'one' if labelled else 'none'}",
                remedy="Give every sample a label, or none.",
            )


def _check_classes(labels: list[int | None], first: int, classes: int) -> None:
    for k, label in enumerate(labels):
        if label is not None and not 0 <= label < classes:
            raise RasterError(f"sample {first + k} has the label {label}, the Output has {classes} classes")
