"""A folder that is captioned overnight: nothing stops the job, is passed over in silence, or is taken for done."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from captioner.bulk import order
from captioner.bulk.order import InputOrder
from captioner.bulk.outputs import atomic_write
from captioner.errors import OutputRefused
from captioner.examples import FOLDER
from tests.support import commands
from tests.support.scripted_server import TEXT, ScriptedServer

Run = Callable[..., CompletedProcess[str]]
JPEG = (FOLDER / "cat.jpg").read_bytes()


@pytest.fixture
def server(scripted_server: ScriptedServer) -> ScriptedServer:
    return scripted_server


@pytest.fixture
def run(server: ScriptedServer) -> Run:
    """Run the command in this process, by default with the scripted server."""

    def run(*arguments: object, address: str = server.address) -> CompletedProcess[str]:
        return commands.caption(address, *arguments)

    return run


def photos(folder: Path, *names: str, data: bytes = b"photo") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# An output that cannot be written for one image


def a_webp_for_exif(folder: Path) -> tuple[object, ...]:
    photos(folder, "0.gif")
    return ("--to", "exif")


def a_text_in_latin_1(folder: Path) -> tuple[object, ...]:
    photos(folder, "0.jpg")
    (folder / "0.txt").write_bytes("Käse".encode("latin-1"))
    return ("--to", "txt", "--existing", "append")


def a_folder_of_the_sidecars_name(folder: Path) -> tuple[object, ...]:
    photos(folder, "0.jpg")
    (folder / "0.txt").mkdir()
    return ("--to", "txt")


def a_name_that_is_too_long(folder: Path) -> tuple[object, ...]:
    photos(folder, "0" * 249, "0" * 249 + ".jpg")  # the first file takes the stem of the second
    return ("--to", "txt")


def a_read_only_folder(folder: Path) -> tuple[object, ...]:
    photos(folder, "0/a.jpg")
    return ("--to", "txt")


def a_link_to_itself(folder: Path) -> tuple[object, ...]:
    photos(folder, "0.jpg")
    (folder / "0.txt").symlink_to("0.txt")
    return ("--to", "txt")


@pytest.mark.parametrize(
    "trouble",
    [
        a_webp_for_exif,
        a_text_in_latin_1,
        a_folder_of_the_sidecars_name,
        a_name_that_is_too_long,
        a_read_only_folder,
        a_link_to_itself,
    ],
)
def test_one_output_that_cannot_be_written_is_one_line_of_the_report_and_the_job_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Path], tuple[object, ...]]
) -> None:
    folder, report = tmp_path / "photos", tmp_path / "report"
    arguments = trouble(photos(folder, *(f"p{number}.jpg" for number in range(40)), data=JPEG))
    access = os.access  # root may write anywhere, so chmod would not make the folder read-only
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "0" and access(path, mode))
    for captioned, skipped in ((40, 0), (0, 40)):
        done = run(folder, *arguments, "--report", report)
        assert done.returncode == 1, done.stderr
        assert f"{captioned} captioned, {skipped} skipped, 1 failed" in done.stderr and "given up" not in done.stderr
        (failure,) = (line for line in lines(report) if line["code"] != "PASSED_OVER")
        assert failure["file"].startswith("0") and failure["code"] == "OUTPUT_REFUSED"


def test_a_read_only_folder_is_found_before_its_photos_are_captioned(
    run: Run, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = run(photos(tmp_path, "a.jpg", "b.jpg"), "--to", "txt")
    assert done.returncode == 2 and f"the folder is read-only: {tmp_path}" in done.stderr
    assert len(server.requests) == 1, "only the server's card was asked for"


def test_a_file_that_breaks_a_parser_fails_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = atomic_write.replace

    def replace(path: Path, data: bytes, prepare: Any = None) -> None:
        if path.name == "b.txt":
            raise ValueError("embedded null byte")
        real(path, data, prepare)

    monkeypatch.setattr(atomic_write, "replace", replace)
    done = run(photos(tmp_path, "a.jpg", "b.jpg", "c.jpg"), "--to", "txt")
    assert "2 captioned, 0 skipped, 1 failed" in done.stderr and "b.jpg: INTERNAL: ValueError" in done.stderr


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_wrong_parameter_is_refused_before_any_image_is_read(
    run: Run, server: ScriptedServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = photos(tmp_path / "photos", *(f"{number}.jpg" for number in range(50)))
    done = run(folder, "--to", "txt", "--max-tokens", 0, *options)
    assert done.returncode == 2 and done.stderr.count("PARAMETER_INVALID: max_tokens is 0") == 1
    assert not server.requests and not list(tmp_path.rglob("*.txt"))


@pytest.mark.parametrize("archive", ["shard.zip", "shard.tar.gz"])
def test_an_archive_without_a_folder_for_its_captions_is_refused_once(run: Run, tmp_path: Path, archive: str) -> None:
    photos(tmp_path / "photos", "a.jpg", "b.jpg")
    form = {"zip": "zip", "gz": "gztar"}[archive.rpartition(".")[2]]
    packed = shutil.make_archive(str(tmp_path / "shard"), form, tmp_path / "photos")
    done = run(packed, "--to", "txt")
    assert done.returncode == 2 and done.stderr.count("name a folder with --out") == 1


# What is passed over


def test_files_of_other_formats_are_counted_on_stderr_and_named_in_the_report(run: Run, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "b.JXL", "sub/c.jxl", "d.psd", "old.zip", "a.txt", "t.csv", "noext")
    report = tmp_path / "report"
    done = run(folder, "--to", "jsonl", "--out", tmp_path / "out", "--report", report)
    assert done.returncode == 0
    counts = "passed over: 5 files of formats that are not read (.jxl 2, .psd 1, .zip 1, no extension 1)"
    assert counts in done.stderr
    assert {line["file"]: line["code"] for line in lines(report)} == dict.fromkeys(
        ["b.JXL", "sub/c.jxl", "d.psd", "old.zip", "noext"], "PASSED_OVER"
    )


def test_a_folder_of_other_formats_only_names_them_in_the_error(run: Run, tmp_path: Path) -> None:
    done = run(photos(tmp_path / "photos", "b.jxl", "c.jxl"), "--to", "txt")
    assert done.returncode == 2 and "no images found" in done.stderr and "(.jxl 2)" in done.stderr


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
def test_members_of_an_archive_are_passed_over_by_the_same_rules(run: Run, tmp_path: Path, form: str) -> None:
    folder = photos(tmp_path / "in", "a.jpg", "b.jxl", "@eaDir/a.jpg", "__MACOSX/._a.jpg", "raw/c.jpg", "d.txt")
    packed = shutil.make_archive(str(tmp_path / "photos"), form, folder)
    done = run(packed, "--to", "jsonl", "--out", tmp_path / "out", "--exclude", "raw")
    assert done.returncode == 0, done.stderr
    assert "1 captioned" in done.stderr and "(.jxl 1)" in done.stderr
    assert "left out: " in done.stderr and all(each in done.stderr for each in ("@eaDir 1", "hidden 1", "raw 1"))


NAS = ("a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_S.jpg", "#recycle/b.jpg", "#snapshot/c.jpg", ".thumbnails/d.jpg")


@pytest.mark.parametrize("path", ["", "/**/*.jpg", "/*"])
def test_the_folders_of_a_nas_are_left_out_and_named(run: Run, tmp_path: Path, path: str) -> None:
    folder = photos(tmp_path / "photos", *NAS)
    report = tmp_path / "report"
    done = run(f"{folder}{path}", "--to", "jsonl", "--out", tmp_path / "out", "--report", report)
    assert done.returncode == 0 and "1 captioned" in done.stderr
    if path != "/*":  # which cannot match a file in a sub-folder
        assert all(f"{name} 1" in done.stderr for name in ("@eaDir", "#recycle", "#snapshot", "hidden"))
        assert {line["file"] for line in lines(report)} == {"@eaDir", "#recycle", "#snapshot", ".thumbnails"}


def test_a_folder_that_is_left_out_is_captioned_if_it_is_named(run: Run, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", *NAS)
    done = run(folder, folder / "#recycle", folder / ".thumbnails", f"{folder}/@eaDir/**/*.jpg", "--to", "txt")
    assert "4 captioned" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("raw", ["a.jpg", "b.png", "sub/c.png", "old/d.png"]),
        ("raw/", ["a.jpg", "b.png", "sub/c.png", "old/d.png"]),
        ("*.png", ["a.jpg", "raw/e.jpg", "sub/raw/f.jpg"]),
        ("sub/raw", ["a.jpg", "b.png", "sub/c.png", "old/d.png", "raw/e.jpg"]),
        ("*/*.png", ["a.jpg", "b.png", "raw/e.jpg", "sub/raw/f.jpg"]),
        ("**/raw/*", ["a.jpg", "b.png", "sub/c.png", "old/d.png"]),
        ("photos/old", ["a.jpg", "b.png", "sub/c.png", "raw/e.jpg", "sub/raw/f.jpg"]),
    ],
)
def test_exclude_leaves_out_names_and_paths(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, left: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", "a.jpg", "b.png", "sub/c.png", "old/d.png", "raw/e.jpg", "sub/raw/f.jpg")
    done = run("photos", "--to", "jsonl", "--out", "out", "--exclude", pattern)
    assert sorted(line["file"] for line in lines(tmp_path / "out")) == sorted(left)
    assert f"left out: {pattern.rstrip('/')}" in done.stderr


def test_exclude_needs_a_pattern(run: Run, tmp_path: Path) -> None:
    done = run(photos(tmp_path, "a.jpg"), "--exclude", "")
    assert done.returncode == 2 and "PARAMETER_INVALID: --exclude is empty" in done.stderr


FILES = ("a.jpg", "a.txt", "b.jpg", "b.txt")


@pytest.mark.parametrize("again", [("--to", "exif", "--out", "P/out"), ("--to", "exif", "--out", "P/other"), ()])
def test_copies_that_a_job_wrote_inside_the_input_are_never_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "P", "a.jpg", "b.jpg", data=JPEG)
    run("P", "--to", "txt", "--out", "P/out")
    assert "2 captioned" in run("P", "--to", "exif", "--out", "P/out").stderr
    done = run("P", *again)
    count = "0 captioned, 2 skipped" if "P/out" in again else "2 captioned, 0 skipped"
    assert count in done.stderr and "left out: written by a job" in done.stderr
    assert sorted(path.name for path in (tmp_path / "P" / "out").iterdir()) == [".captioner.json", *FILES]


# Captions that were cut


def test_a_caption_that_the_deadline_cut_is_a_failure_and_is_tried_again(
    run: Run, server: ScriptedServer, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        photos(tmp_path / "photos", f"{name}.jpg", data=name.encode())
    server.finish_reasons[b"b"] = "deadline"
    for to in (("--to", "txt"), ("--to", "jsonl", "--out", tmp_path / "out")):
        server.finish_reasons[b"b"] = "deadline"
        done = run(tmp_path / "photos", *to, "--deadline-ms", 60_000, "--report", tmp_path / "report", "--retry-for", 0)
        assert done.returncode == 1 and "2 captioned, 0 skipped, 1 failed" in done.stderr, done.stderr
        assert [(line["file"], line["code"]) for line in lines(tmp_path / "report")] == [("b.jpg", "DEADLINE_EXCEEDED")]
        assert not (tmp_path / "photos" / "b.txt").exists()
        del server.finish_reasons[b"b"]
        if to[1] == "txt":
            assert "1 captioned, 2 skipped, 0 failed" in run(tmp_path / "photos", *to).stderr
            (tmp_path / "photos" / "b.txt").unlink()
    assert [line["file"] for line in lines(tmp_path / "out")] == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_printed_caption_that_the_deadline_cut_is_told(
    run: Run, server: ScriptedServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    photo = photos(tmp_path, "a.jpg") / "a.jpg"
    server.finish_reasons[b"photo"] = "deadline"
    done = run(photo, *options)
    assert done.returncode == 2 and "DEADLINE_EXCEEDED: the deadline cut the caption" in done.stderr


def test_captions_cut_at_their_length_limit_are_counted(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        photos(tmp_path, f"{name}.jpg", data=name.encode())
        server.finish_reasons[name.encode()] = "stop" if name == "a" else "length"
    done = run(tmp_path, "--to", "txt")
    assert done.returncode == 0 and "cut at the length limit: 2 captions" in done.stderr


# Disks


def failing(call: Callable[..., Any], number: int, only_folders: bool = False) -> Callable[..., Any]:
    def fail(descriptor: Any, *arguments: Any) -> Any:
        fileno = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if only_folders and not stat.S_ISDIR(os.fstat(fileno).st_mode):
            return call(descriptor, *arguments)
        raise OSError(number, os.strerror(number))

    return fail


LACKING = [
    ("fsync", errno.EINVAL, True),
    ("fsync", errno.ENOTSUP, True),
    ("fsync", errno.ENOTSUP, False),
    ("fchmod", errno.EPERM, False),
    ("fchmod", errno.ENOTSUP, False),
    ("flock", errno.ENOLCK, False),
    ("flock", errno.ENOTSUP, False),
]


@pytest.mark.parametrize(("name", "number", "only_folders"), LACKING)
@pytest.mark.parametrize(
    "to", [("txt",), ("txt", "--existing", "append"), ("jsonl",), ("csv", "--existing", "overwrite")]
)
def test_a_disk_that_lacks_a_call_gets_its_captions(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    only_folders: bool,
    to: tuple[str, ...],
) -> None:
    module = fcntl if name == "flock" else os
    monkeypatch.setattr(module, name, failing(getattr(module, name), number, only_folders))
    folder = photos(tmp_path / "photos", "a.jpg", "b.jpg")
    out = () if to[0] == "txt" else ("--out", tmp_path / "out")
    done = run(folder, "--to", *to, *out)
    assert done.returncode == 0 and "2 captioned, 0 skipped, 0 failed" in done.stderr, done.stderr
    if to[0] == "txt":
        assert [(folder / f"{each}.txt").read_text() for each in "ab"] == [f"{TEXT}\n"] * 2
    else:
        assert (tmp_path / "out").read_text().count(TEXT) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("only_folders", [False, True])
def test_a_disk_that_fails_or_is_full_ends_the_job(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, only_folders: bool
) -> None:
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, only_folders))
    done = run(photos(tmp_path, *(f"{each}.jpg" for each in range(100))), "--to", "txt", "--in-flight", 2)
    assert done.returncode == 2 and f"nothing more can be written: {os.strerror(number)}" in done.stderr
    assert " 0 failed" in done.stderr and not list(tmp_path.glob(".captioner-*"))


def test_a_file_that_another_job_holds_is_refused_where_locks_exist(tmp_path: Path) -> None:
    with atomic_write.open_locked(tmp_path / "t"), pytest.raises(OutputRefused, match="another job"):
        atomic_write.open_locked(tmp_path / "t")


# Two folders, one output

TO = [("--to", "jsonl", "--out", "t.jsonl"), ("--to", "csv", "--out", "t.csv"), ("--to", "txt", "--out", "caps")]


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders with files of one name. Their parent is the working directory."""
    monkeypatch.chdir(tmp_path)
    return photos(tmp_path, "all/A/001.jpg", "all/A/002.jpg", "all/B/001.jpg")


