"""Cache rows: written each at its own position, moved whole, and clean for the next caption."""

from __future__ import annotations

import pytest
import torch

from captioner.engine.kv_cache import CrossLayer, SlotLayer, Window
from tests import tiny

SLOTS, HEADS, CONTEXT, HEAD_SIZE, IMAGE_TOKENS = 4, 2, 6, 3, 5


@pytest.fixture
def window() -> Window:
    return Window()


def states(rows: int, queries: int, value: float = 1.0) -> torch.Tensor:
    """(rows, heads, queries, head size), each position its own number."""
    numbers = torch.arange(rows * queries, dtype=torch.float32).view(rows, 1, queries, 1) + value
    return numbers.expand(rows, HEADS, queries, HEAD_SIZE)


def test_each_row_is_written_at_its_own_position(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, HEADS, CONTEXT, HEAD_SIZE, torch.empty(0))
    window.rows, window.positions, window.span = slice(0, 3), torch.tensor([[4], [0], [2]]), 5
    keys, values = layer.update(states(3, 1), states(3, 1, 10.0))
    assert keys.shape == values.shape == (3, HEADS, 5, HEAD_SIZE)
    expected = torch.zeros(SLOTS, CONTEXT)
    expected[0, 4], expected[1, 0], expected[2, 2] = 1, 2, 3
    assert torch.equal(layer.keys[:, 0, :, 0], expected)
    assert torch.equal(layer.values[:, 1, :, 2], expected + 9 * (expected > 0))


def test_a_prompt_is_written_into_its_row_alone(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, HEADS, CONTEXT, HEAD_SIZE, torch.empty(0))
    window.rows, window.positions, window.span = slice(2, 3), torch.arange(4)[None], 4
    keys, _ = layer.update(states(1, 4), states(1, 4))
    assert torch.equal(keys[0, 0, :, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not layer.keys[[0, 1, 3]].any()
    assert not layer.keys[2, :, 4:].any()


def test_a_move_copies_as_much_as_is_asked_and_no_more(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, HEADS, CONTEXT, HEAD_SIZE, torch.empty(0))
    layer.keys[:], layer.values[:] = torch.randn(2, SLOTS, HEADS, CONTEXT, HEAD_SIZE)
    before = layer.keys.clone()
    layer.move(3, 1, 4)
    assert torch.equal(layer.keys[1, :, :4], before[3, :, :4])
    assert torch.equal(layer.keys[1, :, 4:], before[1, :, 4:])
    assert torch.equal(layer.keys[[0, 2, 3]], before[[0, 2, 3]])
    assert torch.equal(layer.values[1, :, :4], layer.values[3, :, :4])


def test_an_images_keys_are_kept_by_row_and_moved_whole(window: Window) -> None:
    layer = CrossLayer(window, SLOTS, HEADS, IMAGE_TOKENS, HEAD_SIZE, torch.empty(0))
    for row in range(3):
        window.rows = slice(row, row + 1)
        layer.update(states(1, IMAGE_TOKENS, 10.0 * row), states(1, IMAGE_TOKENS, 100.0 * row))
    layer.move(2, 0)
    window.rows = slice(0, 2)
    assert layer.keys.shape == (2, HEADS, IMAGE_TOKENS, HEAD_SIZE)
    assert layer.keys[:, 0, 0, 0].tolist() == [20.0, 10.0]
    assert layer.values[:, 0, 0, 0].tolist() == [200.0, 100.0]


def test_a_row_that_ended_in_nan_does_not_spoil_its_next_caption() -> None:
    decoder = tiny.decoder(slots=2)
    long_prompt = list(range(2, 14))
    decoder.prefill(0, tiny.features(0), long_prompt)
    expected = [decoder.prefill(1, tiny.features(1), [0, 2])]
    expected += [decoder.decode([5, 7], [12, 2])[1], decoder.decode([5, 9], [13, 3])[1]]

    decoder.prefill(1, torch.full_like(tiny.features(0), torch.nan), long_prompt)
    assert decoder.decode([5, 7], [12, 12])[1].isnan().all()
    decoder.prefill(0, tiny.features(0), long_prompt)  # the longer neighbour, whose span shows the old positions
    found = [decoder.prefill(1, tiny.features(1), [0, 2])]
    found += [decoder.decode([5, 7], [12, 2])[1], decoder.decode([5, 9], [13, 3])[1]]
    for step, (before, after) in enumerate(zip(expected, found, strict=True)):
        assert torch.equal(before, after), f"step {step} read what the last caption left"


def test_the_size_of_the_cache_is_that_of_its_tensors() -> None:
    layers, floats, keys_and_values = 2, 4, 2
    positions = tiny.CONTEXT + tiny.FEATURE_TOKENS
    assert tiny.decoder(slots=3).cache_bytes == 3 * layers * keys_and_values * positions * tiny.FEATURE_WIDTH * floats
