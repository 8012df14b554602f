"""The engine against transformers' generate(), in one process: same weights, same features, same lengths, greedy.

    python -m benchmarks.engine --model vit-gpt2 [--concurrency 1 4 16 64] [--requests 64] [--rounds 2] [--threads 2]

Regime: published dimensions with seeded random weights in fp32, image features given, ends ignored, closed loop of N
clients, 5 to 60 tokens a caption; rounds of all systems alternate, after a warm-up that is not counted. Throughput and
TTFT are as in cells.py. One client never makes a batch, and four make the same ones under either limit, so those cells
are left out. What serves one request at a time writes as many tokens a second whoever waits: beyond one client it is
cut after `--alone-s`, batches after `--batch-s`. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from benchmarks import baselines, in_process
from benchmarks.baselines import BATCHED, SEQUENTIAL, STREAMING
from benchmarks.cells import Round, machine, summary
from benchmarks.published import Published, published
from benchmarks.seeded import SEEDED
from benchmarks.workload import Workload, workload
from captioner.engine.runner import Runner

ENGINE = "this engine"
SLOTS = 16  # as the server takes on a CPU, see captioner/engine/capacity.py
MODELS = ("vit-gpt2", "blip", "git")

Cells = dict[str, dict[int, dict[str, float | bool | int | None]]]


def requests_for(concurrency: int, requests: int) -> int:
    """Several for each client, that the last captions, which run in emptying steps, do not weigh too much."""
    return max(2 * concurrency, min(requests, max(8, 4 * concurrency)))


def systems(
    generate: baselines.Generate, runner: Runner, concurrency: int, limits_s: tuple[float, float]
) -> dict[str, Callable[[Workload], Round]]:
    """What is measured with so many clients, by name. `limits_s`: of what serves one at a time, and of batches."""
    alone_s, batch_s = limits_s if concurrency > 1 else (float("inf"), 0.0)  # one client's cells are compared whole
    chosen: dict[str, Callable[[Workload], Round]] = {
        one.name: lambda work, one=one: baselines.run(generate, work, one, concurrency, alone_s)  # type: ignore[misc]
        for one in (SEQUENTIAL, STREAMING)
    }
    for one in BATCHED:
        if concurrency > one.batch // 4:
            chosen[one.name] = lambda work, one=one: baselines.run(generate, work, one, concurrency, batch_s)  # type: ignore[misc]
    chosen[ENGINE] = lambda work: in_process.run(runner, work, concurrency)
    return chosen


def measure(
    made: Published, concurrencies: list[int], requests: int, rounds: int, limits_s: tuple[float, float]
) -> dict[str, object]:
    """Every cell `rounds` times in turn; the JSON document."""
    work = workload(made, requests_for(max(concurrencies), requests))
    generate, runner = baselines.generator(made), in_process.runner(made, SLOTS, work)
    baselines.run(generate, work.first(2), BATCHED[0], 2)
    measured: dict[str, dict[int, list[Round]]] = {}
    for number in range(rounds):
        for concurrency in concurrencies:
            some = work.first(requests_for(concurrency, requests))
            for name, run in systems(generate, runner, concurrency, limits_s).items():
                result = run(some)
                measured.setdefault(name, {}).setdefault(concurrency, []).append(result)
                print(f"round {number + 1}, {concurrency:2d} at once, {name}: {result.tokens_per_s:.1f} tokens/s")
    cells = {name: {at: summary(found) for at, found in by.items()} for name, by in measured.items()}
    return {
        "benchmark": "engine",
        "model": made.name,
        "size": made.size,
        "machine": machine(),
        "slots": SLOTS,
        "requests": {at: requests_for(at, requests) for at in concurrencies},
        "rounds": rounds,
        "cells": cells,
        "ratios": ratios(cells),
        "equal_captions": equal_captions(measured),
    }


def ratios(cells: Cells) -> dict[str, float | None]:
    """What issue 3 asks for; None where a cell was not run. Batched is the better of the two batches each time."""

    def value(name: str, at: int, what: str) -> float | None:
        found = cells.get(name, {}).get(at, {}).get(what)
        return None if found is None else float(found)

    def ratio(ours: float | None, theirs: float | None) -> float | None:
        return None if ours is None or theirs is None else round(ours / theirs, 3)

    rates = [rate for one in BATCHED if (rate := value(one.name, 16, "tokens_per_s")) is not None]
    waits = [wait for one in BATCHED if (wait := value(one.name, 16, "ttft_p99_ms")) is not None]
    ours_1, ours_16 = value(ENGINE, 1, "tokens_per_s"), value(ENGINE, 16, "tokens_per_s")
    alone = value(SEQUENTIAL.name, 1, "tokens_per_s")
    return {
        "tokens_per_s_at_1_over_generate": ratio(ours_1, alone),
        "tokens_per_s_at_16_over_sequential": ratio(ours_16, alone),
        "tokens_per_s_at_16_over_batched": ratio(ours_16, max(rates, default=None)),
        "ttft_p99_at_16_over_batched": ratio(value(ENGINE, 16, "ttft_p99_ms"), min(waits, default=None)),
    }


def equal_captions(measured: dict[str, dict[int, list[Round]]]) -> str:
    """How many of the engine's captions are, token for token, what generate() wrote for the same request."""
    theirs: dict[int, list[int]] = {}
    for name in (STREAMING.name, SEQUENTIAL.name):
        for rounds in measured.get(name, {}).values():
            theirs.update({number: caption for one in rounds for number, caption in one.captions.items()})
    pairs = [
        (caption, theirs[number])
        for rounds in measured[ENGINE].values()
        for one in rounds
        for number, caption in one.captions.items()
        if number in theirs
    ]
    return f"{sum(ours == other for ours, other in pairs)} of {len(pairs)}"


def table(cells: Cells) -> str:
    """The cells for people, in Markdown."""
    lines = [
        "| at once | system | tokens/s | captions/s | TTFT p50 | TTFT p99 | TPOT |",
        "|---|---|---|---|---|---|---|",
    ]
    for at in sorted({at for by in cells.values() for at in by}):
        for name, by in cells.items():
            if at not in by:
                continue
            cell = by[at]
            least = "≥ " if cell["ttft_is_at_least"] else ""
            tpot = "" if cell["tpot_p50_ms"] is None else f"{cell['tpot_p50_ms']:.1f} ms"
            columns = (
                str(at),
                name,
                f"{cell['tokens_per_s']:.1f} ({cell['tokens_per_s_low']:.1f}–{cell['tokens_per_s_high']:.1f})",
                f"{cell['captions_per_s']:.2f}",
                f"{least}{cell['ttft_p50_ms']:.0f} ms",
                f"{least}{cell['ttft_p99_ms']:.0f} ms",
                tpot,
            )
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Arguments, the table, the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS[0], choices=[name for name in SEEDED if name in MODELS])
    parser.add_argument("--size", default="published", choices=["tiny", "published"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=64, help="at 16 clients; fewer at fewer, more at more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--alone-s", type=float, default=6.0, help="begin no call after this, one request at a time")
    parser.add_argument("--batch-s", type=float, default=15.0, help="begin no batch after this")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    limits_s = given.alone_s, given.batch_s
    found = measure(published(given.model, given.size), given.concurrency, given.requests, given.rounds, limits_s)
    print(table(found["cells"]))  # type: ignore[arg-type]
    print(json.dumps(found, separators=(",", ":")))


if __name__ == "__main__":
    main()