@pytest.mark.parametrize("to", TO)
def test_another_folders_output_is_refused_with_the_name_of_that_folder(
    run: Run, two: Path, to: tuple[str, ...]
) -> None:
    assert run("all/A", *to).returncode == 0
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    for other in ("all/B", "all", "all/B/*.jpg"):
        done = run(other, *to)
        assert done.returncode == 2 and f"{to[3]} holds captions of {two}/all/A, not of" in done.stderr
    assert {path: path.read_bytes() for path in two.rglob("*") if path.is_file()} == before
    assert "0 captioned, 2 skipped" in run("all/A/*", *to).stderr


@pytest.mark.parametrize("to", TO)
def test_a_sub_folder_continues_the_output_of_its_parent_under_the_parents_keys(
    run: Run, two: Path, to: tuple[str, ...]
) -> None:
    assert run("all/A", "all/B", *to).returncode == 0
    assert "0 captioned, 2 skipped" in run("all/A", *to).stderr
    photos(two, "all/B/new.jpg")
    assert "1 captioned, 1 skipped" in run("all/B", *to).stderr
    assert "0 captioned, 4 skipped" in run("all", *to).stderr
    if to[1] == "txt":
        written = sorted(str(path.relative_to("caps")) for path in Path("caps").rglob("*.txt"))
        assert written == ["A/001.txt", "A/002.txt", "B/001.txt", "B/new.txt"]


