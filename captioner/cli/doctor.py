"""`captioner doctor`: facts for a bug report, and problems with their remedies."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from captioner.cli.options import add_repository, add_server


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    doctor = verbs.add_parser("doctor", help="facts for a bug report, and what keeps `captioner up` from working")
    doctor.set_defaults(run=run)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    add_repository(doctor)
    doctor.add_argument(
        "--timeout-s", type=float, default=5.0, metavar="S", help="seconds to wait for the server, default %(default)s"
    )
    add_server(doctor)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Return 1 if `captioner up` would not work."""
    from captioner.doctor import examine

    report = examine(arguments.repository, arguments.server, arguments.timeout_s)
    print(json.dumps(asdict(report), ensure_ascii=False, indent=1) if arguments.json else report.text())
    return int(report.blocked)
