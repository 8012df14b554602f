"""A Hugging Face Space of the usual form: a Gradio interface around transformers, one request at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr
from PIL import Image

from benchmarks.peers.model import Model

model = Model(Path(sys.argv[1]))


def caption(image: Image.Image) -> str:
    """Caption one image."""
    return model.captions([image.convert("RGB")])[0]


demo = gr.Interface(caption, gr.Image(type="pil"), "text", api_name="caption", flagging_mode="never")
demo.queue(max_size=None).launch(server_name="127.0.0.1", server_port=int(sys.argv[2]), quiet=True)
