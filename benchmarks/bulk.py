"""Images per second of a bulk job over files on disk, as a share of a closed loop with the photos in memory.

    python -m benchmarks.bulk [--server 127.0.0.1:8001] [--photos 500] [--in-flight 32] [--rounds 5]

Two modes alternate in short rounds, so that other load on the machine affects both:

- `memory`: a closed loop of `--in-flight` clients with the photos in memory;
- `job`: as many photos as files in folders, captioned to a .txt file beside each.

`--photos` are divided among the rounds of a mode. Photos are crops of the shipped examples, new ones every time, so
that no request hits the feature cache. `start_s` is the time of `captioner caption` over a folder that is captioned
already: interpreter, imports, first request. One warm-up round is discarded. The last line of stdout is one JSON
document.
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
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from benchmarks.images import crops
from captioner.bulk.engines.server import ServerEngine
from captioner.bulk.job import Job
from captioner.bulk.outputs.caption_edit import CaptionEdit
from captioner.bulk.outputs.sidecar_formats import Txt
from captioner.bulk.outputs.sidecars import Sidecars
from captioner.bulk.progress import Progress
from captioner.bulk.sources.discover import Sources
from captioner.client import AsyncClient
from captioner.wire import GRPC_PORT

MODES = ("memory", "job")
COMMAND_TIMEOUT_S = 120


async def run_in_memory(server: str, photos: list[bytes], in_flight: int) -> float:
    """Return the seconds to caption photos that are in memory, without storing the captions."""
    remaining: Iterator[bytes] = iter(photos)

    async def run_client(client: AsyncClient) -> None:
        for photo in remaining:
            caption = await client.caption(photo)
            assert not caption.details.cache_hit, "the image was in the feature cache"

    async with AsyncClient(server) as client:
        began = time.perf_counter()
        await asyncio.gather(*(run_client(client) for _ in range(in_flight)))
        return time.perf_counter() - began


class _Quiet(Progress):
    def log(self, line: str) -> None:
        pass


async def run_job(server: str, folder: Path, in_flight: int) -> float:
    """Return the seconds of a bulk job in this process."""
    began = time.perf_counter()
    engine = ServerEngine(server, in_flight=in_flight)
    output = Sidecars(Txt(), CaptionEdit(), None, None, print)
    code = await Job(Sources([str(folder)]), engine, output, _Quiet(shown=False), give_up_s=0).run()
    assert code == 0
    return time.perf_counter() - began


async def run_command(server: str, folder: Path) -> float:
    """Return the seconds of `captioner caption` for a folder that is captioned already."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "captioner.cli", "caption", str(folder), "--server", server, "--to", "txt"),
        stderr=subprocess.DEVNULL,
    )
    try:
        assert await asyncio.wait_for(process.wait(), COMMAND_TIMEOUT_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
    return time.perf_counter() - began


async def run_on_disk(server: str, photos: list[bytes], in_flight: int) -> tuple[float, float]:
    """Return the seconds of the job, and of the command after it."""
    with tempfile.TemporaryDirectory(prefix="captioner-bulk-") as name:
        folder = Path(name)
        for number, photo in enumerate(photos):
            (folder / str(number % 10)).mkdir(exist_ok=True)
            (folder / str(number % 10) / f"{number:05d}.jpg").write_bytes(photo)
        seconds = await run_job(server, folder, in_flight)
        captions = len(list(folder.rglob("*.txt")))
        assert captions == len(photos), f"{captions} captions of {len(photos)} photos"
        return seconds, await run_command(server, folder)


async def measure(server: str, photos: int, in_flight: int, rounds: int) -> dict[str, object]:
    """Run both modes `rounds` times after one warm-up round; return the JSON document."""
    async with AsyncClient(server) as client:
        model = await client.describe()
    images, per_round = crops(seed=secrets.randbits(32)), photos // rounds
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    starts: list[float] = []
    await run_in_memory(server, list(islice(images, per_round)), in_flight)
    for number in range(rounds):
        for mode in MODES if number % 2 else MODES[::-1]:
            batch = list(islice(images, per_round))
            if mode == "memory":
                seconds = await run_in_memory(server, batch, in_flight)
            else:
                seconds, start = await run_on_disk(server, batch, in_flight)
                starts.append(start)
            rates[mode].append(per_round / seconds)
            print(f"round {number + 1}, {mode:6}: {rates[mode][-1]:.2f} images/s", flush=True)
    return {
        "model": f"{model.model}@{model.revision[:12]}",
        "device": model.device,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "photos_per_round": per_round,
        "in_flight": in_flight,
        "rounds": rounds,
        "images_per_s": {mode: _spread(rates[mode]) for mode in MODES},
        "job_over_memory": _spread([job / memory for job, memory in zip(rates["job"], rates["memory"], strict=True)]),
        "start_s": _spread(starts),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, lowest and highest value."""
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}", help="gRPC address (default %(default)s)")
    parser.add_argument("--photos", type=int, default=500, help="photos per mode, in all rounds (default %(default)s)")
    parser.add_argument("--in-flight", type=int, default=32, help="concurrent requests (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per mode (default %(default)s)")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.server, options.photos, options.in_flight, options.rounds))))


if __name__ == "__main__":
    main()
