"""Taking a version back: the one before answers first, then the other drains and leaves. No torch is imported here.

A server keeps two versions loaded, the live one and the one before, so that traffic moves back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from captioner.errors import ArtefactBroken, CaptionerError
from captioner.model_control import ModelControl
from captioner.repository import Leaving, Repository
from captioner.wire import CAPTIONER, PREPROCESS, VISION_ENCODER

ENCODER = (VISION_ENCODER, PREPROCESS)
DRAIN_SECONDS = 60.0  # for what a version that leaves has begun

Say = Callable[[str], None]


def rollback(repository: Repository, controls: Sequence[ModelControl], say: Say) -> int:
    """Makes the version before the live one, and returns its number. ArtefactBroken where there is none.

    Where a publish was left unfinished, it is what is taken back.
    """
    with repository.lock():
        dead = repository.recover()
        *_, before, live = [0, 0, *repository.versions()]
        if dead:
            for control in controls:
                stand_by(repository, control)
            say(f"version {live} is live; the unfinished version {dead[-1]} is set aside")
            return live
        if not before:
            raise ArtefactBroken(f"there is no version before the live one in {repository.path}")
        told = f"version {before} is live, in place of version {live}"
        faults = take_back(repository, controls, live, "rolled back", "by hand", lambda: say(told))
    if faults:
        raise faults[0]
    return before


def take_back(
    repository: Repository,
    controls: Sequence[ModelControl],
    version: int,
    state: Leaving,
    reason: str,
    moved: Callable[[], None] = lambda: None,
) -> list[CaptionerError]:
    """Sets a version aside wherever its publish has come to; `moved` is told once traffic is with the one before.

    Returns what servers could not do: what the next start serves is settled all the same.
    """
    repository.set_aside(CAPTIONER, version)
    left = list(repository.versions())[-2:]
    faults: list[CaptionerError] = []
    for control in controls:
        try:
            loaded = control.loaded(CAPTIONER)
            if left and version in loaded:
                # Only what is loaded already: no request waits for a version that is still to be loaded.
                control.load(repository.path, CAPTIONER, loaded & set(left) or left[-1:])
        except CaptionerError as fault:
            faults.append(fault)
    if not faults:
        moved()
    for model in reversed(ENCODER):
        repository.set_aside(model, version)
    repository.explain(version, state, reason)
    for control in controls:
        try:
            control.wait_unloaded(CAPTIONER, version, DRAIN_SECONDS)  # what it has begun still asks its encoder
            stand_by(repository, control)
        except CaptionerError as fault:
            faults.append(fault)
    return faults


def stand_by(repository: Repository, control: ModelControl) -> None:
    """Brings one server to have the live version and the one before loaded, and no other."""
    versions = list(repository.versions())[-2:]
    if versions:
        for model in (*ENCODER, CAPTIONER):
            control.load(repository.path, model, versions)


def stand_alone(repository: Repository, control: ModelControl, live: Sequence[int]) -> None:
    """Lets go all but the live version, each captioner before the encoder that it asks."""
    others = control.loaded(CAPTIONER).difference(live)
    if live and others:
        control.load(repository.path, CAPTIONER, live)
        for version in others:
            control.wait_unloaded(CAPTIONER, version, DRAIN_SECONDS)
        for model in ENCODER:
            control.load(repository.path, model, live)
