"""The `captioner` command, with one file for each verb: `add` declares the verb's options, `run` does the work.

An error is printed as one line on stderr and becomes the exit code.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from captioner import __version__
from captioner.cli import (
    bench,
    caption,
    check,
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

VERBS = (up, caption, check, pull, export, publish, versions, rollback, follow, bench, doctor, probe, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    0: success. 1: some images failed, or a checked model cannot be served. 2: nothing could be done. 130: Ctrl-C.
    """
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb and its options."""
    root = argparse.ArgumentParser(prog="captioner", description="Image captions on your own server.")
    root.add_argument("--version", action="version", version=f"captioner {__version__}")
    root.set_defaults(root=root)  # `completion` prints a script for the whole command
    verbs = root.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return root


def _interrupt(*_: object) -> None:
    """Treat a service manager's SIGTERM like Ctrl-C, so that unfinished work is completed or rolled back."""
    raise KeyboardInterrupt
