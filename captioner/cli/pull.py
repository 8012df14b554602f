"""`captioner pull`."""

from __future__ import annotations

import argparse
import sys


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb and its options."""
    pull = verbs.add_parser(
        "pull",
        help="fetch a model of the Hugging Face Hub, checked, for use without a network",
        description="Fetches what is needed of a model into huggingface_hub's cache: safetensors and JSON, no pickles "
        "and no code. Every byte is checked. Stopped or killed, the same command goes on where it was.",
    )
    pull.set_defaults(run=run)
    pull.add_argument(
        "model", metavar="MODEL[@REVISION]", help="a Hugging Face id, at a branch, tag or commit; default branch main"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the model, its commit, how much it is and where it lies."""
    from captioner.hub import resolve
    from captioner.hub.pull import pull

    model, revision = resolve.parse(arguments.model)
    if resolve.local_folder(model):
        found = resolve.find(model, revision)
        print(f"{found} is on this disk already, in {found.folder}", file=sys.stderr)
        return 0
    snapshot = pull(model, revision)
    print(f"{model}@{snapshot.commit}: {len(snapshot.files)} files, {snapshot.size} bytes, in {snapshot.folder}")
    return 0
