"""`captioner probe`: a health check of a server."""

from __future__ import annotations

import argparse

from captioner.cli.options import add_server


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    probe = verbs.add_parser("probe", help="health check: exit 0 if a server captions a tiny image")
    probe.set_defaults(run=run)
    add_server(probe)
    probe.add_argument(
        "--timeout-s", type=float, default=10.0, metavar="S", help="seconds to wait, default %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the caption of the tiny image."""
    from captioner.client.probe import probe

    print(probe(arguments.server, arguments.timeout_s))
    return 0
