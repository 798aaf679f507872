"""Worker processes of this machine that stay from one call to the next: importing takes longer than many an evaluation.

A `Seat` is a thread that holds one process, and replaces it when it ends, hangs or answers nonsense. A call borrows
seats, has them work on its `Shift`, and gives them back; a seat that nobody has wanted for a minute closes itself. The
processes end with this one, however it ends: at its exit, or when the pipe to them does. A fork of this process
has no part in them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nirdeploy.errors import UnavailableError, VendorError
from nirdeploy.evaluation import process as processes
from nirdeploy.evaluation.job import Failure, Rows, decode_reply, encode_samples
from nirdeploy.evaluation.process import DamageError, receive, send

__all__ = [
    "MOST_DEATHS",
    "SILENT_SECONDS",
    "Reply",
    "Seat",
    "Shift",
    "Task",
    "borrow",
    "busy",
    "dismiss",
    "give_back",
    "pids",
    "retire",
]

IDLE_SECONDS = 60.0  # that a process is kept for another call
SILENT_SECONDS = 60.0  # without a sign of life, of which a working process gives one a second
LONGEST_SECONDS, LONGEST_FACTOR = 600.0, 20  # a chunk may take the larger of this and so many times the slowest one
_TRIED_SECONDS = 1.0  # chunks that take less are worth a trial
MOST_DEATHS = 5  # of processes on one chunk, one after the other

Task = tuple[int, list[Any]]  # number of the chunk's first sample, its samples
Reply = tuple[int, "Rows | Failure"]


@dataclass(eq=False)
class Shift:
    """What one call has for its workers.

    Attributes:
        job: message that tells a process what to run.
        todo: chunks to take; None: there are no more.
        done: replies by chunk, or an exception.
        slowest: seconds of the slowest chunk so far; None before the first.
        example: a chunk's samples, for a process to try; none before the first chunk.
    """

    job: bytes
    todo: queue.SimpleQueue[Task | None] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[tuple[int, Any]] = field(default_factory=queue.SimpleQueue)
    slowest: float | None = None
    example: list[Any] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        """Count a finished chunk."""
        self.slowest = seconds if self.slowest is None else max(self.slowest, seconds)

    def end(self, workers: int) -> None:
        """Take back what nobody has begun, and send the workers home."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.todo.get_nowait()
        for _ in range(workers):
            self.todo.put(None)


@dataclass(frozen=True)
class _Surroundings:
    """What a process inherits: one with another interpreter, folder or environment is not used."""

    python: str
    folder: str | None
    variables: tuple[tuple[str, str], ...]

    @classmethod
    def now(cls) -> _Surroundings:
        try:
            folder: str | None = os.getcwd()
        except OSError:  # it has been removed
            folder = None
        return cls(sys.executable or "", folder, tuple(sorted(os.environ.items())))


class _RetiredError(Exception):
    """The seat's process was killed because nobody wants its answer any more."""


