"""A small process between a launcher and a server: when the launcher is gone, nothing is left.

Run as a script with the standard library only. Its stdin is a pipe that the launcher holds open: at its end
(the launcher closed it, crashed, or was killed) the server gets SIGTERM and time to drain; a byte means
SIGKILL at once. Whatever the server leaves (stubs, shared memory, the runtime folder) is then removed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

KILL = b"k"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Runs the command until it ends or the launcher asks; its exit code, or 128 + n for signal n."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shm-prefix", required=True, help="files of this prefix in /dev/shm are removed")
    parser.add_argument("--runtime", required=True, help="folder that is removed at the end")
    parser.add_argument("--drain-seconds", type=float, required=True, help="from SIGTERM to SIGKILL")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides, or a terminal's Ctrl-C would not drain
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # stubs that outlive the server become ours to reap

    def in_the_server() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should this guard itself be killed

    server = subprocess.Popen(options.command, stdin=subprocess.DEVNULL, preexec_fn=in_the_server)  # noqa: PLW1509
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
        while True:  # the stubs have become our children; each is reaped, so that none stays a zombie
            os.waitpid(-1, 0)


def remove_files(shm_prefix: str, runtime: Path) -> None:
    """Removes the shared memory and the runtime folder of a server that has ended."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(runtime, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
