"""What becomes of a caption before it is written: left out, replaced, decorated, and merged with one that is there."""

from __future__ import annotations

from typing import Any

import pytest

from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.errors import OutputRefused


def tags(existing: Any = "append", trigger: str = "ohwx") -> CaptionEdit:
    return CaptionEdit(existing, trigger=trigger, separator=", ", tags=True)


def test_a_caption_is_decorated_in_the_order_trigger_prefix_caption_suffix() -> None:
    assert CaptionEdit("skip", "photo of ", "!", "ohwx").merged("a cat", None) == "ohwx, photo of a cat!"


@pytest.mark.parametrize(
    ("existing", "current", "text"),
    [
        ("overwrite", "old", "new"),
        ("append", "old", "old | new"),
        ("prepend", "old", "new | old"),
        ("append", None, "new"),
        ("prepend", "", "new"),
    ],
)
def test_a_new_caption_is_merged_with_the_existing_one(existing: Any, current: str | None, text: str) -> None:
    assert CaptionEdit(existing, separator=" | ").merged("new", current) == text


@pytest.mark.parametrize(
    "current", ["1girl, solo", "ohwx, 1girl, solo", "ohwx, 1girl, solo,", "ohwx, ohwx, 1girl , solo, "]
)
def test_the_trigger_stays_in_front_once(current: str) -> None:
    assert tags("append").merged("cat, wall", current) == "ohwx, 1girl, solo, cat, wall"
    assert tags("prepend").merged("cat, wall", current) == "ohwx, cat, wall, 1girl, solo"


@pytest.mark.parametrize(
    ("current", "text"),
    [
        ("A cat.", "ohwx, A cat. A dog."),
        ("ohwx, A cat.", "ohwx, A cat. A dog."),
        ("Ohwx man in a hat.", "Ohwx man in a hat. A dog."),
        ("ohwxy, a cat.", "ohwx, ohwxy, a cat. A dog."),
        ("ohwx", "ohwx, A dog."),
    ],
)
def test_the_trigger_of_sentences_stays_in_front_once(current: str, text: str) -> None:
    assert CaptionEdit("append", trigger="ohwx").merged("A dog.", current) == text


def test_a_trigger_that_the_model_wrote_is_not_doubled() -> None:
    assert CaptionEdit(trigger="ohwx").decorated("ohwx, a cat") == "ohwx, a cat"


@pytest.mark.parametrize("current", ["1girl, solo", "1girl, solo,", "1girl, solo, ,\n"])
def test_lists_are_joined_by_one_comma(current: str) -> None:
    assert CaptionEdit("append", separator=", ").merged("cat, wall", current) == "1girl, solo, cat, wall"


def test_no_tag_comes_twice() -> None:
    edit = tags("append", "")
    assert (
        edit.merged("Solo, cat, long hair, (red:1.2)", "1girl, solo, long_hair")
        == "1girl, solo, long_hair, cat, (red:1.2)"
    )
    assert edit.merged("(a, b:1.1), c", "(a, c:1.1), a") == "(a, c:1.1), a, (a, b:1.1), c"
    assert edit.decorated("cat, cat, wall") == "cat, wall"
    assert CaptionEdit("append", separator=", ").merged("cat, cat", "cat") == "cat, cat, cat", "they are no tags"


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A cat sits. The background is blurred. It is grey.", "A cat sits. It is grey."),
        ("A cat sits. The BACKGROUND is red!", "A cat sits."),
        ("cat, blurry background, wall", "cat, wall"),
        ("Cats in backgrounds sit.", "Cats in backgrounds sit."),
    ],
)
def test_sentences_and_tags_that_hold_a_dropped_text_are_left_out(caption: str, text: str) -> None:
    assert CaptionEdit(drop=("background", "dog")).decorated(caption) == text


@pytest.mark.parametrize(
    ("replace", "text"),
    [
        (("man", "person"), "A person and a woman, man-made. Man!".replace("man-made", "person-made")),
        (("a woman", "ohwx"), "A man and ohwx, man-made. Man!"),
        (("man-made", ""), "A man and a woman, . Man!"),
        (("and", ""), "A man a woman, man-made. Man!"),
        (("man", "\\1"), "A \\1 and a woman, \\1-made. Man!"),
    ],
)
def test_whole_words_are_replaced_as_they_are_spelt(replace: tuple[str, str], text: str) -> None:
    assert CaptionEdit(replace=(replace,)).decorated("A man and a woman, man-made. Man!") == text


def test_a_caption_of_which_nothing_is_left_is_refused() -> None:
    for edit in (CaptionEdit(drop=("cat",), prefix="photo of "), CaptionEdit(replace=(("A cat.", ""),))):
        with pytest.raises(OutputRefused, match=r"leaves nothing of the caption 'A cat\.'"):
            edit.decorated("A cat.")


def test_what_people_wrote_is_neither_dropped_nor_replaced() -> None:
    edit = CaptionEdit("append", drop=("dog",), replace=(("cat", "kitten"),))
    assert edit.merged("A cat. A dog.", "My cat and dog.") == "My cat and dog. A kitten."
