"""`captioner export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from captioner.cli.options import add_export, say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    export = verbs.add_parser("export", help="turn a model into a folder that `captioner publish` takes")
    export.set_defaults(run=run)
    export.add_argument("model", metavar="MODEL[@REVISION]", help="a Hugging Face id or a folder")
    export.add_argument("--out", type=Path, help="default exports/NAME@REVISION")
    add_export(export)


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder and names it."""
    from captioner.hub import resolve
    from export.export import export

    found = resolve.find(*resolve.parse(arguments.model))
    out = arguments.out or Path("exports") / str(found).replace("/", "--")
    export(found, out, say, precision=arguments.precision, calibration=arguments.calibration)
    print(out)
    return 0
