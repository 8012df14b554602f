"""`python -m export [MODEL[@REVISION]]`: exported and published on this disk, for a server that is yet to start."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from captioner import hub
from captioner.errors import CaptionerError
from captioner.repository import Repository


def main() -> int:
    """Exports and publishes; 0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        help=f"a folder or a Hugging Face id, with @REVISION; left out: what is published, else {hub.EMBEDDED}",
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    arguments = parser.parse_args()
    try:
        _publish(arguments.model, Repository(arguments.repository))
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    return 0


def _publish(model: str | None, repository: Repository) -> None:
    if os.access(repository.path, os.W_OK):  # a read-only one, as in an image, serves what it holds
        with repository.lock(wait_s=60):
            repository.recover()
    versions = repository.versions()
    newest = max(versions, default=0)
    if model is None and newest and versions[newest].model != hub.EMBEDDED:
        print(f"{versions[newest].model} is published as version {newest}")
        return
    found = hub.find(*hub.parse(model or hub.EMBEDDED))
    if newest and (versions[newest].model, versions[newest].revision) == (found.name, found.revision):
        print(f"{found} is published as version {newest}")
        return
    aside = repository.aside_of(found.name, found.revision)
    if model is None and newest and aside:  # nobody asked for it anew
        print(f"{found} was {aside.state} as version {aside.version}; version {newest} stays")
        return
    from export.publish import export_and_publish  # torch and transformers, only when there is something to export

    export_and_publish(found, repository, (), lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
