"""Who computes the chunks: this process, or this and worker processes beside it. The rows are the same."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any

from nirdeploy.evaluation.crew import Reply, Seat, Shift, Task, borrow, give_back, retire
from nirdeploy.evaluation.job import Job, Runner
from nirdeploy.shared_setting import SharedSetting

__all__ = ["by_processes", "in_process"]

_AHEAD = 3  # chunks a worker that are read before they are needed
_LOOK_SECONDS = 0.1  # between two looks at who works
_SWITCH_SECONDS = 0.0002

# Threads that serve workers have the interpreter at once: a worker waits 5 ms a chunk otherwise, as the chunk that is
# computed here keeps the interpreter busy, and Python asks it for a turn once in an interval.
_INTERVAL = SharedSetting(sys.getswitchinterval, sys.setswitchinterval)


def in_process(runner: Runner, tasks: Iterable[Task]) -> Generator[Reply, None, None]:
    """One chunk after the other, here."""
    for number, samples in tasks:
        yield number, runner.run(samples)


class _Here(threading.Thread):
    """This process as a worker."""

    def __init__(self, runner: Runner, shift: Shift) -> None:
        super().__init__(name="nirdeploy-here", daemon=True)
        self.runner, self.shift = runner, shift
        self.busy = False

    def run(self) -> None:
        """Compute chunks until there are no more."""
        try:
            while (task := self.shift.todo.get()) is not None:
                self.busy, began = True, time.monotonic()
                reply = self.runner.run(task[1])
                self.shift.took(time.monotonic() - began)
                self.busy = False
                self.shift.done.put((task[0], reply))
        except BaseException as error:  # a SystemExit, too: handed to the thread that can raise it
            self.shift.done.put((-1, error))


def by_processes(
    job: Job, tasks: Iterable[Task], workers: int, runner: Runner | None = None
) -> Generator[Reply, None, None]:
    """As many processes as `workers`; a chunk whose process ends or hangs is computed by another.

    With a runner this process is one of them: it computes from the start, while the others import what they need.
    Processes stay for the next call, unless this one is left before its end.

    Raises:
        UnavailableError: no process can be started.
        VendorError: five processes in a row end, hang or answer nonsense on one chunk.
    """
    shift, seats = Shift(job, workers), list[Seat]()
    here = None if runner is None else _Here(runner, shift)
    source, waiting, twice, whole = iter(tasks), dict[int, list[Any]](), set[int](), False
    turns = contextlib.ExitStack()
    try:
        borrow(seats, workers - (runner is not None))
        if any(seat.key != job.key for seat in seats):
            _ = job.message  # made before anything competes for the interpreter, which takes it seven times longer
        turns.enter_context(_INTERVAL.changed(lambda before: min(_SWITCH_SECONDS, before)))
        for seat in seats:
            seat.work(shift)
        if here is not None:
            here.start()
        while True:
            while len(waiting) < _AHEAD * workers and (task := next(source, None)) is not None:
                shift.todo.put(task)
                waiting[task[0]] = shift.example = task[1]
            if not waiting:
                whole = True
                return
            number, reply = _next(shift, seats, here, waiting, twice)
            if isinstance(reply, BaseException):
                raise reply
            if waiting.pop(number, None) is not None:
                yield number, reply
    finally:
        turns.close()
        shift.end()
        if whole:
            give_back(seats)
        else:
            retire(seats)
        if here is not None and here.ident is not None:
            here.join()


def _next(
    shift: Shift, seats: list[Seat], here: _Here | None, waiting: dict[int, list[Any]], twice: set[int]
) -> tuple[int, Any]:
    """The next reply, or exception; meanwhile the workers are watched."""
    while True:
        for seat in seats:
            seat.watch(shift)
        if here is not None and not here.busy and shift.todo.empty():
            # the last chunks, in the hands of processes that still compile what they need: here it is at hand
            for number in {number for seat in seats if not seat.warm for number in seat.hand} - twice:
                if number in waiting:
                    twice.add(number)
                    shift.todo.put((number, waiting[number]))
        with contextlib.suppress(queue.Empty):
            return shift.done.get(timeout=_LOOK_SECONDS)
