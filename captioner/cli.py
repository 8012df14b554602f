"""The `captioner` command: arguments in, the library does the work, refusals become one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from captioner import __version__
from captioner.commands import bench, caption, completion, doctor, probe, up
from captioner.errors import CaptionerError

VERBS = (up, caption, bench, doctor, probe, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all went well, 1 when some images failed, 2 when nothing could be done, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """Every verb and its options."""
    root = argparse.ArgumentParser(prog="captioner", description="Image captions on your own server.")
    root.add_argument("--version", action="version", version=f"captioner {__version__}")
    verbs = root.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return root


if __name__ == "__main__":
    sys.exit(main())
