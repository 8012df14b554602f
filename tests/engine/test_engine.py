"""The engine with a real decoder: each caption equals the caption decoded alone, whatever the other requests do."""

from __future__ import annotations

import random
from typing import Any

import pytest

from captioner.engine.beam_search import BeamSearch
from captioner.engine.sampling import Sampling
from tests.engine.harness import RecordedSequence, crowd, make_engine, run, submit
from tests.support import tiny


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_captions_that_join_and_leave_equal_each_caption_alone(seed: int, async_scheduling: bool) -> None:
    rng = random.Random(seed)
    engine, sequences = make_engine(slots=5, async_scheduling=async_scheduling), crowd(rng, 30)
    arrivals = {sequence: rng.randrange(40) for sequence in sequences}
    leaving = {sequence: arrivals[sequence] + rng.randrange(1, 12) for sequence in sequences[:7]}
    for step in range(400):
        submit(engine, *(sequence for sequence in sequences if arrivals[sequence] == step))
        for sequence in sequences:
            sequence.cancelled |= leaving.get(sequence) == step
        engine.step()
    for sequence in sequences:
        whole = sequence.alone()
        assert len(sequence.reasons) == 1
        if sequence.reasons == ["cancelled"]:
            assert sequence.received == whole[: len(sequence.received)]
        else:
            assert sequence.received == sequence.token_ids == whole
            assert sequence.reasons == ["length" if len(whole) == sequence.max_tokens else "stop"]
    reasons = [sequence.reasons[0] for sequence in sequences]
    assert {"stop", "length", "cancelled"} <= set(reasons), "the test must reach every finish reason"
    assert engine.load().tokens == sum(len(sequence.received) for sequence in sequences)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_beam_searches_among_other_captions_equal_each_caption_alone(async_scheduling: bool) -> None:
    rng = random.Random(3)
    engine, sequences = make_engine(slots=6, async_scheduling=async_scheduling), crowd(rng, 24)
    for number, sequence in enumerate(sequences):
        if number % 3 == 0:
            sequence.beams = BeamSearch(
                sequence.prompt_ids, width=2 + number % 4, max_tokens=sequence.max_tokens, stop_ids=(1, tiny.STOP)
            )
    for sequence in sequences:
        submit(engine, sequence)
        for _ in range(rng.randrange(4)):
            engine.step()
    run(engine)
    assert [sequence.error for sequence in sequences] == [None] * 24
    assert [sequence.received for sequence in sequences] == [sequence.alone() for sequence in sequences]


@pytest.mark.parametrize("rule", [{"repetition_penalty": 1.6}, {"no_repeat_ngram_size": 2}])
def test_penalties_of_repetition_follow_their_caption_when_rows_move(rule: dict[str, Any]) -> None:
    def penalised(image: int) -> RecordedSequence:
        return RecordedSequence(image, max_tokens=20, sampling=Sampling(**rule))

    alone = []
    for image in range(6):
        engine, sequence = make_engine(slots=1), penalised(image)
        submit(engine, sequence)
        run(engine)
        alone.append(sequence.received)
    engine, together = make_engine(slots=4), [penalised(image) for image in range(6)]
    for sequence, short in zip(together, [RecordedSequence(image, max_tokens=3) for image in range(6)], strict=True):
        submit(engine, short, sequence)
        engine.step()
    run(engine)
    assert [sequence.received for sequence in together] == alone
    assert alone == [tiny.generate(image, [0, 2], max_new_tokens=20, **rule) for image in range(6)]
    assert alone != [RecordedSequence(image, max_tokens=20).alone() for image in range(6)], "the penalty must matter"


def test_sampled_captions_do_not_depend_on_the_other_requests() -> None:
    def sampled(seed: int) -> RecordedSequence:
        return RecordedSequence(seed, max_tokens=20, sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed))

    alone = []
    for seed in range(6):
        engine, sequence = make_engine(slots=1), sampled(seed)
        submit(engine, sequence)
        run(engine)
        alone.append(sequence.received)
    engine, together = make_engine(slots=4), [sampled(seed) for seed in range(6)]
    submit(engine, *together)
    run(engine)
    assert [sequence.received for sequence in together] == alone


def test_a_caption_may_fill_the_context_to_its_last_position() -> None:
    prompt = [0, *range(2, 9)]
    sequence = RecordedSequence(3, prompt, max_tokens=tiny.CONTEXT - len(prompt))
    engine = make_engine(1, 0, stop_ids=())
    submit(engine, sequence)
    run(engine)
    assert sequence.reasons == ["length"]
    assert sequence.received == sequence.alone(stop=-1)
    assert len(sequence.received) == tiny.CONTEXT - len(prompt)
