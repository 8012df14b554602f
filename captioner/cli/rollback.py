"""`captioner rollback`."""

from __future__ import annotations

import argparse

from captioner.cli.options import add_controls, controls, say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    rollback = verbs.add_parser("rollback", help="make the version before the live one, and set this one aside")
    rollback.set_defaults(run=run)
    add_controls(rollback)


def run(arguments: argparse.Namespace) -> int:
    """Rolls back; says so as soon as traffic has moved."""
    from captioner.artifacts.version_store import VersionStore
    from captioner.publish.rollback import rollback

    rollback(VersionStore(arguments.repository), controls(arguments), say)
    return 0
