"""The rows of the Batch tab in headless Chromium: what is listed, what is kept, what is asked first."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Dialog, Page, expect

from captioner.examples import PHOTOS
from tests.support.pages import Open
from tests.support.scripted_server import TEXT, ScriptedServer

pytestmark = pytest.mark.browser

FILES, START, STOP, PROGRESS = "#files-file", "#start-batch", "#stop-batch", "#progress-text"
OTHER = ("another ", "caption")
MINE = "A caption of my own"


@pytest.fixture
def server(shared_scripted_server: ScriptedServer) -> ScriptedServer:
    server = shared_scripted_server
    server.pieces, server.piece_s, server.faults = tuple(TEXT.partition("cat")), 0.0, []
    return server


@pytest.fixture
def page(open_page: Open, scripted_page_url: str, server: ScriptedServer) -> Page:
    page = open_page(scripted_page_url)
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_selector(f"{STOP}:disabled")
    expect(page.locator("#server .up")).to_be_visible()
    return page


def photo(path: Path, number: int = 0) -> Path:
    """Write a small photo, which differs for each number, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(PHOTOS[0]).crop((number, 0, number + 64, 48)).save(path)
    return path


def photos(folder: Path, count: int) -> list[Path]:
    return [photo(folder / f"{number}.jpg", number) for number in range(count)]


def run(page: Page) -> None:
    page.click(START)
    finish(page)


def finish(page: Page) -> None:
    expect(page.locator(f"{START}:enabled")).to_be_visible()
    expect(page.locator(PROGRESS)).to_contain_text("done")


def captions(page: Page) -> dict[str, str]:
    """Return the visible captions by file name."""
    rows = page.locator("#rows li:visible").all()
    return {row.locator("b").text_content() or "": row.locator("textarea").input_value() for row in rows}


def field(page: Page, name: str) -> str:
    return f'[aria-label="Caption of {name}"]'


def left_out(page: Page) -> list[str]:
    return page.locator("#left-out li").all_text_contents()


def download(page: Page) -> dict[str, str]:
    with page.expect_download() as begun:
        page.click("#download")
    archive = zipfile.ZipFile(begun.value.path())
    return {name: archive.read(name).decode() for name in archive.namelist()}


def choose_style(page: Page, name: str) -> None:
    page.get_by_label("Style").click()
    page.get_by_role("option", name=name).click()
    expect(page.locator("#prompt textarea")).to_have_value("Tags." if name == "tags" else "Say much.")


def drop(page: Page, names: list[str], content: str) -> None:
    page.evaluate(
        """([names, content]) => {
            const files = names.map((name) => new File([content], name, { type: "image/jpeg" }));
            const drop = Object.assign(new Event("drop"), { dataTransfer: { items: [], files } });
            document.querySelector("#files").dispatchEvent(drop);
        }""",
        [names, content],
    )


def test_files_of_one_name_from_two_folders_are_two_rows_and_both_are_downloaded(page: Page, tmp_path: Path) -> None:
    for number, folder in enumerate(("A", "B")):
        page.set_input_files(FILES, photo(tmp_path / folder / "001.jpg", number))
    drop(page, ["same.jpg", "same.jpg"], "?")
    expect(page.locator("#rows b")).to_have_text(["001.jpg", "001 (2).jpg", "same.jpg", "same (2).jpg"])
    for number, name in enumerate(("001.jpg", "001 (2).jpg")):
        page.fill(field(page, name), f"caption {number}")
    texts = download(page)
    assert (texts["001.txt"], texts["001 (2).txt"]) == ("caption 0\n", "caption 1\n")


def test_a_file_that_is_in_the_list_already_is_left_out_and_said(page: Page, tmp_path: Path) -> None:
    paths = photos(tmp_path, 2)
    page.set_input_files(FILES, paths)
    page.set_input_files(FILES, paths[0])
    expect(page.locator("#rows b")).to_have_text(["0.jpg", "1.jpg"])
    assert left_out(page) == ["0.jpg: in the list already"]


