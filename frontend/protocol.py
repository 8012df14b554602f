"""Time and number limits of HTTP connections, which uvicorn does not have."""

from __future__ import annotations

import asyncio
import socket
import struct

from uvicorn.protocols.http.h11_impl import H11Protocol

from frontend.client_identity import client_at
from frontend.middleware.share import Share

KERNEL_BYTES = 2**17  # of a response that the kernel holds unsent


class LimitedProtocol(H11Protocol):
    """An HTTP/1.1 connection that cannot be held without use.

    - A connection without a running request is closed after uvicorn's keep-alive time, whatever bytes arrive: the first
      request, the headers of a request, and the rest of a refused body have this time together.
    - A connection whose client reads nothing of the response for `stall_s` seconds is cut. Its request is cancelled.
    - Clients share the connections.
    """

    stall_s: float
    shared: Share

    _sharer: str | None = None
    _stall: asyncio.TimerHandle | None = None
    _unsent = 0  # bytes that the client had not taken at the last check

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or cut it if its client has too many."""
        host = (transport.get_extra_info("peername") or ("",))[0]
        if not self.shared.take(client_at(host)):
            transport.abort()
            return
        self._sharer = client_at(host)
        super().connection_made(transport)
        # `pause_writing` follows as soon as the client does not read, and the kernel keeps little for it.
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_BYTES)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection held."""
        if self._sharer is None:
            return
        self.shared.give(self._sharer)
        self._cancel_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes. Unlike uvicorn's own method, only a whole request head ends the keep-alive time."""
        self.conn.receive_data(data)
        self.handle_events()

    def pause_writing(self) -> None:
        """Start to measure how long the client reads nothing."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.stall_s, self._check_progress)

    def resume_writing(self) -> None:
        """Continue: the client has read everything."""
        self._cancel_stall()
        super().resume_writing()

    def cut(self) -> None:
        """End a response that the client does not read."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._abort()

    def _abort(self) -> None:
        """Close the connection and drop what the kernel still holds for the client."""
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def _check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self._abort()
        else:
            self._unsent = unsent
            self._stall = self.loop.call_later(self.stall_s, self._check_progress)

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def limited_protocol(stall_s: float, max_connections: int) -> type[LimitedProtocol]:
    """Return the protocol class for one server."""
    return type("Protocol", (LimitedProtocol,), {"stall_s": stall_s, "shared": Share(max_connections)})
