"""Choose the TCP ports of a server that is about to start."""

from __future__ import annotations

import contextlib
import errno
import socket

from captioner.errors import StartupRefused


def choose_ports(host: str, ports: dict[str, int]) -> dict[str, int]:
    """Return `ports` by name, with a free port in place of each 0. Raises StartupRefused for a port in use."""
    chosen = {}
    with contextlib.ExitStack() as sockets:  # all stay open until the end, so that the free ports differ
        for name, port in ports.items():
            option = f"--{name.lower()}-port"
            probe = sockets.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OverflowError:
                raise StartupRefused(f"{option} is {port}; it must be from 0 to 65535") from None
            except OSError as error:
                is_used = error.errno == errno.EADDRINUSE
                why = "is in use" if is_used else f"cannot be opened on {host}: {error.strerror}"
                raise StartupRefused(f"port {port} ({name}) {why}; choose another with {option}") from None
            chosen[name] = probe.getsockname()[1]
    return chosen
