"""`captioner export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from captioner.cli.options import add_export, log


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    export = verbs.add_parser("export", help="convert a model into a folder for `captioner publish`")
    export.set_defaults(run=run)
    export.add_argument("model", metavar="MODEL[@REVISION]", help="Hugging Face id or folder")
    export.add_argument("--out", type=Path, help="folder to write, default exports/NAME@REVISION")
    add_export(export)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print its path."""
    from captioner.hub import resolve

    found = resolve.find(*resolve.parse(arguments.model))
    # Imported after the look-up: it imports torch, which takes seconds.
    from export.export import export

    out = arguments.out or Path("exports") / str(found).replace("/", "--")
    export(found, out, log, precision=arguments.precision, calibration=arguments.calibration)
    print(out)
    return 0
