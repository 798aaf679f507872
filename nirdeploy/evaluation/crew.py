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
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nirdeploy.errors import UnavailableError, VendorError
from nirdeploy.evaluation.handle import Handle, Surroundings
from nirdeploy.evaluation.job import Failure, Job, Rows, decode_reply, encode_samples
from nirdeploy.evaluation.process import DamageError, mark_of

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
        job: what a process is to run.
        workers: that take chunks, this process among them where it does.
        todo: chunks to take; None: there are no more.
        done: replies by chunk, or an exception.
        slowest: seconds of the slowest chunk so far; None before the first.
        example: a chunk's samples, for a process to try; none before the first chunk.
    """

    job: Job
    workers: int
    todo: queue.SimpleQueue[Task | None] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[tuple[int, Any]] = field(default_factory=queue.SimpleQueue)
    slowest: float | None = None
    example: list[Any] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        """Count a finished chunk."""
        self.slowest = seconds if self.slowest is None else max(self.slowest, seconds)

    def spare(self) -> Task | None:
        """A chunk for one that has one, so that it need not wait for its next; None where others would go without."""
        if self.todo.qsize() <= self.workers:
            return None
        try:
            task = self.todo.get_nowait()
        except queue.Empty:
            return None
        if task is None:
            self.todo.put(None)  # for whom it was meant
        return task

    def end(self) -> None:
        """Take back what nobody has begun, and send the workers home."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.todo.get_nowait()
        for _ in range(self.workers):
            self.todo.put(None)


class _RetiredError(Exception):
    """The seat's process was killed because nobody wants its answer any more."""


class Seat:
    """One worker: a thread, and a process that is replaced when it ends.

    Attributes:
        process: its process.
        key: of the job that the process is ready for; empty: it is ready for none.
        warm: whether the process has answered before, so that it has imported and compiled what it needs.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.process = Handle(surroundings)
        self.key = ""
        self.warm = False
        self._hand: list[Task] = []  # what it has taken, and not answered
        self._told: list[bytes] = []  # of those that the process knows, what their replies begin with
        self._retired = False
        self._given = self._served = 0  # shifts
        self._expiry: threading.Timer | None = None
        self._shifts: queue.SimpleQueue[Shift | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="nirdeploy-worker", daemon=True)

    def begin(self) -> None:
        """Wait for shifts from now on."""
        _SEATS.add(self)
        try:
            self._thread.start()
        except BaseException:
            _SEATS.discard(self)
            self.process.close()
            raise

    def work(self, shift: Shift) -> None:
        """Take chunks of a shift until there are no more."""
        self._given += 1
        self._shifts.put(shift)

    @property
    def busy(self) -> bool:
        """Whether it has or may yet start a process to wait for, which may hang."""
        return self._given != self._served and (self.process.owing or not self.warm)

    @property
    def hand(self) -> list[int]:
        """The chunks it has taken, by number, the one it computes first."""
        return [number for number, _ in self._hand.copy()]

    def watch(self, shift: Shift) -> None:
        """Kill the process where it hangs; what it has in hand is computed again."""
        if (waited := self.process.waited()) is None:
            return
        working, silent = waited
        if silent > SILENT_SECONDS:
            self.process.kill(f"gave no sign of life for {SILENT_SECONDS:g} s")
        elif self._told and shift.slowest is not None:
            longest = max(LONGEST_SECONDS, LONGEST_FACTOR * shift.slowest)
            if working > longest:
                self.process.kill(f"took longer than {longest:.0f} s, the slowest chunk before {shift.slowest:.2g} s")

    def expire(self) -> None:
        """Retire when it has waited a minute for its process, which may hang, and nobody has wanted it."""
        self.wanted()
        self._expiry = threading.Timer(IDLE_SECONDS, self._expired)
        self._expiry.daemon = True
        self._expiry.start()

    def wanted(self) -> None:
        """Somebody wants it."""
        if (expiry := self._expiry) is not None:
            expiry.cancel()

    def _expired(self) -> None:
        if self.busy and _taken_out(self):
            self.retire()

    def retire(self) -> None:
        """Kill the process; the thread that waits for it sees the end of the pipe, and ends."""
        self.wanted()
        self._retired = True
        self.process.kill()
        self._shifts.put(None)

    def join(self, seconds: float | None = None) -> None:
        """Wait until a retired seat is closed."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

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
            self._served += 1
        self.process.close()
        _SEATS.discard(self)

    def _work(self, shift: Shift) -> None:
        self.process.unsay()
        try:
            self._persist(shift)  # before it takes a chunk, which others could compute meanwhile
            while self._take(shift):
                reply = self._persist(shift)
                shift.done.put((self._hand.pop(0)[0], reply))
                del self._told[0]
                self.warm = True
                shift.took(self.process.took)
            if not self.warm and shift.example and (shift.slowest or np.inf) < _TRIED_SECONDS:
                # it came too late for this call, and is to be ready for the next
                self._hand = [(-1, shift.example)]
                self._persist(shift)
                self.warm = True
        except _RetiredError:
            pass
        except Exception as error:  # handed to the thread that can raise it
            self._ended()  # it may owe replies that are nobody's
            shift.done.put((-1, error))
        self._hand, self._told = [], []

    def _take(self, shift: Shift) -> bool:
        """Have a chunk in hand, and where others keep enough one more; False: there are no more."""
        if not self._hand:
            if (task := shift.todo.get()) is None:
                return False
            self._hand.append(task)
        if self.warm and len(self._hand) == 1 and (task := shift.spare()) is not None:
            self._hand.append(task)
        return True

    def _persist(self, shift: Shift) -> Rows | Failure | None:
        """The reply to the first chunk in hand, from as many processes as it takes; no chunk: a process made ready."""
        why = ""
        for _ in range(MOST_DEATHS):
            try:
                self._get_ready(shift)
                for _, samples in self._hand[len(self._told) :]:
                    message = b"S" + encode_samples(samples)
                    self._told.append(mark_of(message))
                    self.process.tell(message)
                return self._reply(len(self._hand[0][1])) if self._hand else None
            except OSError:  # the pipe of a process that has ended
                why = ""
            except DamageError as error:
                why = f"answered something else than agreed: {error}"
            code = self._ended()
            for task in self._hand[1:]:
                shift.todo.put(task)
            del self._hand[1:]
            if self._retired:
                raise _RetiredError
            why, self.process.reason = self.process.reason or why or f"ended with exit code {code}", ""
        where = f", the last in hand being the samples from {self._hand[0][0]} on" if self._hand else ""
        raise VendorError(f"{MOST_DEATHS} workers in a row {why}{where}", log=self.process.said())

    def _get_ready(self, shift: Shift) -> None:
        if not self.process.runs:
            self._ended()  # perhaps while nobody wanted it
            if self._retired:
                raise _RetiredError
            self.process.start()
            if self._retired:  # while it was started: `retire` did not see it
                self.process.kill()
        if self.key == shift.job.key:
            return
        self.key = ""
        self.process.tell(b"J" + shift.job.message)
        said = self.process.hear()
        if said[:1] == b"!":
            raise VendorError(
                f"a worker cannot run the network: {said[1:].decode(errors='replace')}", log=self.process.said()
            )
        if said != b"R":
            raise DamageError(f"{said[:40]!r} to a job")
        self.key = shift.job.key

    def _reply(self, samples: int) -> Rows | Failure:
        said = self.process.hear()
        if said[:1] == b"!":
            raise VendorError(f"a worker cannot go on: {said[1:].decode(errors='replace')}", log=self.process.said())
        try:
            if said[:1] != b"+":
                raise DamageError(f"{said[:40]!r} to samples")
            if said[1:5] != self._told[0]:
                raise DamageError("a reply to other samples")
            reply = decode_reply(said[5:])
        except VendorError as error:
            raise DamageError(str(error)) from error
        if isinstance(reply, Rows) and len(reply.steps) != samples:
            raise DamageError(f"{len(reply.steps)} rows of {samples} samples")
        return reply

    def _ended(self) -> int | None:
        self.key, self.warm, self._told = "", False, []
        return self.process.end()