@pytest.mark.parametrize("to", TO)
def test_an_output_may_be_moved_together_with_its_images_or_emptied(run: Run, two: Path, to: tuple[str, ...]) -> None:
    (two / "one").mkdir()
    shutil.move("all", "one/all")
    os.chdir("one")
    assert run("all/A", *to).returncode == 0
    os.chdir("..")
    shutil.move("one", "moved")
    os.chdir("moved")
    assert "0 captioned, 2 skipped" in run("all/A", *to).stderr
    shutil.rmtree(to[3]) if to[1] == "txt" else Path(to[3]).unlink()
    assert "1 captioned" in run("all/B", *to).stderr


def test_the_sentence_says_how_to_continue_after_the_images_alone_were_moved(run: Run, two: Path) -> None:
    to = TO[0]
    assert run("all/A", *to).returncode == 0
    Path("all/A").rename("all/moved")
    done = run("all/moved", *to)
    record = two / ".t.jsonl.captioner.json"
    assert done.returncode == 2 and f"delete {record} if " in done.stderr
    record.unlink()
    again = run("all/moved", *to)
    assert "0 captioned, 2 skipped" in again.stderr and "its captions are taken for those of" in again.stderr


def test_an_interrupted_overwrite_is_not_continued_with_another_folder(run: Run, two: Path) -> None:
    to = (*TO[0], "--existing", "overwrite")
    assert run("all/A", *TO[0]).returncode == 0
    assert run("all/B", *to).returncode == 0, "overwrite replaces the whole file"
    assert [line["file"] for line in lines(two / "t.jsonl")] == ["001.jpg"]
    assert "holds captions of" in run("all/A", *TO[0]).stderr
    shutil.copy("t.jsonl", "t.jsonl.part")
    shutil.copy(".t.jsonl.captioner.json", ".t.jsonl.part.captioner.json")
    done = run("all/A", *to)
    assert done.returncode == 2 and f"t.jsonl.part holds captions of {two}/all/B" in done.stderr


