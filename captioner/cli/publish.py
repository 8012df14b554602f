"""`captioner publish`."""

from __future__ import annotations

import argparse
from pathlib import Path

from captioner.cli.options import add_controls, add_export, add_keep, controls, say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    publish = verbs.add_parser("publish", help="make a model the live version, without a lost request")
    publish.set_defaults(run=run)
    publish.add_argument(
        "model", metavar="MODEL[@REVISION]", help="a folder made by `captioner export`, or what to export first"
    )
    add_controls(publish)
    add_keep(publish)
    add_export(publish)


def run(arguments: argparse.Namespace) -> int:
    """Publishes, step by step."""
    from captioner.artifacts.manifest import NAME
    from captioner.artifacts.version_store import VersionStore
    from captioner.hub import resolve
    from captioner.publish.publish import export_and_publish, publish
    from captioner.wire import CAPTIONER

    repository = VersionStore(arguments.repository)
    servers = controls(arguments)
    folder = Path(arguments.model)
    if (folder / CAPTIONER / NAME).is_file():
        publish(folder, repository, servers, say, keep=arguments.keep)
        return 0
    found = resolve.find(*resolve.parse(arguments.model))
    options = {"precision": arguments.precision, "calibration": arguments.calibration}
    export_and_publish(found, repository, servers, say, keep=arguments.keep, **options)
    return 0
