"""The Batch tab in headless Chromium, in front of the real server."""

from __future__ import annotations

import csv
import io
import json
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from captioner.client import Client
from captioner.examples import PHOTOS
from captioner.wire import CSV_COLUMNS
from tests.support.pages import BROKEN, Open, fill_field
from tests.support.served import Served, assert_soon, metric

pytestmark = [pytest.mark.browser, pytest.mark.triton]

FILES, START, STOP, PROGRESS = "#files-file", "#start-batch", "#stop-batch", "#progress-text"


@pytest.fixture
def page(open_page: Open, page_url: str) -> Page:
    page = open_page(page_url)
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_selector(f"{STOP}:disabled")
    return page


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.webp"
    path.write_bytes(BROKEN)
    return path


def run(page: Page, failed: int = 0) -> None:
    page.click(START)
    expect(page.locator(PROGRESS)).to_contain_text("done", timeout=60_000)
    assert (f"{failed} failed" in page.inner_text(PROGRESS)) == bool(failed)


def captions(page: Page) -> dict[str, str]:
    """Return the captions in the list by file name.

    A row far from what is visible has no text field yet, and the browser gives no inner text for it.
    """
    found = {}
    for row in page.locator("#rows li").all():
        row.scroll_into_view_if_needed()
        found[row.locator("b").text_content() or ""] = row.locator("textarea").input_value()
    return found


def download(page: Page) -> dict[str, str]:
    """Return the files of the downloaded zip by name."""
    with page.expect_download() as begun:
        page.click("#download")
    archive = zipfile.ZipFile(begun.value.path())
    assert archive.testzip() is None
    return {name: archive.read(name).decode() for name in archive.namelist()}


def expected(served: Served) -> dict[str, str]:
    with Client(served.grpc) as client:
        return {path.name: client.caption(path).text for path in PHOTOS}


def test_many_files_fill_the_table_and_a_bad_one_affects_only_its_row(page: Page, served: Served, bad: Path) -> None:
    page.click(START)
    expect(page.locator("#batch-problem")).to_have_text("Add images first.")
    page.set_input_files(FILES, [bad, *PHOTOS])
    run(page, failed=1)
    assert captions(page) == expected(served) | {"bad.webp": ""}
    expect(page.locator("#rows .problem code")).to_have_text("IMAGE_BROKEN")


def test_edited_captions_and_errors_are_in_the_download(page: Page, served: Served, bad: Path) -> None:
    page.set_input_files(FILES, [bad, *PHOTOS])
    run(page, failed=1)
    mine = 'My "own" words, and é 猫.\nIn two lines.'
    page.get_by_label("Caption of cat.jpg").fill(mine)
    wanted = expected(served) | {"cat.jpg": mine}
    texts = download(page)
    assert {f"{Path(name).stem}.txt": f"{text}\n" for name, text in wanted.items()}.items() <= texts.items()
    lines = [json.loads(line) for line in texts["captions.jsonl"].splitlines()]
    assert {line["file"]: line["caption"] for line in lines} == wanted | {"bad.webp": None}
    assert {line["error"]["code"] for line in lines if line["error"]} == {"IMAGE_BROKEN"}
    reader = csv.DictReader(io.StringIO(texts["captions.csv"], newline=""))
    assert reader.fieldnames == [*CSV_COLUMNS, "error"]
    rows = list(reader)
    assert [row["error"] for row in rows] == ["IMAGE_BROKEN", *[""] * len(PHOTOS)]
    for row, line in zip(rows[1:], lines[1:], strict=True):
        assert [row[name] for name in CSV_COLUMNS[2:]] == [str(line["details"][name]) for name in CSV_COLUMNS[2:]]
    assert {row["file"]: row["caption"] for row in rows} == wanted | {"bad.webp": ""}


