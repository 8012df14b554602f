"""What instruct models have in common: a chat around the prompt, tokens that end a turn, and one table of prompts.

It knows templates and tokenizers. Images are only a token here.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from captioner.artifacts.manifest import IMAGE_FIELD, PROMPT_FIELD, Generation
from captioner.artifacts.prompts import PromptTable
from captioner.errors import ModelUnsupported
from captioner.families.generation_config import published_generation

CAPTION_TOKENS = 512  # where a model publishes no limit: instruct models write paragraphs
END_OF_TURN = ("<end_of_utterance>", "<|eot_id|>")  # some models' generation_config.json names only the end of text

PROMPTS = PromptTable(
    styles={
        "descriptive": {
            "short": "Describe this image in one sentence.",
            "medium": "Describe this image in one paragraph of three or four sentences.",
            "long": "Describe this image thoroughly: subject, surroundings, colours, textures and where things are.",
        },
        "casual": {
            "short": "Tell a friend in one relaxed sentence what this image shows.",
            "medium": "Tell a friend in a few relaxed sentences what this image shows.",
            "long": "Tell a friend in a relaxed tone everything worth noticing in this image.",
        },
        "alt-text": {
            "short": "Write alt text for this image in at most fifteen words.",
            "medium": "Write alt text for this image in one or two sentences, the most important thing first.",
            "long": "Write a long image description for a reader who cannot see it, the most important things first.",
        },
        "tags": {
            "short": "List up to eight tags for this image, separated by commas.",
            "medium": "List about twenty tags for this image, separated by commas: subjects, actions, place, colours.",
            "long": "List about forty tags for this image, separated by commas, from main subject to small details.",
        },
        "training": {
            "short": "Write a plain caption of under twenty words that states only what this image shows.",
            "medium": "Write a plain caption of about fifty words that states only what this image shows.",
            "long": "Write a plain caption of about 150 words that states only what this image shows.",
        },
    },
    default_style="descriptive",
    default_length="medium",
    extras={
        "name": "Call the main person or character {name}.",
        "no-names": "Do not guess who anybody in the image is.",
        "camera": "Say from what angle and how close the image was taken.",
        "lighting": "Say where the light comes from and how it falls.",
        "composition": "Say how the image is composed and what leads the eye.",
        "text": "Quote any text that can be read in the image.",
        "watermark": "Say whether the image carries a watermark.",
        "no-mood": "Leave out moods and opinions.",
    },
)


def chat_prompt_template(
    tokenizer: PreTrainedTokenizerBase, folder: Path, image_token_id: int, system: str | None = None
) -> str:
    """The chat as text, with the places FRAME_IMAGE and FRAME_PROMPT, ending where the caption begins.

    Raises ModelUnsupported for a model without a chat template, or with one that gives the image no single place.
    """
    image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
    path = folder / "chat_template.json"  # what a processor would take before the tokenizer's own
    template = json.loads(path.read_text("utf-8"))["chat_template"] if path.is_file() else tokenizer.chat_template
    if not isinstance(template, str):
        raise ModelUnsupported(f"chat_template is {template!r:.80}; one template is needed")
    contents: tuple[object, ...] = (
        PROMPT_FIELD,  # some templates write the image's token by themselves,
        [{"type": "image"}, {"type": "text", "text": PROMPT_FIELD}],  # some for content of that type,
        f"{image_token}\n{PROMPT_FIELD}",  # and the others leave it to the user
    )
    beginnings: list[list[dict[str, Any]]] = [[]]  # without a system message where the template takes none
    if system is not None:
        beginnings.insert(0, [{"role": "system", "content": system}])
    for beginning, content in product(beginnings, contents):
        chat = [*beginning, {"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template raises what it likes for content that it was not written for
            continue
        prompt_template, runs = re.subn(f"(?:{re.escape(image_token)})+", IMAGE_FIELD, str(text))
        if runs == 1 and prompt_template.count(PROMPT_FIELD) == 1:
            return prompt_template
    raise ModelUnsupported(f"the chat template gives {image_token!r} no single place beside the prompt")


def start_ids(tokenizer: PreTrainedTokenizerBase, prompt_template: str) -> tuple[int, ...]:
    """Return the ids a processor puts before the template; none if the template itself begins with the first of them."""
    if tokenizer.bos_token is not None and prompt_template.startswith(str(tokenizer.bos_token)):
        return ()
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    if whole[-len(plain) :] != plain:
        raise ModelUnsupported(f"the tokenizer makes {plain} to {whole}: it ends a text that is to be continued")
    return tuple(whole[: -len(plain)])


def stop_ids(
    published: GenerationConfig, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Every id that ends a text or a turn of the chat; ModelUnsupported where there is none."""
    found: set[int] = set()
    eos = config.eos_token_id if published.eos_token_id is None else published.eos_token_id
    for stop in (eos, tokenizer.eos_token_id):
        found.update(stop if isinstance(stop, list) else [] if stop is None else [stop])
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[token] for token in END_OF_TURN if token in vocabulary)
    if not found:
        raise ModelUnsupported("eos_token_id is None; a token must end a caption")
    return tuple(sorted(found))


def generation(config: GenerationConfig) -> Generation:
    """The defaults that `config` asks for; its max_length says nothing of captions, for it counts the image too."""
    return replace(published_generation(config), max_tokens=config.max_new_tokens or CAPTION_TOKENS)


@torch.inference_mode()
def continuation(
    model: PreTrainedModel, prompt_ids: list[int], pixel_values: torch.Tensor, **options: object
) -> list[int]:
    """What the original's own `generate()` writes after `prompt_ids`, greedily unless `options` say otherwise."""
    ids_1N = torch.tensor([prompt_ids])
    generate: Any = model.generate
    written_1N = generate(
        input_ids=ids_1N,
        attention_mask=torch.ones_like(ids_1N),
        pixel_values=pixel_values,
        **{"do_sample": False} | options,
    )
    return [int(token) for token in written_1N[0, len(prompt_ids) :]]


def refuse_quantised(config: PreTrainedConfig) -> None:
    """Raises ModelUnsupported for weights that are not plain floats."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise ModelUnsupported(f"quantization_config is {method!r}; export the model with plain weights")
