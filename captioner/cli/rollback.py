"""`captioner rollback`."""

from __future__ import annotations

import argparse

from captioner.cli.options import add_controls, controls, log


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    rollback = verbs.add_parser("rollback", help="make the previous version live again and quarantine the current one")
    rollback.set_defaults(run=run)
    add_controls(rollback)


def run(arguments: argparse.Namespace) -> int:
    """Roll back; log it as soon as traffic has moved."""
    from captioner.artifacts.version_store import VersionStore
    from captioner.publish.rollback import rollback

    rollback(VersionStore(arguments.repository), controls(arguments), log)
    return 0
