"""The HTTP server: uvicorn with limits on connections and a graceful end."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from frontend.middleware.drain import Drain
from frontend.options import Options
from frontend.protocol import LimitedProtocol, limited_protocol

MAX_CONNECTIONS = 4096
FILES_PER_CONNECTION = 4  # twice the connections may be open for a moment; the rest is for everything else
END_S = 1.0  # for the last bytes of requests that were ended
POLL_S = 0.05


class DrainingServer(uvicorn.Server):
    """A server that finishes the requests in flight before it ends.

    On SIGTERM or SIGINT it accepts no new connections and refuses new requests. Captions in progress have
    `Options.drain_s` seconds; then they end with the error SERVER_STOPPING. Ctrl-C a second time skips the wait.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_s: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end what is left, and close all connections."""
        self._drain.begun = True
        for server in self.servers:
            server.close()
        await self._wait(lambda: not self._drain.is_busy(awaited=True), self._drain_s)
        self._drain.end()
        await self._wait(lambda: not self.server_state.tasks, END_S)
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedProtocol):
                connection.cut()
        await super().shutdown(sockets)

    async def _wait(self, is_done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_done() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(POLL_S)


def http_server(app: FastAPI, drain: Drain, options: Options, **config: object) -> DrainingServer:
    """Return a server for `app`. `config`: more settings of `uvicorn.Config`."""
    settings = {
        "http": limited_protocol(options.stall_s, max_connections()),
        "ws": "none",
        "host": options.host,
        "log_level": "warning",
        "access_log": False,
        "timeout_keep_alive": options.keep_alive_s,
        "timeout_graceful_shutdown": END_S,
    }
    return DrainingServer(uvicorn.Config(app, **(settings | config)), drain, options.drain_s)  # type: ignore[arg-type]


def max_connections() -> int:
    """Allow this process as many open files as it may have, and return the number of connections that fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_PER_CONNECTION * MAX_CONNECTIONS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MAX_CONNECTIONS, soft // FILES_PER_CONNECTION)
