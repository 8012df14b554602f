"""Common parts of chat models: the chat template around a prompt, stop ids that end a turn, the table of prompts.

It knows templates and tokenizers. An image is only a token here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from captioner.artifacts.manifest import IMAGE_FIELD, PROMPT_FIELD, SYSTEM_FIELD, Generation
from captioner.errors import ModelUnsupported
from captioner.families import prompt_styles
from captioner.families.generation_config import published_generation, read_generation_config

MAX_TOKENS = 512  # for models without a published limit: chat models write paragraphs
# Some models' generation_config.json has only the end of text.
END_OF_TURN = ("<end_of_utterance>", "<|eot_id|>", "<end_of_turn>")
PROMPTS = prompt_styles.PROMPTS


def check(folder: Path, config: PreTrainedConfig, image_token_id: int) -> None:
    """Raise ModelUnsupported for a tokenizer, a chat template or stop ids that `load` refuses."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompt_template, _ = chat_prompt_templates(tokenizer, folder, image_token_id)
    start_ids(tokenizer, prompt_template)
    stop_ids(read_generation_config(folder, config), config.text_config, tokenizer)


def chat_prompt_templates(
    tokenizer: PreTrainedTokenizerBase, folder: Path, image_token_id: int, system: str | None = None
) -> tuple[str, str]:
    """Return the manifest's `prompt_template` and `system_template`; each ends where the caption starts.

    `system`: the system turn of `prompt_template`, if the chat template has one. Raises ModelUnsupported without a chat
    template, or if it does not contain image and prompt exactly once.
    """
    image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
    path = folder / "chat_template.json"  # processors prefer it to the tokenizer's own template
    template = json.loads(path.read_text("utf-8"))["chat_template"] if path.is_file() else tokenizer.chat_template
    if not isinstance(template, str):
        raise ModelUnsupported(f"chat_template is {template!r:.80}; it must be one template")
    contents: tuple[object, ...] = (
        PROMPT_FIELD,  # for templates that always write the image token,
        [{"type": "image"}, {"type": "text", "text": PROMPT_FIELD}],  # for those that write it for an image part,
        f"{image_token}\n{PROMPT_FIELD}",  # and for those that leave it to the user
    )

    def render(*systems: object) -> Iterator[str]:
        """Yield the chat as text for each form of the system turn and of the user's that the template can write."""
        for turn, content in product(systems, contents):
            turns: list[Any] = [{"role": "system", "content": turn}, {"role": "user", "content": content}]
            try:
                text = tokenizer.apply_chat_template(
                    turns[turn is None :], chat_template=template, tokenize=False, add_generation_prompt=True
                )
            except Exception:  # a template may raise anything for content that it does not support
                continue
            found, runs = re.subn(f"(?:{re.escape(image_token)})+", IMAGE_FIELD, str(text))
            if runs == 1 and found.count(PROMPT_FIELD) == 1:
                yield found

    plain = next(render(None), None)
    if plain is None:
        raise ModelUnsupported(f"the chat template does not write {image_token!r} exactly once beside the prompt")
    with_system = ""
    for text in render(SYSTEM_FIELD, [{"type": "text", "text": SYSTEM_FIELD}]):
        # A template that writes no mark of the role would give the system's text to the user.
        if text.count(SYSTEM_FIELD) == 1 and text.replace(SYSTEM_FIELD, "") != plain:
            with_system = text
            break
    own = with_system.replace(SYSTEM_FIELD, system) if system is not None else ""
    return own or plain, with_system


def start_ids(tokenizer: PreTrainedTokenizerBase, prompt_template: str) -> tuple[int, ...]:
    """Return the ids that a processor puts before the template; none if the template starts with BOS itself."""
    if tokenizer.bos_token is not None and prompt_template.startswith(str(tokenizer.bos_token)):
        return ()
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    if whole[-len(plain) :] != plain:
        raise ModelUnsupported(f"the tokenizer turns {plain} into {whole}: ids after a prompt would end the caption")
    return tuple(whole[: -len(plain)])


def stop_ids(
    published: GenerationConfig, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return all ids that end a text or a turn, ascending. Raises ModelUnsupported if there are none."""
    found: set[int] = set()
    eos = config.eos_token_id if published.eos_token_id is None else published.eos_token_id
    for stop in (eos, tokenizer.eos_token_id):
        found.update(stop if isinstance(stop, list) else [] if stop is None else [stop])
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[token] for token in END_OF_TURN if token in vocabulary)
    if not found:
        raise ModelUnsupported("eos_token_id is None; captions need a stop id")
    return tuple(sorted(found))


def generation(config: GenerationConfig) -> Generation:
    """Return the published defaults. max_length is ignored: it also counts the image's tokens."""
    return replace(published_generation(config), max_tokens=config.max_new_tokens or MAX_TOKENS)


@torch.inference_mode()
def continuation(
    model: PreTrainedModel, prompt_ids: list[int], pixel_values: torch.Tensor, **options: object
) -> list[int]:
    """Return the ids that the original's own `generate()` adds to `prompt_ids`."""
    ids_1N = torch.tensor([prompt_ids])
    generate: Any = model.generate
    written_1N = generate(
        input_ids=ids_1N, attention_mask=torch.ones_like(ids_1N), pixel_values=pixel_values, **options
    )
    return [int(token) for token in written_1N[0, len(prompt_ids) :]]


def refuse_quantised(config: PreTrainedConfig) -> None:
    """Raise ModelUnsupported for quantised weights."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise ModelUnsupported(f"quantization_config is {method!r}; export the model with plain weights")
