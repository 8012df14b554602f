"""The files that are shipped: config, fp16 weights, tokenizer. The backbone's weights come from their own package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captioner.families.concept_encoder import PREFIX, load_concept_encoder
from training.model import MAX_TOKENS, REPETITION_PENALTY, Captioner
from training.tokenizer import CaptionTokenizer

MODEL_TYPE = "concept-encoder-decoder"
DECODER_PREFIX = "decoder."
TIED = "lm_head.weight"  # the decoder's token embeddings once more


def save(folder: Path, captioner: Captioner, tokenizer: CaptionTokenizer) -> None:
    """Writes config.json, model.safetensors (float16) and the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = captioner.decoder.config
    kept = {key: value for key, value in decoder.to_diff_dict().items() if not key.startswith("transformers_")}
    config = {
        "model_type": MODEL_TYPE,
        "encoder": captioner.encoder.config.to_dict(),
        "decoder": {**kept, "use_cache": True},
        "max_tokens": MAX_TOKENS,
        "repetition_penalty": REPETITION_PENALTY,
    }
    (folder / "config.json").write_text(_json(config))
    state = {PREFIX + key: value for key, value in captioner.encoder.trained_state().items()}
    state |= {DECODER_PREFIX + key: value for key, value in captioner.decoder.state_dict().items() if key != TIED}
    save_file({k: v.to(torch.float16).contiguous() for k, v in state.items()}, folder / "model.safetensors")
    tokenizer.fast.save_pretrained(folder)


def load(folder: Path) -> tuple[Captioner, CaptionTokenizer]:
    """Reads what `save` wrote, as float32."""
    config = json.loads((folder / "config.json").read_text())
    state = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    decoder = GPT2LMHeadModel(GPT2Config(**config["decoder"]))
    own = {k.removeprefix(DECODER_PREFIX): v for k, v in state.items() if k.startswith(DECODER_PREFIX)}
    decoder.load_state_dict({**own, TIED: own["transformer.wte.weight"]})
    tokenizer = CaptionTokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
    return Captioner(load_concept_encoder(folder), decoder).eval(), tokenizer


def _json(config: dict[str, object]) -> str:
    """Indented, but each list on one line: the word list has hundreds of entries."""
    lists: list[str] = []

    def fold(value: object) -> object:
        if isinstance(value, dict):
            return {key: fold(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            lists.append(json.dumps(value, ensure_ascii=False))
            return f"@list {len(lists) - 1}@"
        return value

    text = json.dumps(fold(config), indent=1, ensure_ascii=False)
    for number, line in enumerate(lists):
        text = text.replace(f'"@list {number}@"', line)
    return text + "\n"