def test_every_file_that_is_left_out_is_listed_with_its_reason(page: Page, tmp_path: Path) -> None:
    jxl, note, archive = tmp_path / "e.jxl", tmp_path / "NOTE", tmp_path / "photos.zip"
    jxl.write_bytes(b"?")
    note.write_text("?")
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("a.jpg", "b.JXL", "c.avif", "d.jpe", "@eaDir/a.jpg", "#recycle/a.jpg", ".thumbnails/a.jpg"):
            file.write(PHOTOS[0], name)
    page.set_input_files(FILES, [PHOTOS[0], jxl, note, archive])
    expect(page.locator("#rows b")).to_have_text([PHOTOS[0].name, "a.jpg", "c.avif", "d.jpe"])
    expect(page.locator("#left-out summary")).to_have_text("6 files left out (.jxl, .jpg)")
    page.click("#left-out summary")
    other, hidden = "not an image format that is read here", "a hidden file, or in a folder of the system"
    assert left_out(page) == [
        f"e.jxl: {other}",
        f"NOTE: {other}",
        f"photos.zip/b.JXL: {other}",
        f"photos.zip/@eaDir/a.jpg: {hidden}",
        f"photos.zip/#recycle/a.jpg: {hidden}",
        f"photos.zip/.thumbnails/a.jpg: {hidden}",
    ]
    expect(page.locator("#batch-said")).to_have_text("4 images, 6 files left out (.jxl, .jpg)")


def test_a_folder_with_a_file_that_cannot_be_read_gives_the_others(page: Page) -> None:
    page.evaluate(
        """() => {
            const file = (name) => ({ name, isFile: true, file: (give) => give(new File(["?"], name)) });
            const locked = { name: "b.jpg", isFile: true, file: (_, fail) => fail(new Error("no permission")) };
            const parts = [[file("a.jpg"), locked, file("c.jpg")], []];
            const folder = { name: "trip", createReader: () => ({ readEntries: (give) => give(parts.shift()) }) };
            const dataTransfer = { items: [{ webkitGetAsEntry: () => folder }], files: [] };
            document.querySelector("#files").dispatchEvent(Object.assign(new Event("drop"), { dataTransfer }));
        }"""
    )
    expect(page.locator("#rows b")).to_have_text(["trip/a.jpg", "trip/c.jpg"])
    assert left_out(page) == ["trip/b.jpg: it cannot be read: no permission"]