# A dry run


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    run: Run, server: ScriptedServer, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jxl", "@eaDir/x.jpg", "d.jpg")
    (folder / "b.txt").write_text("old\n")
    (folder / "d.txt").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = run(folder, "--to", "txt", "--dry-run", address="127.0.0.1:9")
    assert done.returncode == 1
    failure = f"OUTPUT_REFUSED: the caption cannot be written: Is a directory: {folder}/d.txt"
    assert sorted(done.stdout.splitlines()) == sorted(
        [
            f"caption    {folder}/a.jpg",
            f"skip       {folder}/b.jpg  (it has a caption)",
            f"fail       {folder}/d.jpg  ({failure})",
            f"pass over  {folder}/c.jxl  (.jxl is not an image format that is read)",
            f"pass over  {folder}/@eaDir  (excluded by @eaDir)",
        ]
    )
    assert "dry run: would caption 1, skip 1; 1 cannot be read" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before and not server.requests


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
@pytest.mark.parametrize("to", TO)
def test_a_dry_run_knows_the_captions_of_every_output(run: Run, two: Path, to: tuple[str, ...], existing: str) -> None:
    assert run("all/A", *to, "--dry-run").stdout.count("caption  ") == 2
    assert not Path(to[3]).exists()
    run("all/A/001.jpg", *to)
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    done = run("all/A", *to, "--existing", existing, "--dry-run")
    counts = "would caption 1, skip 1" if existing == "skip" else "would caption 2, skip 0"
    assert done.returncode == 0 and counts in done.stderr
    assert run("all/B", *to, "--dry-run").returncode == 2
    assert {path: path.read_bytes() for path in two.rglob("*") if path.is_file()} == before


