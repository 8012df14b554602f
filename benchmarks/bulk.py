"""Images a second of the bulk job over files on disk, as a share of what the server gives with photos in memory.

    python -m benchmarks.bulk [--server 127.0.0.1:8001] [--photos 500] [--in-flight 32] [--rounds 5]

Two ways take turns: `memory`, a closed loop of `--in-flight` clients with the photos in memory; `job`, as many photos
as files in folders, captioned to .txt beside each. Each way's photos are shared out among the rounds, short ones, for
what else the machine does must fall on both. Photos are crops of the shipped examples, new ones every time, so that no
answer comes from the feature cache. `start_s` is what `captioner caption` takes over a folder that is captioned
already: interpreter, imports, the first question. The spread of the rounds is shown; a first round is thrown away. The
last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.images import crops
from captioner.bulk.engines.server import ServerEngine
from captioner.bulk.job import Job
from captioner.bulk.outputs.caption_edit import Edit
from captioner.bulk.outputs.sidecars import Sidecars, Txt
from captioner.bulk.progress import Progress
from captioner.bulk.sources.discover import Sources
from captioner.client import AsyncClient
from captioner.wire import GRPC_PORT

WAYS = ("memory", "job")


async def in_memory(server: str, photos: list[bytes], in_flight: int) -> float:
    """Seconds with nothing to read and nothing to keep."""
    waiting: Iterator[bytes] = iter(photos)

    async def one_client(client: AsyncClient) -> None:
        for photo in waiting:
            caption = await client.caption(photo)
            assert not caption.details.cache_hit, "this image was encoded before"

    async with AsyncClient(server) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one_client(client) for _ in range(in_flight)))
        return time.perf_counter() - began


class _Quiet(Progress):
    def say(self, line: str) -> None:
        pass


async def as_job(server: str, folder: Path, in_flight: int) -> float:
    """Seconds of the job in this process."""
    began = time.perf_counter()
    engine = ServerEngine(server, in_flight=in_flight)
    output = Sidecars(Txt(), Edit(), None, None, print)
    code = await Job(Sources([str(folder)]), engine, output, _Quiet(shown=False), give_up_s=0).run()
    assert code == 0
    return time.perf_counter() - began


async def as_command(server: str, folder: Path) -> float:
    """Seconds of the command where nothing is left to do."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "captioner.cli", "caption", str(folder), "--server", server, "--to", "txt"),
        stderr=subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    return time.perf_counter() - began


async def on_disk(server: str, photos: list[bytes], in_flight: int) -> tuple[float, float]:
    """Seconds of the job, and of the command once the job is done."""
    with tempfile.TemporaryDirectory(prefix="captioner-bulk-") as name:
        folder = Path(name)
        for number, photo in enumerate(photos):
            (folder / str(number % 10)).mkdir(exist_ok=True)
            (folder / str(number % 10) / f"{number:05d}.jpg").write_bytes(photo)
        seconds = await as_job(server, folder, in_flight)
        written = len(list(folder.rglob("*.txt")))
        assert written == len(photos), f"{written} captions of {len(photos)} photos"
        return seconds, await as_command(server, folder)


async def measure(server: str, photos: int, in_flight: int, rounds: int) -> dict[str, object]:
    """Both ways `rounds` times in turn, after one round that is thrown away."""
    async with AsyncClient(server) as client:
        card = await client.describe()
    images, each = crops(seed=secrets.randbits(32)), photos // rounds
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: list[float] = []
    await in_memory(server, list(islice(images, each)), in_flight)
    for number in range(rounds):
        for way in WAYS if number % 2 else WAYS[::-1]:
            batch = list(islice(images, each))
            if way == "memory":
                seconds = await in_memory(server, batch, in_flight)
            else:
                seconds, start = await on_disk(server, batch, in_flight)
                starts.append(start)
            rates[way].append(each / seconds)
            print(f"round {number + 1}, {way:6}: {rates[way][-1]:.2f} images/s", flush=True)
    return {
        "model": f"{card.model}@{card.revision[:12]}",
        "device": card.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "photos_a_round": each,
        "in_flight": in_flight,
        "rounds": rounds,
        "images_per_s": {way: _spread(rates[way]) for way in WAYS},
        "job_of_memory": _spread([job / memory for job, memory in zip(rates["job"], rates["memory"], strict=True)]),
        "start_s": _spread(starts),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def main() -> None:
    """Arguments only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.server, options.photos, options.in_flight, options.rounds))))


if __name__ == "__main__":
    main()
