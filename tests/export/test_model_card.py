"""The facts that are read from a model card."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.artifacts.manifest import Card
from captioner.embedded import EMBEDDED_FOLDER
from export.model_card import MAX_USE, read_card


def card(folder: Path, text: str) -> Card:
    (folder / "README.md").write_text(text, "utf-8")
    return read_card(folder)


def test_licence_base_model_and_the_first_paragraph_of_uses_are_read(tmp_path: Path) -> None:
    text = "---\nlicense: mit\nbase_model: org/base\n---\n# A model\nWords.\n"
    text += "## Intended uses & limitations\n\nFor [photos](x)\nof cats.\n\nMore.\n"
    assert card(tmp_path, text) == Card("mit", "org/base", "For photos of cats.")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("base_model: [org/a, org/b]", Card("", "org/a, org/b")),
        ("license: other\nlicense_name: llama3.1", Card("llama3.1")),
        ("license: other", Card("other")),
        ("license: [mit, apache-2.0]", Card("mit, apache-2.0")),
        ("tags: [x]", Card()),
        ("license: mit\nlanguage: 5\nmodel-index: nonsense", Card("mit")),
    ],
)
def test_headers_as_on_the_hub(tmp_path: Path, header: str, expected: Card) -> None:
    assert card(tmp_path, f"---\n{header}\n---\nText.\n") == expected


@pytest.mark.parametrize(
    "text", ["", "Text.", "---\nlicense: mit", "---\n: [\n---\nText", "---\n- a\n---\n", "\ufeff---\n"]
)
def test_a_card_without_a_valid_header_is_not_an_error(tmp_path: Path, text: str) -> None:
    assert card(tmp_path, text).base_model == ""


def test_a_missing_card_gives_empty_facts(tmp_path: Path) -> None:
    assert read_card(tmp_path) == Card()


@pytest.mark.parametrize(
    ("body", "use"),
    [
        ("## Uses\n### Direct use\nCaptions.\n", "Captions."),
        ("## Use\n```python\nx\n```\n", ""),
        ("## Use\n<!-- fill me in -->\n\nCaptions of *birds*.\n", "Captions of *birds*."),
        ("## Because\nNothing.\n", ""),
        ("## Uses\n", ""),
    ],
)
def test_the_intended_use_is_a_paragraph_of_prose(tmp_path: Path, body: str, use: str) -> None:
    assert card(tmp_path, body).intended_use == use


def test_a_long_use_is_shortened_between_words(tmp_path: Path) -> None:
    found = card(tmp_path, "## Uses\n" + "word " * 1000).intended_use
    assert len(found) <= MAX_USE
    assert found.endswith("word…")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.sampled_from("-#:[]{}\n abuseluse`<|!()&*'\"\t\x00é"), max_size=200))
def test_no_card_makes_an_export_fail(tmp_path: Path, text: str) -> None:
    assert isinstance(card(tmp_path, text), Card)
    assert isinstance(card(tmp_path, f"---\n{text}\n---\n{text}"), Card)


def test_the_embedded_models_card_says_what_it_is_for() -> None:
    found = read_card(EMBEDDED_FOLDER)
    assert found.license == "apache-2.0"
    assert found.intended_use.startswith("A first caption of everyday photos")
