"""`captioner publish`."""

from __future__ import annotations

import argparse
from pathlib import Path

from captioner.cli.options import add_controls, add_export, add_keep, controls, log


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    publish = verbs.add_parser("publish", help="make a model the live version without failing a request")
    publish.set_defaults(run=run)
    publish.add_argument(
        "model", metavar="MODEL[@REVISION]", help="folder written by `captioner export`, or a model to export first"
    )
    add_controls(publish)
    add_keep(publish)
    add_export(publish)


def run(arguments: argparse.Namespace) -> int:
    """Publish, and log each step."""
    from captioner.artifacts.manifest import NAME
    from captioner.artifacts.version_store import VersionStore
    from captioner.hub import resolve
    from captioner.wire import CAPTIONER

    store = VersionStore(arguments.repository)
    servers = controls(arguments)
    folder = Path(arguments.model)
    if (folder / CAPTIONER / NAME).is_file():
        from captioner.publish.publish import publish

        publish(folder, store, servers, log, keep=arguments.keep)
        return 0
    found = resolve.find(*resolve.parse(arguments.model))
    # Imported after the look-up: it imports torch, which takes seconds.
    from captioner.publish.publish import export_and_publish

    options = {"precision": arguments.precision, "calibration": arguments.calibration}
    export_and_publish(found, store, servers, log, keep=arguments.keep, **options)
    return 0
