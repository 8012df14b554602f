"""Sampling matches transformers' `generate()`, and each row of a batch matches the same row alone."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from captioner.decoders.rows import RowCopy
from captioner.engine.sampling import MAX_NGRAM, Sampling, SamplingBatch, draw, next_tokens, penalise, processed, warp
from captioner.wire import PARAMETERS
from tests.support import tiny

VOCABULARY = 40
MODEL: Any = tiny.gpt2()
CPU = torch.device("cpu")


def logits(seed: int, rows: int = 1) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def batch(samplings: list[Sampling], seen: list[list[int]] | None = None) -> SamplingBatch:
    made = SamplingBatch.allocate(len(samplings), VOCABULARY, 24, CPU)
    for row, sampling in enumerate(samplings):
        made.set(row, sampling, seen[row] if seen else [])
    return made


def ends(made: SamplingBatch) -> torch.Tensor:
    """Return the last position of each row's text; 0 for rows that need none."""
    last: torch.Tensor = (made.history >= 0).sum(-1) - 1
    return last.clamp(min=0)


def pick(logits_NV: torch.Tensor, made: SamplingBatch, uniform: list[float]) -> tuple[list[int], list[float]]:
    tokens, logprobs = next_tokens(
        logits_NV, made, torch.tensor(uniform, dtype=torch.float64), ends(made), penalised=True, sampled=True
    )
    return tokens.tolist(), logprobs.tolist()


def draws(sampling: Sampling, count: int, row: torch.Tensor) -> list[int]:
    random = Random(sampling.seed)
    rows = row.expand(count, VOCABULARY)
    return pick(rows, batch([sampling] * count), [random.random() for _ in range(count)])[0]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2, 3, 8]),
    seed=st.integers(0, 2**53),
)
WRITTEN = st.lists(st.integers(0, VOCABULARY - 1) | st.integers(0, 1), min_size=1, max_size=24)
ROWS = st.lists(st.tuples(SAMPLINGS, WRITTEN, st.integers(0, 99), st.booleans()), min_size=1, max_size=6)
Rows = list[tuple[Sampling, list[int], int, bool]]


