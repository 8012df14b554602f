"""The engine with a real decoder: each caption as if it were alone, whoever comes, leaves or fails around it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.engine.beam_search import BeamSearch
from captioner.engine.engine import Engine
from captioner.engine.sampling import Sampling
from captioner.engine.sequence import FinishReason, Sequence
from captioner.errors import ServerBusy, ServerStopping
from tests.support import tiny

LONG = 4  # an image whose caption goes on


class Watched(Sequence):
    """A sequence that keeps what it is told."""

    def __init__(
        self, image: int = 0, prompt_ids: list[int] | None = None, max_tokens: int = 8, **options: Any
    ) -> None:
        self.image = image
        self.heard: list[int] = []
        self.reasons: list[FinishReason] = []
        self.done = threading.Event()
        super().__init__(
            prompt_ids or [0, 2],
            options.pop("sampling", Sampling()),
            max_tokens,
            on_token=self.heard.append,
            on_finish=self._finished,
            features=tiny.features(image),
            **options,
        )

    def _finished(self, reason: FinishReason) -> None:
        self.reasons.append(reason)
        self.done.set()

    def alone(self, stop: int = tiny.STOP) -> list[int]:
        """Its tokens without an engine and without a cache."""
        if self.beams is not None:
            options = {"num_beams": self.beams.width, "max_new_tokens": self.max_tokens}
            return tiny.generate(self.image, self.prompt_ids, **options)
        return tiny.greedy(tiny.features(self.image), self.prompt_ids, self.max_tokens, stop)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Faulty(CrossAttentionDecoder):
    """The real decoder, made to fail where `fails` says so."""

    fails: frozenset[str] = frozenset()

    def prefill(self, row: int, features: torch.Tensor, prompt_ids: list[int]) -> None:
        self._check("prefill")
        super().prefill(row, features, prompt_ids)

    def decode(self, ids_B: torch.Tensor, positions_B: torch.Tensor, span: int) -> torch.Tensor:
        self._check("decode")
        return super().decode(ids_B, positions_B, span)

    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        self._check("copy")
        super().copy(sources, targets, length)

    def _check(self, what: str) -> None:
        if what in self.fails:
            raise RuntimeError(f"{what} failed")


def engine(
    slots: int = 3,
    max_waiting: int = 50,
    clock: Callable[[], float] = time.monotonic,
    kind: type[CrossAttentionDecoder] = CrossAttentionDecoder,
    stop_ids: tuple[int, ...] = (1, tiny.STOP),
    *,
    async_scheduling: bool = False,
) -> Engine:
    return Engine(
        tiny.runner(slots, kind, async_scheduling=async_scheduling), stop_ids, max_waiting=max_waiting, clock=clock
    )


def faulty(slots: int) -> tuple[Engine, Faulty]:
    """An engine and its decoder, which can be made to fail."""
    one = engine(slots, kind=Faulty)
    decoder = one._runner.decoder
    assert isinstance(decoder, Faulty)
    return one, decoder


def submit(to: Engine, *sequences: Sequence) -> None:
    for sequence in sequences:
        to.admit()
        to.submit(sequence)


def run(one: Engine) -> None:
    """Steps by hand until nothing is left."""
    for _ in range(1000):
        load = one.load()
        if not load.running + load.waiting:
            return
        one.step()
    raise AssertionError("the engine does not come to an end")


def crowd(chance: random.Random, count: int) -> list[Watched]:
    return [
        Watched(
            image=chance.randrange(12),
            prompt_ids=[0, *(chance.randrange(2, 250) for _ in range(chance.randrange(12)))],
            max_tokens=chance.randrange(1, 30),
            priority_level=chance.randrange(1, 4),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_thirty_captions_that_come_and_go_are_each_as_if_alone(seed: int, async_scheduling: bool) -> None:
    chance = random.Random(seed)
    one, sequences = engine(slots=5, async_scheduling=async_scheduling), crowd(chance, 30)
    arrivals = {sequence: chance.randrange(40) for sequence in sequences}
    leaving = {sequence: arrivals[sequence] + chance.randrange(1, 12) for sequence in sequences[:7]}
    for step in range(400):
        submit(one, *(sequence for sequence in sequences if arrivals[sequence] == step))
        for sequence in sequences:
            sequence.cancelled |= leaving.get(sequence) == step
        one.step()
    for sequence in sequences:
        whole = sequence.alone()
        assert len(sequence.reasons) == 1
        if sequence.reasons == ["cancelled"]:
            assert sequence.heard == whole[: len(sequence.heard)]
        else:
            assert sequence.heard == sequence.token_ids == whole
            assert sequence.reasons == ["length" if len(whole) == sequence.max_tokens else "stop"]
    reasons = [sequence.reasons[0] for sequence in sequences]
    assert {"stop", "length", "cancelled"} <= set(reasons), "the test must meet every way to end"
    assert one.load().tokens == sum(len(sequence.heard) for sequence in sequences)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_beam_searches_among_other_captions_are_each_as_if_alone(async_scheduling: bool) -> None:
    chance = random.Random(3)
    one, sequences = engine(slots=6, async_scheduling=async_scheduling), crowd(chance, 24)
    for number, sequence in enumerate(sequences):
        if number % 3 == 0:
            sequence.beams = BeamSearch(
                sequence.prompt_ids, width=2 + number % 4, max_tokens=sequence.max_tokens, stop_ids=(1, tiny.STOP)
            )
    for sequence in sequences:
        submit(one, sequence)
        for _ in range(chance.randrange(4)):
            one.step()
    run(one)
    assert [sequence.error for sequence in sequences] == [None] * 24
    assert [sequence.heard for sequence in sequences] == [sequence.alone() for sequence in sequences]


def test_a_penalty_holds_for_its_own_caption_whoever_moves_rows() -> None:
    def penalised(image: int) -> Watched:
        return Watched(image, max_tokens=20, sampling=Sampling(repetition_penalty=1.6))

    alone = []
    for image in range(6):
        one, sequence = engine(slots=1), penalised(image)
        submit(one, sequence)
        run(one)
        alone.append(sequence.heard)
    one, together = engine(slots=4), [penalised(image) for image in range(6)]
    for sequence, short in zip(together, [Watched(image, max_tokens=3) for image in range(6)], strict=True):
        submit(one, short, sequence)
        one.step()
    run(one)
    assert [sequence.heard for sequence in together] == alone
    assert alone != [Watched(image, max_tokens=20).alone() for image in range(6)], "the penalty must matter"


def test_sampled_captions_do_not_depend_on_who_shares_the_steps() -> None:
    def sampled(seed: int) -> Watched:
        return Watched(seed, max_tokens=20, sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed))

    alone = []
    for seed in range(6):
        one, sequence = engine(slots=1), sampled(seed)
        submit(one, sequence)
        run(one)
        alone.append(sequence.heard)
    one, together = engine(slots=4), [sampled(seed) for seed in range(6)]
    submit(one, *together)
    run(one)
    assert [sequence.heard for sequence in together] == alone


def test_a_caption_may_fill_the_context_to_its_last_position() -> None:
    prompt = [0, *range(2, 9)]
    sequence = Watched(3, prompt, max_tokens=tiny.CONTEXT - len(prompt))
    one = engine(1, 0, stop_ids=())
    submit(one, sequence)
    run(one)
    assert sequence.reasons == ["length"]
    assert sequence.heard == sequence.alone(stop=-1)
    assert len(sequence.heard) == tiny.CONTEXT - len(prompt)


def test_features_are_let_go_once_the_cache_holds_them() -> None:
    one, sequence = engine(), Watched()
    submit(one, sequence)
    one.step()
    assert sequence.features is None


@pytest.mark.parametrize("what", ["decode", "copy"])
def test_a_failing_step_fails_its_captions_and_the_engine_goes_on(what: str) -> None:
    one, decoder = faulty(3)
    running, waiting = [Watched(i, max_tokens=4 + 10 * i) for i in range(3)], Watched(5)
    submit(one, *running)
    one.step()
    submit(one, waiting)
    decoder.fails = frozenset({what})
    while not all(sequence.reasons for sequence in running):
        one.step()
    decoder.fails = frozenset()
    run(one)
    assert all(len(sequence.reasons) == 1 for sequence in running)
    failed = [sequence for sequence in running if sequence.reasons == ["failed"]]
    assert len(failed) >= 2
    assert all(f"{what} failed" in str(sequence.error) for sequence in failed)
    assert waiting.heard == waiting.alone()
    assert waiting.error is None


def test_a_decoder_that_fails_in_everything_still_gets_every_request_answered() -> None:
    one, decoder = faulty(3)
    sequences = [Watched(i, max_tokens=20) for i in range(8)]
    submit(one, *sequences)
    one.step()
    decoder.fails = frozenset({"prefill", "decode", "copy"})
    run(one)
    assert [sequence.reasons for sequence in sequences] == [["failed"]] * 8


def test_a_failing_prefill_fails_its_own_caption_only() -> None:
    one, good, bad = engine(), Watched(1), Watched(2)
    bad.features = torch.zeros(tiny.FEATURE_TOKENS, tiny.FEATURE_WIDTH + 1)
    missing = Watched(3)
    missing.features = None
    submit(one, good, bad, missing)
    run(one)
    assert bad.reasons == missing.reasons == ["failed"]
    assert good.heard == good.alone()


def test_a_deadline_before_the_first_token_leaves_no_text() -> None:
    clock = Clock()
    one = engine(slots=1, clock=clock)
    first, late = Watched(LONG, max_tokens=20), Watched(2, deadline=5.0)
    submit(one, first, late)
    one.step()
    clock.now = 5.0
    one.step()
    assert (late.reasons, late.heard) == (["deadline"], [])
    assert first.reasons == []


def test_a_deadline_in_the_middle_ends_the_caption_where_it_is() -> None:
    clock = Clock()
    one, sequence, other = engine(clock=clock), Watched(LONG, max_tokens=20, deadline=5.0), Watched(1)
    submit(one, sequence, other)
    one.step()
    one.step()
    heard = list(sequence.heard)
    assert heard
    clock.now = 5.0
    run(one)
    assert sequence.reasons == ["deadline"]
    assert sequence.heard == heard == sequence.alone()[: len(heard)]
    assert other.heard == other.alone()


def test_a_cancelled_caption_gets_no_token_more_and_frees_its_slot() -> None:
    one = engine(slots=1)
    sequence, waiting, gone = Watched(LONG, max_tokens=20), Watched(1), Watched(2)
    submit(one, sequence, waiting, gone)
    one.step()
    heard = list(sequence.heard)
    sequence.cancelled = gone.cancelled = True
    one.step()
    assert sequence.heard == heard
    assert sequence.reasons == gone.reasons == ["cancelled"]
    assert gone.heard == []
    assert waiting.heard, "the slot was free for the next in the same step"


def test_urgent_requests_take_the_next_slot() -> None:
    one, order = engine(slots=1), []
    sequences = {level: Watched(level, max_tokens=1, priority_level=level) for level in (3, 2, 1)}
    for level, sequence in sequences.items():
        sequence.on_finish = lambda _, level=level: order.append(level)  # type: ignore[misc]
        submit(one, sequence)
    run(one)
    assert order == [1, 2, 3]


def test_a_thread_decodes_what_many_threads_submit_and_closing_lets_all_finish() -> None:
    one, sequences = engine(slots=4), crowd(random.Random(9), 24)
    one.start()
    threads = [threading.Thread(target=submit, args=(one, *sequences[i::4])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    assert all(len(sequence.reasons) == 1 for sequence in sequences)
    assert [sequence.heard for sequence in sequences] == [sequence.alone() for sequence in sequences]
    with pytest.raises(ServerStopping):
        one.admit()


def test_closing_waits_for_who_is_still_being_encoded() -> None:
    one, sequence = engine(), Watched()
    one.start()
    one.admit()
    one.admit()
    closing = threading.Thread(target=one.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    one.submit(sequence)
    assert sequence.done.wait(10)
    assert closing.is_alive(), "one place is still taken"
    one.withdraw()
    closing.join(10)
    assert not closing.is_alive()


@given(st.lists(st.sampled_from(["admit", "withdraw", "submit", "late", "cancel", "broken", "step"]), max_size=40))
@settings(max_examples=40, deadline=None)
def test_no_order_of_events_ever_loses_a_place(events: list[str]) -> None:
    clock = Clock()
    one = engine(slots=2, max_waiting=3, clock=clock)
    encoding, sequences = 0, list[Watched]()
    for event in events:
        if event == "admit":
            if one.load().running + one.load().waiting < 5:
                one.admit()
                encoding += 1
            else:
                with pytest.raises(ServerBusy):
                    one.admit()
        elif event == "step":
            clock.now += 1
            one.step()
        elif event == "cancel":
            for sequence in sequences[-1:]:
                sequence.cancelled = True
        elif encoding and event == "withdraw":
            one.withdraw()
            encoding -= 1
        elif encoding:
            deadline = clock.now + 1 if event == "late" else float("inf")
            sequences.append(Watched(len(sequences), max_tokens=3, deadline=deadline))
            if event == "broken":
                sequences[-1].features = None
            one.submit(sequences[-1])
            encoding -= 1
    for _ in range(encoding):
        one.withdraw()
    run(one)
    assert all(len(sequence.reasons) == 1 for sequence in sequences)
    for _ in range(5):
        one.admit()
    with pytest.raises(ServerBusy):
        one.admit()
