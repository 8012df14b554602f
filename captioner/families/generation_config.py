"""A published `generation_config.json`: the supported settings as defaults, a warning for each of the others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from captioner.artifacts.manifest import Generation
from captioner.wire import PARAMETERS

log = logging.getLogger(__name__)
MAX_TOKENS = 64  # for models without a published limit; transformers' own default is 20
# Settings that some models publish and that would change the caption; the export warns of each.
UNSUPPORTED = (
    "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "min_length", "min_new_tokens", "num_beam_groups", "diversity_penalty",
    "exponential_decay_length_penalty", "typical_p", "penalty_alpha",
)  # fmt: skip


def read_generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """Return a model folder's generation config: the file, or what transformers derives from config.json without it."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_model_config(config)


def published_generation(config: GenerationConfig, max_tokens: int = MAX_TOKENS) -> Generation:
    """Return the defaults in `config`; log a warning for each unsupported setting.

    `max_tokens`: for a model without a published limit.
    """
    published = config.to_diff_dict()
    if published.get("max_length"):  # it also counts the start id
        published.setdefault("max_new_tokens", published["max_length"] - 1)
    for name in UNSUPPORTED:
        if published.get(name):
            log.warning("generation_config.json has %s %r, which is not supported", name, published[name])
    return Generation(
        max_tokens=int(published.get("max_new_tokens") or max_tokens),
        repetition_penalty=float(published.get("repetition_penalty") or 1.0),
        num_beams=int(published.get("num_beams") or 1),
        length_penalty=float(1.0 if published.get("length_penalty") is None else published["length_penalty"]),
        early_stopping=published.get("early_stopping") is True,
        no_repeat_ngram_size=_ngram_size(published),
    )


def _ngram_size(published: dict[str, Any]) -> int:
    size, limit = int(published.get("no_repeat_ngram_size") or 0), PARAMETERS["no_repeat_ngram_size"].maximum
    if limit is not None and size > limit:
        log.warning("generation_config.json has no_repeat_ngram_size %d; up to %g is supported", size, limit)
        return 0
    return size
