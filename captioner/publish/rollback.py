"""Rollback: traffic moves to the previous version first, then the rejected version drains and is unloaded.

A publish that fails aborts through the same steps. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from captioner.artifacts.version_store import QuarantineState, VersionStore
from captioner.errors import ArtefactBroken, CaptionerError
from captioner.publish.model_control import ModelControl
from captioner.publish.warm_standby import DRAIN_SECONDS, ENCODER, Log, load_previous_version, newest
from captioner.wire import CAPTIONER


def rollback(store: VersionStore, controls: Sequence[ModelControl], log: Log) -> int:
    """Make the previous version the live one and return its number.

    If an unfinished publish is found, that publish is aborted instead. Raises ArtefactBroken when there is no previous
    version.
    """
    with store.lock():
        unfinished = store.recover()
        *_, previous, live = [0, 0, *store.versions()]
        if unfinished:
            for control in controls:
                load_previous_version(store, control)
            log(f"version {live} is live; the unfinished version {unfinished[-1]} is quarantined")
            return live
        if not previous:
            raise ArtefactBroken(f"there is no version before the live one in {store.path}")
        message = f"version {previous} is live, in place of version {live}"
        faults = abort(store, controls, live, "rolled back", "by hand", lambda: log(message))
    if faults:
        raise faults[0]
    return previous


def abort(
    store: VersionStore,
    controls: Sequence[ModelControl],
    version: int,
    state: QuarantineState,
    reason: str,
    on_moved: Callable[[], None] = lambda: None,
) -> list[CaptionerError]:
    """Quarantine a version, whichever step its publish has reached; call `on_moved` once traffic has left it.

    Returns the errors of servers that could not follow. The repository is consistent either way, so the next start
    serves the right version.
    """
    store.quarantine(CAPTIONER, version)
    left = newest(store)
    faults: list[CaptionerError] = []
    for control in controls:
        try:
            loaded = control.loaded(CAPTIONER)
            if left and version in loaded:
                # Name only versions that are loaded: then no request waits for a load.
                control.load(store.path, CAPTIONER, loaded & set(left) or left[-1:])
        except CaptionerError as fault:
            faults.append(fault)
    if not faults:
        on_moved()
    for model in reversed(ENCODER):
        store.quarantine(model, version)
    store.record_reason(version, state, reason)
    for control in controls:
        try:
            control.wait_unloaded(CAPTIONER, version, DRAIN_SECONDS)  # its requests in flight still call its encoder
            load_previous_version(store, control)
        except CaptionerError as fault:
            faults.append(fault)
    return faults
