"""`captioner caption`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from captioner.commands.options import add_parameters, add_server, parameters
from captioner.errors import CaptionerError


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    caption = verbs.add_parser("caption", help="caption image files")
    caption.set_defaults(run=run)
    caption.add_argument("files", nargs="+", type=Path, metavar="FILE")
    caption.add_argument("--json", action="store_true", help="one JSON object a file, with all details")
    add_server(caption)
    add_parameters(caption)


def run(arguments: argparse.Namespace) -> int:
    """A line a file, written as the caption comes; 1 where some failed."""
    from captioner.client import Client

    asked = parameters(arguments)
    failed = 0
    with Client(arguments.server) as client:
        for path in arguments.files:
            label = f"{path}: " if len(arguments.files) > 1 else ""
            try:
                if arguments.json:
                    caption = client.caption(path, **asked)
                    line = {"file": str(path), "caption": caption.text, "details": asdict(caption.details)}
                    print(json.dumps(line, ensure_ascii=False))
                    continue
                with client.stream(path, **asked) as stream:
                    lead = label  # nothing is printed for an image that is refused
                    for piece in stream:
                        print(lead + piece, end="", flush=True)
                        lead = ""
                    print()
            except (CaptionerError, OSError) as error:
                failed += 1
                sentence = error.wire() if isinstance(error, CaptionerError) else f"{error.strerror}"
                print(f"{path}: {sentence}", file=sys.stderr)
    return 1 if failed else 0
