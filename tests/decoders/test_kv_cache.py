"""Cache rows: each is written at its own position, copied whole and clean for the next caption."""

from __future__ import annotations

import pytest
import torch

from captioner.decoders.cross_attention import CrossAttentionDecoder
from captioner.decoders.kv_cache import CacheShape, CrossLayer, SlotLayer, Window, causal_mask
from captioner.decoders.rows import RowCopy
from tests.support import tiny

CPU = torch.device("cpu")
SLOTS, HEADS, CONTEXT, HEAD_SIZE, IMAGE_TOKENS = 4, 2, 6, 3, 5
SHAPE = CacheShape(1, HEADS, HEAD_SIZE, CONTEXT, IMAGE_TOKENS)


@pytest.fixture
def window() -> Window:
    return Window()


def states(rows: int, queries: int, value: float = 1.0) -> torch.Tensor:
    """Return (rows, heads, queries, head size) with a distinct number at each position."""
    numbers = torch.arange(rows * queries, dtype=torch.float32).view(rows, 1, queries, 1) + value
    return numbers.expand(rows, HEADS, queries, HEAD_SIZE)


def test_each_row_is_written_at_its_own_position(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, SHAPE, torch.empty(0))
    window.set(slice(0, 3), torch.tensor([[4], [0], [2]]), 5)
    keys, values = layer.update(states(3, 1), states(3, 1, 10.0))
    assert keys.shape == values.shape == (3, HEADS, 5, HEAD_SIZE)
    expected = torch.zeros(SLOTS, CONTEXT)
    expected[0, 4], expected[1, 0], expected[2, 2] = 1, 2, 3
    assert torch.equal(layer.keys[:, 0, :, 0], expected)
    assert torch.equal(layer.values[:, 1, :, 2], expected + 9 * (expected > 0))


def test_a_prompt_is_written_only_into_its_row(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, SHAPE, torch.empty(0))
    window.set(slice(2, 3), torch.arange(4)[None], 4)
    keys, _ = layer.update(states(1, 4), states(1, 4))
    assert torch.equal(keys[0, 0, :, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not layer.keys[[0, 1, 3]].any()
    assert not layer.keys[2, :, 4:].any()


def test_a_copy_stops_at_the_requested_length(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, SHAPE, torch.empty(0))
    layer.keys[:], layer.values[:] = torch.randn(2, SLOTS, HEADS, CONTEXT, HEAD_SIZE)
    before = layer.keys.clone()
    layer.copy(RowCopy([3], [1], CPU), 4)
    assert torch.equal(layer.keys[1, :, :4], before[3, :, :4])
    assert torch.equal(layer.keys[1, :, 4:], before[1, :, 4:])
    assert torch.equal(layer.keys[[0, 2, 3]], before[[0, 2, 3]])
    assert torch.equal(layer.values[1, :, :4], layer.values[3, :, :4])


def test_one_copy_can_swap_rows(window: Window) -> None:
    layer = SlotLayer(window, SLOTS, SHAPE, torch.empty(0))
    layer.keys[:], layer.values[:] = torch.randn(2, SLOTS, HEADS, CONTEXT, HEAD_SIZE)
    before = layer.keys.clone()
    layer.copy(RowCopy([1, 0, 1], [0, 1, 2], CPU), CONTEXT)
    assert torch.equal(layer.keys[[0, 1, 2, 3]], before[[1, 0, 1, 3]])


def test_an_images_keys_are_kept_by_row_and_copied_whole(window: Window) -> None:
    layer = CrossLayer(window, SLOTS, SHAPE, torch.empty(0))
    width = HEADS * HEAD_SIZE
    for row in range(3):
        keys = torch.arange(IMAGE_TOKENS * width).view(IMAGE_TOKENS, width) + 1000.0 * row
        layer.write(row, keys, -keys)
    layer.copy(RowCopy([2], [0], CPU))
    window.rows = slice(0, 2)
    assert layer.keys.shape == (2, HEADS, IMAGE_TOKENS, HEAD_SIZE)
    assert layer.keys[:, 1, 2, 0].tolist() == [2000.0 + 2 * width + HEAD_SIZE, 1000.0 + 2 * width + HEAD_SIZE]
    assert torch.equal(layer.values, -layer.keys)


def test_the_mask_ends_at_each_querys_own_position() -> None:
    mask = causal_mask(torch.tensor([[0, 1], [2, 3]]), 4, torch.float32)
    assert mask.shape == (2, 1, 2, 4)
    assert (mask == 0).sum(-1).flatten().tolist() == [1, 2, 3, 4]
    assert mask.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_the_previous_content_of_a_row_is_never_read(poison: float) -> None:
    """Whatever a row held before, the logits equal those of a fresh cache, bit for bit."""
    long_prompt, short_prompt = list(range(2, 14)), [0, 2]

    def logits(decoder: CrossAttentionDecoder) -> list[torch.Tensor]:
        decoder.prefill(0, tiny.features(0), long_prompt)  # a longer row, so that the span covers old positions
        decoder.prefill(1, tiny.features(1), short_prompt)
        steps = [((5, 7), (11, 1)), ((5, 9), (12, 2)), ((6, 9), (13, 3))]
        return [decoder.decode(torch.tensor(ids), torch.tensor(at), max(at) + 1)[1] for ids, at in steps]

    fresh, used = tiny.decoder(), tiny.decoder()
    for decoder in (fresh, used):
        decoder.allocate(2)
    for layer in used.text_layers:
        layer.keys.fill_(poison)
        layer.values.fill_(poison)
    for image_layer in used.image_layers:
        image_layer._keys.fill_(poison)
        image_layer._values.fill_(poison)
    for step, (expected, found) in enumerate(zip(logits(fresh), logits(used), strict=True)):
        assert torch.equal(expected, found), f"step {step} read the previous content"


def test_slot_bytes_is_the_memory_of_its_tensors() -> None:
    decoder = tiny.decoder()
    decoder.allocate(3)
    tensors = [tensor for layer in decoder.text_layers for tensor in (layer.keys, layer.values)]
    tensors += [tensor for image_layer in decoder.image_layers for tensor in (image_layer._keys, image_layer._values)]
    held = sum(tensor.nbytes for tensor in tensors)
    assert held == 3 * decoder.slot_bytes