def test_a_zip_keeps_its_folders_and_equal_stems_get_separate_text_files(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(PHOTOS[0], "trip/a.jpg")
        archive.write(PHOTOS[1], "trip/été/b.jpe", compress_type=zipfile.ZIP_STORED)
        file = io.BytesIO()
        Image.open(PHOTOS[2]).save(file, "PNG")
        archive.writestr("trip/a.png", file.getvalue())
        archive.writestr("trip/notes.md", "not an image")
        archive.writestr("__MACOSX/trip/._a.jpg", "not an image either")
    page.set_input_files(FILES, path)
    expect(page.locator(PROGRESS)).to_have_text("3 images")
    run(page)
    texts = download(page)
    assert {name for name in texts if name.endswith(".txt")} == {
        "trip/a.jpg.txt", "trip/a.png.txt", "trip/été/b.txt",
    }  # fmt: skip
    assert all(texts.values())


def test_a_dropped_folder_keeps_its_paths(page: Page) -> None:
    page.evaluate(
        """() => {
            const image = (name) => new File(["?"], name, { type: "image/jpeg" });
            const file = (name) => ({ name, isFile: true, file: (give) => give(image(name)) });
            const parts = [[file("a.jpg"), file("b.jpg")], []];
            const folder = { name: "trip", createReader: () => ({ readEntries: (give) => give(parts.shift()) }) };
            const items = [folder, file("c.jpg")].map((entry) => ({ webkitGetAsEntry: () => entry }));
            const drop = Object.assign(new Event("drop"), { dataTransfer: { items, files: [] } });
            document.querySelector("#files").dispatchEvent(drop);
        }"""
    )
    expect(page.locator("#rows b")).to_have_text(["trip/a.jpg", "trip/b.jpg", "c.jpg"])


def test_a_broken_zip_shows_an_error(page: Page, tmp_path: Path) -> None:
    for name, data in (("truncated.zip", b"PK\x03\x04 and then nothing"), ("empty.zip", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        page.set_input_files(FILES, path)
        problem = f"{name}: this file is not a zip archive, or it is truncated"
        expect(page.locator("#batch-problem")).to_have_text(problem)


def crops(folder: Path, count: int) -> list[Path]:
    photo = Image.open(PHOTOS[0])
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photo.crop((number, number, number + 300, number + 300)).save(path)
    return paths


def test_a_stopped_batch_keeps_its_captions_and_resumes_with_the_rest(
    page: Page, served: Served, tmp_path: Path
) -> None:
    page.set_input_files(FILES, crops(tmp_path, 24))
    page.evaluate(
        """async () => {
            const of = (selector) => document.querySelector(selector);
            of("#start-batch").click();
            while (of("#progress").value < 5) await new Promise(requestAnimationFrame);
            of("#stop-batch").click();
        }"""
    )
    expect(page.locator(PROGRESS)).to_contain_text("stopped")
    assert_soon(lambda: metric(served, "captioner_running") == 0)
    before = {name: text for name, text in captions(page).items() if text}
    assert 5 <= len(before) < 24
    asked = metric(served, "captioner_captions_total")
    run(page)
    after = captions(page)
    assert all(after.values())
    assert before.items() <= after.items()
    time.sleep(0.2)
    assert metric(served, "captioner_captions_total") - asked == 24 - len(before), "captions were requested again"
    page.click(START)
    expect(page.locator("#batch-problem")).to_contain_text("Every image has a caption.")


def test_the_alt_text_style_sets_and_obeys_its_limit(open_page: Open, page_url: str, tmp_path: Path) -> None:
    page = open_page(page_url)
    page.get_by_label("Style").click()
    page.get_by_role("option", name="alt-text").click()
    expect(page.locator("#max_characters textarea, #max_characters input")).to_have_value("125")
    fill_field(page, "max_characters", "40")
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files(FILES, crops(tmp_path, 6))
    run(page)
    texts = captions(page).values()
    assert all(0 < len(text) <= 40 for text in texts)
    assert any(len(text) > 20 for text in texts)
