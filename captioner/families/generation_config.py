"""The part of a published `generation_config.json` that is served, and a refusal to overlook the rest."""

from __future__ import annotations

import logging

from transformers import GenerationConfig

from captioner.artifacts.manifest import Generation

log = logging.getLogger(__name__)
MAX_TOKENS = 64  # where a model publishes no limit, or transformers' own of 20
# What would change the words, is published by some models and is not served: said at export, never overlooked.
NOT_SERVED = (
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens",
    "num_beam_groups", "diversity_penalty", "exponential_decay_length_penalty", "typical_p", "penalty_alpha",
)  # fmt: skip


def published_generation(config: GenerationConfig) -> Generation:
    """The defaults that `config` asks for; logs a warning for each setting that is not served."""
    asked = config.to_diff_dict()
    if asked.get("max_length"):  # counts the id that begins a text too
        asked.setdefault("max_new_tokens", asked["max_length"] - 1)
    for name in NOT_SERVED:
        if asked.get(name):
            log.warning("generation_config.json asks for %s %r, which is not served", name, asked[name])
    return Generation(
        max_tokens=int(asked.get("max_new_tokens") or MAX_TOKENS),
        repetition_penalty=float(asked.get("repetition_penalty") or 1.0),
        num_beams=int(asked.get("num_beams") or 1),
        length_penalty=float(1.0 if asked.get("length_penalty") is None else asked["length_penalty"]),
        early_stopping=asked.get("early_stopping") is True,
    )
