"""The page: what to write is chosen here, and the browser asks this server's own API for the captions.

Gradio lays it out and answers what a choice means; each answer is one request, so any replica can give it. An image
never meets Gradio: `browser/` shows it and sends it to `/v1/captions`, whose one response is the caption as it is
written. It knows the model's card; no tensor, no pixel and no model.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from captioner.artifacts.prompts import NAME, PromptTable
from captioner.errors import CaptionerError
from frontend.mcp import Tool
from frontend.model_card_cache import ModelCardCache
from frontend.page import html, messages, theme
from frontend.page.fields import make_fields

ALT_TEXT = "alt-text"
ALT_TEXT_CHARACTERS = "125"  # where many screen readers and guidelines draw the line

Updates = dict[Any, Any]  # component → its new value or properties


class Page:
    """The components and what they do. One serves all visitors and keeps nothing of them."""

    def __init__(self, served: ModelCardCache) -> None:
        self.served = served
        self.blocks = gr.Blocks(title="Captioner", analytics_enabled=False)
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
            with gr.Column(scale=5, min_width=320, elem_id="work"), gr.Tabs(elem_id="panes"):
                with gr.Tab("One image"):
                    gr.HTML(html.IMAGE, elem_id="image-pane")
                    with gr.Row(elem_classes="actions"):
                        self.start = gr.Button("Caption", variant="primary", elem_id="start")
                        self.stop = gr.Button("Stop", elem_id="stop")
                    self.caption = gr.Textbox(
                        label="Caption",
                        lines=3,
                        max_lines=16,
                        buttons=["copy"],
                        elem_id="caption",
                        placeholder="The caption appears here as it is written; you can edit it.",
                    )
                    gr.HTML(html.ANSWER, elem_id="answer")
                with gr.Tab("Batch"):
                    gr.HTML(html.FILES, elem_id="files-pane")
                    with gr.Row(elem_classes="actions"):
                        self.start_batch = gr.Button("Caption all", variant="primary", elem_id="start-batch")
                        self.stop_batch = gr.Button("Stop", elem_id="stop-batch")
                    gr.HTML(html.TABLE, elem_id="table-pane")
            with gr.Column(scale=3, min_width=300, elem_id="choice"):
                self.style = gr.Dropdown(label="Style", visible=False, elem_id="style")
                self.length = gr.Radio(label="Length", visible=False, elem_id="length")
                self.limit = gr.Textbox(
                    label="Most characters",
                    info="the caption ends at the last whole sentence that fits, or word",
                    placeholder="no limit",
                    max_lines=1,
                    elem_id="max_characters",
                )
                self.extras = gr.CheckboxGroup(label="Also", visible=False, elem_id="extras")
                self.name = gr.Textbox(
                    label="Name", info="of the person or character", visible=False, max_lines=1, elem_id="name"
                )
                self.prompt = gr.Textbox(
                    label="Prompt",
                    info="exactly what the model is given; edit it to send your own",
                    lines=2,
                    max_lines=12,
                    elem_id="prompt",
                )
                self.rendered = gr.Textbox(visible=False)  # the prompt that the choices make
                with gr.Accordion("Advanced", open=False, elem_id="advanced"), gr.Row():
                    self.fields = make_fields()
                gr.HTML(html.ABOUT)
        # Pressed by the browser where another model is served than the page shows; see browser/model.js.
        self.again = gr.Button("Look for the server again", visible="hidden", elem_id="look-again")

    def _connect(self) -> None:
        # Not through Gradio's queue: its answers come in a second request, which another replica would not know.
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        # Nor checked against the choices that one replica remembers to have offered.
        common["preprocess"] = False
        choices = [self.style, self.length, self.extras, self.name]
        prompts = [self.prompt, self.rendered]
        fitted = [self.limit, *choices, *prompts]
        for event in (self.blocks.load, self.again.click):
            event(self.look_for_server, [*choices, *prompts], [self.server, *fitted], **common)
        self.style.input(self.choose_style, choices, fitted, **common)
        for event in (self.length.input, self.extras.input, self.name.input):
            event(self.render, choices, [self.name, *prompts], **common)
        # In the browser; see browser/main.js.
        asked = [self.rendered, self.prompt, *choices, self.limit, *self.fields]
        self.start.click(None, asked, js="(...choice) => window.captioner.caption(choice)", **common)
        self.start_batch.click(None, asked, js="(...choice) => window.captioner.captionAll(choice)", **common)
        self.stop.click(None, js="() => window.captioner.stop()", **common)
        self.stop_batch.click(None, js="() => window.captioner.stopAll()", **common)

    async def look_for_server(
        self,
        style: str | None,
        length: str | None,
        extras: list[str] | None,
        name: str | None,
        prompt: str | None,
        rendered: str | None,
    ) -> Updates:
        """Asks the server for the model's card and fits the page to it; what can stay as it is does."""
        try:
            card = await self.served.ask()
        except CaptionerError as error:
            return {self.server: messages.server_down(error, self.served.address)}
        known = [extra for extra in extras or [] if extra in card.extras]
        kept = style in card.styles
        style = style if kept else card.default_style
        updates = await self.choose_style(style, length, known, name)
        if kept:
            del updates[self.limit]
        if (prompt or "") != (rendered or ""):  # somebody's own
            del updates[self.prompt]
        return updates | {
            self.server: messages.server_up(card),
            self.style: gr.Dropdown(list(card.styles), value=style, visible=len(card.styles) > 1),
            self.extras: gr.CheckboxGroup(list(card.extras), value=known, visible=bool(card.extras)),
        }

    async def choose_style(self, style: str | None, length: str | None, extras: list[str], name: str | None) -> Updates:
        """The lengths a style has, the nearest to the one chosen, and the prompt that they make."""
        card = await self.served.last()
        lengths = card.styles.get(style or "", []) if card else []
        wanted = [length, card.default_length if card else None, *lengths]
        length = next((each for each in wanted if each in lengths), None)
        return await self.render(style, length, extras, name) | {
            self.length: gr.Radio(lengths, value=length, visible=len(lengths) > 1),
            self.limit: ALT_TEXT_CHARACTERS if style == ALT_TEXT else "",
        }

    async def render(self, style: str | None, length: str | None, extras: list[str], name: str | None) -> Updates:
        """The exact prompt of the choices; empty where the model's card gives none."""
        card = await self.served.last()
        prompt, takes_name = "", False
        if card is not None and style in card.prompts and length in card.prompts[style]:
            table = PromptTable(card.prompts, card.default_style, card.default_length, card.extras)
            prompt = table.template(style, length, tuple(extras or ()))
            takes_name = NAME in prompt
            prompt = prompt.replace(NAME, name or NAME)
        return {self.prompt: prompt, self.rendered: prompt, self.name: gr.Textbox(visible=takes_name)}


def mount(app: Any, served: ModelCardCache, root_path: str, tool: Tool | None = None) -> None:
    """Adds the page at `/` of a FastAPI application, under what is there already; `tool` is offered by MCP."""
    page = Page(served)
    if tool is not None:
        with page.blocks:
            api(tool, api_name="caption_image", queue=False)
    gr.mount_gradio_app(
        app,
        page.blocks,
        "/",
        footer_links=[],
        run_history=False,
        root_path=root_path or None,
        show_error=False,
        max_file_size=1,  # nothing is uploaded to Gradio
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=tool is not None,
        theme=theme.theme(),
        css_paths=theme.CSS,
        head=theme.head(root_path),
    )
