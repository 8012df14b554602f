"""The advanced fields: one text input for each request parameter; the API reads and checks what is written there."""

from __future__ import annotations

import gradio as gr

from captioner.wire import PARAMETERS, Parameter

NAMES = ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams", "max_tokens", "seed")


def make_fields() -> list[gr.Textbox]:
    """An input for each of NAMES; left empty, the choice is the model's.

    Not gr.Number: an empty one shows 0 (Gradio 6.31), and it rounds where the server would refuse.
    """
    return [_field(PARAMETERS[name]) for name in NAMES]


def _field(parameter: Parameter) -> gr.Textbox:
    return gr.Textbox(
        "",
        label=parameter.name.replace("_", " ").capitalize(),
        info=parameter.doc,
        placeholder="left to the model" if parameter.default is None else f"{parameter.default:g}",
        max_lines=1,
        min_width=200,
        elem_id=parameter.name,
    )
