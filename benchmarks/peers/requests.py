"""One request to each system, as its own documents send it. A function yields a caption in pieces, as they arrive."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc.aio as triton

from benchmarks.peers.model import MAX_NEW_TOKENS
from captioner.client import AsyncClient

Ask = Callable[[bytes], AsyncIterator[str]]
Connect = Callable[[str, AsyncExitStack], Awaitable[Ask]]  # an address HOST:PORT → the function that asks it
Post = Callable[[httpx.AsyncClient, bytes], Awaitable[str]]


def over_http(post: Post) -> Connect:
    """Return the `Connect` of a server that answers whole captions over HTTP."""

    async def connect(address: str, stack: AsyncExitStack) -> Ask:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{address}", timeout=600, limits=limits, trust_env=False)
        )

        async def ask(image: bytes) -> AsyncIterator[str]:
            yield await post(http, image)

        return ask

    return connect


def _json(response: httpx.Response) -> Any:
    response.raise_for_status()
    return response.json()


async def fastapi(http: httpx.AsyncClient, image: bytes) -> str:
    text: str = _json(await http.post("/caption", files={"image": image}))["caption"]
    return text


async def litserve(http: httpx.AsyncClient, image: bytes) -> str:
    text: str = _json(await http.post("/predict", json={"image": base64.b64encode(image).decode()}))["caption"]
    return text


async def ray(http: httpx.AsyncClient, image: bytes) -> str:
    text: str = _json(await http.post("/", content=image))["caption"]
    return text


async def bentoml(http: httpx.AsyncClient, image: bytes) -> str:
    texts: list[str] = _json(await http.post("/caption", files={"images": ("a.jpg", image, "image/jpeg")}))
    return texts[0]


async def gradio(http: httpx.AsyncClient, image: bytes) -> str:
    """Upload, call, and read the event stream, as Gradio's guide for curl does."""
    (path,) = _json(await http.post("/gradio_api/upload", files={"files": ("a.jpg", image)}))
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    event_id = _json(await http.post("/gradio_api/call/caption", json={"data": data}))["event_id"]
    async with http.stream("GET", f"/gradio_api/call/caption/{event_id}") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: [") or line == "data: null":
                (text,) = json.loads(line.removeprefix("data: ")) or [None]
                return str(text)
    raise httpx.RemoteProtocolError("the stream ended without a caption")


async def triton_connect(address: str, stack: AsyncExitStack) -> Ask:
    client = await stack.enter_async_context(triton.InferenceServerClient(address))

    async def ask(image: bytes) -> AsyncIterator[str]:
        tensor = triton.InferInput("file", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        result = await client.infer("ensemble", [tensor])
        yield result.as_numpy("caption")[0, 0].decode()

    return ask


async def captioner_connect(address: str, stack: AsyncExitStack) -> Ask:
    client = await stack.enter_async_context(AsyncClient(address))

    async def ask(image: bytes) -> AsyncIterator[str]:
        async with await client.stream(image, max_tokens=MAX_NEW_TOKENS, repetition_guard=False) as stream:
            async for piece in stream:
                yield piece

    return ask
