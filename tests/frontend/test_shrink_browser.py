"""The page shrinks images over the server's limits before it sends them, and says so, in headless Chromium."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from captioner.wire import MAX_IMAGE_BYTES
from tests.support.pages import PHOTO, Open, caption_image, choose_image

pytestmark = [pytest.mark.browser, pytest.mark.triton]
FIT = """async ([text, name]) => {
    const { fit } = await import("/browser/shrink.js");
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const file = new File([bytes], name);
    const fitted = await fit(file);
    if (fitted.file === file) return null;
    const sent = new Uint8Array(await fitted.file.arrayBuffer());
    return btoa(Array.from(sent, (byte) => String.fromCharCode(byte)).join(""));
}"""


@pytest.fixture
def page(open_page: Open, page_url: str) -> Page:
    return open_page(page_url)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photos over the limits: of 21 MiB, of 17,000 px, and one in a format that Chromium does not read."""
    folder = tmp_path_factory.mktemp("large")
    photo = Image.open(PHOTO).convert("RGB")
    grain = np.random.default_rng(3).integers(-75, 75, (2400, 3200, 3))
    grainy = Image.fromarray(np.clip(np.asarray(photo.resize((3200, 2400))) + grain, 0, 255).astype(np.uint8))
    files = {"heavy": folder / "heavy.png", "wide": folder / "wide.jpg", "tiff": folder / "photo.tif"}
    grainy.save(files["heavy"], compress_level=1)
    photo.resize((17_000, 1000)).save(files["wide"])
    grainy.save(files["tiff"])
    assert files["heavy"].stat().st_size > MAX_IMAGE_BYTES < files["tiff"].stat().st_size
    return files


@pytest.mark.parametrize(
    ("name", "size", "sent"), [("heavy", "3200x2400 px", "3200 × 2400"), ("wide", "17000x1000 px", "4096 × 241")]
)
def test_a_photo_over_the_limits_is_captioned_and_a_line_says_that_it_was_shrunk(
    page: Page, large: dict[str, Path], name: str, size: str, sent: str
) -> None:
    choose_image(page, large[name])
    expect(page.locator("#image-note")).to_contain_text(f"A smaller copy is sent: this image has {size}")
    assert caption_image(page)
    expect(page.locator("#details")).to_contain_text(f"JPEG {sent}")
    choose_image(page, PHOTO)
    expect(page.locator("#image-note")).to_be_empty()


def test_a_file_that_the_browser_cannot_decode_keeps_its_error(page: Page, large: dict[str, Path]) -> None:
    choose_image(page, large["tiff"])
    assert caption_image(page) == ""
    expect(page.locator("#problem code")).to_have_text("IMAGE_TOO_LARGE")
    expect(page.locator("#image-note")).to_be_empty()


def test_a_batch_shrinks_its_images_and_the_download_says_so(page: Page, large: dict[str, Path]) -> None:
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_selector("#stop-batch:disabled")
    page.set_input_files("#files-file", [large["wide"], PHOTO])
    page.click("#start-batch")
    expect(page.locator("#progress-text")).to_contain_text("done", timeout=60_000)
    expect(page.locator("#rows .status").first).to_contain_text("Shrunk from 17000x1000 px")
    with page.expect_download() as begun:
        page.click("#download")
    lines = zipfile.ZipFile(begun.value.path()).read("captions.jsonl").decode().splitlines()
    shrunk = {line["file"]: line["details"]["image"]["shrunk_from"] for line in map(json.loads, lines)}
    assert shrunk["wide.jpg"].startswith("17000x1000 px, ") and shrunk[PHOTO.name] == ""


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def fitted(page: Page, data: bytes) -> Image.Image | None:
    """What the page would send for a file: None if it is the file itself."""
    text = page.evaluate(FIT, [base64.b64encode(data).decode(), "image"])
    return None if text is None else Image.open(io.BytesIO(base64.b64decode(text)))


def test_the_shrunk_copy_is_upright_transparent_and_never_larger(page: Page) -> None:
    stored = Image.open(PHOTO).convert("RGB").resize((16_800, 800))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = fitted(page, encoded(stored, "JPEG", exif=exif))
    assert upright is not None and upright.format == "JPEG" and upright.size == (195, 4096)
    expected = stored.transpose(Image.Transpose.ROTATE_270).resize(upright.size)
    assert np.abs(np.asarray(upright, float) - np.asarray(expected, float)).mean() < 4
    clear = fitted(page, encoded(Image.new("RGBA", (16_500, 40), (200, 0, 0, 90)), "PNG"))
    assert clear is not None and clear.format == "PNG" and clear.getpixel((5, 5))[3] == 90  # type: ignore[index]
    for within in (PHOTO.read_bytes(), encoded(Image.new("RGB", (16_384, 8)), "PNG"), b"not an image"):
        assert fitted(page, within) is None
    assert fitted(page, encoded(Image.new("1", (30_000, 9)), "PNG")) is None, "its shorter side would be too short"
