"""Location tokens: boxes and polygons equal those of transformers' processor; nothing malformed becomes a region."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import Florence2Processor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.seeded import florence2
from captioner.errors import ArtefactBroken
from captioner.families.florence2 import Florence2
from captioner.families.regions import BOX, QUADRILATERAL, Locations
from captioner.wire import Region
from tests.support import tiny

TOKENIZER: Any = florence2._tokenizer(florence2.WORDS["tiny"])
TOKENS: Tokenizer = TOKENIZER.backend_tokenizer
LOCATIONS = Florence2.locations(TOKENS)
TASK = {BOX: "description_with_bboxes", QUADRILATERAL: "ocr"}
ORIGINAL: Any = Florence2Processor(
    CLIPImageProcessorPil(image_seq_length=17), TOKENIZER, post_processor_config={task: {} for task in TASK.values()}
).post_processor
bins = st.integers(0, 999)
labels = st.text(st.characters(codec="ascii", exclude_characters="<>", categories=["L", "N"]), min_size=1, max_size=9)
sides = st.integers(8, 16_384)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENS.encode(text, add_special_tokens=False).ids
    return ids


def tokens(places: list[int]) -> str:
    return "".join(f"<loc_{each}>" for each in places)


def originals(text: str, width: int, height: int, per_region: int) -> list[tuple[str, list[int]]]:
    """Return the labels and coordinates that transformers' own processor finds."""
    task = TASK[per_region]
    found = ORIGINAL(text=text, image_size=(width, height), parse_tasks=[task])[task]
    if per_region == BOX:
        return [(each["cat_name"], each["bbox"]) for each in found]
    return [(each["text"], each["quad_box"]) for each in found]


def upright(box: list[int]) -> list[int]:
    """Return a box whose left and top come first."""
    left, top, right, bottom = box
    return [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]


boxes = st.lists(bins, min_size=4, max_size=4).map(upright)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(labels, st.lists(boxes, min_size=1, max_size=3)), min_size=1, max_size=4), sides, sides)
def test_boxes_equal_those_of_transformers(named: list[tuple[str, list[list[int]]]], width: int, height: int) -> None:
    text = "".join(label + "".join(map(tokens, places)) for label, places in named)
    ours = LOCATIONS.regions(encode(text), width, height, BOX)
    expected = originals(text, width, height, BOX)
    assert [region.label for region in ours] == [label for label, _ in expected]
    for region, (_, box) in zip(ours, expected, strict=True):
        assert region.box is not None and region.polygon is None
        # theirs are computed in float32, in which a whole number may become the one below
        assert all(0 <= mine - theirs <= 1 for mine, theirs in zip(region.box, box, strict=True))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(labels, st.lists(bins, min_size=8, max_size=8)), min_size=1, max_size=4), sides, sides)
def test_polygons_equal_those_of_transformers(named: list[tuple[str, list[int]]], width: int, height: int) -> None:
    text = "".join(label + tokens(corners) for label, corners in named)
    ours = LOCATIONS.regions(encode(text), width, height, QUADRILATERAL)
    expected = originals(text, width, height, QUADRILATERAL)
    assert [region.label for region in ours] == [label for label, _ in expected]
    for region, (_, corners) in zip(ours, expected, strict=True):
        assert region.polygon is not None and region.box is None and len(region.polygon) == 4
        mine = [side for corner in region.polygon for side in corner]
        assert all(0 <= one - other <= 1 for one, other in zip(mine, corners, strict=True))


def test_a_box_is_in_pixels_of_the_upright_image() -> None:
    ids = encode(f"a car{tokens([0, 0, 999, 999])} and a door{tokens([250, 500, 500, 750, 1, 2, 3, 4])}")
    found = LOCATIONS.regions(ids, 640, 480, BOX)
    assert found == (
        Region("a car", box=(0, 0, 639, 479)),
        Region("and a door", box=(160, 240, 320, 360)),
        Region("and a door", box=(0, 1, 2, 2)),
    )
    assert LOCATIONS.decode(ids) == "a car, and a door"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a car",
        tokens([1, 2, 3, 4]),  # without a label
        f" {tokens([1, 2, 3, 4])}",
        f"<mask>{tokens([1, 2, 3, 4])}",
        f"a car{tokens([1, 2, 3])}",  # cut by max_tokens
        f"a car{tokens([3, 2, 1, 4])}",  # right of its right side
        f"a car{tokens([1, 4, 3, 2])}",
    ],
)
def test_a_malformed_place_is_no_region(text: str) -> None:
    assert LOCATIONS.regions(encode(text), 640, 480, BOX) == ()


ids_lists = st.lists(st.integers(0, len(TOKENIZER) + 70) | st.integers(341, 1340), max_size=40)


@settings(deadline=None)
@given(ids_lists, sides, sides, st.sampled_from([BOX, QUADRILATERAL]))
@example([340, 5, 341, 341, 2, 341, 341], 8, 16_384, BOX)
def test_any_ids_give_regions_inside_the_image_or_none(ids: list[int], width: int, height: int, per: int) -> None:
    for region in LOCATIONS.regions(ids, width, height, per):
        assert region.label and "<loc_" not in region.label
        assert (region.box is None) == (per == QUADRILATERAL) != (region.polygon is None)
        corners = region.polygon or (region.box[:2], region.box[2:]) if region.box else region.polygon or ()
        assert all(0 <= x < width and 0 <= y < height for x, y in corners)
        if region.box is not None:
            assert region.box[0] <= region.box[2] and region.box[1] <= region.box[3]


@settings(deadline=None)
@given(ids_lists)
def test_the_text_has_no_location_tokens_and_only_grows(ids: list[int]) -> None:
    before = ""
    for count in range(len(ids) + 1):
        text = LOCATIONS.decode(ids[:count])
        assert "<loc_" not in text
        whole = before.rstrip("\ufffd")
        assert text.startswith(whole), "a character may still be incomplete"
        before = text


def test_a_tokenizer_without_all_location_tokens_is_refused() -> None:
    with pytest.raises(ArtefactBroken, match="no token '<loc_1000>'"):
        Locations(TOKENS, "<loc_{}>", 1001)
    with pytest.raises(ArtefactBroken, match="no token '<loc_0>'"):
        Florence2.locations(tiny.tokenizer())
