"""Outputs: sidecars, EXIF, XMP and tables, with existing captions, and after a torn write or a kill."""

from __future__ import annotations

import csv
import json
import os
import string
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.bulk.outputs import sidecars, tables, xmp
from captioner.bulk.outputs.atomic_write import replace
from captioner.bulk.outputs.base import CaptionedImage
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.journal import Journal
from captioner.bulk.outputs.sidecar_formats import Exif, SidecarFormat, Txt, Xmp
from captioner.bulk.outputs.table_formats import Csv, Jsonl
from captioner.bulk.sources.discover import FoundImage, Sources
from captioner.bulk.sources.item import Item
from captioner.errors import OutputRefused
from captioner.examples import FOLDER
from captioner.wire import CSV_COLUMNS, Caption, Details, ImageInfo, Timings

ROOT = Path(__file__).parents[2]
VALUES: dict[str, Any] = {"image": ImageInfo("JPEG", 8, 8, 1, False, False), "timings_ms": Timings(1, 2, 3, 4)}
KINDS = {"str": "x", "int": 7, "float": 0.5, "bool": False, "float | None": 0.5, "bool | None": False}
DETAILS = Details(
    **{each.name: VALUES.get(each.name, KINDS.get(str(each.type))) for each in fields(Details)}
    | {"finish_reason": "stop"}
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def captioned(image: FoundImage, text: str) -> CaptionedImage:
    return CaptionedImage(image, Caption(text, DETAILS))


def found(key: str) -> FoundImage:
    return FoundImage(Item(key, Path("/nowhere") / key), key, key.rpartition(".")[0])


# Whole files


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace(link, b"new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "in.jpg").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()  # a file in place of the folder
    output = sidecars.Sidecars(Txt(), CaptionEdit(), tmp_path / "out", None, print)
    failed = output.write([captioned(found("sub/a.jpg"), "lost"), captioned(found("b.jpg"), "kept")])
    assert [(each.item.key, error.code) for each, error in failed] == [("sub/a.jpg", "OUTPUT_REFUSED")]
    assert (tmp_path / "out" / "b.txt").read_text() == "kept\n"


def test_text_in_another_encoding_is_kept_or_replaced_but_never_merged(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    old = "Käse".encode("latin-1")
    (image,) = Sources([str(tmp_path / "a.jpg")]).find()
    for existing, kept in (("skip", old), ("append", old), ("overwrite", b"new\n")):
        (tmp_path / "a.txt").write_bytes(old)
        journal = None if existing == "skip" else Journal(tmp_path / ".journal")
        output = sidecars.Sidecars(Txt(), CaptionEdit(existing), None, journal, print)  # type: ignore[arg-type]
        assert output.wants(image) is (existing != "skip")
        if existing != "skip":
            failed = output.write([captioned(image, "new")])
            assert [str(error).partition("; ")[2] for _, error in failed] == ["it was left unchanged"] * (kept == old)
        output.close(finished=True, failed=False)
        assert (tmp_path / "a.txt").read_bytes() == kept


@pytest.mark.parametrize("sidecar_format", [Txt(), Xmp(), Exif()])
def test_a_sidecar_that_is_a_link_out_of_the_folder_is_refused_before_the_image_is_captioned(
    tmp_path: Path, sidecar_format: SidecarFormat
) -> None:
    folder, other = tmp_path / "photos", tmp_path / "other"
    for each in (folder / "sub", other):
        each.mkdir(parents=True)
    suffix = sidecar_format.extension or ".jpg"
    image = (FOLDER / "cat.jpg").read_bytes()
    theirs = xmp.with_description(None, "old") if suffix == ".xmp" else image
    for name in ("sub/out", "sub/in", "new"):
        (folder / name).with_suffix(".jpg").write_bytes(image)
    (other / f"theirs{suffix}").write_bytes(theirs)
    (folder / f"mine{suffix}").write_bytes(theirs)
    for name, target in (("out", other / f"theirs{suffix}"), ("in", folder / f"mine{suffix}")):
        link = folder / "sub" / f"{name}{suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    found = {each.stem.removesuffix(".jpg"): each for each in Sources([str(folder)]).find()}
    output = sidecars.Sidecars(sidecar_format, CaptionEdit("overwrite"), None, Journal(tmp_path / "journal"), print)
    with pytest.raises(OutputRefused, match=rf"out{suffix} is a link to .*theirs{suffix}, outside .*--out"):
        output.wants(found["sub/out"])
    failed = output.write([captioned(found["sub/out"], "new"), captioned(found["sub/in"], "new")])
    assert [image.item.key for image, _ in failed] == ["sub/out.jpg"]
    assert (other / f"theirs{suffix}").read_bytes() == theirs
    assert (folder / f"mine{suffix}").read_bytes() != theirs and (folder / "sub" / f"in{suffix}").is_symlink()


# The journal


def job(folder: Path, edit: CaptionEdit) -> tuple[sidecars.Sidecars, list[FoundImage]]:
    journal = Journal(folder / ".journal")
    return sidecars.Sidecars(Txt(), edit, None, journal, print), list(Sources([str(folder)]).find())


def finish(folder: Path, edit: CaptionEdit) -> None:
    """Run or resume a job to its end."""
    output, images = job(folder, edit)
    output.write([captioned(each, f"new {each.stem}") for each in images if output.wants(each)])
    output.close(finished=True, failed=False)


def photos(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").touch()
        (folder / f"{number}.txt").write_text(f"old {number}\n")
    return folder


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("*.txt"))]


EXPECTED = {"append": "old {0} new {0}\n", "prepend": "new {0} old {0}\n", "overwrite": "new {0}\n"}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), existing=st.sampled_from(list(EXPECTED)))
def test_a_journal_torn_at_any_byte_neither_loses_nor_duplicates_a_caption(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, existing: Any
) -> None:
    folder = photos(tmp_path_factory.mktemp("torn") / "photos")
    output, images = job(folder, CaptionEdit(existing))
    output.write([captioned(each, f"new {each.stem}") for each in images if output.wants(each)])
    output.close(finished=False, failed=False)
    journal = (folder / ".journal").read_bytes()
    begun = journal.index(b'{"done"')
    cut = data.draw(st.integers(0, len(journal)))
    # A file may be new only after its text was synced to the journal, and must be new if the journal says `done`.
    for number in range(4):
        done = f'"done": "{number}.jpg"}}\n'.encode() in journal[:cut]
        if cut < begun or not (done or data.draw(st.booleans())):
            (folder / f"{number}.txt").write_text(f"old {number}\n")
    (folder / ".journal").write_bytes(journal[:cut])
    finish(folder, CaptionEdit(existing))
    assert texts(folder) == [EXPECTED[existing].format(number) for number in range(4)]
    assert not (folder / ".journal").exists()


