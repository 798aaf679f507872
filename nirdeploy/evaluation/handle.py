"""A worker process as seen from here: started, told, listened to, watched and ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nirdeploy.errors import UnavailableError
from nirdeploy.evaluation import process as processes
from nirdeploy.evaluation.process import receive, send

__all__ = ["Handle", "Surroundings", "search_path"]


def search_path() -> tuple[str, ...]:
    """Where this process looks for modules: a program may have found another nirdeploy than its environment has."""
    return tuple(entry for entry in sys.path if isinstance(entry, str))


@dataclass(frozen=True)
class Surroundings:
    """What a process inherits: one with another interpreter, folder, environment or search path is not used."""

    python: str
    folder: str | None
    variables: tuple[tuple[str, str], ...]
    path: tuple[str, ...]

    @classmethod
    def now(cls) -> Surroundings:
        """Those of this process."""
        try:
            folder: str | None = os.getcwd()
        except OSError:  # it has been removed
            folder = None
        return cls(sys.executable or "", folder, tuple(sorted(os.environ.items())), search_path())


class Handle:
    """One worker process at a time; another can be started when it has ended.

    One thread starts, tells, hears and ends it; any other may look at it, or kill it.

    Attributes:
        surroundings: of its processes.
        reason: why it was killed; empty: it was not, or no reason was given.
        took: seconds for which it worked on its last reply.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.reason = ""
        self.took = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the handle
        self._owed = 0  # replies
        self._since = self._heard = 0.0  # when the oldest of them came to be owed, and its last sign of life

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if (process := self._process) is None else process.pid

    @property
    def runs(self) -> bool:
        """Whether there is a process that has not ended."""
        return (process := self._process) is not None and process.poll() is None

    @property
    def owing(self) -> bool:
        """Whether the process owes a reply."""
        return self._owed > 0

    def waited(self) -> tuple[float, float] | None:
        """Seconds for which the process has worked on its reply, and given no sign of life; None: it owes nothing."""
        if not self._owed:
            return None
        now, since = time.monotonic(), self._since
        return now - since, now - max(since, self._heard)

    def start(self) -> None:
        """Start a process.

        Raises:
            UnavailableError: it cannot be.
        """
        where = self.surroundings
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a list, and no shell
                [where.python, "-P", str(Path(processes.__file__)), *where.path],
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

    def tell(self, message: bytes) -> None:
        """Send a message, which a reply is owed to.

        Raises:
            OSError: the process has ended.
        """
        process = self._process
        assert process is not None  # noqa: S101 - narrows the type
        assert process.stdin is not None  # noqa: S101 - likewise
        if not self._owed:
            self._since = time.monotonic()
        self._owed += 1
        send(process.stdin, message)

    def hear(self) -> bytes:
        """The reply to the oldest message that has none, after signs of life.

        Raises:
            OSError: the process has ended.
            DamageError: it answered something else than a message.
        """
        process = self._process
        assert process is not None  # noqa: S101 - narrows the type
        assert process.stdout is not None  # noqa: S101 - likewise
        while (said := receive(process.stdout, processes.MOST_BYTES)) is not None:
            self._heard = time.monotonic()
            if said:
                self.took, self._since = self._heard - self._since, self._heard
                self._owed -= 1
                return said
        raise BrokenPipeError

    def kill(self, reason: str = "") -> None:
        """Kill the process; whoever hears it sees the end of the pipe."""
        self.reason = reason
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> int | None:
        """Kill the process if it still runs, wait for it, and give its exit code; None: there was none."""
        process, self._process, self._owed = self._process, None, 0
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def said(self) -> str:
        """The end of what its processes wrote to standard error."""
        with contextlib.suppress(OSError, ValueError):
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
            return self._log.read().decode(errors="replace")
        return ""

    def unsay(self) -> None:
        """Forget what was written to standard error."""
        os.lseek(self._log.fileno(), 0, os.SEEK_SET)  # the process writes where this points
        self._log.truncate(0)

    def close(self) -> None:
        """End the process, and start none any more."""
        self.end()
        self._log.close()

    def disown(self, nothing: int) -> None:
        """In a fork of this process: put a null device in the place of the pipes, whose end the worker has to see."""
        if (process := self._process) is not None:
            process.returncode = 0  # it is another's child
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    os.dup2(nothing, pipe.fileno(), inheritable=False)
