"""`captioner pull`."""

from __future__ import annotations

import argparse
import sys


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its options."""
    pull = verbs.add_parser(
        "pull",
        help="download a model from the Hugging Face Hub and verify it, for use without a network",
        description="Download the files that a model needs into huggingface_hub's cache: safetensors and JSON, no "
        "pickles and no code. Every byte is verified. After an interruption, the same command resumes the download.",
    )
    pull.set_defaults(run=run)
    pull.add_argument(
        "model", metavar="MODEL[@REVISION]", help="Hugging Face id, at a branch, tag or commit; default branch main"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the model, its commit, the number and size of its files, and their folder."""
    from captioner.hub import resolve
    from captioner.hub.pull import pull

    model, revision = resolve.parse(arguments.model)
    if resolve.local_folder(model):
        found = resolve.find(model, revision)
        print(f"{found} is already on this disk, in {found.folder}", file=sys.stderr)
        return 0
    snapshot = pull(model, revision)
    print(f"{model}@{snapshot.commit}: {len(snapshot.files)} files, {snapshot.size} bytes, in {snapshot.folder}")
    return 0
