"""Pages behind a plain nginx that gives each request to the next replica; passwords; a path of their own."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from captioner.examples import PHOTOS
from tests.support.pages import Open, Serve, fill_field
from tests.support.served import Served

pytestmark = [pytest.mark.browser, pytest.mark.triton]

Proxy = Callable[..., tuple[str, Path]]
PHOTO = next(path for path in PHOTOS if path.name == "cat.jpg")


def use_everything(page: Page) -> None:
    """One image in two styles with a setting, then a batch."""
    page.set_input_files("#image-file", PHOTO)
    page.click("#start")
    expect(page.locator("#details .facts")).to_be_visible()
    text = page.input_value("#caption textarea")
    page.get_by_label("Style").click()
    page.get_by_role("option", name="tags").click()
    expect(page.locator("#prompt textarea")).to_have_value("<|tags|>")
    page.get_by_text("Advanced").click()
    fill_field(page, "seed", "7")
    page.click("#start")
    expect(page.locator("#start")).to_be_enabled()
    expect(page.locator("#details .facts")).to_contain_text("7")
    assert page.input_value("#caption textarea") not in ("", text)
    page.get_by_role("tab", name="Batch").click()
    page.set_input_files("#files-file", PHOTOS)
    page.click("#start-batch")
    expect(page.locator("#progress-text")).to_contain_text("done", timeout=60_000)
    assert all(area.input_value() for area in page.locator("#rows textarea").all())


def test_two_replicas_behind_a_round_robin_break_nothing(
    served: Served, serve_page: Serve, proxy_pages: Proxy, open_page: Open
) -> None:
    urls = [serve_page(served.grpc) for _ in range(2)]
    url, log = proxy_pages(urls)
    page = open_page(url)
    use_everything(page)
    lines = log.read_text().splitlines()
    asked = [(line.split()[0], line.split()[2].partition("?")[0]) for line in lines]
    for path in ("/v1/captions", "/gradio_api/run/predict"):
        assert len({replica for replica, each in asked if each == path}) == 2, f"both replicas answered {path}"
    assert not any("/gradio_api/queue" in each for _, each in asked), "a queue is one replica's"


def test_a_replica_that_dies_takes_no_caption_with_it(
    served: Served,
    serve_page: Serve,
    proxy_pages: Proxy,
    open_page: Open,
    processes: dict[str, subprocess.Popen[bytes]],
) -> None:
    urls = [serve_page(served.grpc) for _ in range(2)]
    url, _ = proxy_pages(urls)
    page = open_page(url)
    processes[urls[0]].kill()
    processes[urls[0]].wait()
    use_everything(page)


def test_a_page_under_a_path_of_a_proxy_works(
    served: Served, serve_page: Serve, proxy_pages: Proxy, open_page: Open
) -> None:
    url, _ = proxy_pages([serve_page(served.grpc, "--root-path", "/caption")], "/caption")
    use_everything(open_page(f"{url}/"))


def test_a_password_guards_page_and_api_on_every_replica(
    served: Served, serve_page: Serve, proxy_pages: Proxy, open_page: Open
) -> None:
    urls = [serve_page(served.grpc, "--auth", "ada:pass:word", "--api-key", "key-1") for _ in range(2)]
    url, _ = proxy_pages(urls)
    use_everything(open_page(url, http_credentials={"username": "ada", "password": "pass:word"}))
    for path in ("", "/browser/main.js", "/v1/models", "/gradio_api/info", "/config", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + path, timeout=10)
        assert refused.value.code == 401, path
    for header in ("Bearer key-1", "Basic " + base64.b64encode(b"ada:pass:word").decode()):
        request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": header})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["data"]


def test_a_page_nobody_guards_asks_for_nothing_and_keeps_nothing(
    served: Served, serve_page: Serve, open_page: Open
) -> None:
    url = serve_page(served.grpc)
    page = open_page(url)
    use_everything(page)
    assert page.context.cookies() == []
    with urllib.request.urlopen(f"{url}/config", timeout=10) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    for path in ("/gradio_api/runs", "/monitoring/summary"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + path, timeout=10)
        assert refused.value.code in (403, 404), path
