"""The advanced fields: one text input for each request parameter. The API parses and checks their values."""

from __future__ import annotations

import gradio as gr

from captioner.wire import PARAMETERS, Parameter

NAMES = ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams", "candidates", "max_tokens", "seed")


def make_fields() -> list[gr.Textbox]:
    """Return an input for each of NAMES. An empty input leaves the parameter to the model.

    It is not gr.Number: that shows 0 when it is empty (Gradio 6.31), and rounds values that the server would reject.
    """
    return [_field(PARAMETERS[name]) for name in NAMES]


def _field(parameter: Parameter) -> gr.Textbox:
    return gr.Textbox(
        "",
        label=parameter.name.replace("_", " ").capitalize(),
        info=parameter.doc,
        placeholder="model default" if parameter.default is None else f"{parameter.default:g}",
        max_lines=1,
        min_width=200,
        elem_id=parameter.name,
    )
