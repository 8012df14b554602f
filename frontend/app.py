"""The page: an image in, its caption as it is written, over the client's gRPC stream.

It knows the client and the model's card; no tensor, no pixel and no model.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

import captioner
from captioner import wire
from captioner.client import AsyncClient
from captioner.stream import AsyncCaptionStream
from captioner.errors import CaptionerError, ImageMissing, RequestCancelled, ServerUnreachable
from captioner.wire import ModelCard
from frontend import look, words
from frontend.fields import make_fields, read_fields

log = logging.getLogger(__name__)

EXAMPLES = sorted((Path(captioner.__file__).parent / "examples").glob("*.jpg"))
RETRY_S = 3.0
UPLOAD_LIFE_S = 15 * 60
MAX_UPLOAD_BYTES = 4 * wire.MAX_IMAGE_BYTES  # from the server's limit up to this, refused in words

Updates = dict[Any, Any]  # component → its new value or properties


class Run:
    """A visitor's caption being written; it can be given up before the stream is there."""

    def __init__(self) -> None:
        self.stream: AsyncCaptionStream | None = None
        self.given_up = False
        self.image_changed = False

    def follow(self, stream: AsyncCaptionStream) -> None:
        """The stream that writes the caption."""
        self.stream = stream
        if self.given_up:
            stream.cancel()

    def give_up(self) -> None:
        """Ends the decoding on the server."""
        self.given_up = True
        if self.stream is not None:
            self.stream.cancel()


