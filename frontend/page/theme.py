"""The page's theme: fonts and colors for Gradio, and the files that every page loads."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from frontend.page import messages

BROWSER = Path(__file__).with_name("browser")
CSS = BROWSER / "page.css"


def head(root_path: str, *, image_urls: bool) -> str:
    """Return the HTML for <head>: the messages as JSON, and the script."""
    data = messages.for_the_browser(image_urls=image_urls)
    data = data.replace("<", "\\u003c")  # no text may close the script element
    return (
        f'<script type="application/json" id="captioner-messages">{data}</script>'
        f'<script type="module" src="{root_path}/browser/main.js"></script>'
    )


def theme() -> gr.themes.Base:
    """Return a theme with system fonts, and text contrast of at least 4.5:1, which Gradio's defaults miss."""
    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return base.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
