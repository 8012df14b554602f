"""The reaper: a small process between launcher and server that stops the server when the launcher is gone.

It runs as a script and imports only the standard library. Its stdin is a pipe that the launcher keeps open. At end of
file (the launcher closed the pipe, crashed, or was killed) the server gets SIGTERM and time to drain; the byte KILL
means SIGKILL. Then the reaper removes what the server left: stub processes, shared memory, the runtime folder.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

KILL = b"k"
# Triton 2.51 copies a form's body onto a thread's stack: 4 MiB of it, from any web page, ended the server.
STACK_BYTES = 2**30
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the command until it ends or the launcher stops it; return its exit code, or 128 + n for signal n."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shm-prefix", required=True, help="remove files with this prefix in /dev/shm at the end")
    parser.add_argument("--runtime", required=True, help="remove this folder at the end")
    parser.add_argument("--drain-seconds", type=float, required=True, help="time from SIGTERM to SIGKILL")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the pipe decides: a terminal's Ctrl-C must let requests drain
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # stubs that outlive the server become children of this process

    def before_exec() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        _, hard = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(
            resource.RLIMIT_STACK, (STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard), hard)
        )
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # in case the reaper itself is killed

    server = subprocess.Popen(options.command, stdin=subprocess.DEVNULL, preexec_fn=before_exec)  # noqa: PLW1509
    try:
        _wait(server, options.drain_seconds)
    finally:
        _end_all(server)
        remove_files(options.shm_prefix, Path(options.runtime))
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _wait(server: subprocess.Popen[bytes], drain_seconds: float) -> None:
    while server.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], 0.1)
        if readable:
            if os.read(sys.stdin.fileno(), 1) != KILL:
                server.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(drain_seconds)
            return


def _end_all(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # the stubs are children of this process now; wait for each, so that none stays a zombie
            os.waitpid(-1, 0)


def remove_files(shm_prefix: str, runtime: Path) -> None:
    """Remove the shared memory and the runtime folder of a server that has ended."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(runtime, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
