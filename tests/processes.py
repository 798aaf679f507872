"""Processes that tests start or look for, and dask as processes of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from nets import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}


def gone(pid):
    """Whether a process has ended, though its parent may not have asked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def until(condition, seconds=30):
    """Wait for what must come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def session(word):
    """Processes of the session whose first one has a word among its arguments."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace")
            found[int(path.name)] = os.getsid(int(path.name)), word in words
        except OSError:
            continue
    leaders = {pid for pid, (leader, matches) in found.items() if matches and pid == leader}
    return {pid for pid, (leader, _) in found.items() if leader in leaders}


def listening(pids):
    """Addresses that processes listen on, as /proc has them."""
    sockets = set()
    for path in (path for pid in pids for path in Path(f"/proc/{pid}/fd").glob("*")):
        try:
            sockets.add(os.readlink(path))
        except OSError:
            continue
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    rows = [line.split() for line in lines]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


class Dask:
    """A scheduler and its workers in an empty folder, on ports that the system chooses.

    `settings` are dask's, as environment variables have them.
    """

    def __init__(self, folder, **settings):
        self.folder = folder / "elsewhere"
        self.folder.mkdir()
        self.workers = []
        self.environment = ENVIRONMENT | settings
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--no-show", "--scheduler-file", file)
        until(lambda: file.exists() and file.read_text(), 60)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, what, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen(
            [*map(str, [*command, *arguments])],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def need(self, count, *arguments):
        """Have so many workers that live."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for _ in range(count - len(self.workers)):
            rest = ["--nthreads", 1, "--no-nanny", "--local-directory", self.folder, *arguments]
            self.workers.append(self._start("worker", self.address, *rest))
        return self.workers

    def end(self):
        """Kill everything."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
