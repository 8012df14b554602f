"""The MCP tool for agents, called by the official MCP client."""

from __future__ import annotations

import asyncio
import base64

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from captioner.client import Client
from captioner.examples import PHOTOS
from tests.support.pages import Serve
from tests.support.served import Served

pytestmark = [
    pytest.mark.triton,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the MCP client
]


def test_an_agent_captions_an_image_and_receives_the_error_for_a_bad_url(served: Served, serve_page: Serve) -> None:
    url = serve_page(served.grpc, "--mcp")
    image = f"data:image/jpeg;base64,{base64.b64encode(PHOTOS[0].read_bytes()).decode()}"

    async def ask() -> tuple[list[str], str, str]:
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = await session.list_tools()
            name = tools.tools[0].name
            good = await session.call_tool(name, {"image": image, "length": "short"})
            bad = await session.call_tool(name, {"image": "https://127.0.0.1/a.jpg"})
            return [tool.name for tool in tools.tools], good.content[0].text, bad.content[0].text  # type: ignore[union-attr]

    names, caption, error = asyncio.run(ask())
    assert len(names) == 1 and "caption_image" in names[0]
    with Client(served.grpc) as client:
        assert caption == client.caption(PHOTOS[0], length="short").text
    assert "not allowed" in error
