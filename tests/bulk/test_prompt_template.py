"""A job's prompt with fields: each image fills them with its own file name and tags, and fails alone if it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from captioner.bulk.prompt_template import PromptTemplate
from captioner.bulk.sources.discover import FoundImage
from captioner.bulk.sources.item import Item
from captioner.errors import ImageRefused, ParameterInvalid
from captioner.examples import PHOTOS
from captioner.wire import MAX_PROMPT_CHARACTERS
from tests.support.commands import caption
from tests.support.scripted_server import ScriptedServer


def filled(prompt: str, image: FoundImage, name: str | None = None) -> str:
    template = PromptTemplate.of(prompt, name)
    assert template is not None
    return template.fill(image)


def found(folder: Path, key: str = "sub/red car.jpg") -> FoundImage:
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    return FoundImage(Item(key, path), str(path), key.removesuffix(".jpg"))


def test_every_field_is_filled_in_one_pass_and_other_braces_stay(tmp_path: Path) -> None:
    image = found(tmp_path, "sub/{tags} red car.jpg")
    (tmp_path / "sub" / "{tags} red car.txt").write_text("\ufeffcar, {name},\n  red\n", "utf-8")
    prompt = 'Describe {name} in {filename} with {tags} as {"json": {}}. {name}!'
    assert filled(prompt, image, "Ada {filename}") == (
        'Describe Ada {filename} in {tags} red car with car, {name}, red as {"json": {}}. Ada {filename}!'
    )


def test_a_file_name_becomes_one_line_of_text(tmp_path: Path) -> None:
    assert filled("{filename}", found(tmp_path, "a\nb\x07\udcff é.jpg")) == "a b é"
    on_the_web = FoundImage(Item("x", Path(), url="https://a.b/c/red%20car.jpg?w=1"), "", "")
    assert filled("{filename}", on_the_web) == "red car"


def test_a_prompt_without_fields_is_no_template_and_a_name_must_be_given() -> None:
    assert PromptTemplate.of("Describe {this} {}.", "Ada") is None
    assert PromptTemplate.of(None, None) is None
    for name in (None, " "):
        with pytest.raises(ParameterInvalid, match="name is not given"):
            PromptTemplate.of("Describe {name}.", name)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "red car.txt cannot be read: No such file"),
        (b" \n", "red car.txt is empty"),
        (b"\xff\xfe", "red car.txt is not UTF-8"),
        (b"x" * (MAX_PROMPT_CHARACTERS + 1), f"its prompt has {MAX_PROMPT_CHARACTERS + 1} characters"),
    ],
)
def test_an_image_without_readable_tags_is_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    image = found(tmp_path)
    if data is not None:
        image.item.path.with_suffix(".txt").write_bytes(data)
    with pytest.raises(ImageRefused, match=reason):
        filled("{tags}", image)


def test_an_image_in_an_archive_has_no_tags(tmp_path: Path) -> None:
    with pytest.raises(ImageRefused, match="beside an image"):
        filled("{tags}", FoundImage(Item("a.zip/a.jpg", tmp_path / "a.zip", "a.jpg"), "", "a.zip/a"))


def test_a_job_sends_each_image_its_own_prompt_and_goes_on_after_one_without_tags(
    tmp_path: Path, scripted_server: ScriptedServer
) -> None:
    for name in ("one", "two", "three"):
        shutil.copyfile(PHOTOS[0], tmp_path / f"{name}.jpg")
    (tmp_path / "one.txt").write_text("cat, sofa")
    (tmp_path / "two.txt").write_text("dog")
    options = ("--prompt", "{filename}: {tags}, says {name}", "--name", "Ada", "--to", "jsonl")
    done = caption(scripted_server.address, tmp_path, *options)
    assert done.returncode == 1 and "2 captioned, 0 skipped, 1 failed" in done.stderr
    assert "three.jpg: IMAGE_REFUSED: the prompt has {tags}, but three.txt cannot be read" in done.stderr
    sent = [prompt for prompt in scripted_server.prompts if prompt]
    assert sorted(sent) == ["one: cat, sofa, says Ada", "two: dog, says Ada"]


@pytest.mark.parametrize(("prompt", "given_up"), [("A photo of {filename}", False), ("A photo of", True)])
def test_a_prompt_that_is_refused_stops_the_job_unless_it_is_the_images_own(
    tmp_path: Path, scripted_server: ScriptedServer, prompt: str, given_up: bool
) -> None:
    shutil.copyfile(PHOTOS[0], tmp_path / "one.jpg")
    scripted_server.faults = [None, "long"]  # the first request asks for the model's card
    done = caption(scripted_server.address, tmp_path, "--prompt", prompt, "--to", "jsonl")
    assert "one.jpg: PROMPT_TOO_LONG" in done.stderr
    assert ("given up: PROMPT_TOO_LONG" in done.stderr) == given_up


def test_a_few_files_are_captioned_with_their_own_prompts_too(tmp_path: Path, scripted_server: ScriptedServer) -> None:
    assert caption(scripted_server.address, PHOTOS[0], "--prompt", "A photo of {filename}").returncode == 0
    assert scripted_server.prompts[-1] == f"A photo of {PHOTOS[0].stem}"
