"""`captioner bench`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from captioner.cli.options import add_parameters, add_server, parameters
from captioner.examples import PHOTOS


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    bench = verbs.add_parser("bench", help="how fast a server captions: captions/s, time to first text, ms a token")
    bench.set_defaults(run=run)
    bench.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="image files; default: shipped examples")
    bench.add_argument(
        "--concurrency", type=_count, nargs="+", default=[1, 16], metavar="N", help="clients at once, default 1 16"
    )
    bench.add_argument("--captions", type=_count, default=64, help="captions a round, default %(default)s")
    bench.add_argument("--rounds", type=_count, default=1, help="rounds of each concurrency, default %(default)s")
    bench.add_argument("--json", action="store_true", help="one JSON object, with the spread of the rounds")
    add_server(bench)
    add_parameters(bench)


def run(arguments: argparse.Namespace) -> int:
    """A line a concurrency; 2 where a photo cannot be read."""
    import asyncio

    from captioner.client.load_test import marked, measure

    try:
        photos = [path.read_bytes() for path in arguments.photos or PHOTOS]
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    counts = arguments.concurrency, arguments.captions, arguments.rounds
    found = asyncio.run(measure(arguments.server, marked(photos), *counts, _say, **parameters(arguments)))
    print(json.dumps(found) if arguments.json else table(found))
    return 0


def table(found: dict[str, Any]) -> str:
    """What was measured, for people."""
    lines = [
        f"{found['model']} on {found['device']}, {found['captions_a_round']} captions a round",
        f"{'at once':>7} {'captions/s':>11} {'first text p50':>15} {'p99':>9} {'a token':>9}",
    ]
    for concurrency, cell in found["concurrency"].items():
        keys = ("first_text_ms_p50", "first_text_ms_p99", "token_ms_p50")
        first, last, token = (f"{cell[key]:.1f} ms" for key in keys)
        lines.append(f"{concurrency:>7} {cell['captions_per_s']:>11.2f} {first:>15} {last:>9} {token:>9}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
