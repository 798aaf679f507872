"""Programs of other interpreters (vendors' workers, installers): run to their end, watched, never left behind."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nirdeploy.errors import UnavailableError, UnsupportedError, VendorError
from nirdeploy.files import UNFINISHED

__all__ = ["call", "end", "job_folder", "seconds"]

_SHOWN, _KEPT = 12, 2000  # lines in the message, lines in the error's log
_LONGEST = 4096  # characters of a line; what is longer becomes several
_GRACE = 2.0  # seconds for output that children of an ended program still hold open


def call(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout: float,
    progress: Callable[[str], None] | None = None,
    remedy: str | None = None,
) -> str:
    """Run a program to its end; it and its children are killed when this call is left, however that happens.

    The program reads a pipe that stays open and empty as long as this process lives, so that it can end itself
    when the pipe closes.

    Args:
        command: program and arguments; no shell reads them.
        what: what it is, for messages, e.g. 'the sinabs worker'.
        timeout: seconds.
        progress: called with every line it prints, standard output and error alike.
        remedy: appended to the error's message.

    Returns:
        The last lines it printed.

    Raises:
        UnavailableError: it cannot be started.
        VendorError: it ran longer than `timeout`, or ended with another exit code than 0; the last lines are in the
            message, more of them in `log`.
    """
    arguments = [str(part) for part in command]
    try:
        process = subprocess.Popen(  # noqa: S603 - a list, and no shell
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: Ctrl-C reaches us alone, and the whole group can be killed
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnavailableError(f"{what} cannot be started: {arguments[0]!r}: {reason}", remedy=remedy) from error
    lines: deque[str] = deque(maxlen=_KEPT)
    try:
        late = not _watch(process, lines, timeout, progress)
    finally:
        end(process)
    said = "\n".join(lines)
    if late:
        problem = f"{what} was stopped after {timeout:g} s"
    elif process.returncode < 0:
        problem = f"{what} was ended by signal {-process.returncode}"
    elif process.returncode:
        problem = f"{what} failed with exit code {process.returncode}"
    else:
        return said
    last = "\n".join([line for line in lines if line.strip()][-_SHOWN:])
    raise VendorError(f"{problem}; it said last:\n{last or '(nothing)'}", remedy=remedy, log=said)


def _watch(
    process: subprocess.Popen[str], lines: deque[str], timeout: float, progress: Callable[[str], None] | None
) -> bool:
    """Collect what it prints until it ends; False where time is up before."""
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    deadline = time.monotonic() + timeout
    ended: float | None = None
    while True:
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        if ended is None and time.monotonic() > deadline:
            return False
        if ended is not None and time.monotonic() > ended + _GRACE:
            return True  # a child that outlives it holds the pipe open
        try:
            line = said.get(timeout=0.05)
        except queue.Empty:
            continue
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            return process.poll() is not None
        lines.append(line)
        if progress is not None:
            progress(line)


def _read(process: subprocess.Popen[str], said: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None  # noqa: S101 - for the type checker: it was asked for
    with process.stdout:
        while line := process.stdout.readline(_LONGEST):
            said.put(line.rstrip())
    said.put(None)


def end(process: subprocess.Popen[str]) -> None:
    """End a program started in a session of its own, if it has not ended, and whatever it started and left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def seconds(name: str, value: Any) -> float:
    """An option that is a time.

    Raises:
        UnsupportedError: it is no positive, finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UnsupportedError(f"{name} is {value!r}, expected seconds")
    return float(value)


@contextlib.contextmanager
def job_folder(name: str) -> Iterator[Path]:
    """A temporary folder for one job, gone afterwards, also after Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix=f"nirdeploy-{name}-") as folder:
        path = Path(folder)
        UNFINISHED.add(path)
        try:
            yield path
        finally:
            UNFINISHED.discard(path)
