"""`python -m export [MODEL[@REVISION]]`: export and publish a model into a repository, before its server starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from captioner.artifacts.repository_templates import default_repository
from captioner.embedded import EMBEDDED
from captioner.errors import CaptionerError
from captioner.publish.ensure_published import ensure_published


def main() -> int:
    """Export and publish. Return 0, or 2 after an error of one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help=f"folder or Hugging Face id, with @REVISION; default: the published model, else {EMBEDDED}",
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
