"""Captions a second and times to the first text through gRPC, at several concurrencies, against a running server.

    python -m benchmarks.load [--server 127.0.0.1:8001] [--concurrency 1 16] [--captions 64] [--rounds 3]

The loop is that of `captioner bench`. Images are crops of the shipped examples, different in every run, so that no
answer comes from the feature cache; one that does ends the run. The spread of the rounds is shown. The last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets

from benchmarks.images import crops
from captioner.client.load_test import measure
from captioner.wire import GRPC_PORT


def main() -> None:
    """Arguments only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=f"127.0.0.1:{GRPC_PORT}")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images = crops(seed=secrets.randbits(32))
    counts = options.concurrency, options.captions, options.rounds
    print(json.dumps(asyncio.run(measure(options.server, images, *counts, print, length="medium"))))


if __name__ == "__main__":
    main()
