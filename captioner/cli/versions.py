"""`captioner versions`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from captioner.cli.options import add_repository

if TYPE_CHECKING:
    from captioner.publish.versions import Version

COLUMNS = "{:>7}  {:<11}  {:<40}  {:<12}  {:<9}  {:>9}  {}"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    versions = verbs.add_parser("versions", help="list published and quarantined versions, with state and reason")
    versions.set_defaults(run=run)
    add_repository(versions)
    versions.add_argument(
        "-v", "--verbose", action="store_true", help="also print each model's card, full commit, styles and extras"
    )
    versions.add_argument("--json", action="store_true", help="print one JSON object per line, with all fields")


def run(arguments: argparse.Namespace) -> int:
    """Print the versions, newest first."""
    from captioner.artifacts.version_store import VersionStore
    from captioner.publish.versions import versions

    rows = versions(VersionStore(arguments.repository))
    if arguments.json:
        for row in rows:
            print(json.dumps(_facts(row), ensure_ascii=False))
        return 0
    if not rows:
        print("no version is published; `captioner up` publishes the embedded model")
        return 0
    print(COLUMNS.format("version", "state", "model", "revision", "precision", "size", "when"))
    for row in rows:
        when = datetime.fromtimestamp(row.when).strftime("%Y-%m-%d %H:%M")
        size = f"{row.size / 2**20:.1f} MiB"
        manifest = row.manifest
        values = row.number, row.state, manifest.model, manifest.revision[:12], manifest.precision, size, when
        print(COLUMNS.format(*values))
        if row.reason:
            print(f"{'':>9}{row.reason.splitlines()[0]}")
        if arguments.verbose:
            for name, text in _card(row).items():
                print(f"{'':>9}{name + ':':<14}{text}")
    return 0


def _card(row: Version) -> dict[str, str]:
    card, prompts = row.manifest.card, row.manifest.prompts
    return {
        "commit": row.manifest.revision,
        "licence": card.license or "not stated",
        "base model": card.base_model or "not stated",
        "intended use": card.intended_use or "not stated",
        "styles": "; ".join(f"{style} ({', '.join(lengths)})" for style, lengths in prompts.styles.items()),
        "extras": ", ".join(prompts.extras) or "none",
    }


def _facts(row: Version) -> dict[str, object]:
    manifest = row.manifest
    return {
        "version": row.number,
        "state": row.state,
        "model": manifest.model,
        "revision": manifest.revision,
        "precision": manifest.precision,
        "bytes": row.size,
        "when": datetime.fromtimestamp(row.when, timezone.utc).isoformat(timespec="seconds"),
        "reason": row.reason,
        "card": asdict(manifest.card),
        "styles": {style: list(lengths) for style, lengths in manifest.prompts.styles.items()},
        "extras": manifest.prompts.extras,
    }