# ---------------------------------------------------------------- those that nobody works with

_LOCK = threading.Lock()
_IDLE: list[Seat] = []
_SEATS: set[Seat] = set()


def borrow(seats: list[Seat], count: int) -> None:
    """Add as many seats: those of calls before that were started as one would be now, and new ones.

    Args:
        seats: has every seat before it is taken, so that none is lost where an interrupt ends this.
        count: of seats.

    Raises:
        UnavailableError: there is no thread or file for another.
    """
    wanted = Surroundings.now()
    with _LOCK:
        others = [seat for seat in _IDLE if seat.process.surroundings != wanted]
        own = [seat for seat in _IDLE if seat.process.surroundings == wanted]
        first = max(0, len(own) - count)
        seats += own[first:]
        _IDLE[:] = own[:first]
    for seat in own[first:]:
        seat.wanted()
    retire(others, wait=False)
    try:
        for _ in range(count - len(own[first:])):
            seats.append(Seat(wanted))
            seats[-1].begin()
    except (OSError, RuntimeError) as error:
        raise UnavailableError(f"a worker process cannot be started: {error}", remedy="Leave workers=.") from error


def give_back(seats: Iterable[Seat]) -> None:
    """Keep seats for another call; one may still be starting, or at a chunk that another has computed."""
    for seat in seats:
        with _LOCK:
            _IDLE.append(seat)
        if seat.busy:
            seat.expire()


def retire(seats: Iterable[Seat], *, wait: bool = True) -> None:
    """End seats, whatever they do."""
    seats = list(seats)
    with _LOCK:
        _IDLE[:] = [seat for seat in _IDLE if seat not in seats]
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
    return [pid for seat in list(_SEATS) if (pid := seat.process.pid) is not None]


def _taken_out(seat: Seat) -> bool:
    with _LOCK:
        if seat not in _IDLE:
            return False
        _IDLE.remove(seat)
        return True


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
            seat.process.disown(nothing)
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
