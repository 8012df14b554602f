"""A filter in front of Gradio: only the routes that the page uses pass, and only with data of the right form.

Gradio has dozens of routes (uploads, proxies, queues, sessions) that this page does not need, and it answers malformed
data with an HTTP 500 and a traceback. Here they are typed errors, with one line in the log.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import gradio as gr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import CaptionerError, ParameterInvalid
from frontend.api.request_body import parse_json
from frontend.http_errors import MethodRefused, PathUnknown, error_response
from frontend.middleware.asgi import MCP_PATHS, path_of

log = logging.getLogger(__name__)

RUN = "/gradio_api/run/predict"
FILES = ("/assets/", "/static/", "/svelte/")  # Gradio's scripts, styles and fonts
PATHS = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"})
API_PATHS = frozenset({"/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/theme.css"})
MCP_SCHEMA = "/gradio_api/mcp/schema"

Functions = dict[int, list[Any]]  # the index of each event that runs on the server, and its input components


class Guard:
    """ASGI application in front of Gradio's. `functions` are the events that a browser may run."""

    def __init__(self, app: ASGIApp, functions: Functions, *, mcp: bool) -> None:
        self.app = app
        self._functions = functions
        self._mcp_paths = MCP_PATHS | {MCP_SCHEMA} if mcp else frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, method = path_of(scope), scope["method"]
        try:
            if path == RUN:
                if method != "POST":
                    raise MethodRefused(f"{method} is not supported here; POST is")
                receive = _replay(self._run_body(await _body_of(receive)))
            elif path not in self._mcp_paths:
                if not (path in PATHS or path in API_PATHS or path.startswith(FILES)):
                    raise PathUnknown(f"{path[:80]!r} does not exist")
                if method not in ("GET", "HEAD"):
                    raise MethodRefused(f"{method} is not supported here; GET is")
        except CaptionerError as error:
            log.warning("%s %.80r: %s", method[:10], path, error.wire())
            return await error_response(error)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _run_body(self, body: bytes) -> bytes:
        """Return the body of a call with only its function and data: sessions would stay in memory."""
        values = parse_json(body)
        index, data = values.get("fn_index"), values.get("data")
        inputs = self._functions.get(index) if type(index) is int else None
        if inputs is None:
            raise PathUnknown("fn_index is not the number of a function of this page; load the page again")
        if not isinstance(data, list) or len(data) != len(inputs):
            raise ParameterInvalid(f"data must be a list of {len(inputs)} values")
        if not all(_fits(component, value) for component, value in zip(inputs, data, strict=True)):
            raise ParameterInvalid("data has a value of the wrong type")
        return json.dumps({"fn_index": index, "data": data}).encode()


def functions_of(blocks: gr.Blocks) -> Functions:
    """Return the events of `blocks` that run on the server."""
    return {index: list(each.inputs) for index, each in blocks.fns.items() if each.fn is not None}


def _fits(component: Any, value: object) -> bool:
    if isinstance(component, gr.CheckboxGroup):
        return value is None or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    return value is None or isinstance(value, str)


async def _body_of(receive: Receive) -> bytes:
    body: bytes = (await receive())["body"]  # whole: the limits have read it
    return body


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
