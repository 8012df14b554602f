"""`captioner caption` over folders and archives, against a real server: every output and every way to end."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.images import crops
from captioner.bulk.outputs import image_metadata, xmp
from captioner.cli import main
from captioner.client import Client
from captioner.examples import FOLDER
from tests.support import commands
from tests.support.proxy import Proxy
from tests.support.served import Served, metric, serve

pytestmark = pytest.mark.triton

GOOD = ("cat.jpg", "far/coffee.jpg", "far/rocket.jpg", "near/astronaut.jpg")
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def command(served: Served, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "captioner.cli", "caption", "--server", served.grpc, *map(str, arguments)]


@pytest.fixture
def run(served: Served) -> Run:
    """Run the command in this process, and return its exit code and output."""

    def run(*arguments: object) -> Done:
        return commands.caption(served.grpc, *arguments)

    return run


@pytest.fixture(scope="module")
def captions(served: Served) -> dict[str, str]:
    """The caption of each photo."""
    with Client(served.grpc) as client:
        return {name: client.caption(FOLDER / Path(name).name).text for name in GOOD}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in GOOD:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / Path(name).name, folder / name)
    return folder


@pytest.fixture
def bad(photos: Path) -> Path:
    """The photos, and three files that cannot be captioned."""
    (photos / "broken.jpg").write_bytes((FOLDER / "cat.jpg").read_bytes()[:2000])
    (photos / "far" / "empty.png").touch()
    (photos / "near" / "words.webp").write_text("no image")
    return photos


def test_a_folder_is_captioned_to_stdout_one_line_for_each_photo(
    run: Run, photos: Path, captions: dict[str, str]
) -> None:
    done = run(photos)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"{photos / name}: {text}" for name, text in captions.items())


def test_one_file_prints_only_its_caption_and_json_prints_an_object(run: Run, captions: dict[str, str]) -> None:
    photo = FOLDER / "cat.jpg"
    assert run(photo, "--trigger", "ohwx", "--suffix", "!").stdout == f"ohwx, {captions['cat.jpg']}!\n"
    line = json.loads(run(photo, "--json").stdout)
    assert (line["file"], line["caption"]) == (str(photo), captions["cat.jpg"])
    assert line["details"]["finish_reason"] == "stop"


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_a_seed_of_64_bits_is_used_and_comes_back_in_the_details(run: Run, seed: int) -> None:
    line = json.loads(run(FOLDER / "cat.jpg", "--json", "--seed", seed, "--temperature", 1).stdout)
    again = json.loads(run(FOLDER / "cat.jpg", "--json", "--seed", seed, "--temperature", 1).stdout)
    assert line["details"]["seed"] == seed and line["caption"] == again["caption"]


def test_txt_is_written_beside_each_photo_or_below_out_with_the_same_folders(
    run: Run, photos: Path, tmp_path: Path, captions: dict[str, str]
) -> None:
    for out in (None, tmp_path / "out"):
        done = run(photos, "--to", "txt", *(("--out", out) if out else ()))
        assert done.returncode == 0, done.stderr
        written = {str(path.relative_to(out or photos)): path.read_text() for path in (out or photos).rglob("*.txt")}
        assert written == {name.replace(".jpg", ".txt"): f"{text}\n" for name, text in captions.items()}
    assert not list(tmp_path.rglob(".captioner-*")), "a complete job leaves no temporary file or journal"


def test_jsonl_and_csv_hold_every_photo_by_its_key(
    run: Run, photos: Path, tmp_path: Path, captions: dict[str, str]
) -> None:
    for form in ("jsonl", "csv"):
        done = run(photos, "--to", form, "--out", tmp_path / form, "--prefix", "photo of ")
        assert done.returncode == 0, done.stderr
    expected = {name: f"photo of {text}" for name, text in captions.items()}
    lines = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    assert {line["file"]: line["caption"] for line in lines} == expected
    assert all(line["details"]["model"] for line in lines)
    with (tmp_path / "csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["caption"] for row in rows} == expected
    assert all(row["revision"] and 0 <= float(row["confidence"]) <= 1 for row in rows)


def test_xmp_and_exif_hold_the_caption_and_the_pixels_are_unchanged(
    run: Run, photos: Path, captions: dict[str, str]
) -> None:
    before = {name: Image.open(photos / name).tobytes() for name in GOOD}
    for form in ("xmp", "exif"):
        assert run(photos, "--to", form).returncode == 0
    for name, text in captions.items():
        assert xmp.description((photos / name).with_suffix(".xmp").read_bytes()) == text
        assert image_metadata.description((photos / name).read_bytes()) == text
        assert Image.open(photos / name).tobytes() == before[name]
    done = run(photos, "--to", "exif")
    assert "0 captioned, 4 skipped" in done.stderr, "a caption in the image's EXIF is an existing caption"


@pytest.mark.parametrize("form", ["txt", "xmp", "exif"])
def test_existing_captions_are_kept_replaced_or_joined(
    run: Run, photos: Path, captions: dict[str, str], form: str
) -> None:
    def written() -> dict[str, str | None]:
        texts: dict[str, str | None] = {}
        for name in GOOD:
            path = photos / name
            if form == "txt":
                texts[name] = path.with_suffix(".txt").read_text().strip()
            elif form == "xmp":
                texts[name] = xmp.description(path.with_suffix(".xmp").read_bytes())
            else:
                texts[name] = image_metadata.description(path.read_bytes())
        return texts

    for existing, expected in (
        ("skip", "{}"),
        ("skip", "{}"),
        ("append", "{} | new {}"),
        ("prepend", "new {} | {} | new {}"),
        ("overwrite", "new {}"),
    ):
        joined = ("--separator", " | ") if existing in ("append", "prepend") else ()
        prefix = ("--prefix", "new ") if existing != "skip" else ()
        done = run(photos, "--to", form, "--existing", existing, *joined, *prefix)
        assert done.returncode == 0, done.stderr
        assert written() == {name: expected.replace("{}", text) for name, text in captions.items()}, existing


def test_a_text_is_edited_the_same_way_for_every_output(run: Run, photos: Path, captions: dict[str, str]) -> None:
    edit = ("--drop", "no such words", "--replace", "A=One", "--trigger", "ohwx")
    expected = "ohwx, " + re.sub(r"\bA\b", "One", captions["cat.jpg"])
    photo = photos / "cat.jpg"
    assert run(photo, *edit).stdout == f"{expected}\n"
    assert (
        json.loads(run(photo, "--json", *edit, "--columns", "text=caption,file_name=file").stdout)["text"] == expected
    )
    assert run(photo, "--to", "txt", "--extension", ".caption", *edit).returncode == 0
    assert photo.with_suffix(".caption").read_text() == f"{expected}\n"


def test_images_that_share_a_stem_get_separate_sidecars_and_one_warning(run: Run, photos: Path) -> None:
    for name in GOOD:
        Image.open(photos / name).resize((90, 60)).save((photos / name).with_suffix(".png"))
    done = run(photos, "--to", "txt")
    assert done.returncode == 0 and done.stderr.count("shares its stem") == 1
    assert len(list(photos.rglob("*.jpg.txt"))) == len(list(photos.rglob("*.png.txt"))) == 4
    assert len(list(photos.rglob("*.txt"))) == 8


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "shard.zip"])
def test_images_in_archives_are_captioned_to_out(
    run: Run, photos: Path, tmp_path: Path, captions: dict[str, str], name: str
) -> None:
    archive = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as zipped:
            for photo in GOOD:
                zipped.write(photos / photo, photo)
    else:
        with tarfile.open(archive, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(photos, ".")
    done = run(archive, "--to", "txt")
    assert done.returncode == 2 and "--out" in done.stderr
    for form in ("txt", "exif"):
        done = run(archive, "--to", form, "--out", tmp_path / form)
        assert done.returncode == 0, done.stderr
    for photo, text in captions.items():
        assert (tmp_path / "txt" / name / photo).with_suffix(".txt").read_text() == f"{text}\n"
        assert image_metadata.description((tmp_path / "exif" / name / photo).read_bytes()) == text


def test_each_bad_file_is_reported_and_the_others_are_captioned(
    run: Run, bad: Path, tmp_path: Path, captions: dict[str, str]
) -> None:
    done = run(bad, "--to", "txt", "--report", tmp_path / "report.jsonl")
    assert done.returncode == 1
    assert len(list(bad.rglob("*.txt"))) == len(captions)
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert {line["file"]: line["code"] for line in report} == {
        "broken.jpg": "IMAGE_BROKEN",
        "far/empty.png": "IMAGE_MISSING",
        "near/words.webp": "IMAGE_FORMAT_UNKNOWN",
    }
    for line in report:
        assert f"{bad / line['file']}: {line['code']}: {line['message']}\n" in done.stderr
    again = run(bad, "--to", "txt")
    assert again.returncode == 1 and "0 captioned, 4 skipped, 3 failed" in again.stderr


def test_the_same_command_retries_only_the_failed_images_also_after_the_folder_was_moved(
    run: Run, bad: Path, captions: dict[str, str]
) -> None:
    for name in GOOD:
        (bad / name).with_suffix(".txt").write_text("old\n")
    assert run(bad, "--to", "txt", "--existing", "append").returncode == 1
    moved = bad.rename(bad.parent / "moved")
    shutil.copy(FOLDER / "cat.jpg", moved / "broken.jpg")
    again = run(moved, "--to", "txt", "--existing", "append")
    assert again.returncode == 1 and "1 captioned, 4 skipped, 2 failed" in again.stderr
    for name, text in captions.items():
        assert (moved / name).with_suffix(".txt").read_text() == f"old {text}\n"
    assert (moved / "broken.txt").read_text() == f"{captions['cat.jpg']}\n"


def test_exif_is_refused_for_other_formats_before_the_image_is_captioned(run: Run, photos: Path) -> None:
    Image.open(photos / "cat.jpg").save(photos / "cat.gif")
    before = (photos / "cat.gif").read_bytes()
    done = run(photos, "--to", "exif")
    assert done.returncode == 1 and "cat.gif: OUTPUT_REFUSED: a caption is written into JPEG, PNG" in done.stderr
    assert (photos / "cat.gif").read_bytes() == before


def test_the_exit_code_is_2_if_nothing_could_be_done(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no")
    for arguments, message in (
        ((tmp_path / "nowhere",), "IMAGE_MISSING"),
        ((tmp_path / "bare",), "no images found"),
        ((broken, "--to", "txt"), "IMAGE_FORMAT_UNKNOWN"),
        ((broken,), "IMAGE_FORMAT_UNKNOWN"),
        ((photos, "--style", "haiku"), "given up: PARAMETER_UNSUPPORTED"),
        ((photos, "--to", "txt", "--server", "127.0.0.1:9", "--retry-for", 0), "SERVER_UNREACHABLE"),
        ((photos, "--to", "jsonl", "--out", tmp_path), "cannot be written"),
        ((photos, "--report", tmp_path / "no" / "report"), "cannot be written"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)


def test_a_job_that_captions_nothing_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    broken, out = tmp_path / "broken.jpg", tmp_path / "out.csv"
    broken.write_bytes(b"no")
    assert run(FOLDER / "cat.jpg", "--to", "csv", "--out", out).returncode == 0
    old = out.read_text()
    assert run(broken, "--to", "csv", "--out", out, "--existing", "overwrite").returncode == 2
    assert out.read_text() == old


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "csv", "--out", "x", "--existing", "append"), "--existing append is for sidecars"),
        (("--to", "csv", "--existing", "overwrite"), "needs an output file or folder"),
        (("--existing", "overwrite"), "needs an output file or folder"),
        (("--out", "x"), "--out needs --to"),
        (("--json", "--to", "txt"), "--json is --to jsonl"),
        (("--to", "txt", "--separator", "x"), "--separator is for"),
        (("--workers", "3"), "--workers is for"),
        (("--repository", "x"), "--repository is for"),
        (("--retry-for", "-1"), "--retry-for is -1"),
        (("--to", "xmp", "--extension", ".caption"), "--extension is for --to txt"),
        (("--to", "txt", "--columns", "a=file"), "--columns is for --to jsonl and csv"),
        (("--to", "jsonl", "--out", "x", "--bom"), "--bom is for --to csv"),
        (("--to", "csv", "--out", "x", "--keep-dates"), "--keep-dates is for txt, xmp, exif"),
        (("--replace", "cat"), "--replace is 'cat'; it must be A=B"),
        (("--drop", "x" * 501), "--drop takes up to 100 texts of 1 to 500 characters"),
    ],
)
def test_contradictory_options_are_refused_by_name(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(FOLDER), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos, enough to stop a job in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for number, photo in enumerate(islice(crops(seed=7), 60)):
        (folder / f"{number:03d}.jpg").write_bytes(photo)
    return folder


@pytest.fixture
def started(served: Served) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in a process of its own."""
    processes = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        line = command(served, *arguments)
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(path: Path, lines: int) -> None:
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < until, "the job makes no progress"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_ctrl_c_completes_the_images_in_flight_and_the_same_command_resumes(
    started: Callable[..., subprocess.Popen[str]], run: Run, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "captions.jsonl"
    job = (many, "--to", "jsonl", "--out", out, "--in-flight", 4)
    process = started(*job)
    wait_for(out, 5)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "press Ctrl-C again to stop immediately" in err and "run the same command again to resume" in err
    kept = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert 5 <= len(kept) < 60 and f"{len(kept)} captioned" in err
    assert run(*job).returncode == 0
    files = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert sorted(files) == [f"{each:03d}.jpg" for each in range(60)] and files[: len(kept)] == kept


def test_a_second_ctrl_c_ends_the_process_immediately(
    started: Callable[..., subprocess.Popen[str]], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    os.mkfifo(tmp_path / "a-tar.tar")  # opening it blocks, because it has no writer
    process = started(photos / "cat.jpg", tmp_path / "a-tar.tar", "--to", "jsonl", "--out", out)
    wait_for(out, 1)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode == 130 and time.monotonic() - began < 2


def test_the_progress_bar_counts_to_the_total_and_shows_failures(run: Run, bad: Path) -> None:
    done = run(bad, "--to", "txt", "--progress")
    assert "7/7" in done.stderr and "failed=3" in done.stderr and "image/s" in done.stderr
    assert "image/s" not in run(bad, "--to", "txt").stderr, "there is no bar if stderr is not a terminal"


def test_more_requests_in_flight_than_the_server_admits_lose_no_image(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, photo in enumerate(islice(crops(seed=8, size_px=64), 40)):
        (tmp_path / f"{number}.jpg").write_bytes(photo)
    monkeypatch.setenv("CAPTIONER_SLOTS", "2")
    monkeypatch.setenv("CAPTIONER_MAX_WAITING", "2")
    with serve(repository, tmp_path / "server.log") as small:
        arguments = (tmp_path, "--to", "csv", "--out", tmp_path / "csv", "--in-flight", 40, "--max-tokens", 8)
        done = commands.caption(small.grpc, *arguments)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "csv").read_text().count("\n") == 41
        assert metric(small, "captioner_refused_total") > 0, "the server admitted every request"


@pytest.fixture
def proxy(served: Served) -> Iterator[Proxy]:
    proxy = Proxy(served.grpc)
    yield proxy
    proxy.close()


@contextlib.contextmanager
def outage(proxy: Proxy, out: Path, seconds: float) -> Iterator[None]:
    """Make the server unavailable when `out` has five lines, and available again `seconds` later."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.005) and (not out.exists() or out.read_bytes().count(b"\n") < 5):
            pass
        proxy.faults.unavailable = True
        over.wait(seconds)
        proxy.faults.unavailable = False

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_job_waits_for_a_server_that_is_unavailable_for_a_while(
    run: Run, proxy: Proxy, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.csv"
    with outage(proxy, out, 2):
        done = run(many, "--to", "csv", "--out", out, "--in-flight", 4, "--server", proxy.address)
    assert (done.returncode, "0 failed" in done.stderr) == (0, True), done.stderr
    assert out.read_text().count("\n") == 61


def test_a_job_gives_up_when_the_server_is_unavailable_for_longer_than_retry_for(
    run: Run, proxy: Proxy, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.csv"
    with outage(proxy, out, 60):
        done = run(many, "--to", "csv", "--out", out, "--in-flight", 4, "--retry-for", 1, "--server", proxy.address)
        assert proxy.faults.unavailable, "the job waited for the end of the outage"
    assert done.returncode == 1 and "given up: SERVER_UNREACHABLE" in done.stderr


def test_a_closed_stdout_ends_the_job(served: Served, many: Path) -> None:
    line = " ".join(command(served, many, "--in-flight", 2)) + " | head -1"
    done = subprocess.run(line, check=False, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_full_disk_ends_the_job_and_the_same_command_resumes(
    run: Run, served: Served, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    full = subprocess.run(
        command(served, photos, "--to", "jsonl", "--out", out),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)),
    )
    assert full.returncode in (1, 2) and "nothing more can be written" in full.stderr and "Traceback" not in full.stderr
    assert run(photos, "--to", "jsonl", "--out", out).returncode == 0
    assert sorted(json.loads(line)["file"] for line in out.read_text().splitlines()) == sorted(GOOD)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_job_on_ray_writes_what_a_local_job_writes(
    served: Served, bad: Path, tmp_path: Path, captions: dict[str, str]
) -> None:
    ray = command(served, bad, "--to", "jsonl", "--out", tmp_path / "out", "--engine", "ray", "--workers", 1)
    done = subprocess.run(ray, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and len(re.findall(r"^/.*: IMAGE_", done.stderr, re.MULTILINE)) == 3, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert {line["file"]: line["caption"] for line in lines} == captions
