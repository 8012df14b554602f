"""An operator's settings: strings become numbers, or one sentence refuses them."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import StartupRefused
from captioner.serving.settings import Settings

NAMES = list(asdict(Settings()))
NUMBERS = [name for name in NAMES if name != "precision"]


def test_settings_are_read_from_the_strings_of_a_config() -> None:
    texts = {"slots": "4", "feature_cache_mib": "0", "precision": "nf4"}
    assert Settings.parse(texts) == Settings(slots=4, feature_cache_mib=0, precision="nf4")
    assert Settings.parse({}) == Settings()


def test_an_environment_variable_overrides_the_file() -> None:
    environment = {"CAPTIONER_SLOTS": "8", "CAPTIONER_PRECISION": "", "SLOTS": "3", "CAPTIONER_MODEL": "other"}
    found = Settings.parse({"slots": "4", "precision": "bf16"}, environment)
    assert found == Settings(slots=8, precision="bf16")
    with pytest.raises(StartupRefused, match="slots is 'many'"):
        Settings.parse({}, {"CAPTIONER_SLOTS": "many"})


def test_an_unknown_setting_is_refused_with_the_list_of_settings() -> None:
    with pytest.raises(StartupRefused, match=r"'slot' is not a setting.*slots, kv_cache_mib, max_waiting"):
        Settings.parse({"slot": "4"})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["", "four", "4.0", "--4", "²", "1_0", " 4", "9" * 5000])
def test_a_value_that_is_not_a_whole_number_is_refused(name: str, text: str) -> None:
    with pytest.raises(StartupRefused, match=f"{name} is .*whole number"):
        Settings.parse({name: text})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_negative_setting_is_refused_with_its_limit(name: str) -> None:
    with pytest.raises(StartupRefused, match=rf"{name} is -1; it must be at least [01]"):
        Settings.parse({name: "-1"})


@pytest.mark.parametrize("name", ["encode_workers", "cancel_poll_ms"])
def test_a_setting_that_must_be_positive_refuses_zero(name: str) -> None:
    with pytest.raises(StartupRefused, match=rf"{name} is 0; it must be at least 1"):
        Settings.parse({name: "0"})


@given(st.dictionaries(st.sampled_from([*NAMES, "other"]), st.text() | st.integers().map(str)))
def test_any_strings_are_parsed_or_refused(texts: dict[str, str]) -> None:
    try:
        settings = Settings.parse(texts)
    except StartupRefused:
        return
    for name, text in texts.items():
        assert str(getattr(settings, name)) == (str(int(text)) if name in NUMBERS else text)
