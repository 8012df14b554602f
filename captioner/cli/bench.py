"""`captioner bench`: a load test of a running server."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from captioner.cli.options import add_parameters, add_server, parameters
from captioner.examples import PHOTOS


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    bench = verbs.add_parser("bench", help="measure a server: captions/s, time to first text, ms per token")
    bench.set_defaults(run=run)
    bench.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="image files; default: shipped examples")
    bench.add_argument(
        "--concurrency", type=_count, nargs="+", default=[1, 16], metavar="N", help="concurrent clients, default 1 16"
    )
    bench.add_argument("--captions", type=_count, default=64, help="captions in each round, default %(default)s")
    bench.add_argument("--rounds", type=_count, default=1, help="rounds at each concurrency, default %(default)s")
    bench.add_argument("--json", action="store_true", help="print one JSON object, with the spread over the rounds")
    add_server(bench)
    add_parameters(bench)


def run(arguments: argparse.Namespace) -> int:
    """Print one line for each concurrency. Return 2 if a photo cannot be read."""
    import asyncio

    from captioner.client.load_test import measure, unique_images

    try:
        photos = [path.read_bytes() for path in arguments.photos or PHOTOS]
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    counts = arguments.concurrency, arguments.captions, arguments.rounds
    results = asyncio.run(measure(arguments.server, unique_images(photos), *counts, _log, **parameters(arguments)))
    print(json.dumps(results) if arguments.json else table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """Return the results as a table for people."""
    lines = [
        f"{results['model']} on {results['device']}, {results['captions_a_round']} captions a round",
        f"{'clients':>7} {'captions/s':>11} {'first text p50':>15} {'p99':>9} {'per token':>9}",
    ]
    for concurrency, cell in results["concurrency"].items():
        keys = ("first_text_ms_p50", "first_text_ms_p99", "token_ms_p50")
        p50, p99, token = (f"{cell[key]:.1f} ms" for key in keys)
        lines.append(f"{concurrency:>7} {cell['captions_per_s']:>11.2f} {p50:>15} {p99:>9} {token:>9}")
    return "\n".join(lines)


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
