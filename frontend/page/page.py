"""The page: the visitor selects what to generate, and the browser sends requests to this server's own API.

Gradio draws the layout and handles the selection. Each of its answers is one plain request, so any replica can give
it. Images do not pass through Gradio: the scripts in `browser/` show an image and send it to `/v1/captions`, which
streams the caption in its response. This module knows the model's card; it knows no tensor, no pixel and no model.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from gradio.events import api

from captioner.artifacts.languages import language_name
from captioner.artifacts.prompts import ALT_TEXT, ALT_TEXT_CHARACTERS, LONG_ALT_TEXT_CHARACTERS, NAME, PromptTable
from captioner.errors import CaptionerError, traced
from frontend.mcp import Tool
from frontend.model_card_cache import ModelCardCache
from frontend.page import html, messages, theme
from frontend.page.fields import make_fields
from frontend.page.guard import Guard, functions_of

log = logging.getLogger(__name__)

# The values that this browser remembers, as the inputs of the first event. The module may be loaded before main.js.
RECALL = """async (...values) => {
    const main = document.querySelector('script[src$="/browser/main.js"]').src;
    return (await import(new URL("memory.js", main))).recall(values);
}"""

Updates = dict[Any, Any]  # component → its new value or properties


class _Blocks(gr.Blocks):
    """Gradio's Blocks with errors in our log: Gradio prints them with the values that the visitor sent."""

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **options)
        except CaptionerError as error:  # of the MCP tool
            raise gr.Error(error.wire(), print_exception=False) from None
        except Exception as error:
            log.error("an event of the page failed: %s", traced(error))
            raise gr.Error("the event failed; the server's log has the cause", print_exception=False) from None


