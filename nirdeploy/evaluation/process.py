"""A worker process: reads a job and chunks of samples from standard input, writes rows to standard output.

A message is its length in eight bytes, little-endian, and then its bytes. The process ends when the pipe does, so that
none outlives whoever started it by more than a chunk.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import IO

__all__ = ["main", "receive", "send"]

_LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message."""
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read one message; None where the stream ends, also within one."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def main() -> None:
    """Answer until standard input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    from nirdeploy.errors import NirdeployError
    from nirdeploy.evaluation.job import Failure, Job, Runner, decode_samples, encode_reply

    first = receive(requests)
    if first is None:
        return
    try:
        runner = Runner(Job.decode(first))
    except NirdeployError as error:
        send(replies, encode_reply(Failure(-1, type(error).__name__, str(error))))
        return
    send(replies, b"ready")
    while (message := receive(requests)) is not None:
        try:
            send(replies, encode_reply(runner.run(decode_samples(message))))
        except BrokenPipeError:
            break
    sys.stderr.flush()


if __name__ == "__main__":
    main()
