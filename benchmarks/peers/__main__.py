"""Captions per second and latency of this server and of what else a person would pick, on the same machine.

    python -m benchmarks.peers [--model vit-gpt2] [--rounds 2] [--seconds 15] [--systems captioner litserve]

Every system serves the same weights and writes the same greedy captions of up to 16 tokens; every photo is new unless a
load repeats some. A round starts each system in turn and puts each load on it, so the systems are interleaved
(A B A B). The load shares the machine with the server: compare ratios. Peers that are not installed are installed into
environments of their own under build/peers. A system that does not start is named with the reason. The last line of
stdout is one JSON document; `--plot FILE` draws captions per second and the 99th percentile against the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path

from benchmarks.images import crops
from benchmarks.measurement import machine
from benchmarks.peers.load import Load, Outcome, run, summary
from benchmarks.peers.plot import plot
from benchmarks.peers.requests import Ask
from benchmarks.peers.systems import START_S, SYSTEMS, System
from benchmarks.published import Published, published

PHOTOS, PHOTO_PX, SEED = 64, 512, 11
WARM_UP = Load(concurrency=2)
Results = dict[str, dict[Load, list[Outcome]]]


def main() -> None:
    """Run the command; the module has its help text."""
    arguments = _parser().parse_args()
    model = published(arguments.model, arguments.size)
    systems = [system for system in SYSTEMS if system.name in arguments.systems]
    results: Results = {system.name: {} for system in systems}
    excluded: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for system in systems:
                if system.name not in excluded and (why := _round(system, model, number, arguments, results, folder)):
                    excluded[system.name] = why
                    print(f"{system.title} is left out: {why}", file=sys.stderr)
    rows = [
        {"system": name, **vars(load), **summary(outcomes)}
        for name, by_load in results.items()
        for load, outcomes in by_load.items()
    ]
    print(_table(results))
    if arguments.plot is not None:
        plot(rows, {system.name: system.title for system in systems}, arguments.plot)
    document = {"benchmark": "peers", "model": model.name, "size": model.size, "machine": machine()}
    document |= {"rounds": arguments.rounds, "seconds": arguments.seconds, "excluded": excluded}
    print(json.dumps(document | {"equal_captions": _equal(results), "results": rows}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--model", choices=["vit-gpt2", "embedded"], default="vit-gpt2")
    parser.add_argument("--size", choices=["tiny", "published"], default="published")
    parser.add_argument("--systems", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="time of each load (default 15)")
    parser.add_argument(
        "--concurrency", type=int, nargs="*", default=[1, 2, 4, 16, 64], help="clients of a closed loop"
    )
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="random arrivals per second")
    parser.add_argument(
        "--repeated", type=float, nargs="*", default=[], help="shares of repeated images, at 16 clients"
    )
    parser.add_argument("--cancelled", type=float, nargs="*", default=[], help="shares of cancels, at 16 clients")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    return parser


def _loads(arguments: argparse.Namespace) -> list[Load]:
    return [
        *(Load(concurrency=clients) for clients in arguments.concurrency),
        *(Load(rate=rate) for rate in arguments.rates),
        *(Load(concurrency=16, repeated=share) for share in arguments.repeated),
        *(Load(concurrency=16, cancelled=share) for share in arguments.cancelled),
    ]


def _round(
    system: System, model: Published, number: int, arguments: argparse.Namespace, results: Results, folder: str
) -> str:
    """Put every load on a system; return why it cannot be measured, or ""."""
    try:
        with system.running(model, Path(folder)) as address:
            for load, outcome in asyncio.run(_measure(system, address, _loads(arguments), arguments.seconds, number)):
                results[system.name].setdefault(load, []).append(outcome)
                rate = outcome.completed / outcome.seconds
                print(f"round {number + 1}, {system.title}, {load}: {rate:.2f} captions/s", file=sys.stderr)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        return str(error)
    return ""


async def _measure(
    system: System, address: str, loads: list[Load], seconds: float, number: int
) -> list[tuple[Load, Outcome]]:
    files = list(islice(crops(SEED, PHOTO_PX), PHOTOS))
    async with AsyncExitStack() as stack:
        ask = await system.connect(address, stack)
        await _first(ask, files[0])
        await run(ask, files, WARM_UP, min(seconds, 6), seed=-1)
        return [(load, await run(ask, files, load, seconds, seed=number)) for load in loads]


async def _first(ask: Ask, file: bytes) -> None:
    """Wait for one caption: some ports are open before the model is loaded. Raises RuntimeError without one."""
    end = time.monotonic() + START_S
    while True:
        try:
            async for _ in ask(file):
                pass
            return
        except Exception as error:
            if time.monotonic() > end:
                raise RuntimeError(f"it gave no caption: {error!r}") from None
            await asyncio.sleep(0.5)


def _equal(results: Results) -> dict[str, str]:
    """Return how many of each system's captions are those of the first system, for the photos that both captioned."""
    captions = {
        name: {image: text for outcomes in by_load.values() for one in outcomes for image, text in one.captions.items()}
        for name, by_load in results.items()
    }
    first = next(iter(captions.values()))
    equal = {}
    for name, own in captions.items():
        both = own.keys() & first.keys()
        equal[name] = f"{sum(own[image] == first[image] for image in both)} of {len(both)}"
    return equal


def _table(results: Results) -> str:
    lines = ["| load | system | captions/s | first text p50, p99 | whole p50, p90, p99 |", "|---|---|---|---|---|"]
    titles = {system.name: system.title for system in SYSTEMS}
    for load in dict.fromkeys(load for by_load in results.values() for load in by_load):
        for name, by_load in results.items():
            if load not in by_load:
                continue
            got = summary(by_load[load])
            bound = "≥ " if got["open"] else ""
            rate = f"{got['captions_per_s']:.2f} ({got['captions_per_s_low']:.2f}–{got['captions_per_s_high']:.2f})"
            first = ", ".join(f"{got.get(f'first_p{p}_ms', 0) / 1000:.2f}" for p in (50, 99))
            whole = ", ".join(f"{got.get(f'total_p{p}_ms', 0) / 1000:.2f}" for p in (50, 90, 99))
            lines.append(f"| {load} | {titles[name]} | {rate} | {bound}{first} s | {bound}{whole} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
