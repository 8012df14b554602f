"""A gRPC proxy in front of the real server that fails as replicas do: unavailable, broken, stalled, wrong key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

Method = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]


@dataclass
class Faults:
    """The faults to inject. A test may change them at any time."""

    unavailable: bool = False  # UNAVAILABLE immediately
    break_after: int | None = None  # UNAVAILABLE after this many responses
    stall_after: int | None = None  # no more responses after this many
    key: str | None = None  # required value of `authorization`
    requests: int = 0  # received so far


class Proxy:
    """Another address of the server at `target`. `tls` is (private key, certificate chain) in PEM."""

    def __init__(self, target: str, tls: tuple[bytes, bytes] | None = None) -> None:
        self.faults = Faults()
        self._released = threading.Event()
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(ThreadPoolExecutor(32))
        self._server.add_generic_rpc_handlers((_Every(self._answer),))
        if tls is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([tls]))
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        """Stop the proxy and its stalled calls."""
        self._released.set()
        self._server.stop(0).wait()
        self._channel.close()

    def _answer(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        faults = self.faults
        faults.requests += 1
        if faults.key is not None and dict(context.invocation_metadata()).get("authorization") != faults.key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")
        if faults.unavailable:
            context.abort(grpc.StatusCode.UNAVAILABLE, "unavailable")
        forward: Any = self._channel.stream_stream(method)  # raw bytes in and out
        call = forward(requests)
        context.add_callback(call.cancel)
        for number, response in enumerate(call):
            if faults.break_after == number:
                call.cancel()
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            if faults.stall_after == number:
                call.cancel()
                self._released.wait()
            yield response


class _Every(grpc.GenericRpcHandler):
    def __init__(self, answer: Callable[[str, Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]) -> None:
        self._answer = answer

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._answer(details.method, requests, context)

        return grpc.stream_stream_rpc_method_handler(answer)
