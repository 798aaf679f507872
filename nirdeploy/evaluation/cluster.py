"""A dask cluster of this machine, in a process of its own: a scheduler and workers on 127.0.0.1, no dashboard.

Run as a script with the number of workers, the seconds that one may give no sign of life, and the client's search
path, so that what it imports is what the client imports. Prints the scheduler's address and ends, with all its
workers, when its standard input does. So a program that evaluates needs no `if __name__ == "__main__"`, and nothing is
left where it is killed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any


def main() -> None:
    """Run the cluster until standard input ends."""
    workers, ttl = int(sys.argv[1]), float(sys.argv[2])
    address = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no address
    import dask
    import distributed

    start: Any = distributed.LocalCluster

    dask.config.set({"distributed.scheduler.worker-ttl": f"{ttl} s"})
    with (
        tempfile.TemporaryDirectory(prefix="nirdeploy-dask-") as folder,
        start(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            memory_limit=0,  # this machine's limits are enough
            local_directory=folder,
        ) as cluster,
    ):
        address.write(f"{cluster.scheduler_address}\n")
        address.flush()
        sys.stdin.read()


if __name__ == "__main__":
    sys.path[:] = sys.argv[3:]
    # the package this file is of, whatever hides it in the client's own process
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    main()
