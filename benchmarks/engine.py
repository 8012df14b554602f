"""The engine against transformers' generate() in one process: same weights, features and lengths, greedy.

    python -m benchmarks.engine --model vit-gpt2 [--concurrency 1 4 16 64] [--requests 64] [--rounds 2] [--threads 2]

Regime: published dimensions with seeded random weights in fp32, image features given, stop tokens ignored, a closed
loop of N clients, 5 to 60 tokens per caption. After an uncounted warm-up, rounds of all systems alternate.
measurement.py defines throughput and TTFT.

Left out: batches at 1 client, and batches of 16 at 4 clients, which are the same as batches of 8. Systems that serve
one request at a time have the same throughput at any concurrency. So above one client, their rounds are cut after
`--alone-s`, and those of batches after `--batch-s`. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from benchmarks import baselines, in_process
from benchmarks.baselines import BATCHED, SEQUENTIAL, STREAMING
from benchmarks.measurement import Round, machine, summary
from benchmarks.published import Published, published
from benchmarks.seeded import SEEDED
from benchmarks.workload import Workload, workload
from captioner.engine.runner import Runner

ENGINE = "this engine"
SLOTS = 16  # the server's default on a CPU, see captioner/engine/capacity.py
MODELS = ("vit-gpt2", "blip", "git")

Results = dict[str, dict[int, dict[str, float | bool | int | None]]]  # system → concurrency → summary


def requests_for(concurrency: int, requests: int) -> int:
    """Return the number of requests: several per client, so that the last, partly empty steps have little weight."""
    return max(2 * concurrency, min(requests, max(8, 4 * concurrency)))


def systems(
    generate: baselines.Generate, runner: Runner, concurrency: int, limits_s: tuple[float, float]
) -> dict[str, Callable[[Workload], Round]]:
    """Return what is measured at this concurrency, by name. `limits_s`: for single requests, for batches."""
    alone_s, batch_s = limits_s if concurrency > 1 else (float("inf"), 0.0)  # rounds of one client are not cut
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
    model: Published, concurrencies: list[int], requests: int, rounds: int, limits_s: tuple[float, float]
) -> dict[str, object]:
    """Measure every system at every concurrency, `rounds` times in turn; return the JSON document."""
    work = workload(model, requests_for(max(concurrencies), requests))
    generate, runner = baselines.generator(model), in_process.runner(model, SLOTS, work)
    baselines.run(generate, work.first(2), BATCHED[0], 2)
    measured: dict[str, dict[int, list[Round]]] = {}
    for number in range(rounds):
        for concurrency in concurrencies:
            part = work.first(requests_for(concurrency, requests))
            for name, run in systems(generate, runner, concurrency, limits_s).items():
                result = run(part)
                measured.setdefault(name, {}).setdefault(concurrency, []).append(result)
                print(f"round {number + 1}, concurrency {concurrency:2d}, {name}: {result.tokens_per_s:.1f} tokens/s")
    results = {name: {at: summary(each) for at, each in by.items()} for name, by in measured.items()}
    return {
        "benchmark": "engine",
        "model": model.name,
        "size": model.size,
        "machine": machine(),
        "slots": SLOTS,
        "requests": {at: requests_for(at, requests) for at in concurrencies},
        "rounds": rounds,
        "results": results,
        "ratios": ratios(results),
        "equal_captions": equal_captions(measured),
    }


def ratios(results: Results) -> dict[str, float | None]:
    """Return the ratios that docs/performance.md promises; None if a part was not run.

    "Batched" is the better of the two batch sizes for each ratio.
    """

    def value(name: str, concurrency: int, metric: str) -> float | None:
        found = results.get(name, {}).get(concurrency, {}).get(metric)
        return None if found is None else float(found)

    def ratio(ours: float | None, theirs: float | None) -> float | None:
        return None if ours is None or theirs is None else round(ours / theirs, 3)

    rates = [rate for one in BATCHED if (rate := value(one.name, 16, "tokens_per_s")) is not None]
    ttfts = [ttft for one in BATCHED if (ttft := value(one.name, 16, "ttft_p99_ms")) is not None]
    ours_1, ours_16 = value(ENGINE, 1, "tokens_per_s"), value(ENGINE, 16, "tokens_per_s")
    sequential = value(SEQUENTIAL.name, 1, "tokens_per_s")
    return {
        "tokens_per_s_at_1_over_generate": ratio(ours_1, sequential),
        "tokens_per_s_at_16_over_sequential": ratio(ours_16, sequential),
        "tokens_per_s_at_16_over_batched": ratio(ours_16, max(rates, default=None)),
        "ttft_p99_at_16_over_batched": ratio(value(ENGINE, 16, "ttft_p99_ms"), min(ttfts, default=None)),
    }


def equal_captions(measured: dict[str, dict[int, list[Round]]]) -> str:
    """Return "N of M": how many of the engine's captions equal generate()'s for the same request, token for token."""
    expected: dict[int, list[int]] = {}
    for name in (STREAMING.name, SEQUENTIAL.name):
        for rounds in measured.get(name, {}).values():
            expected.update({number: caption for one in rounds for number, caption in one.captions.items()})
    pairs = [
        (caption, expected[number])
        for rounds in measured[ENGINE].values()
        for one in rounds
        for number, caption in one.captions.items()
        if number in expected
    ]
    return f"{sum(ours == theirs for ours, theirs in pairs)} of {len(pairs)}"


def table(results: Results) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| concurrency | system | tokens/s | captions/s | TTFT p50 | TTFT p99 | TPOT |",
        "|---|---|---|---|---|---|---|",
    ]
    for concurrency in sorted({at for by in results.values() for at in by}):
        for name, by in results.items():
            if concurrency not in by:
                continue
            row = by[concurrency]
            bound = "≥ " if row["ttft_is_lower_bound"] else ""
            tpot = "" if row["tpot_p50_ms"] is None else f"{row['tpot_p50_ms']:.1f} ms"
            columns = (
                str(concurrency),
                name,
                f"{row['tokens_per_s']:.1f} ({row['tokens_per_s_low']:.1f}–{row['tokens_per_s_high']:.1f})",
                f"{row['captions_per_s']:.2f}",
                f"{bound}{row['ttft_p50_ms']:.0f} ms",
                f"{bound}{row['ttft_p99_ms']:.0f} ms",
                tpot,
            )
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line names; print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODELS[0], choices=[name for name in SEEDED if name in MODELS])
    parser.add_argument("--size", default="published", choices=["tiny", "published"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64], help="clients")
    parser.add_argument("--requests", type=int, default=64, help="at 16 clients; scaled for other concurrencies")
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--alone-s", type=float, default=6.0, help="cut the other rounds (default %(default)s)")
    parser.add_argument("--batch-s", type=float, default=15.0, help="cut batches' rounds (default %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    limits_s = given.alone_s, given.batch_s
    document = measure(published(given.model, given.size), given.concurrency, given.requests, given.rounds, limits_s)
    print(table(document["results"]))  # type: ignore[arg-type]
    print(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main()
