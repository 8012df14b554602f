"""The styles of instruction-following families: each choice is a sentence, and there is room for a caption after it."""

from __future__ import annotations

import json
from itertools import product

import pytest

from captioner.artifacts.prompts import ALT_TEXT, ALT_TEXT_CHARACTERS, LONG_ALT_TEXT_CHARACTERS, lists_tags
from captioner.families.chat_prompts import MAX_TOKENS, PROMPTS
from captioner.families.idefics3 import TEXT_TOKENS
from captioner.wire import MAX_PROMPT_CHARACTERS, PARAMETERS

LENGTHS = ("short", "medium", "long")
CHOICES = list(product(PROMPTS.styles, LENGTHS))
CHARACTERS_PER_TOKEN = 3  # of English; chat models' tokenizers have 4 and more


def test_every_style_has_every_length_and_the_names_of_earlier_releases_stay() -> None:
    assert all(tuple(lengths) == LENGTHS for lengths in PROMPTS.styles.values())
    assert {"descriptive", "casual", "alt-text", "tags", "training"} <= PROMPTS.styles.keys()
    earlier = {"name", "no-names", "camera", "lighting", "composition", "text", "watermark", "no-mood"}
    assert earlier <= PROMPTS.extras.keys()
    assert (PROMPTS.default_style, PROMPTS.default_length) == ("descriptive", "medium")


def test_every_style_length_and_extra_gives_a_prompt_of_its_own() -> None:
    prompts = set()
    for (style, length), extra in product(CHOICES, (None, *PROMPTS.extras)):
        name = "Ada" if extra == "name" else None
        prompts.add(PROMPTS.render(style, length, () if extra is None else (extra,), name))
    assert len(prompts) == len(CHOICES) * (1 + len(PROMPTS.extras))


@pytest.mark.parametrize("text", [*(PROMPTS.template(*choice) for choice in CHOICES), *PROMPTS.extras.values()])
def test_every_prompt_and_every_extra_is_a_sentence(text: str) -> None:
    assert text[0].isupper() and text.endswith((".", '."')) and text == " ".join(text.split())
    assert text.isascii() and "colour" not in text.lower()


def test_a_prompt_with_all_extras_leaves_room_for_a_caption() -> None:
    assert PARAMETERS["extras"].max_length is not None
    assert len(json.dumps(list(PROMPTS.extras))) <= PARAMETERS["extras"].max_length
    for style, length in CHOICES:
        prompt = PROMPTS.render(style, length, tuple(PROMPTS.extras), "Ada")
        assert len(prompt) <= MAX_PROMPT_CHARACTERS
        assert len(prompt) / CHARACTERS_PER_TOKEN <= TEXT_TOKENS - MAX_TOKENS


def test_an_alt_text_states_the_limit_that_the_page_sets() -> None:
    limits = {"short": ALT_TEXT_CHARACTERS, "medium": ALT_TEXT_CHARACTERS, "long": LONG_ALT_TEXT_CHARACTERS}
    for length, limit in limits.items():
        assert f"at most {limit} characters" in PROMPTS.template(ALT_TEXT, length)


def test_the_styles_that_list_tags_ask_for_commas() -> None:
    for style, length in CHOICES:
        assert lists_tags(style) == ("separated by commas" in PROMPTS.template(style, length)), style
    assert not lists_tags(None)
