"""`captioner probe`."""

from __future__ import annotations

import argparse

from captioner.cli.options import add_server


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    probe = verbs.add_parser("probe", help="exit 0 if a server captions a tiny picture, for health checks")
    probe.set_defaults(run=run)
    add_server(probe)
    probe.add_argument("--timeout-s", type=float, default=10.0, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tiny picture's caption."""
    from captioner.client.probe import probe

    print(probe(arguments.server, arguments.timeout_s))
    return 0