class Seat:
    """One worker: a thread, and a process that is replaced when it ends.

    Attributes:
        surroundings: of its processes.
        hand: the chunk it computes; None: none.
        warm: whether its process has answered before, so that it has imported and compiled what it needs.
    """

    def __init__(self, surroundings: _Surroundings) -> None:
        self.surroundings = surroundings
        self.hand: int | None = None
        self.warm = False
        self._owing: float | None = None  # since when the process owes a reply
        self._heard = 0.0  # when it gave a sign of life
        self._hung = ""  # why it was killed
        self._retired = False
        self._process: subprocess.Popen[bytes] | None = None
        self._shift: Shift | None = None  # whose job the process is ready for
        self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the seat
        self._shifts: queue.SimpleQueue[Shift | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="nirdeploy-worker", daemon=True)
        _SEATS.add(self)
        self._thread.start()

    def work(self, shift: Shift) -> None:
        """Take chunks of a shift until there are no more."""
        self._shifts.put(shift)

    @property
    def busy(self) -> bool:
        """Whether its process owes a reply."""
        return self._owing is not None

    @property
    def pid(self) -> int | None:
        """Its process, if it has one."""
        return None if self._process is None else self._process.pid

    def watch(self, shift: Shift) -> None:
        """Kill the process where it hangs; what it has in hand is computed again."""
        since, now = self._owing, time.monotonic()
        if since is None:
            return
        if now - max(since, self._heard) > SILENT_SECONDS:
            self._kill(f"gave no sign of life for {SILENT_SECONDS:g} s")
        elif self.hand is not None and shift.slowest is not None:
            longest = max(LONGEST_SECONDS, LONGEST_FACTOR * shift.slowest)
            if now - since > longest:
                self._kill(f"took longer than {longest:.0f} s, the slowest chunk before {shift.slowest:.2g} s")

    def retire(self) -> None:
        """Kill the process; the thread that waits for it sees the end of the pipe, and ends."""
        self._retired = True
        self._kill("")
        self._shifts.put(None)

    def join(self, seconds: float | None = None) -> None:
        """Wait until a retired seat is closed."""
        self._thread.join(seconds)

    def forget(self, nothing: int) -> None:
        """In a fork of this process: put a null device in the place of the pipes, whose end the worker has to see."""
        if (process := self._process) is not None:
            process.returncode = 0  # it is another's child
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    os.dup2(nothing, pipe.fileno(), inheritable=False)

    # ------------------------------------------------------------ in the thread

    def _live(self) -> None:
        while True:
            try:
                shift = self._shifts.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if _taken_out(self):
                    break
                continue  # a call borrows it at this moment
            if shift is None:
                break
            self._work(shift)
        self._ended()
        self._log.close()
        _SEATS.discard(self)

    def _work(self, shift: Shift) -> None:
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)  # the process writes where this points
        self._log.truncate(0)
        try:
            self._persist(shift, None)  # before it takes a chunk, which others could compute meanwhile
            while (task := shift.todo.get()) is not None:
                self.hand, began = task[0], time.monotonic()
                shift.done.put((task[0], self._persist(shift, task)))
                self.hand, self.warm = None, True
                shift.took(time.monotonic() - began)
            if not self.warm and shift.example and (shift.slowest or np.inf) < _TRIED_SECONDS:
                # it came too late for this call, and is to be ready for the next
                self._persist(shift, (-1, shift.example))
                self.warm = True
        except _RetiredError:
            pass
        except Exception as error:  # handed to the thread that can raise it
            shift.done.put((-1, error))
        self.hand = self._shift = None

    def _persist(self, shift: Shift, task: Task | None) -> Rows | Failure | None:
        """The reply to a chunk, from as many processes as it takes; without one: have a process ready."""
        message = b"" if task is None else b"S" + encode_samples(task[1])
        why = ""
        for _ in range(MOST_DEATHS):
            try:
                self._get_ready(shift)
                return None if task is None else self._reply(message, len(task[1]))
            except OSError:  # the pipe of a process that has ended
                why = ""
            except DamageError as error:
                why = f"answered something else than agreed: {error}"
            code = self._ended()
            if self._retired:
                raise _RetiredError
            why, self._hung = self._hung or why or f"ended with exit code {code}", ""
        where = "" if task is None else f", the last in hand being the samples from {task[0]} on"
        raise VendorError(f"{MOST_DEATHS} workers in a row {why}{where}", log=self._said())

    def _get_ready(self, shift: Shift) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._ended()  # while nobody wanted it
        if self._process is None:
            if self._retired:
                raise _RetiredError
            self._start()
        if self._shift is shift:
            return
        said = self._exchange(shift.job)
        if said[:1] == b"!":
            raise VendorError(f"a worker cannot run the network: {said[1:].decode(errors='replace')}", log=self._said())
        if said != b"R":
            raise DamageError(f"{said[:40]!r} to a job")
        self._shift = shift

    def _reply(self, message: bytes, samples: int) -> Rows | Failure:
        said = self._exchange(message)
        if said[:1] == b"!":
            raise VendorError(f"a worker cannot go on: {said[1:].decode(errors='replace')}", log=self._said())
        try:
            if said[:1] != b"+":
                raise DamageError(f"{said[:40]!r} to samples")
            reply = decode_reply(said[1:])
        except VendorError as error:
            raise DamageError(str(error)) from error
        if isinstance(reply, Rows) and len(reply.steps) != samples:
            raise DamageError(f"{len(reply.steps)} rows of {samples} samples")
        return reply

    def _exchange(self, message: bytes) -> bytes:
        """What the process answers, after its signs of life."""
        process = self._process
        assert process is not None  # noqa: S101 - narrows the type
        assert process.stdin is not None  # noqa: S101 - likewise
        assert process.stdout is not None  # noqa: S101 - likewise
        self._heard = self._owing = time.monotonic()
        try:
            send(process.stdin, message)
            while (said := receive(process.stdout, processes.MOST_BYTES)) is not None:
                self._heard = time.monotonic()
                if said:
                    return said
        finally:
            self._owing = None
        raise BrokenPipeError

    def _start(self) -> None:
        where = self.surroundings
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a list, and no shell
                [where.python, "-P", str(Path(processes.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                cwd=where.folder,
                env={**dict(where.variables), **single},
                start_new_session=True,  # Ctrl-C is the client's to handle
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnavailableError(
                f"a worker process cannot be started: {where.python!r}: {reason}", remedy="Leave workers=."
            ) from error
        if self._retired:  # while it was started: `retire` did not see it
            self._process.kill()

    def _kill(self, why: str) -> None:
        self._hung = why
        if (process := self._process) is not None:
            process.kill()

    def _ended(self) -> int | None:
        self.warm, self._shift = False, None
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def _said(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
            return self._log.read().decode(errors="replace")
        return ""


# ---------------------------------------------------------------- those that nobody works with

_LOCK = threading.Lock()
_IDLE: list[Seat] = []
_SEATS: set[Seat] = set()


def borrow(count: int) -> list[Seat]:
    """As many seats: those of calls before that were started as one would be now, and new ones."""
    wanted = _Surroundings.now()
    with _LOCK:
        others = [seat for seat in _IDLE if seat.surroundings != wanted]
        own = [seat for seat in _IDLE if seat.surroundings == wanted]
        first = max(0, len(own) - count)
        _IDLE[:] = own[:first]
    retire(others, wait=False)
    return own[first:] + [Seat(wanted) for _ in range(count - len(own[first:]))]


def give_back(seats: Iterable[Seat]) -> None:
    """Keep seats for another call; one may still be starting, or at a chunk that another has computed."""
    for seat in seats:
        with _LOCK:
            _IDLE.append(seat)
        if seat.busy:  # its thread waits for the process, and may do so for ever
            timer = threading.Timer(IDLE_SECONDS, _expire, [seat])
            timer.daemon = True
            timer.start()


def retire(seats: Iterable[Seat], *, wait: bool = True) -> None:
    """End seats, whatever they do."""
    seats = list(seats)
    for seat in seats:
        seat.retire()
    for seat in seats if wait else ():
        seat.join()


def dismiss() -> None:
    """End the processes that nobody works with."""
    with _LOCK:
        seats = list(_IDLE)
        _IDLE.clear()
    retire(seats)


def busy() -> bool:
    """Whether a process still starts, or computes what nobody needs any more."""
    return any(seat.busy for seat in list(_SEATS))


def pids() -> list[int]:
    """Processes that are there, borrowed or not."""
    return [seat.pid for seat in list(_SEATS) if seat.pid is not None]


def _taken_out(seat: Seat) -> bool:
    with _LOCK:
        if seat not in _IDLE:
            return False
        _IDLE.remove(seat)
        return True


def _expire(seat: Seat) -> None:
    if seat.busy and _taken_out(seat):
        seat.retire()


@atexit.register
def _close() -> None:
    seats = list(_SEATS)
    retire(seats, wait=False)
    for seat in seats:
        seat.join(5)


def _after_fork() -> None:
    global _LOCK  # noqa: PLW0603 - another thread of the parent may hold it
    _LOCK = threading.Lock()
    seats = list(_SEATS)
    _IDLE.clear()
    _SEATS.clear()
    if seats:
        nothing = os.open(os.devnull, os.O_RDWR)
        for seat in seats:
            seat.forget(nothing)
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
