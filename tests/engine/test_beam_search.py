"""The beam search, driven without a cache, finds what `generate(num_beams=K)` finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from captioner.engine.beam_search import BeamSearch
from tests.support import tiny

VOCABULARY = 24
CHOICES: dict[str, Any] = {
    "prompt": st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4),
    "width": st.integers(1, 5),
    "max_tokens": st.integers(1, 14),
    "stop_ids": st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3, unique=True),
    "length_penalty": st.sampled_from([-0.5, 0.0, 1.0, 2.0]),
    "early_stopping": st.booleans(),
    "repetition_penalty": st.sampled_from([0.8, 1.0, 1.3, 2.0]),
    "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2, 3]),
}


def model(seed: int) -> GPT2LMHeadModel:
    """Return a model with weights so large that tokens depend on the beam, and so small that scores stay close."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3, pad_token_id=0
    )
    torch.manual_seed(seed)
    made = GPT2LMHeadModel(config)
    made.eval()
    return made


MODELS = [model(seed) for seed in range(12)]


def theirs(made: Any, prompt: list[int], width: int, max_tokens: int, **choices: Any) -> list[int]:
    stop_ids = choices.pop("stop_ids")
    if width == 1:  # generate warns that these do nothing
        del choices["length_penalty"], choices["early_stopping"]
    ids = made.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=width,
        max_new_tokens=max_tokens,
        eos_token_id=stop_ids,
        pad_token_id=0,
        do_sample=False,
        use_cache=False,
        **choices,
    )
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


@torch.no_grad()
def ours(made: Any, prompt: list[int], **choices: Any) -> BeamSearch:
    search = BeamSearch(prompt, **choices)
    beams = [list(prompt)] * search.width
    steps = 0
    while (step := search.advance(made(torch.tensor(beams), use_cache=False).logits[:, -1])) is not None:
        beams = [[*beams[parent], token] for parent, token in zip(*step, strict=True)]
        steps += 1
        assert steps < choices["max_tokens"], "the search does not end"
    return search


@torch.no_grad()
def check(made: Any, prompt: list[int], **choices: Any) -> None:
    search, expected = ours(made, prompt, **choices), theirs(made, prompt, **choices)
    stop_ids = choices["stop_ids"]
    assert search.best == [token for token in expected if token not in stop_ids]
    assert search.stopped == (expected[-1] in stop_ids)
    assert search.num_sampled_tokens == len(expected)
    logits_LV = made(torch.tensor([prompt + expected])).logits[0, len(prompt) - 1 : -1]
    own = logits_LV.log_softmax(-1).gather(-1, torch.tensor(expected)[:, None]).sum()
    assert search.logprob_sum == pytest.approx(float(own), abs=1e-3)


@given(st.sampled_from(MODELS), st.fixed_dictionaries(CHOICES))
@settings(max_examples=200, deadline=None)
def test_it_finds_what_generate_finds(made: GPT2LMHeadModel, choices: dict[str, Any]) -> None:
    check(made, **choices)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_it_finds_what_generate_finds_with_cross_attention(width: int, early_stopping: bool) -> None:
    for seed in range(3):
        image = tiny.features(seed)[None]

        class WithImage:
            """The tiny decoder with cross-attention to one image."""

            def __call__(self, ids: torch.Tensor, **_: Any) -> Any:
                hidden = image.repeat(len(ids), 1, 1)  # noqa: B023
                return tiny.gpt2()(input_ids=ids, encoder_hidden_states=hidden, use_cache=False)

            def generate(self, ids: torch.Tensor, **choices: Any) -> Any:
                made: Any = tiny.gpt2()
                return made.generate(ids, encoder_hidden_states=image, **choices)  # noqa: B023

        check(
            WithImage(),
            [0],
            width=width,
            max_tokens=12,
            stop_ids=[1, tiny.STOP],
            length_penalty=1.0,
            early_stopping=early_stopping,
            repetition_penalty=1.0,
        )


@given(st.sampled_from(MODELS), st.fixed_dictionaries({**CHOICES, "width": st.just(1)}))
@settings(max_examples=30, deadline=None)
def test_one_beam_is_greedy_search(made: GPT2LMHeadModel, choices: dict[str, Any]) -> None:
    choices |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    ids = list(choices["prompt"])
    while len(ids) < len(choices["prompt"]) + choices["max_tokens"]:
        with torch.no_grad():
            token = int(made(torch.tensor([ids])).logits[0, -1].argmax())
        if token in choices["stop_ids"]:
            break
        ids.append(token)
    assert ours(made, **choices).best == ids[len(choices["prompt"]) :]


@given(
    st.integers(2, 5),
    st.integers(1, 8),
    st.sets(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_ties_are_broken_as_in_generate(
    width: int, max_tokens: int, stop_ids: set[int], early_stopping: bool, seed: int
) -> None:
    """Use logits with few distinct values, as in half precision, that depend only on the last token."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)).mul(2).round()
    made: Any = GPT2LMHeadModel(MODELS[0].config).eval()

    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (dict,), {"logits": table[input_ids]})(logits=table[input_ids])

    made.forward = forward
    choices = {"length_penalty": 1.0, "early_stopping": early_stopping, "repetition_penalty": 1.0}
    stops = sorted(stop_ids)
    search = ours(forward, [5], width=width, max_tokens=max_tokens, stop_ids=stops, **choices)
    expected = theirs(made, [5], width, max_tokens, stop_ids=stops, **choices)
    assert search.best == [token for token in expected if token not in stop_ids]


@pytest.mark.parametrize(("width", "max_tokens"), [(0, 3), (2, 0)])
def test_a_width_or_max_tokens_of_zero_is_refused(width: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BeamSearch([0], width=width, max_tokens=max_tokens, stop_ids=[1])


@pytest.mark.parametrize("width", [1, 3])
def test_nan_logits_give_a_caption_of_valid_tokens_without_an_error(width: int) -> None:
    search = BeamSearch([0], width=width, max_tokens=3, stop_ids=[1])
    while search.advance(torch.full((width, VOCABULARY), torch.nan)) is not None:
        pass
    assert all(0 <= token < VOCABULARY for token in search.best)
