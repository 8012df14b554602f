"""What the HTTP API and the page add to the latency of the gRPC client, in ms.

    python -m benchmarks.endpoints [--server 127.0.0.1:8001] [--page http://127.0.0.1:7860] [--photos 100]

Every photo goes through every endpoint, one request at a time, in an order that is random for each photo: the gRPC
client, `/v1/captions` with and without streaming and with the file as the body, OpenAI's chat and responses and
Ollama's chat with streaming, Hugging Face's and Azure's endpoints, and the page's own script in headless Chromium.
Photos are crops of the shipped examples with random bytes after the image's end, so that no request hits the feature
cache. Results are medians of each photo's difference to gRPC, with a 95 % bootstrap interval. Up to ten warm-up photos
are discarded. The last line of stdout is one JSON document.
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
from captioner.client.load_test import unique_images
from captioner.wire import GRPC_PORT, PAGE_PORT

CHROMIUM = "/usr/bin/chromium"
WHOLE = ("captions_whole", "file", "huggingface", "azure")  # without streaming
MAX_WARM_UP = 10  # photos
RESAMPLES = 1000
Times = tuple[float, float]  # ms to the first text and to the end
Endpoint = Callable[[bytes], Times]
IN_PAGE = """async (image) => {
    const { caption } = await import("/browser/api.js");
    const bytes = Uint8Array.from(atob(image), (character) => character.charCodeAt(0));
    const file = new File([bytes], "a.jpg", { type: "image/jpeg" });
    const began = performance.now();
    let first = 0;
    await caption({ file }, {}, { signal: new AbortController().signal, onText: () => (first ||= performance.now()) });
    return [first - began, performance.now() - began];
}"""


def endpoints(client: Client, http: httpx.Client, page: Page) -> dict[str, Endpoint]:
    """Return a function for each endpoint that captions one image and returns its times."""

    def grpc(image: bytes) -> Times:
        began, first = time.perf_counter(), 0.0
        with client.stream(image) as stream:
            for _ in stream:
                first = first or time.perf_counter()
        return (first - began) * 1000, (time.perf_counter() - began) * 1000

    def post(path: str, **request: object) -> Times:
        began, first = time.perf_counter(), 0.0
        with http.stream("POST", path, **request) as response:  # type: ignore[arg-type]
            response.raise_for_status()
            for _ in response.iter_raw():
                first = first or time.perf_counter()
        return (first - began) * 1000, (time.perf_counter() - began) * 1000

    def data_url(image: bytes) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"

    def captions(image: bytes) -> Times:
        return post("/v1/captions", files={"image": ("a.jpg", image)}, data={"stream": "true"})

    def captions_whole(image: bytes) -> Times:
        return post("/v1/captions", files={"image": ("a.jpg", image)})

    def chat(image: bytes) -> Times:
        content = [{"type": "image_url", "image_url": {"url": data_url(image)}}]
        messages = [{"role": "user", "content": content}]
        return post("/v1/chat/completions", json={"model": "captioner", "stream": True, "messages": messages})

    def file(image: bytes) -> Times:
        return post("/v1/captions", content=image, headers={"Content-Type": "image/jpeg"})

    def openai_responses(image: bytes) -> Times:
        turns = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(image)}]}]
        return post("/v1/responses", json={"model": "captioner", "stream": True, "input": turns})

    def ollama(image: bytes) -> Times:
        message = {"role": "user", "images": [base64.b64encode(image).decode()]}
        return post("/api/chat", json={"model": "captioner", "messages": [message]})

    def huggingface(image: bytes) -> Times:
        return post("/", content=image, headers={"Content-Type": "image/jpeg"})

    def azure(image: bytes) -> Times:
        headers = {"Content-Type": "application/octet-stream"}
        return post("/computervision/imageanalysis:analyze?features=caption", content=image, headers=headers)

    def in_page(image: bytes) -> Times:
        first, total = page.evaluate(IN_PAGE, base64.b64encode(image).decode())
        return first, total

    return {
        "grpc": grpc,
        "captions": captions,
        "captions_whole": captions_whole,
        "file": file,
        "chat": chat,
        "responses": openai_responses,
        "ollama": ollama,
        "huggingface": huggingface,
        "azure": azure,
        "page": in_page,
    }


def measure(server: str, url: str, photos: int) -> dict[str, object]:
    """Send the photos through every endpoint; return the JSON document."""
    times: dict[str, list[Times]] = {}
    warm_up = min(MAX_WARM_UP, photos)
    with sync_playwright() as playwright, Client(server) as client, httpx.Client(base_url=url, timeout=60) as http:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(url)
        measured = endpoints(client, http, page)
        for photo in islice(crops(seed=secrets.randbits(32)), warm_up + photos):
            order = random.sample(list(measured), len(measured))
            for name, file in zip(order, unique_images([photo]), strict=False):
                times.setdefault(name, []).append(measured[name](file))
        browser.close()
    kept = {name: each[warm_up:] for name, each in times.items()}
    result: dict[str, object] = {"photos": photos, "cores": os.cpu_count(), "python": platform.python_version()}
    for index, event in enumerate(("first_text", "total")):
        base = [each[index] for each in kept["grpc"]]
        result[f"grpc_{event}_p50_ms"] = round(statistics.median(base), 2)
        for name, each in kept.items():
            if name == "grpc" or (event == "first_text" and name in WHOLE):
                continue
            added = [ms[index] - grpc_ms for ms, grpc_ms in zip(each, base, strict=True)]
            result[f"{name}_{event}_added_ms"] = _median(added)
            print(f"{name:15} {event:10} {statistics.median(added):+6.1f} ms", flush=True)
    return result


def _median(values: list[float]) -> dict[str, float]:
    """Return the median and its 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]
    return {"median": round(statistics.median(values), 2), "low": round(low, 2), "high": round(high, 2)}


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}", help="gRPC address (default %(default)s)")
    parser.add_argument("--page", default=f"http://127.0.0.1:{PAGE_PORT}", help="page URL (default %(default)s)")
    parser.add_argument("--photos", type=int, default=100, help="photos after the warm-up (default %(default)s)")
    options = parser.parse_args()
    print(json.dumps(measure(options.server, options.page, options.photos)))


if __name__ == "__main__":
    main()
