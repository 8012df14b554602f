"""The uploads of agents: how long and how much of them is kept, for whom."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from captioner.errors import ImageMissing, ImageTooLarge
from captioner.wire import MAX_IMAGE_BYTES
from frontend import uploads
from frontend.options import Options
from frontend.serve import application
from frontend.uploads import Uploads

PATH = "/gradio_api/upload"


def page(*, mcp: bool) -> TestClient:
    return TestClient(application("127.0.0.1:9", Options(mcp=mcp))[0], base_url="http://127.0.0.1:7860")


def test_a_file_is_found_by_its_name_and_by_its_address_under_any_path_prefix() -> None:
    kept = Uploads()
    name = kept.add(b"a photo", "client")
    assert kept.find(name) == kept.find(f"https://example.org/captions/gradio_api/file={name}") == b"a photo"
    assert kept.find("https://example.org/cat.jpg") is None and kept.find("aGVsbG8=") is None


def test_a_file_is_gone_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Uploads()
    monkeypatch.setattr(uploads, "UPLOAD_SECONDS", 0.0)
    name = kept.add(b"a photo", "client")
    with pytest.raises(ImageMissing, match="upload the file again"):
        kept.find(name)
    assert not kept._files


@pytest.mark.parametrize("size", [1, 2**18, 10 * 2**20])
def test_a_client_that_uploads_without_end_loses_its_own_files_and_nobody_elses(size: int) -> None:
    kept, photo, file = Uploads(), bytes(5 * 2**20), bytes(size)
    other = kept.add(photo, "other")
    greedy = [kept.add(file, "greedy") for _ in range(1100)]
    assert kept.find(other) == photo
    left = [name in kept._files for name in greedy]
    room = (uploads.MAX_UPLOADS_BYTES - len(photo)) // max(size, 2**18)
    assert left == [False] * (1100 - room) + [True] * room


def test_a_file_over_the_limit_of_an_image_is_refused() -> None:
    with pytest.raises(ImageTooLarge):
        Uploads().add(bytes(MAX_IMAGE_BYTES + 1), "client")


def test_uploads_exist_only_with_the_mcp_tool(tmp_path: Path) -> None:
    files = {"files": ("cat.jpg", b"a photo", "image/jpeg")}
    with page(mcp=True) as client:
        answer = client.post(PATH, params={"upload_id": "a"}, files=files)
        assert answer.status_code == 200 and answer.json()[0].startswith("upload-")
        assert error(client.post(PATH, data={"files": "text"}, files={})) == (415, "BODY_TYPE_UNKNOWN")
    with page(mcp=False) as client:
        assert client.post(PATH, files=files).status_code in (404, 405)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
