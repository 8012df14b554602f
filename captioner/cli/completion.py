"""`captioner completion`: a shell script that completes this command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    completion = verbs.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        description='For this shell and the next ones, in ~/.bashrc: eval "$(captioner completion bash)"',
    )
    completion.set_defaults(run=run)
    completion.add_argument("shell", choices=SHELLS, help="the shell that runs the script")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    _name_paths(arguments.root, shtab.FILE)
    print(shtab.complete(arguments.root, arguments.shell))
    return 0


def _name_paths(parser: argparse.ArgumentParser, files: Any) -> None:
    """Mark every argument that takes a path, so that shtab completes file names there."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _name_paths(verb, files)
        elif action.type is Path or action.metavar == "PATH":  # a PATH has no type Path, because it may be a glob
            action.complete = files  # type: ignore[attr-defined]