# Forks a job for each number of its writes and lets it die there; the folders are named by that number.
KILLED = """
import os, sys
from pathlib import Path
from captioner.bulk.outputs import sidecars
from captioner.bulk.outputs.caption_edit import CaptionEdit
from tests.bulk.test_outputs import finish, photos

existing, folder, left = sys.argv[1], Path(sys.argv[2]), 0

def counted(write):
    def call(*arguments):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return write(*arguments)
    return call

os.fsync, os.replace = counted(os.fsync), counted(os.replace)
for left in range(1, 100):
    job = photos(folder / str(left), 2)
    if not (child := os.fork()):
        finish(job, CaptionEdit(existing))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 9:
        break
"""


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_job_killed_at_any_of_its_writes_resumes_without_loss_or_duplicate(tmp_path: Path, existing: Any) -> None:
    command = [sys.executable, "-c", KILLED, existing, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    *killed, complete = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    expected = [EXPECTED[existing].format(number) for number in range(2)]
    assert texts(complete) == expected and not (complete / ".journal").exists()
    assert len(killed) >= 6, "a job syncs and renames its journal, two files and a folder"
    for folder in killed:
        assert (folder / ".journal").exists()
        finish(folder, CaptionEdit(existing))
        assert texts(folder) == expected, f"killed at write {folder.name}"


def test_two_jobs_on_one_journal_or_one_table_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(OutputRefused, match="another job"):
        Journal(tmp_path / "j")
    journal.close(remove=True)
    table = tables.Table(Jsonl(), CaptionEdit(), tmp_path / "t.jsonl")
    with pytest.raises(OutputRefused, match="another job"):
        tables.Table(Jsonl(), CaptionEdit(), tmp_path / "t.jsonl")
    table.close(finished=True, failed=False)


# Tables

FORMS: dict[str, type[Csv] | type[Jsonl]] = {"jsonl": Jsonl, "csv": Csv}
KEYS = ["a.jpg", "sub folder/b.jpg", 'quoted "c", d.jpg', "ü.jpg", os.fsdecode(b"\xff.jpg")]
CAPTIONS = ["A cat.", 'A "quoted", cat', "two\nlines", "ünï\r\ncode", ""]


def rows(form: str, path: Path) -> list[tuple[str, str]]:
    text = path.read_text("utf-8", "surrogateescape") if form == "csv" else path.read_text("utf-8")
    if form == "jsonl":
        return [(line["file"], line["caption"]) for line in map(json.loads, text.splitlines())]
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [(row["file"], row["caption"]) for row in csv.DictReader(file)]


def write_table(form: str, path: Path, existing: Any = "skip") -> int:
    """Write what a job writes; return how many captions were new."""
    table = tables.Table(FORMS[form](), CaptionEdit(existing), path)
    new = [captioned(found(key), text) for key, text in zip(KEYS, CAPTIONS, strict=True) if table.wants(found(key))]
    table.write(new)
    table.close(finished=True, failed=False)
    return len(new)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@settings(deadline=None)
@given(data=st.data())
def test_a_table_torn_at_any_byte_resumes_without_loss_or_duplicate(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "t"
    write_table(form, path)
    whole = path.read_bytes()
    assert rows(form, path) == list(zip(KEYS, CAPTIONS, strict=True))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    write_table(form, path)
    assert path.read_bytes() == whole
    assert write_table(form, path) == 0


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_overwrite_keeps_the_old_table_until_the_new_one_is_complete(tmp_path: Path, form: str) -> None:
    path, part = tmp_path / "t", tmp_path / "t.part"
    write_table(form, path)
    old = path.read_bytes()
    table = tables.Table(FORMS[form](), CaptionEdit("overwrite", prefix="now "), path)
    table.write([captioned(found(KEYS[0]), "A dog.")])
    table.close(finished=False, failed=False)
    assert path.read_bytes() == old and rows(form, part) == [(KEYS[0], "now A dog.")]
    assert write_table(form, path, "overwrite") == len(KEYS) - 1
    assert rows(form, path)[0] == (KEYS[0], "now A dog.") and len(rows(form, path)) == len(KEYS)
    assert not part.exists()


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b"\xff\xd8\xff\xe0JFIF", b'{"name": 1}\n', b"file,label\na.jpg,cat\n", b'{"fi"', b'"'],
)
def test_a_file_that_this_command_did_not_write_is_refused_and_left_unchanged(
    tmp_path: Path, form: str, content: bytes
) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(OutputRefused, match="did not write"):
        write_table(form, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_last_line_that_lacks_only_its_line_end_is_kept(tmp_path: Path, form: str) -> None:
    path = tmp_path / "t"
    write_table(form, path)
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n"))
    assert write_table(form, path) == 0
    assert path.read_bytes() == whole


@given(st.binary(max_size=60), st.sampled_from(["jsonl", "csv"]))
@settings(deadline=None)
def test_a_table_of_any_bytes_is_resumed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, form: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "t"
    path.write_bytes(data)
    try:
        write_table(form, path)
    except OutputRefused:
        assert path.read_bytes() == data
    else:
        assert {key for key, _ in rows(form, path)} == set(KEYS)


def test_the_columns_of_csv_are_those_of_the_wire() -> None:
    line = Csv().line("a.jpg", "A cat.", DETAILS).decode()
    assert Csv().header.decode() == ",".join(CSV_COLUMNS) + "\n"
    assert line == "a.jpg,A cat.,x,x,0.5,False,stop\n"
    assert all(character in string.printable for character in line)
