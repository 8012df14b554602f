"""Consensus decoding keeps what most samples say, and depends on the request alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.engine.consensus import MISSING_WEIGHT, Candidates, consensus
from captioner.engine.sampling import Sampling
from tests.engine.harness import RecordedSequence, make_engine, run, submit
from tests.support import tiny

STOP = 0


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


def test_the_chosen_caption_has_its_own_probability_and_end() -> None:
    three = Candidates(3, max_tokens=3, stop_ids=[STOP])
    assert not three.append([5, 5, STOP], [-1.0, -2.0, -0.5])
    assert not three.append([6, STOP, 9], [-1.0, -0.25, -9.0])
    assert three.append([7, 9, 9], [-1.0, -9.0, -9.0])
    assert (three.best, three.stopped, three.logprob_sum, three.num_sampled_tokens) == ([5], True, -2.25, 2)


def test_a_caption_that_ends_at_the_limit_has_not_stopped() -> None:
    one = Candidates(1, max_tokens=2, stop_ids=[STOP])
    assert not one.append([5], [-1.0])
    assert one.append([6], [-1.0])
    assert (one.best, one.stopped, one.num_sampled_tokens) == ([5, 6], False, 2)


@pytest.mark.parametrize(("width", "max_tokens"), [(0, 3), (2, 0)])
def test_no_width_and_no_tokens_are_refused(width: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Candidates(width, max_tokens=max_tokens, stop_ids=[STOP])


class Draws(random.Random):
    """Random numbers that a test has chosen."""

    def __init__(self, numbers: Iterable[float]) -> None:
        super().__init__()
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


def wide(image: int, seed: int = 0, width: int = 3, **sampling: Any) -> RecordedSequence:
    """Return a request of several candidates."""
    sequence = RecordedSequence(image, max_tokens=12, sampling=Sampling(**{"temperature": 1.0} | sampling, seed=seed))
    sequence.candidates = Candidates(width, max_tokens=12, stop_ids=(1, tiny.STOP))
    return sequence


def alone(sequence: RecordedSequence, *, async_scheduling: bool = False) -> list[int]:
    engine = make_engine(slots=sequence.width, async_scheduling=async_scheduling)
    submit(engine, sequence)
    run(engine)
    assert sequence.received == sequence.token_ids
    return sequence.received


def test_the_caption_is_the_consensus_of_captions_sampled_one_by_one() -> None:
    """Candidate n of a step takes draw n, so with two candidates a single caption takes every second draw."""
    sampling = Sampling(temperature=1.0, seed=5)
    draws = random.Random(5)
    numbers = [[draws.random() for _ in range(2)] for _ in range(12)]
    single = []
    for candidate in range(2):
        mine = RecordedSequence(3, max_tokens=12, sampling=sampling)
        mine._random = Draws(pair[candidate] for pair in numbers)
        single.append(alone(mine))
    assert single[0] != single[1]
    assert alone(wide(3, seed=5, width=2)) == single[consensus(single)]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_caption_depends_on_its_seed_and_not_on_others(async_scheduling: bool) -> None:
    expected = [alone(wide(image)) for image in range(4)]
    engine, together = make_engine(slots=8, async_scheduling=async_scheduling), [wide(image) for image in range(4)]
    for sequence in together:
        submit(engine, sequence, RecordedSequence(9, max_tokens=5))
        engine.step()
    run(engine)
    assert [sequence.received for sequence in together] == expected
    assert all(expected) and [sequence.error for sequence in together] == [None] * 4
    assert len({tuple(alone(wide(0, seed=seed))) for seed in range(8)}) > 3


def test_all_rules_of_sampling_hold_for_candidates() -> None:
    greedy = RecordedSequence(2, max_tokens=12)
    assert alone(wide(2, top_k=1)) == alone(greedy) != alone(wide(2))
