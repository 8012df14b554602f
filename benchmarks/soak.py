"""A long run at 80 % load: every process stays flat, nothing is left, and no user sees another's caption.

    python -m benchmarks.soak [--minutes 30] [--users 200] [--repository build/soak]

It starts `captioner up` on free ports and measures the capacity. Then requests arrive at random (Poisson, fixed seed)
at `--load` of it, from users with marked images: half by gRPC, half by the HTTP API. Some are cancelled, hang up, read
slowly, or have a broken image or parameter. Every process is sampled. Growth is the rise of a line through the samples
after the warm-up (the first fifth), as a share of their mean. RSS must not grow. PSS is shown only: it also moves when
other programs load the same libraries. Descriptors and threads follow the requests in flight, so they are compared
when the stack is idle, before and after the load. The last line of stdout is one JSON document; the exit code is 1 if a
claim fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load_users import PARAMETERS, SHARES, Users
from benchmarks.marked_images import marked_images
from benchmarks.measurement import machine
from benchmarks.process_tree import Usage, parts, usage
from benchmarks.running_stack import RunningStack, gauge, regions
from captioner.client import AsyncClient
from captioner.client.load_test import run_round, unique_images

SEED = 14
WARM_UP = 0.2  # of the run
MAX_GROWTH, NOISE_MIB = 0.02, 2.0  # of RSS
NOISE_COUNT = 2  # descriptors and threads; the page's first request opens its channel
IN_FLIGHT, CAPACITY_CAPTIONS = 16, 64
MEASURES = ("rss_mib", "pss_mib", "descriptors", "threads")
IDLE_S = 10.0


@dataclass
class Samples:
    """What the processes held over time, by part."""

    times: list[float] = field(default_factory=list)
    by_part: dict[str, list[tuple[float, Usage]]] = field(default_factory=dict)

    def take(self, pid: int, now: float) -> None:
        """Sample every process of the stack."""
        for name, held in _held(pid).items():
            self.by_part.setdefault(name, []).append((now, held))

    def growth(self, begin: float, end: float) -> dict[str, dict[str, Any]]:
        """Return the mean and the growth from `begin` to `end` of each measure of each part."""
        result: dict[str, dict[str, Any]] = {}
        for name, samples in sorted(self.by_part.items()):
            kept = [(at, held) for at, held in samples if begin <= at <= end]
            if len(kept) >= 3:
                result[name] = {
                    measure: _line([at for at, _ in kept], [float(getattr(held, measure)) for _, held in kept])
                    for measure in MEASURES
                }
        return result


def _line(times: list[float], values: list[float]) -> dict[str, float]:
    """Fit a line by least squares; return the mean, and the line's rise over the whole time as a share of the mean."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    slope = sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread
    return {"mean": round(mean, 1), "growth": round(slope * (times[-1] - times[0]) / mean, 4) if mean else 0.0}