def of(rows: Rows) -> tuple[torch.Tensor, SamplingBatch]:
    """Return the logits and parameters of rows; the logits of some rows are full of ties, as in half precision."""
    values = [logits(seed).round() if ties else logits(seed) for _, _, seed, ties in rows]
    return torch.cat(values), batch([row[0] for row in rows], [row[1] for row in rows])


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_each_row_of_a_mixed_batch_has_the_scores_of_transformers(rows: Rows) -> None:
    logits_NV, made = of(rows)
    processed_NV = processed(logits_NV, made, ends(made))
    warped_NV = warp(processed_NV, made.temperature, made.top_k, made.top_p)
    for row, (sampling, written, _, _) in enumerate(rows):
        sample = sampling.temperature > 0
        config = GenerationConfig(
            do_sample=sample,
            repetition_penalty=sampling.repetition_penalty,
            no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            **(
                {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
                if sample
                else {}
            ),
        )
        chain = MODEL._get_logits_processor(config, input_ids_seq_length=len(written))
        theirs = chain(torch.tensor([written]), logits_NV[row : row + 1])[0]
        assert torch.equal((warped_NV if sample else processed_NV)[row], theirs)
        assert not warped_NV[row].isnan().any()


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_top_p_removes_the_same_tied_tokens_as_transformers(top_p: float) -> None:
    values = torch.randn(4, 4096, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    top_k = torch.tensor([0, 50, 700, 2000])
    warped = warp(values, torch.ones(4), top_k, torch.full((4,), top_p, dtype=torch.float64))
    for row in range(4):
        config = GenerationConfig(do_sample=True, temperature=1.0, top_k=int(top_k[row]), top_p=top_p)
        chain = MODEL._get_logits_processor(config, input_ids_seq_length=1)
        assert torch.equal(warped[row], chain(torch.tensor([[0]]), values[row : row + 1])[0])


@given(ROWS, st.integers(0, 2**53))
@settings(max_examples=100, deadline=None)
def test_each_row_of_a_mixed_batch_is_bit_identical_to_the_row_alone(rows: Rows, seed: int) -> None:
    logits_NV, made = of(rows)
    random = Random(seed)
    uniform = [random.random() for _ in rows]
    alone = [
        pick(logits_NV[row : row + 1], of(rows[row : row + 1])[1], uniform[row : row + 1]) for row in range(len(rows))
    ]
    assert pick(logits_NV, made, uniform) == ([token for (token,), _ in alone], [logprob for _, (logprob,) in alone])


@given(ROWS, st.integers(0, 2**53))
@settings(max_examples=50, deadline=None)
def test_skipping_unneeded_stages_and_rows_changes_nothing(rows: Rows, seed: int) -> None:
    logits_NV, made = of(rows)
    random = Random(seed)
    uniform = [random.random() for _ in rows]
    sampled = [row for row, (sampling, *_) in enumerate(rows) if sampling.temperature > 0]
    tokens, logprobs = next_tokens(
        logits_NV,
        made,
        torch.tensor(uniform, dtype=torch.float64),
        ends(made),
        penalised=any(sampling.penalises for sampling, *_ in rows),
        sampled=bool(sampled),
        rows=sampled,
    )
    assert (tokens.tolist(), logprobs.tolist()) == pick(logits_NV, made, uniform)


def test_the_longest_ngram_of_a_request_is_the_longest_of_a_step() -> None:
    assert PARAMETERS["no_repeat_ngram_size"].maximum == MAX_NGRAM


def test_a_penalty_of_one_leaves_a_row_bit_identical() -> None:
    values = torch.cat([logits(6), torch.tensor([[-0.0, 0.0, torch.inf, -torch.inf] * 10])])
    same = penalise(values, torch.ones(2, VOCABULARY, dtype=torch.bool), torch.ones(2))
    assert torch.equal(same.view(torch.int32), values.view(torch.int32))


def test_temperature_zero_takes_the_likeliest_token_after_the_penalty() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 7], row[0, 9] = 2.0, 1.5
    assert pick(row, batch([Sampling()], [[7]]), [0.5])[0] == [7]
    assert pick(row, batch([Sampling(repetition_penalty=2.0)], [[7]]), [0.5])[0] == [9]


def test_a_new_row_penalises_only_its_own_ids_below_the_vocabulary_size() -> None:
    made = batch([Sampling()], [[3, VOCABULARY, VOCABULARY + 9]])
    assert made.seen[0].nonzero().flatten().tolist() == [3]
    made.set(0, Sampling(), [4])
    assert made.seen[0].nonzero().flatten().tolist() == [4]


def test_copies_read_all_sources_first_and_the_first_rows_are_views() -> None:
    samplings = [Sampling(temperature=float(row), top_k=row, top_p=row / 4) for row in range(4)]
    made = batch(samplings, [[row] for row in range(4)])
    made.copy(RowCopy([0, 1, 1], [1, 0, 3], torch.device("cpu")))
    assert made.temperature.tolist() == [1, 0, 2, 1]
    assert made.top_k.tolist() == [1, 0, 2, 1]
    assert made.top_p.tolist() == [0.25, 0, 0.5, 0.25]
    assert made.seen.nonzero().tolist() == [[0, 1], [1, 0], [2, 2], [3, 1]]
    made.copy(RowCopy([], [], torch.device("cpu")))
    first = made.rows(2)
    first.set(1, Sampling(temperature=9.0), [5])
    assert made.temperature.tolist() == [1, 9, 2, 1]
    assert first.seen.shape == (2, VOCABULARY)


def test_different_seeds_draw_different_tokens() -> None:
    texts = {tuple(draws(Sampling(temperature=1.5, seed=seed), 12, logits(0))) for seed in range(50)}
    assert len(texts) == 50


@pytest.mark.parametrize("cut", [{}, {"top_k": 12}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.8}], ids=str)
def test_draws_follow_the_distribution_of_transformers(cut: dict[str, Any]) -> None:
    row, count = logits(1) / 3, 20_000
    config = GenerationConfig(do_sample=True, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **cut})
    chain = MODEL._get_logits_processor(config, input_ids_seq_length=1)
    expected = chain(torch.tensor([[0]]), row.clone())[0].softmax(-1) * count
    found = Counter(draws(Sampling(temperature=1.0, seed=5, **cut), count, row))
    allowed = expected.nonzero().flatten().tolist()
    assert expected[allowed].min() > 5
    assert set(found) == set(allowed)
    chi_squared = sum((found[token] - float(expected[token])) ** 2 / float(expected[token]) for token in allowed)
    freedom = len(allowed) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty
    assert chi_squared < limit, "by chance this fails once in a thousand seeds"


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=2.0, top_k=3, seed=1), Sampling(temperature=2.0, top_p=0.2, seed=1)]
)
def test_a_token_removed_by_top_k_or_top_p_is_never_drawn(sampling: Sampling) -> None:
    row = logits(2)
    probability, order = row[0].div(sampling.temperature).softmax(-1).sort(descending=True)
    allowed = 3 if sampling.top_k else int((probability.cumsum(0) < sampling.top_p).sum()) + 1
    assert set(draws(sampling, 500, row)) == set(order[:allowed].tolist())


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, unique=True), st.integers(0, 99))
def test_the_ends_of_the_uniform_range_draw_the_first_and_last_possible_token(possible: list[int], seed: int) -> None:
    scores = torch.full((2, VOCABULARY), -torch.inf)
    scores[:, possible] = logits(seed)[:, possible]
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, ends).tolist() == [min(possible), max(possible)]


