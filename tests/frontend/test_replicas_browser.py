"""Pages behind nginx as a round-robin proxy: replicas, passwords, a path prefix."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from captioner.examples import PHOTOS
from tests.support.pages import PHOTO, Open, Serve, fill_field
from tests.support.processes import Process
from tests.support.served import Served

pytestmark = [pytest.mark.browser, pytest.mark.triton]

Proxy = Callable[..., tuple[str, Path]]
PASSWORD = ("--auth", "ada:pass:word", "--api-key", "key-1")
CREDENTIALS = {"username": "ada", "password": "pass:word"}


def use_everything(page: Page) -> None:
    """Caption one image in two styles with a setting, then a batch."""
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
    caption_batch(page)


def caption_batch(page: Page) -> None:
    page.set_input_files("#files-file", PHOTOS)
    page.click("#start-batch")
    expect(page.locator("#progress-text")).to_contain_text("done", timeout=60_000)
    assert all(area.input_value() for area in page.locator("#rows textarea").all())


def status_of(url: str, headers: dict[str, str] | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def test_two_replicas_behind_a_round_robin_proxy_serve_one_page_and_one_may_die(
    page_url: str,
    served: Served,
    serve_page: Serve,
    proxy_pages: Proxy,
    open_page: Open,
    processes: dict[str, Process],
) -> None:
    other = serve_page(served.grpc)
    url, log = proxy_pages([page_url, other])
    page = open_page(url)
    use_everything(page)
    lines = log.read_text().splitlines()
    asked = [(line.split()[0], line.split()[2].partition("?")[0]) for line in lines]
    for path in ("/v1/captions", "/gradio_api/run/predict"):
        assert len({replica for replica, each in asked if each == path}) == 2, f"both replicas answered {path}"
    assert not any("/gradio_api/queue" in each for _, each in asked), "only one replica would know a queue's result"
    processes[other].kill()
    processes[other].wait(20)
    page.click("#clear")
    page.get_by_role("button", name="Clear the list").click()
    caption_batch(page)
    assert page.context.cookies() == []


@pytest.mark.exhaustive
def test_a_page_opens_while_one_replica_is_dead(
    page_url: str,
    served: Served,
    serve_page: Serve,
    proxy_pages: Proxy,
    open_page: Open,
    processes: dict[str, Process],
) -> None:
    dead = serve_page(served.grpc)
    url, _ = proxy_pages([dead, page_url])
    page = open_page(url)
    processes[dead].kill()
    processes[dead].wait(20)
    use_everything(page)


@pytest.mark.parametrize(
    ("path", "options", "replicas"),
    [
        ("/caption", PASSWORD, 1),
        pytest.param("/caption", (), 1, marks=pytest.mark.exhaustive),
        pytest.param("", PASSWORD, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_page_works_under_a_proxys_path_and_behind_a_password(
    served: Served,
    serve_page: Serve,
    proxy_pages: Proxy,
    open_page: Open,
    path: str,
    options: tuple[str, ...],
    replicas: int,
) -> None:
    prefix = ("--root-path", path) if path else ()
    url, _ = proxy_pages([serve_page(served.grpc, *prefix, *options) for _ in range(replicas)], path)
    use_everything(open_page(f"{url}/", **({"http_credentials": CREDENTIALS} if options else {})))
    expected = 401 if options else 200
    for each in ("/", "/browser/main.js", "/v1/models", "/gradio_api/info", "/config", "/metrics"):
        assert {status_of(url + each) for _ in range(replicas)} == {expected}, each
    for header in ("Bearer key-1", "Basic " + base64.b64encode(b"ada:pass:word").decode()):
        assert status_of(f"{url}/v1/models", {"Authorization": header}) == 200


def test_the_page_collects_nothing_and_hides_gradios_monitoring(page_url: str) -> None:
    with urllib.request.urlopen(f"{page_url}/config", timeout=10) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    for path in ("/gradio_api/runs", "/monitoring/summary"):
        assert status_of(page_url + path) in (403, 404), path