def test_names_in_a_zip_of_old_and_of_windows_programs_are_read(page: Page, tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in ("Zo#.jpg", "sub!back.jpg", "up!..!c.jpg"):
            file.write(PHOTOS[0], name)
    path = tmp_path / "old.zip"
    path.write_bytes(data.getvalue().replace(b"Zo#", b"Zo\x89").replace(b"!", b"\\"))
    page.set_input_files(FILES, path)
    expect(page.locator("#rows b")).to_have_text(["Zoë.jpg", "sub/back.jpg", "up/c.jpg"])


def test_text_typed_by_hand_is_kept_by_a_run(page: Page, server: ScriptedServer, tmp_path: Path) -> None:
    page.set_input_files(FILES, photos(tmp_path, 6))
    server.piece_s = 1
    page.fill(field(page, "0.jpg"), MINE)
    page.click(START)
    expect(page.get_by_role("button", name="Caption: 1.jpg")).to_be_disabled()
    page.fill(field(page, "1.jpg"), f"{MINE} while it was written")
    page.fill(field(page, "5.jpg"), f"{MINE} while it waited")
    finish(page)
    expect(page.locator(PROGRESS)).to_contain_text("3 of 3")
    shown = captions(page)
    assert [shown["0.jpg"], shown["1.jpg"], shown["5.jpg"]] == [
        MINE, f"{MINE} while it was written", f"{MINE} while it waited"
    ]  # fmt: skip
    assert {text for text in shown.values() if not text.startswith(MINE)} == {TEXT}


def test_another_style_writes_anew_after_a_question_and_undo_brings_the_old_captions_back(
    page: Page, server: ScriptedServer, tmp_path: Path
) -> None:
    page.set_input_files(FILES, photos(tmp_path, 3))
    run(page)
    page.fill(field(page, "0.jpg"), MINE)
    choose_style(page, "tags")
    server.pieces = OTHER
    page.click(START)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 captions came from other settings and will be written anew.")
    expect(dialog).to_contain_text("1 caption of your own will stay.")
    dialog.get_by_role("button", name="Cancel").click()
    assert captions(page) == {"0.jpg": MINE, "1.jpg": TEXT, "2.jpg": TEXT}
    page.click(START)
    dialog.get_by_role("button", name="Write 2 captions").click()
    finish(page)
    anew = {"0.jpg": MINE, "1.jpg": "".join(OTHER), "2.jpg": "".join(OTHER)}
    assert captions(page) == anew
    page.click(START)
    expect(page.locator("#batch-problem")).to_contain_text("Every image has a caption.")
    page.click("#undo")
    assert captions(page) == {"0.jpg": MINE, "1.jpg": TEXT, "2.jpg": TEXT}
    page.click(START)
    dialog.get_by_role("button", name="All, also my 1").click()
    finish(page)
    assert set(captions(page).values()) == {"".join(OTHER)}


def test_a_failed_or_stopped_attempt_keeps_the_caption_before_it(
    page: Page, server: ScriptedServer, tmp_path: Path
) -> None:
    page.set_input_files(FILES, photos(tmp_path, 1))
    run(page)
    again = page.get_by_role("button", name="Again: 0.jpg")
    server.faults = ["refused"]
    again.click()
    expect(page.locator("#rows .problem code")).to_have_text("IMAGE_BROKEN")
    assert captions(page) == {"0.jpg": TEXT}
    server.pieces, server.piece_s = ("a dog ", "runs"), 2
    page.get_by_role("button", name="Try again: 0.jpg").click()
    expect(page.locator(field(page, "0.jpg"))).to_have_value(re.compile("a dog "))
    page.click(STOP)
    expect(page.locator(field(page, "0.jpg"))).to_have_value(TEXT)


def test_a_failed_row_is_tried_again_alone_or_written_by_hand(
    page: Page, server: ScriptedServer, tmp_path: Path
) -> None:
    page.set_input_files(FILES, photos(tmp_path, 2))
    server.faults = ["refused", "refused"]
    run(page)
    expect(page.locator("#rows .problem")).to_have_count(2)
    page.fill(field(page, "0.jpg"), MINE)
    before = len(server.requests)
    page.get_by_role("button", name="Try again: 1.jpg").click()
    finish(page)
    assert captions(page) == {"0.jpg": MINE, "1.jpg": TEXT}
    assert len(server.requests) - before == 1
    expect(page.locator("#rows .problem")).to_have_count(0)
    lines = [json.loads(line) for line in download(page)["captions.jsonl"].splitlines()]
    assert [(line["caption"], line["error"]) for line in lines] == [(MINE, None), (TEXT, None)]


def test_the_button_of_a_row_writes_another_caption_with_another_seed(
    page: Page, server: ScriptedServer, tmp_path: Path
) -> None:
    page.set_input_files(FILES, photos(tmp_path, 2))
    run(page)
    asked = len(server.seeds)
    server.pieces = OTHER
    page.get_by_role("button", name="Again: 1.jpg").click()
    finish(page)
    assert captions(page) == {"0.jpg": TEXT, "1.jpg": "".join(OTHER)}
    expect(page.locator("#batch-said")).to_have_text("Caption of 1.jpg: another caption")
    assert server.seeds[-1] not in server.seeds[:asked]


def test_closing_the_tab_asks_while_captions_are_not_downloaded(
    open_page: Open, scripted_page_url: str, tmp_path: Path
) -> None:
    page = open_page(scripted_page_url)
    asked: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files(FILES, photos(tmp_path, 1))
    page.fill(field(page, "0.jpg"), MINE)
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"] and not page.is_closed()
    page.click("#clear")
    expect(page.get_by_role("dialog")).to_contain_text("1 caption will be lost")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    download(page)
    with page.expect_event("close"):
        page.close(run_before_unload=True)
    assert asked == ["beforeunload"]


def test_rows_are_filtered_and_a_text_is_replaced_in_all_of_them(
    page: Page, server: ScriptedServer, tmp_path: Path
) -> None:
    page.set_input_files(FILES, photos(tmp_path, 4))
    server.faults = ["refused"]
    run(page)
    page.fill(field(page, "3.jpg"), MINE)
    options = ["all (4)", "failed (1)", "unsure (0)", "edited (1)", "without a caption (1)"]
    expect(page.locator("#filter option")).to_have_text(options)
    for name, count in (("edited", 1), ("failed", 1), ("unsure", 0), ("all", 4)):
        page.select_option("#filter", name)
        expect(page.locator("#rows li:visible")).to_have_count(count)
        assert page.is_visible("#none") == (count == 0)
    before = captions(page)
    page.click("#replace summary")
    page.fill("#find", "cat")
    expect(page.locator("#found")).to_have_text("2 found")
    page.fill("#replacement", "$& dog")
    page.keyboard.press("Enter")
    expect(page.locator("#found")).to_have_text("replaced in 2 captions")
    after = captions(page)
    assert sorted(after.values()) == sorted(["", MINE, *[TEXT.replace("cat", "$& dog")] * 2])
    page.locator("#replace button").focus()
    page.keyboard.press("Control+z")
    assert captions(page) == before
    page.click("#undo")
    assert MINE not in captions(page).values()
    expect(page.locator("#undo")).to_be_disabled()


def test_alt_and_an_arrow_key_go_through_the_shown_rows(page: Page, tmp_path: Path) -> None:
    page.set_input_files(FILES, photos(tmp_path, 30))
    for number in (0, 20, 29):
        page.locator("#rows li").nth(number).scroll_into_view_if_needed()
        page.fill(field(page, f"{number}.jpg"), MINE)
    page.select_option("#filter", "edited")
    page.focus(field(page, "0.jpg"))
    for key, name in (("Down", "20.jpg"), ("Down", "29.jpg"), ("Down", "29.jpg"), ("Up", "20.jpg")):
        page.keyboard.press(f"Alt+Arrow{key}")
        expect(page.locator(field(page, name))).to_be_focused()


@pytest.mark.exhaustive
def test_two_thousand_rows_have_few_elements_and_small_thumbnails(page: Page, tmp_path: Path) -> None:
    (path,) = photos(tmp_path, 1)
    Image.open(path).resize((1600, 1200)).save(path)
    took = page.evaluate(
        """async ([bytes, count]) => {
            const data = new Uint8Array(bytes);
            const files = Array.from({ length: count }, (_, n) => new File([data], `${n}.jpg`, { type: "image/jpeg" }));
            const began = performance.now();
            const drop = Object.assign(new Event("drop"), { dataTransfer: { items: [], files } });
            document.querySelector("#files").dispatchEvent(drop);
            while (document.querySelectorAll("#rows li").length < count) await new Promise(requestAnimationFrame);
            return performance.now() - began;
        }""",
        [list(path.read_bytes()), 2000],
    )
    frames = page.evaluate(
        """async () => {
            const [list, times] = [document.querySelector("#rows"), []];
            let last = performance.now();
            for (let step = 0; step < 60; step++) {
                list.scrollTop += 700;
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - last);
                last = performance.now();
            }
            return times.sort((a, b) => a - b);
        }"""
    )
    print(f"2000 rows in {took:.0f} ms; frames: median {frames[30]:.0f} ms, longest {frames[-1]:.0f} ms")
    expect(page.locator("#rows img[src]").first).to_be_attached()
    assert page.locator("#rows textarea").count() < 60
    width = page.evaluate("document.querySelector('#rows img[src]').naturalWidth")
    assert width == 192
    assert took < 5_000 and frames[30] < 200, "these leave room for a busy machine"
    page.evaluate("document.querySelector('#rows').scrollTop = 1e9")
    expect(page.locator(field(page, "1999.jpg"))).to_be_visible()
