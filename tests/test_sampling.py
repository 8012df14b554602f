"""Tokens are drawn as `generate()` would draw them, from each request's own seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from captioner.engine.sampling import pick, processors
from captioner.engine.sequence import Sampling, Sequence
from tests import tiny

VOCABULARY = 40
MODEL: Any = tiny.gpt2()


def logits(seed: int, rows: int = 1) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def sequence(sampling: Sampling, written: list[int] | None = None) -> Sequence:
    return Sequence(prompt_ids=[0], sampling=sampling, max_tokens=100, token_ids=written or [])


def draws(sampling: Sampling, count: int, row: torch.Tensor) -> list[int]:
    one = sequence(sampling)
    return [pick(row, [one])[0] for _ in range(count)]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    seed=st.integers(0, 2**53),
)


@given(SAMPLINGS, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_scores_are_those_of_transformers_own_generate(sampling: Sampling, written: list[int], seed: int) -> None:
    sample = sampling.temperature > 0
    config = GenerationConfig(
        do_sample=sample,
        repetition_penalty=sampling.repetition_penalty,
        **({"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p} if sample else {}),
    )
    ids: Any = torch.tensor([written])
    theirs = MODEL._get_logits_processor(config, input_ids_seq_length=len(written))(ids, logits(seed))
    assert torch.equal(processors(sampling)(ids, logits(seed)), theirs)


def test_temperature_zero_takes_the_likeliest_token_that_the_penalty_leaves() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 7], row[0, 9] = 2.0, 1.5
    assert pick(row, [sequence(Sampling())]) == [7]
    assert pick(row, [sequence(Sampling(repetition_penalty=2.0), [7])]) == [9]


def test_the_tokens_of_the_prompt_are_penalised_too_as_in_generate() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 0], row[0, 9] = 2.0, 1.5
    assert pick(row, [sequence(Sampling(repetition_penalty=2.0))]) == [9]


@given(st.integers(0, 2**53), st.integers(0, 20), st.integers(1, 6), st.data())
@settings(max_examples=25, deadline=None)
def test_a_seed_draws_the_same_tokens_whoever_shares_the_batch(
    seed: int, row_seed: int, others: int, data: st.DataObject
) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.95, seed=seed)
    row = logits(row_seed)
    alone = draws(sampling, 12, row)
    at = data.draw(st.integers(0, others))
    batch = [sequence(Sampling(temperature=2.0, seed=number)) for number in range(others)]
    batch.insert(at, sequence(sampling))
    crowd = logits(99, others + 1)
    crowd[at] = row[0]
    assert [pick(crowd, batch)[at] for _ in range(12)] == alone


def test_other_seeds_draw_other_tokens() -> None:
    texts = {tuple(draws(Sampling(temperature=1.5, seed=seed), 12, logits(0))) for seed in range(50)}
    assert len(texts) == 50


def test_draws_follow_the_softmax() -> None:
    row, count = logits(1) / 3, 4000
    found = Counter(draws(Sampling(temperature=1.0, seed=5), count, row))
    expected = row[0].softmax(-1) * count
    assert expected.min() > 5
    chi_squared = sum(
        (found[token] - float(expected[token])) ** 2 / float(expected[token]) for token in range(VOCABULARY)
    )
    assert chi_squared < 72.1, "a chance of one in a thousand at 39 degrees of freedom"


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=2.0, top_k=3, seed=1), Sampling(temperature=2.0, top_p=0.2, seed=1)]
)
def test_a_token_that_was_cut_off_is_never_drawn(sampling: Sampling) -> None:
    row = logits(2)
    probability, order = row[0].div(sampling.temperature).softmax(-1).sort(descending=True)
    allowed = 3 if sampling.top_k else int((probability.cumsum(0) < sampling.top_p).sum()) + 1
    assert set(draws(sampling, 500, row)) == set(order[:allowed].tolist())


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-20, 1e-3])
def test_the_smallest_temperatures_draw_the_likeliest_and_never_fail_their_neighbours(temperature: float) -> None:
    rows = logits(3, 2) * 10
    tokens = pick(rows, [sequence(Sampling(temperature=temperature, seed=4)), sequence(Sampling())])
    assert tokens == rows.argmax(-1).tolist()


def test_the_log_probability_is_the_models_own_before_any_processor() -> None:
    one, row = sequence(Sampling(temperature=0.1, top_k=1, repetition_penalty=2.0, seed=1)), logits(4)
    expected = sum(float(row[0].log_softmax(-1)[token]) for token in (pick(row, [one])[0], pick(row, [one])[0]))
    assert one.logprob_sum == pytest.approx(expected, abs=1e-5)
    assert one.picked == 2


def test_half_precision_logits_are_sampled_in_full() -> None:
    row = logits(5)
    assert draws(Sampling(temperature=1.0, seed=1), 20, row.half()) == draws(
        Sampling(temperature=1.0, seed=1), 20, row.half().float()
    )