class Page:
    """The components and what they do. One serves all visitors: it keeps only the captions being written."""

    def __init__(self, address: str) -> None:
        self.client = AsyncClient(address)
        self.card: ModelCard | None = None
        self.runs: dict[str | None, Run] = {}  # by browser session
        self.blocks = gr.Blocks(title="Captioner", analytics_enabled=False, delete_cache=(60, UPLOAD_LIFE_S))
        with self.blocks:
            self._lay_out()
            self._connect()
        # Gradio looks for work every ms, which costs an idle page 8 % of a core.
        self.blocks._queue.sleep_when_free = 0.01

    def _lay_out(self) -> None:
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>Captioner</h1>")
            self.server = gr.HTML(elem_id="server")
        with gr.Row(elem_id="desk"):
            with gr.Column(min_width=300):
                self.image = gr.Image(
                    label="Image",
                    sources=["upload"],
                    type="filepath",
                    buttons=["fullscreen"],
                    height=420,
                    elem_id="image",
                    alt_text="The image to caption",
                    placeholder="#Drop a photo here\nor click to choose one, or paste it",
                )
                gr.Examples([[str(path)] for path in EXAMPLES], [self.image], label="Or try one of these")
            with gr.Column(min_width=300):
                with gr.Row(elem_id="choice"):
                    self.style = gr.Dropdown(label="Style", visible=False, elem_id="style", min_width=180)
                    self.length = gr.Radio(label="Length", visible=False, elem_id="length", min_width=240, scale=2)
                with gr.Row():
                    self.start = gr.Button("Caption", variant="primary", min_width=120, elem_id="start")
                    self.stop = gr.Button("Stop", interactive=False, min_width=120, elem_id="stop")
                self.problem = gr.HTML(elem_id="problem")
                self.caption = gr.Textbox(
                    label="Caption",
                    lines=4,
                    max_lines=16,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="caption",
                    placeholder="The caption appears here as it is written.",
                )
                self.details = gr.HTML(elem_id="details")
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    self.prompt = gr.Textbox(
                        label="Prompt",
                        info="exactly what the model is given; edit it to send your own",
                        lines=2,
                        max_lines=12,
                        elem_id="prompt",
                    )
                    with gr.Row():
                        self.fields = make_fields()
        self.timer = gr.Timer(RETRY_S, active=False)

    def _connect(self) -> None:
        common: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,  # the captioner server decides who waits
        }
        choice = [self.style, self.length]
        answer = [self.caption, self.details, self.problem, self.start, self.stop]
        server = [self.server, self.timer]
        for event in (self.blocks.load, self.timer.tick):
            event(self.look_for_server, choice, [*server, *choice, self.prompt], **common)
        self.style.input(self.choose_style, choice, [self.length, self.prompt], **common)
        self.length.input(self.prompt_of, choice, self.prompt, **common)
        self.start.click(
            self.write,
            [self.image, *choice, self.prompt, *self.fields],
            [*answer, *server],
            # gr.Image would open the file with Pillow: a broken one would fail here, before the server could
            # say what is wrong with it, and others would be written anew.
            preprocess=False,
            **common,
        )
        # Not Gradio's `cancels`: it would end `write` before it can say what became of the caption.
        self.stop.click(self.give_up, **common)
        self.image.change(self.change_image, None, answer, **common)
        self.blocks.unload(self.give_up)  # the tab was closed; Gradio would wait for the next piece of text

    async def look_for_server(self, style: str | None, length: str | None) -> Updates:
        """Asks the server for the model's card and fits the page to it; asks on while nobody answers."""
        try:
            self.card = card = await self.client.describe()
        except CaptionerError as error:
            return self._server_lost(error)
        style = style if style in card.styles else card.default_style
        return self.choose_style(style, length) | {
            self.server: words.server_up(card),
            self.timer: gr.Timer(active=False),
            self.style: gr.Dropdown(list(card.styles), value=style, visible=len(card.styles) > 1),
        }

    def choose_style(self, style: str, length: str | None) -> Updates:
        """The lengths a style has, the nearest to the one chosen, and the prompt that they make."""
        lengths = self.card.styles.get(style, []) if self.card else []
        wanted = [length, self.card.default_length if self.card else None, *lengths]
        length = next((name for name in wanted if name in lengths), None)
        return {
            self.length: gr.Radio(lengths, value=length, visible=len(lengths) > 1),
            self.prompt: self.prompt_of(style, length),
        }

    def prompt_of(self, style: str | None, length: str | None) -> str:
        """The exact prompt of a style and length, as the model's card gives it; empty if it gives none."""
        return self.card.prompts.get(style or "", {}).get(length or "", "") if self.card else ""

    async def write(
        self,
        request: gr.Request,
        image: dict[str, Any] | None,
        style: str | None,
        length: str | None,
        prompt: str | None,
        *fields: str,
    ) -> AsyncIterator[Updates]:
        """Streams the caption of an upload. Ended from outside, it cancels the server's work at once."""
        yield self.cleared() | {
            self.details: words.note("Looking at the image …"),
            self.start: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
        }
        run = self.runs[request.session_hash] = Run()
        own_prompt = prompt if prompt and prompt != self.prompt_of(style, length) else None
        text, ending = "", {self.details: ""}
        try:
            path, parameters = self._uploaded(image), read_fields(fields)
            async with await self.client.stream(
                path, prompt=own_prompt, style=style, length=length, **parameters
            ) as stream:
                run.follow(stream)
                async for piece in stream:
                    text += piece
                    yield {self.caption: text}
            if stream.details is not None:
                ending = {self.details: words.details_line(stream.details)}
        except RequestCancelled:
            ending = {self.details: words.note("Stopped.")}
        except CaptionerError as error:
            ending[self.problem] = words.problem(error)
            if isinstance(error, ServerUnreachable):
                ending |= self._server_lost(error)
        except Exception:
            log.exception("a caption failed in the page")
            ending[self.problem] = words.problem(CaptionerError("The page's log says why."))
        finally:
            self.runs.pop(request.session_hash, None)
        yield self.cleared() if run.image_changed else ending | self._idle()

    def give_up(self, request: gr.Request) -> None:
        """Stop was pressed or the tab closed: ends the caption being written; what there is of it stays."""
        if request.session_hash in self.runs:
            self.runs[request.session_hash].give_up()

    def change_image(self, request: gr.Request) -> Updates:
        """Another image, or none: ends the caption being written and clears it."""
        if request.session_hash in self.runs:
            self.runs[request.session_hash].image_changed = True
            self.give_up(request)
        return self.cleared()

    def cleared(self) -> Updates:
        """Nothing that was said of the last image stays."""
        return {self.caption: "", self.details: "", self.problem: ""} | self._idle()

    def _idle(self) -> Updates:
        return {self.start: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _server_lost(self, error: CaptionerError) -> Updates:
        return {
            self.server: words.server_down(error, self.client.address, RETRY_S),
            self.timer: gr.Timer(active=True),
        }

    def _uploaded(self, image: dict[str, Any] | None) -> Path:
        """The file of an upload; ImageMissing for none, one that is gone, or a path that is no upload."""
        if image is None:
            raise ImageMissing("Drop, paste or choose one first.")
        path = Path(image.get("path") or "").resolve()
        if not (path.is_relative_to(Path(self.image.GRADIO_CACHE).resolve()) and path.is_file()):
            raise ImageMissing(f"Uploads are deleted after {UPLOAD_LIFE_S // 60} minutes; choose it again.")
        return path


def build(client_address: str) -> gr.Blocks:
    """The page for the captioner server at `client_address` (HOST:PORT of its gRPC door), up or not yet."""
    return Page(client_address).blocks


def serve(address: str, host: str = "127.0.0.1", port: int = wire.PAGE_PORT, root_path: str | None = None) -> None:
    """Serves the page until SIGINT or SIGTERM; `root_path` is where a proxy shows it, such as `/caption`."""
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        build(address),
        "/",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        root_path=root_path,
        show_error=False,
        max_file_size=MAX_UPLOAD_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=look.theme(),
        css_paths=look.CSS,
        head=look.HEAD,
    )
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
