"""Who computes the chunks: this process, worker processes, or a dask scheduler's workers. The rows are the same."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable
from typing import IO, Any

from nirdeploy.errors import UnavailableError, VendorError
from nirdeploy.evaluation.job import Failure, Job, Rows, Runner, decode_reply, encode_samples
from nirdeploy.evaluation.process import receive, send

__all__ = ["by_dask", "by_processes", "in_process"]

Task = tuple[int, list[Any]]  # number of the chunk, its samples
Reply = tuple[int, "Rows | Failure"]
_MOST_DEATHS = 5  # of workers on one chunk, one after the other
_AHEAD = 2  # chunks a worker that are read before they are needed
_CONNECT_SECONDS = 30


def in_process(runner: Runner, tasks: Iterable[Task]) -> Generator[Reply, None, None]:
    """One chunk after the other, here."""
    for number, samples in tasks:
        yield number, runner.run(samples)


# ---------------------------------------------------------------- processes


class _Worker:
    """A process, started again when it ends."""

    def __init__(self, job: bytes) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self.stopped = False

    def start(self) -> None:
        """Have a process ready.

        Raises:
            VendorError: several in a row ended before.
        """
        self._persist(None)

    def ask(self, message: bytes) -> bytes:
        """The reply to one chunk, from as many processes as it takes.

        Raises:
            VendorError: several in a row ended without one.
        """
        return self._persist(message)

    def _persist(self, message: bytes | None) -> bytes:
        code = None
        for _ in range(_MOST_DEATHS):
            try:
                process = self._started()
                if message is None:
                    return b""
                assert process.stdin is not None  # noqa: S101 - narrows the type
                assert process.stdout is not None  # noqa: S101 - likewise
                send(process.stdin, message)
                if (reply := receive(process.stdout)) is not None:
                    return reply
            except OSError:  # the pipe of a process that has ended
                pass
            if self.stopped:
                return b""
            code = self._ended()
        raise VendorError(f"{_MOST_DEATHS} workers in a row ended with exit code {code}", log=self._said())

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            return self.process
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nirdeploy.evaluation.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **single},
            start_new_session=True,  # Ctrl-C is the client's to handle
        )
        if self.stopped:  # while it was started: `stop` did not see it
            process.kill()
        assert process.stdin is not None  # noqa: S101 - narrows the type
        assert process.stdout is not None  # noqa: S101 - likewise
        send(process.stdin, self.job)
        said = receive(process.stdout)
        if said is None:
            raise OSError
        if said != b"ready":
            failure = decode_reply(said)
            assert isinstance(failure, Failure)  # noqa: S101 - narrows the type
            raise VendorError(f"a worker cannot run the network: {failure.kind}: {failure.text}")
        return process

    def _ended(self) -> int | None:
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def _said(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4000))
            return self.log.read().decode(errors="replace")
        return ""

    def stop(self) -> None:
        """Kill it; the thread that waits for it sees the end of the pipe."""
        self.stopped = True
        process = self.process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """After its thread has ended."""
        self._ended()
        self.log.close()


def _serve(worker: _Worker, todo: queue.Queue[Any], done: queue.Queue[Any]) -> None:
    try:
        worker.start()  # before it takes a chunk, which others could compute meanwhile
        while (task := todo.get()) is not None:
            done.put((task[0], decode_reply(worker.ask(encode_samples(task[1])))))
    except Exception as error:  # handed to the thread that can raise it
        done.put((-1, error))


def _serve_here(runner: Runner, todo: queue.Queue[Any], done: queue.Queue[Any]) -> None:
    try:
        while (task := todo.get()) is not None:
            done.put((task[0], runner.run(task[1])))
    except Exception as error:  # likewise
        done.put((-1, error))


def by_processes(
    job: Job, tasks: Iterable[Task], workers: int, runner: Runner | None = None
) -> Generator[Reply, None, None]:
    """As many processes as `workers`; a chunk whose process is killed is computed by another.

    With a runner this process is one of them: it computes from the start, while the others import what they need.

    Raises:
        VendorError: five processes in a row end on one chunk.
    """
    message = job.encode()
    crew = [_Worker(message) for _ in range(workers - (runner is not None))]
    todo: queue.Queue[Any] = queue.Queue()
    done: queue.Queue[Any] = queue.Queue()
    threads = [threading.Thread(target=_serve, args=(worker, todo, done), daemon=True) for worker in crew]
    if runner is not None:
        threads.append(threading.Thread(target=_serve_here, args=(runner, todo, done), daemon=True))
    for thread in threads:
        thread.start()
    source, waiting, twice = iter(tasks), dict[int, list[Any]](), False
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (task := next(source, None)) is not None:
                todo.put(task)
                waiting[task[0]] = task[1]
            if not waiting:
                return
            if runner is not None and len(waiting) < workers and not twice:
                # the last chunks, in the hands of processes that may be new: here they are at hand too
                twice = True
                for task in waiting.items():
                    todo.put(task)
            number, reply = done.get()
            if isinstance(reply, Exception):
                raise reply
            if waiting.pop(number, None) is not None:
                yield number, reply
    finally:
        _end(crew, threads, todo)


def _end(crew: list[_Worker], threads: list[threading.Thread], todo: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            todo.get_nowait()
    for worker in crew:
        worker.stop()
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join()
    for worker in crew:
        worker.close()


# ---------------------------------------------------------------- dask


def by_dask(job: Job, tasks: Iterable[Task], scheduler: str) -> Generator[Reply, None, None]:
    """The workers of a dask scheduler; each needs this version of nirdeploy.

    Raises:
        UnavailableError: distributed is not installed, or there is no scheduler.
        VendorError: the scheduler is lost, or several workers end on one chunk.
    """
    try:
        import distributed
    except ImportError as error:
        raise UnavailableError(
            "scheduler= needs dask's distributed", remedy="pip install 'nirdeploy[distributed]', or use workers=."
        ) from error
    from nirdeploy.evaluation.job import answer

    try:
        client = distributed.Client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"no dask scheduler at {scheduler!r}: {error}") from error
    with client:
        # a task, not scattered data: the scheduler can make it again where the worker that holds it is killed
        message = client.submit(bytes, job.encode(), pure=False)
        source, numbers = iter(tasks), dict[Any, int]()
        ahead = max(1, _AHEAD * sum(client.nthreads().values()))
        finished = distributed.as_completed(loop=client.loop)
        while True:
            while len(numbers) < ahead and (task := next(source, None)) is not None:
                future = client.submit(answer, message, encode_samples(task[1]), pure=False, retries=_MOST_DEATHS)
                numbers[future] = task[0]
                finished.add(future)
            if not numbers:
                return
            future = next(finished)
            number = numbers.pop(future)
            try:
                reply = decode_reply(future.result())
            except Exception as error:  # of dask, its workers or the network between
                raise VendorError(
                    f"dask at {scheduler!r} lost chunk {number}: {type(error).__name__}: {error}"
                ) from error
            yield number, reply
