"""The decoder's weights as safetensors, its configuration and its tokenizer, as the captioner model reads them."""

from __future__ import annotations

from pathlib import Path

from captioner.families.base import Source


def export_decoder(source: Source, folder: Path) -> None:
    """Writes `folder/decoder/{config.json, model.safetensors}` and `folder/tokenizer.json`."""
    source.decoder.save_pretrained(folder / "decoder")
    (folder / "decoder" / "model.safetensors").chmod(0o644)  # written for its owner alone; servers run as another user
    source.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
