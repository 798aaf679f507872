"""A worker process: reads jobs and chunks of samples from standard input, writes rows to standard output.

A message is a mark, the CRC-32 of its bytes, their number (little-endian) and the bytes. Of a request the first byte
says what follows: `J` a job, `S` samples. Of a reply: `R` ready for the job, `+` rows or a failure after the CRC-32 of
the request they answer, `!` why there will be none. While it owes a reply the process also sends empty messages, a sign
of life a second. It ends when its input does, in the middle of a chunk too, so that none outlives whoever started it.

This file is run as a script, with the client's search path as arguments: what it imports is what the client imports.
That is nothing but the standard library until it gives signs of life.
"""

from __future__ import annotations

import os
import queue
import struct
import sys
import threading
import zlib
from typing import IO, Any

__all__ = ["BEAT_SECONDS", "MOST_BYTES", "DamageError", "main", "mark_of", "receive", "send"]

BEAT_SECONDS = 1.0
MOST_BYTES = 1 << 30  # of a reply; the rows of a thousand samples take less than a mebibyte
_HEAD = struct.Struct("<4sIQ")
_MARK = b"nir\x01"
_PIECE = 1 << 20


class DamageError(Exception):
    """Bytes that are no message of ours."""


def mark_of(request: bytes) -> bytes:
    """What the reply to a request begins with."""
    return zlib.crc32(request).to_bytes(4, "little")


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one message to a stream that keeps nothing back."""
    for part in (_HEAD.pack(_MARK, zlib.crc32(message), len(message)), message):
        left = memoryview(part)
        while left:
            left = left[stream.write(left) :]


def receive(stream: IO[bytes], most: int | None = None) -> bytes | None:
    """Read one message; None where the stream ends before it does.

    Args:
        stream: what to read, piece by piece: nothing is allocated for bytes that only are announced.
        most: bytes of a message; None: any number.

    Raises:
        DamageError: another mark or checksum, or more bytes than `most`.
    """
    if (head := _read(stream, _HEAD.size)) is None:
        return None
    mark, crc, length = _HEAD.unpack(head)
    if mark != _MARK:
        raise DamageError(f"it began with {head!r}")
    if most is not None and length > most:
        raise DamageError(f"it announced {length} bytes, the most are {most}")
    if (body := _read(stream, length)) is not None and zlib.crc32(body) != crc:
        raise DamageError(f"the checksum of its {length} bytes is another")
    return body


def _read(stream: IO[bytes], count: int) -> bytes | None:
    pieces: list[bytes] = []
    while count:
        piece = stream.read(min(count, _PIECE))
        if not piece:
            return None
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Replies:
    """Standard output, and signs of life on it while a reply is owed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.lock = threading.Lock()
        self.owed = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()

    def send(self, message: bytes) -> None:
        with self.lock:
            self.owed.clear()
            send(self.stream, message)

    def _live(self) -> None:
        pause = threading.Event()
        while self.owed.wait():
            pause.wait(BEAT_SECONDS)
            with self.lock:
                if self.owed.is_set():
                    send(self.stream, b"")


def _listen(requests: IO[bytes], inbox: queue.SimpleQueue[bytes]) -> None:
    """Take in what comes, so that the other side never waits with its writing; end the process when it ends."""
    try:
        while (message := receive(requests)) is not None:
            inbox.put(message)
    finally:
        os._exit(0)


def main() -> None:
    """Answer until standard input ends."""
    requests, out = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a library that reads takes no request
    os.close(nothing)
    os.dup2(2, 1)  # what a library prints is no reply
    replies = _Replies(out)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    runner: Any = None
    while True:
        request = inbox.get()
        replies.owed.set()
        try:
            if request[:1] == b"J":
                runner = None  # room for the next
                runner = _runner(request[1:])
                replies.send(b"R")
            else:
                replies.send(b"+" + mark_of(request) + _rows(runner, request[1:]))
        except BrokenPipeError:
            return
        except Exception as error:  # the other side can only be told
            replies.send(b"!" + f"{type(error).__name__}: {error}".encode(errors="replace"))


def _runner(message: bytes) -> Any:
    import nirdeploy

    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.samefile(found := os.path.dirname(nirdeploy.__file__), own):
        raise ImportError(f"nirdeploy is found in {found!r}, the client's is in {own!r}")
    from nirdeploy.evaluation.job import Job, Runner

    return Runner(Job.decode(message))


def _rows(runner: Any, message: bytes) -> bytes:
    from nirdeploy.evaluation.job import decode_samples, encode_reply

    return encode_reply(runner.run(decode_samples(message)))


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    # whatever hides it in the client's own process, the worker finds the package this file is of
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    main()
