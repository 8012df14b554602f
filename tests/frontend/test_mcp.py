"""The MCP tool for agents, called by the official MCP client."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from pathlib import Path

import httpx
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
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


def test_an_agent_uploads_a_file_with_gradios_tool_and_captions_it_twice(
    served: Served, serve_page: Serve, tmp_path: Path
) -> None:
    url = serve_page(served.grpc, "--mcp")
    (tmp_path / "cat.jpg").write_bytes(PHOTOS[0].read_bytes())
    arguments = ["-m", "gradio", "upload-mcp", url, str(tmp_path)]
    uploader = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))

    async def ask() -> tuple[str, list[str]]:
        async with (
            stdio_client(uploader) as (read, write),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            uploaded = await session.call_tool("upload_file_to_gradio", {"file": str(tmp_path / "cat.jpg")})
        address = uploaded.content[0].text  # type: ignore[union-attr]
        name = address.rpartition("=")[2]
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tool = (await session.list_tools()).tools[0].name
            answers = [await session.call_tool(tool, {"image": each}) for each in (address, name, name[:-1] + "~")]
        return address, [answer.content[0].text for answer in answers]  # type: ignore[union-attr]

    address, (by_address, by_name, unknown) = asyncio.run(ask())
    with Client(served.grpc) as client:
        assert by_address == by_name == client.caption(PHOTOS[0]).text
    assert "IMAGE_MISSING" in unknown and "upload the file again" in unknown
    assert httpx.get(address).status_code == 404, "an upload can be read back"
