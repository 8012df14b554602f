"""`python -m export [MODEL]`: arguments only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.hub import EMBEDDED, find
from export import publish


def main() -> int:
    """Exports and publishes; 0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help=f"a folder or a Hugging Face id; left out: what is published, else {EMBEDDED}",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    arguments = parser.parse_args()
    try:
        versions = publish.published(arguments.repository)
        newest = max(versions, default=0)
        if arguments.model is None and newest and versions[newest].model != EMBEDDED:
            print(f"{versions[newest].model} is published as version {newest}")
            return 0
        found = find(arguments.model or EMBEDDED, arguments.revision)
        if newest and (versions[newest].model, versions[newest].revision) == (found.name, found.revision):
            print(f"{found} is published as version {newest}")
            return 0
        from export.export import export  # torch and transformers, only when there is something to export

        export(found, arguments.repository, lambda text: print(text, flush=True))
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
