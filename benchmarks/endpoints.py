"""What the HTTP API and the page add to a caption through the gRPC client, in ms.

    python -m benchmarks.endpoints [--server 127.0.0.1:8001] [--page http://127.0.0.1:7860] [--photos 100]

One photo after the other goes through every door, the order drawn anew for each, one request at a time: the gRPC
client, `/v1/captions` as events and whole, `/v1/chat/completions` as events, and the page's own script in headless
Chromium. Photos are crops of the shipped examples with bytes of their own behind the end, so that no answer comes from
the feature cache. Medians of a photo's difference to gRPC, with a bootstrap interval of 95 %; the first ten photos are
thrown away. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import random
import secrets
import statistics
import time
from collections.abc import Callable
from itertools import islice

import httpx
from playwright.sync_api import Page, sync_playwright

from benchmarks.images import crops
from captioner.client import Client
from captioner.client.load_test import marked
from captioner.wire import GRPC_PORT, PAGE_PORT

CHROMIUM, WARM_UP = "/usr/bin/chromium", 10
Times = tuple[float, float]  # ms to the first text and to the end
Door = Callable[[bytes], Times]
IN_PAGE = """async (image) => {
    const { caption } = await import("/browser/api.js");
    const bytes = Uint8Array.from(atob(image), (character) => character.charCodeAt(0));
    const file = new File([bytes], "a.jpg", { type: "image/jpeg" });
    const began = performance.now();
    let first = 0;
    await caption(file, {}, { signal: new AbortController().signal, onText: () => (first ||= performance.now()) });
    return [first - began, performance.now() - began];
}"""


def doors(client: Client, http: httpx.Client, page: Page) -> dict[str, Door]:
    """Every way to a caption, by name."""

    def grpc(image: bytes) -> Times:
        began, first = time.perf_counter(), 0.0
        with client.stream(image) as stream:
            for _ in stream:
                first = first or time.perf_counter()
        return (first - began) * 1000, (time.perf_counter() - began) * 1000

    def events(path: str, **request: object) -> Times:
        began, first = time.perf_counter(), 0.0
        with http.stream("POST", path, **request) as answer:  # type: ignore[arg-type]
            answer.raise_for_status()
            for _ in answer.iter_raw():
                first = first or time.perf_counter()
        return (first - began) * 1000, (time.perf_counter() - began) * 1000

    def captions(image: bytes) -> Times:
        return events("/v1/captions", files={"image": ("a.jpg", image)}, data={"stream": "true"})

    def whole(image: bytes) -> Times:
        return events("/v1/captions", files={"image": ("a.jpg", image)})

    def chat(image: bytes) -> Times:
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "user", "content": content}]
        return events("/v1/chat/completions", json={"model": "captioner", "stream": True, "messages": messages})

    def in_page(image: bytes) -> Times:
        first, total = page.evaluate(IN_PAGE, base64.b64encode(image).decode())
        return first, total

    return {"grpc": grpc, "captions": captions, "captions_whole": whole, "chat": chat, "page": in_page}


def measure(server: str, url: str, photos: int) -> dict[str, object]:
    """The JSON document."""
    times: dict[str, list[Times]] = {}
    with sync_playwright() as playwright, Client(server) as client, httpx.Client(base_url=url, timeout=60) as http:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(url)
        ways = doors(client, http, page)
        for photo in islice(crops(seed=secrets.randbits(32)), WARM_UP + photos):
            for name, file in zip(random.sample(list(ways), len(ways)), marked([photo]), strict=False):
                times.setdefault(name, []).append(ways[name](file))
        browser.close()
    kept = {name: each[WARM_UP:] for name, each in times.items()}
    found: dict[str, object] = {"photos": photos, "cores": os.cpu_count(), "python": platform.python_version()}
    for index, what in enumerate(("first_text", "total")):
        base = [each[index] for each in kept["grpc"]]
        found[f"grpc_{what}_p50_ms"] = round(statistics.median(base), 2)
        for name in [name for name in kept if name != "grpc" and not (what == "first_text" and name.endswith("whole"))]:
            more = [each[index] - grpc for each, grpc in zip(kept[name], base, strict=True)]
            found[f"{name}_{what}_added_ms"] = _median(more)
            print(f"{name:15} {what:10} +{statistics.median(more):5.1f} ms", flush=True)
    return found


def _median(values: list[float]) -> dict[str, float]:
    chance = random.Random(0)
    drawn = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(1000))
    return {"median": round(statistics.median(values), 2), "low": round(drawn[25], 2), "high": round(drawn[974], 2)}


def main() -> None:
    """Arguments only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}")
    parser.add_argument("--page", default=f"http://127.0.0.1:{PAGE_PORT}")
    parser.add_argument("--photos", type=int, default=100)
    options = parser.parse_args()
    print(json.dumps(measure(options.server, options.page, options.photos)))


if __name__ == "__main__":
    main()
