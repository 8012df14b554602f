"""`python -m export [MODEL[@REVISION]]`: export and publish a model on this disk, for a server that starts later."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from captioner.artifacts.repository_templates import default_repository
from captioner.embedded import EMBEDDED
from captioner.errors import CaptionerError
from captioner.publish.ensure_published import ensure_published


def main() -> int:
    """Export and publish. Return 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help=f"a folder or a Hugging Face id, with @REVISION; default: what is published, else {EMBEDDED}",
    )
    parser.add_argument("--repository", type=Path, default=default_repository(), help="Triton model repository")
    arguments = parser.parse_args()
    try:
        ensure_published(arguments.model, arguments.repository, lambda text: print(text, flush=True))
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
