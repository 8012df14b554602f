"""A tag of a language becomes its English name; a name stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from captioner.artifacts.languages import language_name


@pytest.mark.parametrize(
    ("language", "name"),
    [
        ("de", "German"),
        ("DE", "German"),
        ("deu", "German"),
        ("ger", "German"),
        ("el", "Modern Greek"),
        ("gsw", "Swiss German"),
        ("pt-BR", "Portuguese (pt-BR)"),
        ("zh-Hant-TW", "Chinese (zh-Hant-TW)"),
        ("ga", "Irish"),
        ("Ga", "Ga"),
        ("Lao", "Lao"),
    ],
)
def test_a_tag_becomes_a_name(language: str, name: str) -> None:
    assert language_name(language) == name


@pytest.mark.parametrize("language", ["German", "Brazilian Portuguese", "Deutsch", "日本語", "qq", "qq-QQ", "x-pirate"])
def test_any_other_text_stays(language: str) -> None:
    assert language_name(language) == language


def test_a_name_does_not_load_the_table() -> None:
    code = "import sys; from captioner.artifacts.languages import language_name as n; n('German'); n('Old English')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'iso639' not in sys.modules"], check=True)