async def measure(stack: RunningStack, seconds: float, users: int, load: float, sample_s: float) -> dict[str, Any]:
    """Run the users against a stack that runs; return the JSON document without what is left after its end."""
    rng, samples = random.Random(SEED), Samples()
    marked = await marked_images(stack.grpc, users, SEED, **PARAMETERS)
    async with AsyncClient(stack.grpc) as client:
        images = unique_images([each.file for each in marked])
        await run_round(client, images, IN_FLIGHT, IN_FLIGHT)
        capacity = (await run_round(client, images, IN_FLIGHT, CAPACITY_CAPTIONS)).captions_per_s
    idle_at_start = _held(stack.pid)
    began, regions_at_start = time.monotonic(), len(regions(stack))
    async with Users(stack.grpc, stack.page, marked) as crowd:
        due, next_sample, tasks = began, began, set[asyncio.Task[None]]()
        while due < began + seconds:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(crowd.one(rng))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += rng.expovariate(load * capacity)
            if time.monotonic() >= next_sample:
                await asyncio.to_thread(samples.take, stack.pid, time.monotonic())
                next_sample += sample_s
        await asyncio.gather(*tasks)
    ended, running, waiting = time.monotonic(), -1.0, -1.0
    while (running, waiting) != (0, 0) and time.monotonic() < ended + IDLE_S:
        running, waiting = [gauge(stack.metrics, f"captioner_{name}") for name in ("running", "waiting")]
        await asyncio.sleep(0.1)
    growth = samples.growth(began + WARM_UP * seconds, began + seconds)
    idle_at_end = _held(stack.pid)
    return {
        "benchmark": "soak",
        "seconds": round(ended - began, 1),
        "users": users,
        "capacity_per_s": round(capacity, 2),
        "load": load,
        "shares": SHARES,
        "requests": dict(crowd.counts),
        "mistakes": crowd.mistakes[:20],
        "running_at_end": running,
        "waiting_at_end": waiting,
        "shared_memory_regions_grew_by": len(regions(stack)) - regions_at_start,
        "processes": growth,
        "more_when_idle": {
            f"{measure} of {name}": more
            for name, held in idle_at_end.items()
            for measure in ("descriptors", "threads")
            if name in idle_at_start and (more := getattr(held, measure) - getattr(idle_at_start[name], measure)) > 0
        },
        "largest_rss_growth": max((part["rss_mib"]["growth"] for part in growth.values()), default=0.0),
        "machine": machine(),
    }


def _held(pid: int) -> dict[str, Usage]:
    return {name: held for name, process in parts(pid).items() if (held := usage(process)) is not None}


def run(seconds: float, users: int, load: float, sample_s: float, repository: Path) -> dict[str, Any]:
    """Start a stack, measure and stop it; return the JSON document."""
    with RunningStack(repository) as stack:
        document = asyncio.run(measure(stack, seconds, users, load, sample_s))
    document["left_after_stop"] = [*regions(stack), *stack.left()]
    return document


def faults(document: dict[str, Any]) -> list[str]:
    """Return the claims that do not hold."""
    found = [f"mistake: {each}" for each in document["mistakes"]]
    zero = ("running_at_end", "waiting_at_end", "shared_memory_regions_grew_by")
    found += [f"{name} is {document[name]}" for name in zero if document[name]]
    found += [f"left: {each}" for each in document["left_after_stop"]]
    found += [f"idle: {name} rose by {more}" for name, more in document["more_when_idle"].items() if more > NOISE_COUNT]
    for part, measures in document["processes"].items():
        rss = measures["rss_mib"]
        if rss["growth"] > MAX_GROWTH and rss["growth"] * rss["mean"] > NOISE_MIB:
            found.append(f"{part}: RSS of {rss['mean']} MiB grew by {rss['growth']:.1%}")
    return found


def table(document: dict[str, Any]) -> str:
    """Return what the processes held, as a Markdown table: mean and growth."""
    lines = ["| process | RSS | PSS | descriptors | threads |", "|---|---|---|---|---|"]
    for part, measures in document["processes"].items():
        cells = [f"{each['mean']} ({each['growth']:+.1%})" for each in measures.values()]
        lines.append(f"| {part} | {cells[0]} MiB | {cells[1]} MiB | {cells[2]} | {cells[3]} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="time under load (default %(default)s)")
    parser.add_argument("--users", type=int, default=200, help="users with an image each (default %(default)s)")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity (default %(default)s)")
    parser.add_argument("--sample-s", type=float, default=5, help="time between samples (default %(default)s)")
    parser.add_argument("--repository", type=Path, default=Path("build/soak"), help="default %(default)s")
    options = parser.parse_args()
    document = run(options.minutes * 60, options.users, options.load, options.sample_s, options.repository)
    print(table(document))
    for fault in faults(document):
        print(fault)
    print(json.dumps(document))
    sys.exit(bool(faults(document)))


if __name__ == "__main__":
    main()
