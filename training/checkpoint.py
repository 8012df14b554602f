"""Save and load a captioner's files: config, int8 weights, tokenizer.

The frozen part of the backbone is not saved: it comes from the backbone's own package.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captioner.artifacts.confidence import Calibration
from captioner.embedded import weights
from captioner.families.concept_encoder import PREFIX, load_concept_encoder
from training.model import MAX_TOKENS, Captioner
from training.tokenizer import CaptionTokenizer

GENERATION = {"max_tokens": MAX_TOKENS, "repetition_penalty": 1.25}  # the best of those measured, see README.md
MODEL_TYPE = "concept-encoder-decoder"
DECODER_PREFIX = "decoder."
TIED = "lm_head.weight"  # the same tensor as the decoder's token embeddings


def save(folder: Path, captioner: Captioner, tokenizer: CaptionTokenizer) -> None:
    """Write config.json, model.safetensors and the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = captioner.decoder.config
    kept = {key: value for key, value in decoder.to_diff_dict().items() if not key.startswith("transformers_")}
    config: dict[str, object] = {
        "model_type": MODEL_TYPE,
        "encoder": captioner.encoder.config.to_dict(),
        "decoder": {**kept, "use_cache": True},
        "generation": GENERATION,
    }
    (folder / "config.json").write_text(_json(config))
    state = {PREFIX + key: value for key, value in captioner.encoder.trained_state().items()}
    state |= {DECODER_PREFIX + key: value for key, value in captioner.decoder.state_dict().items() if key != TIED}
    weights.save(state, folder / "model.safetensors")
    tokenizer.fast.save_pretrained(folder)


def load(folder: Path) -> tuple[Captioner, CaptionTokenizer]:
    """Return the captioner and the tokenizer that `save` wrote, with dequantized weights as in serving."""
    config = json.loads((folder / "config.json").read_text())
    decoder = GPT2LMHeadModel(GPT2Config(**config["decoder"]))
    state = weights.load(folder / "model.safetensors", DECODER_PREFIX)
    decoder.load_state_dict({**state, TIED: state["transformer.wte.weight"]})
    tokenizer = CaptionTokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
    return Captioner(load_concept_encoder(folder), decoder).eval(), tokenizer


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Add the confidence calibration to the config of a saved captioner."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(_json({**config, "calibration": asdict(calibration)}))


def load_calibration(folder: Path) -> Calibration | None:
    """Return the confidence calibration of a saved captioner, or None."""
    values = json.loads((folder / "config.json").read_text()).get("calibration")
    return None if values is None else Calibration(**values)


def _json(config: dict[str, object]) -> str:
    """Return indented JSON with each list on one line: the word list has hundreds of entries."""
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