def test_a_row_of_nan_gives_a_valid_token_and_does_not_change_its_neighbours() -> None:
    rows = torch.cat([torch.full((1, VOCABULARY), torch.nan), logits(8)])
    tokens, _ = pick(rows, batch([Sampling(temperature=1.0, top_k=5, top_p=0.9)] * 2), [0.5, 0.5])
    assert 0 <= tokens[0] < VOCABULARY
    assert tokens[1:] == pick(logits(8), batch([Sampling(temperature=1.0, top_k=5, top_p=0.9)]), [0.5])[0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-20, 1e-3])
def test_the_smallest_temperatures_draw_the_likeliest_token(temperature: float) -> None:
    rows = logits(3, 2) * 10
    tokens, _ = pick(rows, batch([Sampling(temperature=temperature, top_p=0.9), Sampling()]), [0.99, 0.0])
    assert tokens == rows.argmax(-1).tolist()


def test_the_log_probability_is_the_models_own_before_any_processor() -> None:
    row = logits(4)
    strange = Sampling(temperature=0.1, top_k=1, repetition_penalty=2.0)
    (token,), (logprob,) = pick(row, batch([strange], [[int(row.argmax())]]), [0.5])
    assert token != int(row.argmax())
    assert logprob == pytest.approx(float(row[0, token] - row[0].logsumexp(-1)), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_full_precision(dtype: torch.dtype) -> None:
    row, made = logits(5).to(dtype), batch([Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)], [[1, 2]])
    for uniform in (0.1, 0.5, 0.9):
        assert pick(row, made, [uniform]) == pick(row.float(), made, [uniform])


def test_shapes_depend_on_no_value_so_a_cuda_graph_can_hold_the_step() -> None:
    """On the meta device, reading a value back to the host raises."""
    meta = torch.device("meta")
    made = SamplingBatch.allocate(3, VOCABULARY, 9, meta)
    uniform = torch.empty(3, dtype=torch.float64, device=meta)
    positions = torch.empty(3, dtype=torch.long, device=meta)
    values = torch.empty(3, VOCABULARY, device=meta)
    tokens, logprobs = next_tokens(values, made, uniform, positions, penalised=True, sampled=True)
    made.append(tokens, positions)
    assert (tokens.shape, tokens.dtype) == ((3,), torch.int64)
    assert (logprobs.shape, logprobs.dtype) == ((3,), torch.float32)
