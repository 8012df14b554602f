"""What Triton and gRPC add to the engine: the same closed loop through a real server and in this process.

    python -m benchmarks.served --model vit-gpt2 [--concurrency 1 4 16] [--requests 64] [--rounds 2] [--threads 2]

Regime: as benchmarks.engine; the seeded model is served by tritonserver on the same machine, with as many slots and
torch threads on both sides and no end tokens. Every image is in the feature cache before anything counts, so that no
encoder runs. Rounds of both sides alternate. Before each request a client thinks for up to `THINK_S`: sent the moment a
step ends, it would join the next step in this process and miss it through any network, by a whole step.

Two views: `transport` is, of each request, what the client measured minus what the service measured of the same, so
only Triton and gRPC; `added` is the percentile of the server's clients minus that of the engine's in this process, so
all there is, with the noise of who met which step. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks import in_process
from benchmarks.cells import Round, machine, percentile, summary
from benchmarks.engine import MODELS, SLOTS, requests_for
from benchmarks.published import Published, published, served_copy
from benchmarks.seeded import Size
from benchmarks.workload import Workload, pictures, workload
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VERSIONED
from captioner.client import AsyncClient
from captioner.launcher.supervisor import TritonServer
from captioner.wire import CAPTIONER

THINK_S = 0.25  # about a step of 16 rows and more
SETTING = '{{ key: "{}" value: {{ string_value: "{}" }} }}'


def with_settings(config: str, settings: dict[str, int]) -> str:
    """A captioner's config.pbtxt with `settings` in place of its own, or beside them."""
    for name, value in settings.items():
        line = SETTING.format(name, value)
        config, found = re.subn(rf'\{{ key: "{name}" value: \{{ string_value: "[^"]*" \}} \}}', line, config)
        if not found:
            config += f"\nparameters [ {line} ]\n"
    return config


def repository(source: Published, folder: Path, threads: int) -> Path:
    """What the server serves: the published model with this benchmark's slots and threads, ended by no token."""
    made = served_copy(source, folder)
    config = made / CAPTIONER / "config.pbtxt"
    config.write_text(with_settings(config.read_text(), {"slots": SLOTS, "decode_threads": threads}))
    for model in VERSIONED:
        version = made / model / "1"
        manifest = replace(Manifest.load(version), stop_ids=(), golden_sample=None)
        (version / "manifest.json").unlink()  # a hard link: the published one must stay as it is
        manifest.save(version)
    return made


@dataclass
class ServedRound(Round):
    """A round through the server, and what the client measured beyond what the service did, in ms."""

    transport_ttft_ms: list[float] = field(default_factory=list)
    transport_tpot_ms: list[float] = field(default_factory=list)


async def run_served(client: AsyncClient, work: Workload, images: list[bytes], concurrency: int) -> ServedRound:
    """All of `work` by `concurrency` clients through the server."""
    result, to_send = ServedRound(), deque(work.requests)

    async def one_client() -> None:
        while to_send:
            request = to_send.popleft()
            await asyncio.sleep(in_process.thinking_s(request, THINK_S))
            sent = time.perf_counter()
            stream = await client.stream(
                images[request.picture], max_tokens=request.tokens, repetition_guard=False, temperature=0.0, num_beams=1
            )
            first = 0.0
            async for _ in stream:
                first = first or time.perf_counter()
            ended, details = time.perf_counter(), stream.details
            if details is None or details.tokens != request.tokens or not details.cache_hit:
                raise RuntimeError(f"{details} is not the caption of {request}")
            # The server keeps its tokens to itself; only their number is compared.
            first = first or ended
            result.add(request.number, [0] * details.tokens, sent, first, ended)
            inside = details.timings_ms
            result.transport_ttft_ms.append((first - sent) * 1000 - inside.first_token)
            result.transport_tpot_ms.append(
                ((ended - first) * 1000 - inside.total + inside.first_token) / (details.tokens - 1)
            )

    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    result.seconds = time.perf_counter() - began
    return result


def added(served: list[ServedRound], engine: list[Round]) -> dict[str, float]:
    """Percentiles through the server minus those in this process, in ms: of TTFT and of TPOT."""

    def both(percent: float, what: str) -> float:
        ours, theirs = ([ms for one in rounds for ms in getattr(one, what)] for rounds in (served, engine))
        return round(percentile(ours, percent) - percentile(theirs, percent), 2)

    return {f"{what}_p{percent}_ms": both(percent, f"{what}_ms") for what in ("ttft", "tpot") for percent in (50, 99)}


def transport(served: list[ServedRound]) -> dict[str, float]:
    """Percentiles of what Triton and gRPC took of each request, in ms: to its first text and of each token after."""
    return {
        f"{what}_p{percent}_ms": round(
            percentile([ms for one in served for ms in getattr(one, f"transport_{what}_ms")], percent), 2
        )
        for what in ("ttft", "tpot")
        for percent in (50, 99)
    }


async def measure(
    model: str, size: Size, concurrencies: list[int], requests: int, rounds: int, log_folder: Path
) -> dict[str, object]:
    """Every concurrency on both sides `rounds` times in turn; the JSON document."""
    made, images, threads = published(model, size), pictures(), torch.get_num_threads()
    work = workload(made, requests_for(max(concurrencies), requests))
    found: dict[int, tuple[list[ServedRound], list[Round]]] = {at: ([], []) for at in concurrencies}
    with tempfile.TemporaryDirectory(prefix="served-", dir=made.repository.parent) as folder:
        place = repository(made, Path(folder) / "model_repository", threads)
        free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        with TritonServer(place, log_path=log_folder / "benchmarks-server.log", **free) as server:  # type: ignore[arg-type]
            runner = in_process.runner(made, SLOTS, work)
            async with AsyncClient(server.grpc_address, stall_timeout_s=120) as client:
                for image in images:
                    await client.caption(image, max_tokens=1)
                for number in range(rounds):
                    for at in concurrencies:
                        some = work.first(requests_for(at, requests))
                        found[at][0].append(await run_served(client, some, images, at))
                        found[at][1].append(await asyncio.to_thread(in_process.run, runner, some, at, THINK_S))
                        print(f"round {number + 1}, {at:2d} at once: {transport(found[at][0])}", flush=True)
    return {
        "benchmark": "served",
        "model": model,
        "size": size,
        "machine": machine(),
        "slots": SLOTS,
        "rounds": rounds,
        "served": {at: summary(rounds) for at, (rounds, _) in found.items()},
        "in_process": {at: summary(rounds) for at, (_, rounds) in found.items()},
        "transport": {at: transport(rounds) for at, (rounds, _) in found.items()},
        "added": {at: added(*both) for at, both in found.items()},
    }


def table(found: dict[str, dict[int, dict[str, float]]]) -> str:
    """Both views for people, in Markdown."""
    lines = ["| at once | view | TTFT p50 | TTFT p99 | a token, p50 | a token, p99 |", "|---|---|---|---|---|---|"]
    for view in ("transport", "added"):
        lines += [
            f"| {at} | {view} | {' | '.join(f'{ms:+.2f} ms' for ms in more.values())} |"
            for at, more in found[view].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Arguments, the table, the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS[0], choices=MODELS)
    parser.add_argument("--size", default="published", choices=["tiny", "published"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=64, help="at 16 clients; fewer at fewer, more at more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch, here and in the server's decoder")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    log_folder = Path("build")
    found = asyncio.run(measure(given.model, given.size, given.concurrency, given.requests, given.rounds, log_folder))
    print(table(found))  # type: ignore[arg-type]
    print(json.dumps(found, separators=(",", ":")))


if __name__ == "__main__":
    main()