# The summary


def test_the_summary_groups_the_failures_by_code(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.jpg", "b.jpg")
    photos(folder, "c.jpg", "d.jpg", data=b"")
    (folder / "a.txt").write_text("old\n")
    report = tmp_path / "report.jsonl"
    done = run(folder, "--to", "txt", "--report", report)
    assert "1 captioned, 1 skipped, 2 failed in 0." in done.stderr
    assert f"  failed: IMAGE_MISSING 2; {report} names each\n" in done.stderr
    assert "  skipped: 1 image with a caption\n" in done.stderr


# Waiting for the server, and order


@pytest.mark.parametrize("one", [True, False])
def test_a_server_that_starts_after_the_command_is_waited_for(run: Run, tmp_path: Path, one: bool) -> None:
    first = ScriptedServer()
    first.close()
    late: list[ScriptedServer] = []
    timer = threading.Timer(2.0, lambda: late.append(ScriptedServer(port=first.port)))
    timer.start()
    photo = photos(tmp_path, "a.jpg") / "a.jpg"
    done = run(photo if one else tmp_path, "--retry-for", 30, address=first.address)
    timer.join()
    late[0].close()
    assert done.returncode == 0 and TEXT in done.stdout
    assert "SERVER_UNREACHABLE" in done.stderr and "trying again for 30 s" in done.stderr


@pytest.mark.parametrize("one", [True, False])
def test_an_absent_server_is_given_up_after_retry_for(run: Run, tmp_path: Path, one: bool) -> None:
    photo = photos(tmp_path, "a.jpg") / "a.jpg"
    began = time.monotonic()
    done = run(photo if one else tmp_path, "--retry-for", 3, address="127.0.0.1:9")
    assert done.returncode == 2 and "SERVER_UNREACHABLE" in done.stderr
    assert 2 < time.monotonic() - began < 6


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_is_in_the_order_of_the_images(run: Run, server: ScriptedServer, tmp_path: Path, form: str) -> None:
    names = [f"{number:02d}.jpg" for number in range(30)]
    for number, name in enumerate(names):
        photos(tmp_path / "photos", name, data=name.encode())
        server.delays_s[name.encode()] = 0.3 if number % 7 == 0 else 0.0
    photos(tmp_path / "photos", "05.jpg", data=b"")
    done = run(tmp_path / "photos", "--to", form, "--out", tmp_path / "out", "--in-flight", 8)
    assert done.returncode == 1
    with (tmp_path / "out").open(newline="") as file:
        rows = list(csv.DictReader(file)) if form == "csv" else [json.loads(line) for line in file]
    assert [row["file"] for row in rows] == [name for name in names if name != "05.jpg"]


def test_captions_wait_for_a_slow_image_only_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "MAX_HELD", 3)
    held: InputOrder[str] = InputOrder()
    assert [held.add(number, str(number)) for number in (1, 2, 4)] == [[], [], []]
    assert held.add(5, "5") == ["1", "2"]
    assert held.add(0, "0") == ["0"]
    assert held.add(3, None) == ["4", "5"]
    assert held.add(7, "7") == []
    assert held.rest() == ["7"]
