"""Make sure that a repository has a live version before a server starts: the named model, or the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

from captioner.artifacts import repository_templates
from captioner.artifacts.version_store import VersionStore
from captioner.embedded import EMBEDDED
from captioner.hub import resolve
from captioner.publish.warm_standby import Log


def ensure_published(model: str | None, path: Path, log: Log) -> None:
    """Publish `model` (a folder or MODEL[@REVISION]) into the repository at `path` unless it is live already.

    Without a model, a live model stays; only an empty repository, or one with the embedded model of an older release,
    gets the embedded model. No server is contacted. Raises what resolving, exporting or publishing raises.
    """
    for name in repository_templates.install(path):
        log(f"{path / name} was edited, so it is kept; this release has a newer one")
    store = VersionStore(path)
    if os.access(store.path, os.W_OK):  # a read-only repository cannot be recovered, only served
        with store.lock(wait_s=60):
            store.recover()
    versions = store.versions()
    newest = max(versions, default=0)
    if model is None and newest and versions[newest].model != EMBEDDED:
        log(f"{versions[newest].model} is published as version {newest}")
        return
    found = resolve.find(*resolve.parse(model or EMBEDDED))
    if newest and (versions[newest].model, versions[newest].revision) == (found.name, found.revision):
        log(f"{found} is published as version {newest}")
        return
    rejected = store.quarantined_revision(found.name, found.revision)
    if model is None and newest and rejected:  # do not publish a rejected model again unless it is named
        log(f"{found} was {rejected.state} as version {rejected.version}; version {newest} stays live")
        return
    from captioner.publish.publish import export_and_publish  # imports torch and transformers

    export_and_publish(found, store, (), log)
