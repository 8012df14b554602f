"""POST /gradio_api/upload: an image file for the MCP tool, so that an agent need not write it as base64.

The request and the response are Gradio's, for which agents have a tool (`gradio upload-mcp`).
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from captioner.errors import ImageMissing
from frontend.api.backend import Backend
from frontend.api.request_body import check_type, read_form
from frontend.client_identity import client_of


def add_uploads(router: APIRouter, backend: Backend) -> None:
    """Add the endpoint to the API's router."""
    uploads = backend.uploads
    assert uploads is not None

    @router.post("/gradio_api/upload", name="upload", include_in_schema=False)
    async def upload(request: Request) -> JSONResponse:
        """Keep the files of a form for some minutes. The response is the list of their names."""
        check_type(request, "multipart/form-data", query=True)  # Gradio's clients add `upload_id`
        files = [value for _, value in await read_form(request) if isinstance(value, bytes)]
        if not files:
            raise ImageMissing("the form has no file")
        client = client_of(request.scope)
        return JSONResponse([uploads.add(data, client) for data in files])