class Page:
    """The components and their handlers. All visitors share one Page, so it keeps no state of a visitor."""

    def __init__(self, cards: ModelCardCache) -> None:
        self.cards = cards
        self.blocks = _Blocks(title="Captioner", analytics_enabled=False)
        with self.blocks:
            self._lay_out()
            self._connect()
        # Gradio polls its queue every ms, which costs an idle page 8 % of a core.
        self.blocks._queue.sleep_when_free = 0.01

    def _lay_out(self) -> None:
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>Captioner</h1>")
            self.server = gr.HTML(elem_id="server")
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=5, min_width=320, elem_id="work"), gr.Tabs(elem_id="tabs"):
                with gr.Tab("One image"):
                    gr.HTML(html.IMAGE)
                    with gr.Row(elem_classes="actions"):
                        self.start = gr.Button("Caption", variant="primary", elem_id="start")
                        self.again = gr.Button("Again", elem_id="again")
                        self.stop = gr.Button("Stop", elem_id="stop")
                    self.caption = gr.Textbox(
                        label="Caption",
                        lines=3,
                        max_lines=16,
                        buttons=["copy"],
                        elem_id="caption",
                        placeholder="The caption appears here. You can edit it.",
                    )
                    gr.HTML(html.RESULT)
                with gr.Tab("Batch"):
                    gr.HTML(html.FILES)
                    with gr.Row(elem_classes="actions"):
                        self.start_batch = gr.Button("Caption all", variant="primary", elem_id="start-batch")
                        self.stop_batch = gr.Button("Stop", elem_id="stop-batch")
                    gr.HTML(html.TABLE)
            with gr.Column(scale=3, min_width=300, elem_id="choice"):
                self.style = gr.Dropdown(label="Style", visible=False, elem_id="style")
                self.length = gr.Radio(label="Length", visible=False, elem_id="length")
                self.limit = gr.Textbox(
                    label="Maximum characters",
                    info="cut after the last sentence or word that fits",
                    placeholder="no limit",
                    max_lines=1,
                    elem_id="max_characters",
                )
                self.extras = gr.CheckboxGroup(label="Extra instructions", visible=False, elem_id="extras")
                self.name = gr.Textbox(
                    label="Name", info="of the person or character", visible=False, max_lines=1, elem_id="name"
                )
                self.language = gr.Textbox(
                    label="Language",
                    info="such as German or pt-BR",
                    placeholder="English",
                    visible=False,
                    max_lines=1,
                    elem_id="language",
                )
                self.prompt = gr.Textbox(
                    label="Prompt",
                    info="sent to the model as it is; you can edit it",
                    lines=2,
                    max_lines=12,
                    elem_id="prompt",
                )
                self.rendered = gr.Textbox(visible=False)  # the prompt for the selection, before the visitor edits it
                with gr.Accordion("Advanced", open=False, elem_id="advanced"), gr.Row():
                    self.fields = make_fields()
                gr.HTML(html.MEMORY)
                gr.HTML(html.ABOUT)
        # The browser clicks it when the served model is not the one that the page shows; see browser/model.js.
        self.refresh = gr.Button("Refresh the model", visible="hidden", elem_id="refresh")
        # The browser clicks it to get the components' values; see browser/choice.js.
        self.values = gr.Button("Values", visible="hidden", elem_id="values")

    def _connect(self) -> None:
        # Without Gradio's queue: it delivers results in a second request, which another replica would not know.
        common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        # Without Gradio's check against the offered choices: only the replica that offered them remembers them.
        common["preprocess"] = False
        selection = [self.style, self.length, self.extras, self.name, self.language]
        prompts = [self.prompt, self.rendered]
        dependents = [self.limit, *selection, *prompts]
        inputs: list[Any] = [self.rendered, self.prompt, *selection, self.limit, *self.fields]
        outputs = [self.server, *dependents]
        self.blocks.load(self.restore, inputs, [*outputs, *self.fields], js=RECALL, **common)
        self.refresh.click(self.refresh_model, [*selection, *prompts], outputs, **common)
        self.style.input(self.select_style, selection, dependents, **common)
        self.length.input(self.select_length, selection, [self.limit, self.name, *prompts], **common)
        for event in (self.extras.input, self.name.input, self.language.input):
            event(self.render_prompt, selection, [self.name, *prompts], **common)
        # These run in the browser; see browser/main.js.
        for button, name in (
            (self.start, "caption"),
            (self.again, "again"),
            (self.start_batch, "captionAll"),
            (self.values, "giveValues"),
        ):
            button.click(None, inputs, js=f"(...values) => window.captioner.{name}(values)", **common)
        changes = [component.change for component in inputs]
        gr.on(changes, None, inputs, js="(...values) => window.captioner.remember(values)", **common)
        self.stop.click(None, js="() => window.captioner.stop()", **common)
        self.stop_batch.click(None, js="() => window.captioner.stopAll()", **common)

    async def restore(
        self,
        rendered: str | None,
        prompt: str | None,
        style: str | None,
        length: str | None,
        extras: list[str] | None,
        name: str | None,
        language: str | None,
        limit: str | None,
        *fields: str | None,
    ) -> Updates:
        """Return the updates for a page that opens, with the values that its browser remembers where they are valid."""
        updates = await self.refresh_model(style, length, extras, name, language, prompt, rendered)
        if self.prompt not in updates:  # edited
            updates[self.prompt] = prompt
        if self.limit not in updates:  # the style is valid, so its limit is too
            updates[self.limit] = limit
        for field, value in ((self.name, name), (self.language, language)):
            if field in updates and updates[field]["visible"]:
                updates[field] |= {"value": value}
        return updates | dict(zip(self.fields, fields, strict=True))

    async def refresh_model(
        self,
        style: str | None,
        length: str | None,
        extras: list[str] | None,
        name: str | None,
        language: str | None,
        prompt: str | None,
        rendered: str | None,
    ) -> Updates:
        """Fetch the model's card and return the updates for it. A selection that is still valid is kept."""
        try:
            card = await self.cards.fetch()
        except CaptionerError as error:
            return {self.server: messages.server_down(error, self.cards.address)}
        known = [extra for extra in extras or [] if extra in card.extras]
        kept = style in card.styles
        style = style if kept else card.default_style
        updates = await self.select_style(style, length, known, name, language)
        if kept:
            del updates[self.limit]
        if (prompt or "") != (rendered or ""):  # the visitor has edited the prompt
            del updates[self.prompt]
        return updates | {
            self.server: messages.server_up(card),
            self.style: gr.Dropdown(list(card.styles), value=style, visible=len(card.styles) > 1),
            self.extras: gr.CheckboxGroup(list(card.extras), value=known, visible=bool(card.extras)),
            self.language: _shown(card.takes_language),
        }

    async def select_style(
        self, style: str | None, length: str | None, extras: list[str], name: str | None, language: str | None = None
    ) -> Updates:
        """Return the lengths of a style, with the selected one if the style has it, and the rendered prompt."""
        card = await self.cards.last()
        lengths = card.styles.get(style or "", []) if card else []
        wanted = [length, card.default_length if card else None, *lengths]
        length = next((each for each in wanted if each in lengths), None)
        return await self.render_prompt(style, length, extras, name, language) | {
            self.length: gr.Radio(lengths, value=length, visible=len(lengths) > 1),
            self.limit: _limit(style, length),
        }

    async def select_length(
        self, style: str | None, length: str | None, extras: list[str], name: str | None, language: str | None = None
    ) -> Updates:
        """Return the prompt of a length, and the style's limit of characters if it has one."""
        limit = _limit(style, length)
        prompt = await self.render_prompt(style, length, extras, name, language)
        return prompt | ({self.limit: limit} if limit else {})

    async def render_prompt(
        self, style: str | None, length: str | None, extras: list[str], name: str | None, language: str | None = None
    ) -> Updates:
        """Return the exact prompt for a selection; empty if the model's card has none."""
        card = await self.cards.last()
        prompt, takes_name = "", False
        if card is not None and style in card.prompts and length in card.prompts[style]:
            table = PromptTable(
                card.prompts, card.default_style, card.default_length, card.extras, card.language_prompt
            )
            prompt = table.template(style, length, tuple(extras or ()))
            takes_name = NAME in prompt
            prompt = prompt.replace(NAME, name or NAME)
            if card.takes_language and language and language.strip():
                prompt = table.in_language(prompt, language_name(language.strip()))
        return {self.prompt: prompt, self.rendered: prompt, self.name: _shown(takes_name)}


def _shown(visible: bool) -> dict[str, Any]:
    """Return the update that shows a field, or hides and empties it: what it holds is sent."""
    update: dict[str, Any] = gr.update(visible=True) if visible else gr.update(visible=False, value="")
    return update


def _limit(style: str | None, length: str | None) -> str:
    """Return the limit of characters that a style's prompts state; empty if they state none."""
    if style != ALT_TEXT:
        return ""
    return str(LONG_ALT_TEXT_CHARACTERS if length == "long" else ALT_TEXT_CHARACTERS)


def mount(app: Any, cards: ModelCardCache, root_path: str, *, image_urls: bool, tool: Tool | None = None) -> None:
    """Mount the page at "/" of a FastAPI application, after all of its other routes. `tool` is served by MCP.

    `image_urls`: whether the server fetches images by address.
    """
    page = Page(cards)
    functions = functions_of(page.blocks)
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
        max_file_size=1,  # byte; nothing is uploaded to Gradio
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=tool is not None,
        theme=theme.theme(),
        css_paths=theme.CSS,
        head=theme.head(root_path, image_urls=image_urls),
    )
    mounted = app.router.routes[-1]
    mounted.app = Guard(mounted.app, functions, mcp=tool is not None)
