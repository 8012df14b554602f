"""The `captioner` command: arguments in, the library does the work, refusals become one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from captioner import __version__
from captioner.commands import (
    bench,
    caption,
    completion,
    doctor,
    export,
    follow,
    probe,
    publish,
    pull,
    rollback,
    up,
    versions,
)
from captioner.errors import CaptionerError

VERBS = (up, caption, pull, export, publish, versions, rollback, follow, bench, doctor, probe, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all went well, 1 when some images failed, 2 when nothing could be done, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: int = arguments.run(arguments)
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _interrupt(*_: object) -> None:
    """A service manager's stop is a Ctrl-C: what was begun is ended or taken back."""
    raise KeyboardInterrupt


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
