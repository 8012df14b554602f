"""The advanced fields: one text input for each request parameter, read as the wire wants it."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from captioner.errors import ParameterInvalid
from captioner.wire import PARAMETERS, Parameter

NAMES = ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams", "max_tokens", "seed")


def make_fields() -> list[gr.Textbox]:
    """An input for each of NAMES; left empty, the choice is the model's.

    Not gr.Number: an empty one shows 0 (Gradio 6.31), and it rounds where the server would refuse.
    """
    return [_field(PARAMETERS[name]) for name in NAMES]


def read_fields(texts: Sequence[str]) -> dict[str, int | float | None]:
    """Each parameter's number, None for an empty field; ParameterInvalid names the first that is none."""
    return {name: _number(PARAMETERS[name], text) for name, text in zip(NAMES, texts, strict=True)}


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


def _number(parameter: Parameter, text: str) -> int | float | None:
    if not text.strip():
        return None
    try:
        return int(text) if parameter.kind is int else float(text)
    except ValueError:
        raise ParameterInvalid(f"{parameter.name} is {text!r}; it must be {parameter.range}") from None
