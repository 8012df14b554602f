"""From a Hub-like folder through export and the real tritonserver to the caption of transformers' own `generate()`.

The models have seeded random weights; in the exhaustive suite, they have the dimensions that their authors published.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks import seeded
from benchmarks.published import empty_repository
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VersionStore
from captioner.client import Client
from captioner.errors import ParameterUnsupported
from captioner.families import family
from captioner.hub.resolve import find
from captioner.image.decode import load_pixels
from captioner.launcher.supervisor import TritonServer
from captioner.publish.publish import export_and_publish

PHOTO = Path(__file__).parents[2] / "captioner" / "examples" / "coffee.jpg"
TOKENS = 6


def strip() -> bytes:
    """Return a part of a photo, wide and low: SmolVLM makes 4 tiles of it, and 12 of the whole photo."""
    file = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.crop((0, 100, 600, 200)).save(file, "PNG")
    return file.getvalue()


def exhaustive(name: str, size: seeded.Size) -> Any:
    return pytest.param(name, size, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("smolvlm", "tiny"),
        ("qwen3-vl", "tiny"),
        *(exhaustive(name, "tiny") for name in ("florence2", "gemma3", "paligemma2")),
        *(exhaustive(name, "published") for name in ("vit-gpt2", "blip", "git", "florence2", "smolvlm")),
    ],
)
def test_a_served_model_writes_the_caption_of_the_original(
    name: str, size: seeded.Size, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_SLOTS", "2")
    photo = strip()
    folder, repository = tmp_path / name, empty_repository(tmp_path / "model_repository")
    seeded.save(name, folder, size)
    version = export_and_publish(find(str(folder)), VersionStore(repository), (), print)
    manifest = Manifest.load(repository / "captioner" / str(version))
    server = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=tmp_path / "server.log")
    with server, Client(server.grpc_address, stall_timeout_s=300) as client:
        systems = (None, "Answer like a pirate.") if client.describe().takes_system else (None,)
        captions = [
            client.caption(
                photo,
                max_tokens=TOKENS,
                repetition_guard=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                system=system,
            )
            for system in systems
        ]
        if client.describe().takes_language:
            details = client.caption(photo, prompt="What is this?", language="de", max_tokens=TOKENS).details
            assert details.prompt.startswith("What is this? ") and " German" in details.prompt
            assert details.language == "German"
        else:
            with pytest.raises(ParameterUnsupported, match="follows no instructions"):
                client.caption(photo, language="de")
        if systems == (None,):
            with pytest.raises(ParameterUnsupported, match="no system turn"):
                client.caption(photo, system="Be brief.")
    shutil.rmtree(repository / "vision_encoder")  # the next family needs the disk
    kind = family(manifest.family)
    tokenizer = Tokenizer.from_file(str(repository / "captioner" / str(version) / "tokenizer.json"))
    pixels, info = load_pixels(photo, manifest.image)
    original = kind.load(folder)
    for system, caption in zip(systems, captions, strict=True):
        details = caption.details
        prompt_ids = kind.prompt_ids(
            tokenizer, manifest, details.prompt, info.grid_rows, info.grid_columns, details.system
        )
        with torch.inference_mode():
            written = original.generate(
                torch.from_numpy(pixels.copy()), prompt_ids, max_new_tokens=TOKENS, do_sample=False, num_beams=1
            )
        shown = [token for token in written if token not in manifest.stop_ids]
        decoder = kind.locations(tokenizer) or tokenizer
        text = decoder.decode([*(prompt_ids if manifest.continues_prompt else []), *shown], skip_special_tokens=True)
        assert caption.text == text.lstrip()
        assert (details.model, details.tokens, details.system) == (name, len(shown), system)
        assert details.prompt_tokens == len(prompt_ids)
        assert details.image.grid_rows == info.grid_rows
