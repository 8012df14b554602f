"""Decode image files in a process of its own, with a time limit and a memory limit.

Image libraries are written in C: a hostile file can take minutes, gigabytes or the process. The process that decodes it
is ended, its request alone fails, and the next process starts in a fraction of a second. Files go in, and pixels and
JSON come out; nothing is pickled. It does not know Triton.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captioner.errors import ImageBroken, ImageTooSlow, StartupRefused, from_wire, typed
from captioner.image.limits import DECODE_SECONDS, DECODER_BYTES
from captioner.image.spec import ImageSpec
from captioner.wire import ImageInfo

_START_SECONDS = 60
_BUSY_MACHINE = 3  # seconds that may pass for a second of processor time
_PR_SET_PDEATHSIG = 1
# Give the decoder's threads small stacks: those of the server's would use up the memory limit. A shell does it before
# the program starts, since a preexec_fn may deadlock between fork and exec in a process with threads.
_WITH_SMALL_STACKS = ("/bin/sh", "-c", 'ulimit -S -s 8192; exec "$@"', "sh")  # KiB
_ATTEMPTS = 2


class _KilledError(Exception):
    """SIGKILL ended the process."""


class DecoderProcess:
    """A process that decodes one file at a time. The constructor returns when the process is ready.

    Not thread-safe. Raises StartupRefused if the process does not start.
    """

    def __init__(self, spec: ImageSpec, seconds: int = DECODE_SECONDS, max_bytes: int = DECODER_BYTES) -> None:
        self._spec = spec
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._start()

    def load_pixels(self, data: bytes) -> tuple[NDArray[np.uint8], ImageInfo]:
        """Return what `decode.load_pixels` returns.

        Raises a subclass of ImageRefused: ImageTooSlow after the time limit, ImageBroken if the process dies.
        """
        if self._process.poll() is not None:  # it ended while it was idle
            self._restart()
        for _ in range(_ATTEMPTS):
            try:
                return self._load_pixels(data)
            except _KilledError:  # from outside, such as by an operator: no fault of the file
                continue
        raise ImageBroken(f"the decoder was killed {_ATTEMPTS} times on the file of {len(data)} bytes")

    def _load_pixels(self, data: bytes) -> tuple[NDArray[np.uint8], ImageInfo]:
        try:
            self._connection.send_bytes(data)
            if not self._connection.poll(_BUSY_MACHINE * self._seconds):
                raise TimeoutError
            answer = json.loads(self._connection.recv_bytes())
            if "error" in answer:
                raise from_wire(answer["error"])
            pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError) as error:  # TimeoutError is an OSError
            ending = self._restart()
            if isinstance(error, TimeoutError) or ending == signal.SIGXCPU.name:
                raise ImageTooSlow(
                    f"decoding the file of {len(data)} bytes takes more than {self._seconds} s of processor time"
                ) from None
            if ending == signal.SIGKILL.name:
                raise _KilledError("the process that decodes images was killed") from None
            raise ImageBroken(f"the decoder crashed ({ending}) on the file of {len(data)} bytes") from None
        return pixels, ImageInfo(**answer["info"])

    @property
    def pid(self) -> int:
        """The process id; another one after a restart."""
        return self._process.pid

    def close(self) -> str:
        """End the process; return how it ended."""
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _restart(self) -> str:
        ending = self.close()
        self._start()
        return ending

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        numbers = (theirs.fileno(), os.getpid(), self._seconds, self._max_bytes)
        # sys.executable is wrong in Triton's stub, which runs in the environment of the first python3 on its PATH.
        command = [*_WITH_SMALL_STACKS, str(Path(sys.prefix) / "bin" / "python3"), "-m", __name__, *map(str, numbers)]
        command.append(json.dumps(asdict(self._spec)))
        try:
            with theirs:
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd="/")
            if not self._connection.poll(_START_SECONDS):
                raise TimeoutError(f"not ready after {_START_SECONDS} s")
            self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self._connection.close()
            raise StartupRefused(f"the process that decodes images does not start: {error!r}: {command}") from None


def main(fd: int, parent: int, seconds: int, max_bytes: int, spec: ImageSpec) -> None:
    """Answer each file from the connection `fd` with a header and pixels. Ends with the process `parent`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    from captioner.image.decode import load_pixels

    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(fd)
    connection.send_bytes(b"ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes a line about every odd tag
    while True:
        try:
            file = connection.recv_bytes()
        except EOFError:
            return
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))  # then SIGXCPU
        try:
            pixels, info = load_pixels(file, spec)
        except Exception as error:
            connection.send_bytes(json.dumps({"error": typed(error).wire()}).encode())
            continue
        connection.send_bytes(json.dumps({"shape": pixels.shape, "info": asdict(info)}).encode())
        connection.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))


if __name__ == "__main__":
    *numbers, spec = sys.argv[1:]
    fd, parent, seconds, max_bytes = map(int, numbers)
    main(fd, parent, seconds, max_bytes, ImageSpec(**json.loads(spec)))
