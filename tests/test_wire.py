"""The wire: request parameters are checked and named in errors; details and model cards round-trip."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.client.replica import infer_request
from captioner.errors import ParameterInvalid, ParameterRefused, ParameterUnknown
from captioner.wire import (
    PARAMETERS,
    TEXT_LISTS,
    CaptionParameters,
    Details,
    ImageInfo,
    ModelCard,
    Parameter,
    Region,
    Timings,
    forward_parameters,
    load_parameters,
    parse_parameters,
    to_json,
)

NUMBERS = [parameter for parameter in PARAMETERS.values() if parameter.minimum is not None]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def named(parameter: Parameter) -> str:
    return parameter.name


def refusal(**values: Any) -> str:
    with pytest.raises(ParameterInvalid) as caught:
        parse_parameters(values)
    return str(caught.value)


@pytest.mark.parametrize("parameter", NUMBERS, ids=named)
def test_both_ends_of_a_range_are_valid(parameter: Parameter) -> None:
    for edge in (parameter.minimum, parameter.maximum):
        value = parameter.kind(edge)  # type: ignore[arg-type]
        assert getattr(parse_parameters({parameter.name: value}), parameter.name) == value


@pytest.mark.parametrize("parameter", NUMBERS, ids=named)
def test_the_error_beyond_a_range_names_the_parameter_the_value_and_the_range(parameter: Parameter) -> None:
    assert parameter.minimum is not None
    assert parameter.maximum is not None
    below: float = math.nextafter(parameter.minimum, -math.inf)
    above: float = math.nextafter(parameter.maximum, math.inf)
    if parameter.kind is int:
        below, above = int(parameter.minimum) - 1, int(parameter.maximum) + 1
    for value in (below, above):
        sentence = refusal(**{parameter.name: value})
        assert parameter.name in sentence
        assert repr(value) in sentence
        assert parameter.range in sentence
        for edge in (parameter.minimum, parameter.maximum):
            assert (str(edge) if parameter.kind is int else f"{edge:g}") in sentence


@pytest.mark.parametrize("parameter", NUMBERS, ids=named)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "1", None, [1], 10**400])
def test_a_number_must_be_finite_and_of_a_numeric_type(parameter: Parameter, value: object) -> None:
    assert parameter.name in refusal(**{parameter.name: value})


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_reaches_the_server_as_it_is(seed: int) -> None:
    sent = infer_request({}, {"seed": seed}).parameters["seed"].int64_param
    assert load_parameters(json.dumps({"seed": sent})) == {"seed": seed}
    assert parse_parameters({"seed": seed}).seed == seed
    assert "from 0 to 18446744073709551615" in refusal(seed=-1)


def test_an_int_is_accepted_for_a_float_but_a_float_is_not_accepted_for_an_int() -> None:
    assert parse_parameters({"temperature": 1}).temperature == 1.0
    assert type(parse_parameters({"temperature": 1}).temperature) is float
    assert "max_tokens is 3.0" in refusal(max_tokens=3.0)


@pytest.mark.parametrize("name", ["stream", "describe", "repetition_guard"])
@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_a_boolean_must_be_true_or_false(name: str, value: object) -> None:
    assert "true or false" in refusal(**{name: value})


@pytest.mark.parametrize("name", ["style", "length", "name", "language", "extras", "stop"])
@pytest.mark.parametrize("value", [1, True, None, ["a"], b"a", "half a character \ud83d"])
def test_a_text_must_be_a_valid_string(name: str, value: object) -> None:
    assert name in refusal(**{name: value})


def test_the_error_for_an_unknown_parameter_names_all_known_ones() -> None:
    with pytest.raises(ParameterUnknown) as caught:
        parse_parameters({"temprature": 1.0})
    assert "'temprature'" in str(caught.value)
    assert all(name in str(caught.value) for name in PARAMETERS)


def test_the_parameters_that_triton_adds_are_ignored() -> None:
    added = {"user-agent": "grpc", "triton_enable_empty_final_response": True, "binary_data_output": True, "id": "7"}
    assert parse_parameters(added) == CaptionParameters()


def test_an_absent_parameter_has_the_default_of_the_table() -> None:
    nothing = parse_parameters({})
    shown = {name: parameter.default for name, parameter in PARAMETERS.items()}
    assert {name: getattr(nothing, name) or None for name in shown} == {k: v or None for k, v in shown.items()}


def test_stop_is_one_text_or_a_json_list_of_up_to_four() -> None:
    assert parse_parameters({"stop": "on the "}).stop == ("on the ",)
    assert parse_parameters({"stop": '"."'}).stop == ('"."',)
    assert parse_parameters({"stop": '[".", "</s>"]'}).stop == (".", "</s>")
    for texts in ('[""]', '["a", "b", "c", "d", "e"]', json.dumps(["x" * 257])):
        assert "up to 4 texts of 1 to 256 characters" in refusal(stop=texts)
    longest = ["😀" * 256] * 4
    assert parse_parameters({"stop": json.dumps(longest)}).stop == tuple(longest)


@pytest.mark.parametrize("parameter", [each for each in PARAMETERS.values() if each.kind is str], ids=named)
def test_every_text_has_a_maximum_length(parameter: Parameter) -> None:
    assert parameter.max_length is not None
    for size in (parameter.max_length + 1, 5_000_000):
        sentence = refusal(**{parameter.name: "x" * size})
        assert sentence == f"{parameter.name} has {size} characters; the limit is {parameter.max_length}"


def test_all_parameters_at_their_maximum_length_fit_into_a_request() -> None:
    longest = {each.name: "\x00" * (each.max_length or 0) for each in PARAMETERS.values() if each.kind is str}
    assert load_parameters(json.dumps(longest)) == longest
    assert load_parameters(json.dumps(forward_parameters(longest))) == longest
    with pytest.raises(ParameterInvalid, match="the parameters have 5000012 bytes; the limit is 294912"):
        load_parameters(json.dumps({"stop": "x" * 5_000_000}))


def test_forwarded_parameters_are_read_as_they_were_sent() -> None:
    sent = {"temperature": 0.1, "seed": 2**64 - 1, "stop": json.dumps(['"é😀"', "\\", "\x00"]), "stream": False}
    assert load_parameters(json.dumps(forward_parameters(sent))) == sent


def test_tritons_timeout_is_a_deadline_unless_there_is_one() -> None:
    assert load_parameters("", timeout_us=1_499_999) == {"deadline_ms": 1500}
    assert load_parameters("{}", timeout_us=1) == {"deadline_ms": 1}
    assert load_parameters('{"deadline_ms": 7}', timeout_us=1_000_000) == {"deadline_ms": 7}


@pytest.mark.parametrize(
    "language", ["German", "de", "pt-BR", "zh-Hant-TW", "हिन्दी", "日本語", "Old English 2", "x" * 64]
)
def test_a_language_is_a_name_or_a_tag(language: str) -> None:
    assert parse_parameters({"language": language}).language == language


@pytest.mark.parametrize(
    "language", ["", " ", "de ", "a  b", "pt_BR", "German.", "-de", "9", "a\nb", "{language}", "<|x|>"]
)
def test_another_language_is_refused_by_what_it_may_hold(language: str) -> None:
    sentence = refusal(language=language)
    assert repr(language) in sentence and "letters, digits, hyphens and single spaces" in sentence


def test_extras_are_a_json_list_of_texts() -> None:
    assert parse_parameters({"extras": '["camera", "fog"]'}).extras == ("camera", "fog")
    assert parse_parameters({"extras": "[]"}).extras == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "camera",
        '"camera"',
        "{}",
        "null",
        "[1]",
        '[["camera"]]',
        '["camera"',
        "[" * 4096,
        '{"a":' * 800,
        "[NaN]",
    ],
    ids=range(11),
)
def test_the_error_for_other_extras_is_short(text: str) -> None:
    sentence = refusal(extras=text)
    assert "JSON list" in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize("name", ["x" * 10**6, "max_tokens"])
def test_an_error_does_not_repeat_a_megabyte_of_input(name: str) -> None:
    with pytest.raises(ParameterRefused) as caught:
        parse_parameters({name: "y" * 10**6})
    assert len(str(caught.value)) < 500


@given(st.dictionaries(st.sampled_from([*PARAMETERS, "user-agent", "other"]), JSON))
def test_any_json_object_is_accepted_unchanged_or_raises_parameter_refused(values: dict[str, Any]) -> None:
    try:
        checked = parse_parameters(values)
    except ParameterRefused:
        return
    for name, value in values.items():
        if name in PARAMETERS and name not in TEXT_LISTS:
            assert getattr(checked, name) == value, "values are not changed"


INFO = ImageInfo("JPEG", 640, 480, 1, True, False)
REGIONS = (Region("a car", box=(1, 2, 30, 40)), Region("EXIT", polygon=((1, 2), (30, 2), (30, 9), (1, 9))))


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    number=st.integers(0, 2**53),
    sure=st.none() | st.floats(0, 1),
    regions=st.sampled_from([None, (), REGIONS]),
)
def test_details_round_trip(text: str, number: int, sure: float | None, regions: tuple[Region, ...] | None) -> None:
    details = Details(
        model=text, revision="0" * 40, version="3", prompt=text, seed=number, max_tokens=7, max_characters=99,
        temperature=0.5, top_p=1.0, top_k=0, repetition_penalty=1.1, num_beams=1, finish_reason="length", tokens=7,
        prompt_tokens=2, confidence=sure, unsure=None if sure is None else sure < 0.5, mean_logprob=-1.25,
        image=INFO, timings_ms=Timings(0.1, 2.0, 3.25, 4.5), cache_hit=True, regions=regions,
    )  # fmt: skip
    assert Details.from_json(to_json(details)) == details
    assert "\n" not in to_json(details), "a newline ends a server-sent event"


def test_json_never_holds_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(ImageInfo("JPEG", math.nan, 480, 1, True, False))  # type: ignore[arg-type]


def test_a_model_card_round_trips() -> None:
    card = ModelCard(
        model="m", revision="r", version="1", license="mit", base_model="b", intended_use="Use it.",
        styles={"plain": ["short"]},
        extras={"camera": "From where?"}, takes_name=False, default_style="plain", default_length="short", max_tokens=9,
        device="cpu", precision="fp32", encoder_precision="int8", follows_instructions=False,
        prompts={"plain": {"short": "<|short|>"}},
    )  # fmt: skip
    assert ModelCard.from_json(to_json(card)) == card
    assert json.loads(to_json(card))["styles"] == {"plain": ["short"]}
