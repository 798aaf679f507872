"""Chunks computed by the workers of a dask scheduler, which may be anywhere; everything crosses as messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
import pkgutil
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nirdeploy.errors import UnavailableError, VendorError
from nirdeploy.evaluation import cluster
from nirdeploy.evaluation.crew import MOST_DEATHS, SILENT_SECONDS, Reply, Task
from nirdeploy.evaluation.handle import search_path
from nirdeploy.evaluation.job import Failure, Job, Rows, answer, decode_reply, encode_samples
from nirdeploy.version import __version__
from nirdeploy.worker import end

__all__ = ["by_dask", "cluster_of_this_machine"]

_AHEAD = 2  # chunks a worker's thread that are in dask's hands
_CONNECT_SECONDS = 10
_START_SECONDS = 120
_LOOK_SECONDS = 1.0
# by name: dask ends a worker that is sent a function it cannot import
_ANSWER = (pkgutil.resolve_name, f"{answer.__module__}:{answer.__qualname__}")
_EXTRA = "pip install 'nirdeploy[distributed]', or use workers=."


def by_dask(
    job: Job, tasks: Iterable[Task], scheduler: str, workers: int, patience: float
) -> Generator[Reply, None, None]:
    """The workers of a dask scheduler; each needs this version of nirdeploy and of Python.

    Args:
        job: what they run.
        tasks: the chunks.
        scheduler: its address; 'local' starts one, with workers, for this call.
        workers: number of those.
        patience: seconds to wait while there is no worker, or the scheduler does not answer.

    Raises:
        UnavailableError: distributed is not installed, or there is no scheduler.
        VendorError: the scheduler is lost, no worker is there for `patience`, one cannot run the network, or several
            end on one chunk.
    """
    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(cluster_of_this_machine(workers)) if scheduler == "local" else scheduler
        stack.enter_context(_without_log_lines())
        client = stack.enter_context(_connected(distributed, address))
        yield from _Dask(client, job, f"dask at {address!r}", patience).replies(iter(tasks))


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise UnavailableError("scheduler= needs dask's distributed", remedy=_EXTRA) from error
    return distributed


class _Dask:
    """One evaluation's chunks in dask's hands."""

    def __init__(self, client: Any, job: Job, name: str, patience: float) -> None:
        self.client, self.name, self.patience = client, name, patience
        self.done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.numbers: dict[Any, int] = {}
        self.ahead = 1
        self.met = time.monotonic()  # when a worker was there last
        # a task, not scattered data: the scheduler can make it again where the worker that holds it is killed
        self.message = self._submitted(bytes, job.message)

    def replies(self, tasks: Iterator[Task]) -> Generator[Reply, None, None]:
        """The reply of every chunk, as they come."""
        self._look()
        while True:
            while len(self.numbers) < self.ahead and (task := next(tasks, None)) is not None:
                future = self._submitted(operator.call, _ANSWER, self.message, encode_samples(task[1]))
                self.numbers[future] = task[0]
                future.add_done_callback(self.done.put)
            if not self.numbers:
                return
            future = self._finished()
            number = self.numbers.pop(future)
            yield number, self._reply(future, number)

    def _submitted(self, *task: Any) -> Any:
        """The future of a task: a function, and arguments that may be futures or tasks themselves."""
        import dask

        key = f"nirdeploy-{uuid.uuid4().hex}"
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            return self.client.get({key: task}, key, sync=False, retries=MOST_DEATHS)

    def _finished(self) -> Any:
        looked = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                return self.done.get(timeout=_LOOK_SECONDS)
            if time.monotonic() - looked >= _LOOK_SECONDS:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        """See who is there.

        Raises:
            VendorError: the scheduler is lost; or nobody has been there for too long.
        """
        if self.client.status != "running":
            raise VendorError(f"{self.name} is lost")
        what = "has no worker"
        try:
            threads = self.client.sync(self.client.scheduler.ncores, callback_timeout=_CONNECT_SECONDS)
        except Exception as error:  # of the network, or of a scheduler that ends at this moment
            threads, what = {}, f"does not answer ({type(error).__name__})"
        now = time.monotonic()
        if threads:
            self.met, self.ahead = now, _AHEAD * sum(threads.values())
        elif now - self.met > self.patience:
            raise VendorError(f"{self.name} {what} for {self.patience:g} s", remedy="Start workers, or wait longer.")

    def _result(self, future: Any) -> bytes:
        """The bytes of a finished chunk; where their worker has ended meanwhile, another computes them again."""
        while True:
            try:
                found: bytes = future.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                self._look()
            else:
                return found

    def _reply(self, future: Any, number: int) -> Rows | Failure:
        try:
            found = decode_reply(self._result(future))
        except ImportError as error:
            raise VendorError(
                f"a worker of {self.name} cannot import nirdeploy: {error}",
                remedy=f"Install nirdeploy {__version__} where the workers run.",
            ) from error
        except VendorError:
            raise
        except Exception as error:  # of dask, its workers or the network between
            if self.client.status != "running" or "connection-lost" in str(error):
                raise VendorError(f"{self.name} is lost") from error
            raise VendorError(
                f"{self.name} lost the chunk of sample {number}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(found, Failure) and found.sample < 0:
            raise VendorError(f"a worker of {self.name} cannot run the network: {found.kind}: {found.text}")
        return found


# ---------------------------------------------------------------- schedulers


@contextlib.contextmanager
def _connected(distributed: Any, address: str) -> Iterator[Any]:
    try:
        with ThreadPoolExecutor(1) as pool:  # this thread may run an event loop already, as notebooks do
            pool.submit(asyncio.run, _knock(distributed, address)).result()
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except ConnectionRefusedError as error:
        raise UnavailableError(f"no dask scheduler at {address!r}: nobody listens there") from error
    except TimeoutError as error:
        raise UnavailableError(f"no dask scheduler at {address!r}: no answer in {_CONNECT_SECONDS} s") from error
    except Exception as error:  # whatever answers there
        raise UnavailableError(f"no dask scheduler at {address!r}: {type(error).__name__}: {error}") from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is lost
            client.close(timeout=5)


async def _knock(distributed: Any, address: str) -> None:
    """Shake hands as dask does, which itself would wait for ever for what does not answer."""
    with contextlib.suppress(ValueError):  # of another protocol than tcp
        host, port = distributed.comm.get_address_host_port(address)
        async with asyncio.timeout(_CONNECT_SECONDS):
            (await asyncio.open_connection(host, port))[1].close()  # a refusal is known at once
    security = distributed.Security().get_connection_args("client")
    async with asyncio.timeout(_CONNECT_SECONDS):
        comm = await distributed.comm.connect(address, timeout=_CONNECT_SECONDS, **security)
    comm.abort()


@contextlib.contextmanager
def cluster_of_this_machine(workers: int) -> Iterator[str]:
    """A scheduler and workers of this machine, ended afterwards; gives the address.

    Raises:
        UnavailableError: distributed is not installed.
        VendorError: they do not start.
    """
    _distributed()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - a list, and no shell
            [sys.executable, "-P", str(Path(cluster.__file__)), str(workers), str(SILENT_SECONDS), *search_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a group of its own, which is ended as a whole
        )
        assert process.stdin is not None  # noqa: S101 - narrows the type
        assert process.stdout is not None  # noqa: S101 - likewise
        try:
            # one that does not come up is killed, which ends the line
            timer = threading.Timer(_START_SECONDS, process.kill)
            timer.daemon = True
            timer.start()
            address = process.stdout.readline().strip()
            timer.cancel()
            if not address:
                log.seek(0)
                raise VendorError(
                    "dask's cluster of this machine did not start", log=log.read()[-4000:].decode(errors="replace")
                )
            yield address
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            end(process)
            process.stdout.close()


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    """What dask logs of lost connections is an error of ours, in words."""
    loggers = [logging.getLogger(f"distributed{name}") for name in ("", ".client", ".core", ".comm", ".batched")]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
