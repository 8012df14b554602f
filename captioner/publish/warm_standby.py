"""Which versions a server has loaded: the live one and those before it, so that a rollback only moves traffic.

    python -m captioner.publish.warm_standby REPOSITORY ADDRESS

Triton starts with the live version alone, so that no other version can keep it from starting. Once it is ready, this
module loads the previous versions too; `KEEP_LOADED` says how many versions are loaded in all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from captioner.artifacts.version_store import KEEP_LOADED, VersionStore
from captioner.errors import CaptionerError
from captioner.publish.model_control import ModelControl, admin_key
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER

ENCODER = (VISION_ENCODER, PREPROCESS)
DRAIN_SECONDS = 60.0  # for the requests in flight of a version that is unloaded
_POLL_SECONDS = 1.0

Log = Callable[[str], None]


def newest(store: VersionStore, spare: int = 0) -> list[int]:
    """Return the versions that should be loaded, ascending: the live one and those before it.

    `spare` leaves room in memory for that many versions that are about to be loaded.
    """
    return list(store.versions())[spare - KEEP_LOADED :]


def load_previous_version(store: VersionStore, control: ModelControl) -> None:
    """Make one server have exactly the `newest` versions loaded."""
    if versions := newest(store):
        for model in (*ENCODER, CAPTIONER):
            control.load(store.path, model, versions)


def unload_others(store: VersionStore, control: ModelControl, kept: Sequence[int]) -> None:
    """Unload every version but `kept`: each captioner before the encoder it calls."""
    others = control.loaded(CAPTIONER).difference(kept)
    if kept and others:
        control.load(store.path, CAPTIONER, kept)
        for version in others:
            control.wait_unloaded(CAPTIONER, version, DRAIN_SECONDS)
        for model in ENCODER:
            control.load(store.path, model, kept)


def load_previous_when_ready(path: Path, address: str, log: Log, seconds: float) -> None:
    """Wait up to `seconds` for the server, then load the previous versions. Failures are logged, not raised.

    A publish that runs at the same time holds the lock and loads what it needs itself.
    """
    end = time.monotonic() + seconds
    try:
        control = ModelControl(address, admin_key(path))
        while not control.is_ready():
            if time.monotonic() >= end:
                return
            time.sleep(_POLL_SECONDS)
        with VersionStore(path).lock() as store:
            if len(store.versions()) > 1:
                load_previous_version(store, control)
    except CaptionerError as error:
        log(f"the previous version was not loaded: {error.wire()}")


if __name__ == "__main__":
    load_previous_when_ready(Path(sys.argv[1]), sys.argv[2], print, 3600)
