"""`captioner up`: start the server and the page."""

from __future__ import annotations

import argparse

from captioner import wire
from captioner.cli.options import add_repository


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    up = verbs.add_parser("up", help="start the server and the page on this machine")
    up.set_defaults(run=run)
    add_repository(up)
    up.add_argument(
        "--model",
        metavar="MODEL[@REVISION]",
        help="a folder or Hugging Face id to publish first; default: the live model",
    )
    up.add_argument("--http-port", type=int, default=wire.HTTP_PORT, help="default %(default)s")
    up.add_argument("--grpc-port", type=int, default=wire.GRPC_PORT, help="default %(default)s")
    up.add_argument("--metrics-port", type=int, default=wire.METRICS_PORT, help="default %(default)s")
    up.add_argument("--page-port", type=int, default=wire.PAGE_PORT, help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives."""
    from captioner.launcher.up import up  # needs the packages of an extra

    return up(
        arguments.repository,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        page_port=arguments.page_port,
        model=arguments.model,
    )
