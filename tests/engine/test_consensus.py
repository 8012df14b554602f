"""Consensus decoding keeps what most samples say, and depends on the request alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioner.engine.consensus import MISSING_WEIGHT, ConsensusSearch, consensus
from tests.engine.harness import RecordedSequence, make_engine, run, submit
from tests.support import tiny

STOP, VOCABULARY = 0, 12


def finish(search: ConsensusSearch, logits_KV: torch.Tensor) -> list[int]:
    """Advance with the same logits in every step, and return the chosen caption."""
    for _ in range(100):
        if search.advance(logits_KV) is None:
            return search.best
    raise AssertionError("the search did not end")


def test_a_token_of_one_caption_alone_loses_against_none() -> None:
    assert consensus([[1, 2, 9], [1, 2], [1, 2, 3], [1, 2, 4]]) == 1


def test_a_token_is_kept_from_four_fifths_of_the_captions_on() -> None:
    assert consensus([[1, 2]] * 3 + [[1, 2, 3]] * 13) == 3
    assert consensus([[1, 2]] * 3 + [[1, 2, 3]] * 12) == 0


def test_an_empty_caption_is_chosen_only_if_all_are_empty() -> None:
    assert consensus([[], [1], [], [2, 3]]) == 1
    assert consensus([[], []]) == 0


def test_the_first_of_equals_is_chosen() -> None:
    assert consensus([[2, 1], [1, 2], [1, 1, 2]]) == 0


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=6))
def test_no_caption_has_a_smaller_expected_error(captions: list[list[int]]) -> None:
    def error(own: list[int]) -> float:
        return sum(len(set(own) - set(one)) + MISSING_WEIGHT * len(set(one) - set(own)) for one in captions)

    written = [caption for caption in captions if caption] or captions
    assert error(captions[consensus(captions)]) == pytest.approx(min(map(error, written)))


def search(width: int, *, seed: int = 0, max_tokens: int = 8, penalty: float = 1.0) -> ConsensusSearch:
    return ConsensusSearch(
        [1], width=width, max_tokens=max_tokens, stop_ids=[STOP], repetition_penalty=penalty, seed=seed
    )


def test_one_candidate_is_greedy() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 7] = 1.0
    one = search(1, max_tokens=3)
    assert finish(one, logits) == [7, 7, 7]
    assert not one.stopped and one.num_sampled_tokens == 3
    assert one.logprob_sum == pytest.approx(3 * float(logits.log_softmax(-1)[0, 7]), abs=1e-5)


def test_the_same_seed_gives_the_same_caption_and_others_differ() -> None:
    logits = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(0))
    found = [tuple(finish(search(8, seed=seed), logits)) for seed in (0, 0, *range(1, 12))]
    assert found[0] == found[1]
    assert len(set(found)) > 3


def test_candidates_follow_the_model_s_own_distribution() -> None:
    logits = torch.log(torch.tensor([0.001, 0.6, 0.3, 0.099])).repeat(16, 1)
    drawn: Counter[int] = Counter()
    for seed in range(40):
        many = search(16, seed=seed, max_tokens=2)
        step = many.advance(logits)
        assert step is not None
        drawn.update(step[1][1:])  # the first is greedy
    assert [drawn[token] / drawn.total() for token in (1, 2, 3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.06)


def test_a_row_that_has_ended_reads_the_stop_id_and_stays_as_it_is() -> None:
    one = search(2, max_tokens=3)
    stop, go = torch.full((VOCABULARY,), -1e9), torch.full((VOCABULARY,), -1e9)
    stop[STOP], go[5] = 0.0, 0.0
    assert one.advance(torch.stack([go, stop])) == ([0, 1], [5, STOP])
    assert one.advance(torch.stack([go, go])) == ([0, 1], [5, STOP])
    assert one.advance(torch.stack([stop, go])) is None


def test_the_penalty_counts_what_the_row_itself_has_written() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 7], logits[0, 8] = 1.0, 0.9
    assert finish(search(1, max_tokens=2, penalty=2.0), logits) == [7, 8]


def test_a_caption_is_the_same_beside_others() -> None:
    def wide(image: int) -> RecordedSequence:
        sequence = RecordedSequence(image, max_tokens=12)
        sequence.search = ConsensusSearch(sequence.prompt_ids, width=3, max_tokens=12, stop_ids=(1, tiny.STOP))
        return sequence

    alone = []
    for image in range(4):
        engine, sequence = make_engine(slots=3), wide(image)
        submit(engine, sequence)
        run(engine)
        alone.append(sequence.received)
    engine, together = make_engine(slots=8), [wide(image) for image in range(4)]
    for sequence in together:
        submit(engine, sequence, RecordedSequence(9, max_tokens=5))
        engine.step()
    run(engine)
    assert [sequence.received for sequence in together] == alone
    assert all(alone) and [sequence.error for sequence in together] == [None] * 4
