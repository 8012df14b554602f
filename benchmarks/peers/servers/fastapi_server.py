"""FastAPI around transformers. One thread runs the model: two at a time would only divide the cores."""

from __future__ import annotations

import asyncio
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File
from PIL import Image

from benchmarks.peers.model import Model

app = FastAPI()
model = Model(Path(sys.argv[1]))
thread = ThreadPoolExecutor(1)


def _caption(image: bytes) -> str:
    return model.captions([Image.open(io.BytesIO(image)).convert("RGB")])[0]


@app.post("/caption")
async def caption(image: Annotated[bytes, File()]) -> dict[str, str]:
    """Caption one image."""
    return {"caption": await asyncio.get_running_loop().run_in_executor(thread, _caption, image)}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
