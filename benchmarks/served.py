"""What Triton and gRPC add to the engine: the same closed loop through a real server and in this process.

    python -m benchmarks.served --model vit-gpt2 [--concurrency 1 4 16] [--requests 64] [--rounds 2] [--threads 2]

Regime: as in benchmarks.engine. tritonserver serves the seeded model on the same machine, with the same slots and torch
threads as the engine in process, and without stop tokens. Every image is in the feature cache before the first round,
so that no encoder runs. Rounds of both sides alternate. Before each request a client waits for a think time of up to
MAX_THINK_S. Without it, a request sent at the end of a step would join the next step in process, but always miss it
through a network, and so look slower by a whole step.

Two views:

- `transport`: per request, the client's time minus the service's time for the same request. It is Triton and gRPC only.
- `added`: the percentile of the server's clients minus that of the engine in process. It includes everything, with the
  noise of which request joined which step.

The last line of stdout is one JSON document.
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
from benchmarks.engine import MODELS, SLOTS, requests_for
from benchmarks.measurement import Round, machine, percentile, summary
from benchmarks.published import Published, published, served_copy
from benchmarks.seeded import Size
from benchmarks.workload import Workload, images, workload
from captioner.artifacts.manifest import Manifest
from captioner.artifacts.version_store import VERSIONED
from captioner.client import AsyncClient
from captioner.launcher.supervisor import TritonServer
from captioner.wire import CAPTIONER

MAX_THINK_S = 0.25  # more than a step of 16 rows takes
SETTING = '{{ key: "{}" value: {{ string_value: "{}" }} }}'


def with_settings(config: str, settings: dict[str, int]) -> str:
    """Return the text of a config.pbtxt with these parameters replaced or added."""
    for name, value in settings.items():
        line = SETTING.format(name, value)
        config, found = re.subn(rf'\{{ key: "{name}" value: \{{ string_value: "[^"]*" \}} \}}', line, config)
        if not found:
            config += f"\nparameters [ {line} ]\n"
    return config


def repository(source: Published, folder: Path, threads: int) -> Path:
    """Return a copy of the published model with SLOTS slots and `threads` decode threads, and without stop tokens."""
    copy = served_copy(source, folder)
    config = copy / CAPTIONER / "config.pbtxt"
    config.write_text(with_settings(config.read_text(), {"slots": SLOTS, "decode_threads": threads}))
    for model in VERSIONED:
        version = copy / model / "1"
        manifest = replace(Manifest.load(version), stop_ids=(), golden_sample=None)
        (version / "manifest.json").unlink()  # a hard link: writing to it would change the published one
        manifest.save(version)
    return copy


@dataclass
class ServedRound(Round):
    """A round through the server, with the client's times minus the service's, in ms."""

    transport_ttft_ms: list[float] = field(default_factory=list)
    transport_tpot_ms: list[float] = field(default_factory=list)


async def run_served(client: AsyncClient, work: Workload, files: list[bytes], concurrency: int) -> ServedRound:
    """Run the workload with `concurrency` clients through the server."""
    result, to_send = ServedRound(), deque(work.requests)

    async def run_client() -> None:
        while to_send:
            request = to_send.popleft()
            await asyncio.sleep(in_process.think_time_s(request, MAX_THINK_S))
            sent = time.perf_counter()
            stream = await client.stream(
                files[request.image], max_tokens=request.tokens, repetition_guard=False, temperature=0.0, num_beams=1
            )
            first = 0.0
            async for _ in stream:
                first = first or time.perf_counter()
            ended, details = time.perf_counter(), stream.details
            if details is None or details.tokens != request.tokens or not details.cache_hit:
                raise RuntimeError(f"{details} is not the caption of {request}")
            # The response has no token ids, so only their number counts.
            first = first or ended
            result.add(request.number, [0] * details.tokens, sent, first, ended)
            service = details.timings_ms
            result.transport_ttft_ms.append((first - sent) * 1000 - service.first_token)
            result.transport_tpot_ms.append(
                ((ended - first) * 1000 - service.total + service.first_token) / (details.tokens - 1)
            )

    began = time.perf_counter()
    await asyncio.gather(*(run_client() for _ in range(concurrency)))
    result.seconds = time.perf_counter() - began
    return result


def added(served: list[ServedRound], engine: list[Round]) -> dict[str, float]:
    """Return percentiles of TTFT and TPOT through the server minus those in process, in ms."""

    def difference(percent: float, metric: str) -> float:
        through, direct = ([ms for one in rounds for ms in getattr(one, metric)] for rounds in (served, engine))
        return round(percentile(through, percent) - percentile(direct, percent), 2)

    metrics = [(name, percent) for name in ("ttft", "tpot") for percent in (50, 99)]
    return {f"{name}_p{percent}_ms": difference(percent, f"{name}_ms") for name, percent in metrics}


def transport(served: list[ServedRound]) -> dict[str, float]:
    """Return percentiles of the time that Triton and gRPC took per request, in ms: to the first text, and per token."""
    return {
        f"{name}_p{percent}_ms": round(
            percentile([ms for one in served for ms in getattr(one, f"transport_{name}_ms")], percent), 2
        )
        for name in ("ttft", "tpot")
        for percent in (50, 99)
    }


async def measure(
    model: str, size: Size, concurrencies: list[int], requests: int, rounds: int, log_folder: Path
) -> dict[str, object]:
    """Measure every concurrency on both sides, `rounds` times in turn; return the JSON document."""
    source, files, threads = published(model, size), images(), torch.get_num_threads()
    work = workload(source, requests_for(max(concurrencies), requests))
    rounds_at: dict[int, tuple[list[ServedRound], list[Round]]] = {at: ([], []) for at in concurrencies}
    with tempfile.TemporaryDirectory(prefix="served-", dir=source.repository.parent) as folder:
        copy = repository(source, Path(folder) / "model_repository", threads)
        free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        with TritonServer(copy, log_path=log_folder / "benchmarks-server.log", **free) as server:  # type: ignore[arg-type]
            runner = in_process.runner(source, SLOTS, work)
            async with AsyncClient(server.grpc_address, stall_timeout_s=120) as client:
                for file in files:
                    await client.caption(file, max_tokens=1)
                for number in range(rounds):
                    for at in concurrencies:
                        part = work.first(requests_for(at, requests))
                        rounds_at[at][0].append(await run_served(client, part, files, at))
                        rounds_at[at][1].append(await asyncio.to_thread(in_process.run, runner, part, at, MAX_THINK_S))
                        print(f"round {number + 1}, concurrency {at:2d}: {transport(rounds_at[at][0])}", flush=True)
    return {
        "benchmark": "served",
        "model": model,
        "size": size,
        "machine": machine(),
        "slots": SLOTS,
        "rounds": rounds,
        "served": {at: summary(rounds) for at, (rounds, _) in rounds_at.items()},
        "in_process": {at: summary(rounds) for at, (_, rounds) in rounds_at.items()},
        "transport": {at: transport(rounds) for at, (rounds, _) in rounds_at.items()},
        "added": {at: added(*both) for at, both in rounds_at.items()},
    }


def table(document: dict[str, dict[int, dict[str, float]]]) -> str:
    """Return both views as a Markdown table."""
    lines = ["| concurrency | view | TTFT p50 | TTFT p99 | TPOT p50 | TPOT p99 |", "|---|---|---|---|---|---|"]
    for view in ("transport", "added"):
        lines += [
            f"| {at} | {view} | {' | '.join(f'{ms:+.2f} ms' for ms in values.values())} |"
            for at, values in document[view].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line names; print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS[0], choices=MODELS)
    parser.add_argument("--size", default="published", choices=["tiny", "published"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16], help="clients")
    parser.add_argument("--requests", type=int, default=64, help="at 16 clients; scaled for other concurrencies")
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="torch threads, here and in the server")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    counts = given.concurrency, given.requests, given.rounds
    document = asyncio.run(measure(given.model, given.size, *counts, log_folder=Path("build")))
    print(table(document))  # type: ignore[arg-type]
    print(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main()
