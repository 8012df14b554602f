"""Interrupted publishes and rollbacks without a server: the live version is complete, and a lock serializes changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.published import empty_repository
from captioner.artifacts.version_store import VERSIONED, VersionStore
from captioner.errors import ArtefactBroken, RepositoryBusy
from captioner.publish.publish import publish
from captioner.publish.rollback import rollback
from captioner.wire import CAPTIONER
from tests.support.killed import leave_unfinished
from tests.support.publishing import complete_versions, quiet, text_export

STEPS = ["stage", "place vision_encoder", "place preprocess", "place captioner", "confirm"]


def die_after(steps: int, store: VersionStore, exported: Path) -> None:
    """Publish the first `steps` of STEPS, then stop as if the process died."""
    version = leave_unfinished(store, exported, VERSIONED[: steps - 1])
    if steps == len(STEPS):
        store.confirm(version)


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1), ids=lambda steps: STEPS[steps - 1])
def test_a_publish_that_dies_after_a_step_leaves_the_live_version(
    store: VersionStore, exported: Path, steps: int
) -> None:
    publish(exported, store, (), quiet)
    die_after(steps, store, exported)
    unfinished = store.recover()
    if steps == len(STEPS):
        assert (unfinished, complete_versions(store)) == ([], [1, 2])
    else:
        assert (unfinished, complete_versions(store)) == ([2], [1])
        assert "died" in store.quarantined()[2].reason
    assert store.recover() == []
    assert publish(exported, store, (), quiet) == 3


@pytest.mark.parametrize("moved", [1, 2, 3])
def test_a_rollback_that_dies_between_two_folders_is_completed_by_the_next_start(
    store: VersionStore, exported: Path, moved: int
) -> None:
    for _ in range(2):
        publish(exported, store, (), quiet)
    for model in list(reversed(VERSIONED))[:moved]:
        store.quarantine(model, 2)
    store.recover()
    assert complete_versions(store) == [1]
    assert publish(exported, store, (), quiet) == 3


def test_a_rollback_after_an_unfinished_publish_aborts_only_that(store: VersionStore, exported: Path) -> None:
    for _ in range(2):
        publish(exported, store, (), quiet)
    die_after(4, store, exported)
    assert rollback(store, (), quiet) == 2
    assert complete_versions(store) == [1, 2]


ACTIONS = st.lists(st.sampled_from(["publish", "rollback", "prune", "recover", "bad", *"12345"]), max_size=12)


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.exhaustive)])
def test_the_live_version_is_complete_after_any_actions_and_deaths(
    tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(ACTIONS)
    def check(actions: list[str]) -> None:
        perform(actions, tmp_path_factory.mktemp("any"))

    check()


def perform(actions: list[str], folder: Path) -> None:
    """Perform the actions, a digit being a publish that dies after that many steps; check the versions after each."""
    store = VersionStore(empty_repository(folder / "model_repository"))
    live: list[str] = []  # revisions, the last is live
    for number, action in enumerate(actions):
        exported = text_export(folder / "exported", f"{number:040x}")
        if action == "publish":
            publish(exported, store, (), quiet)
            live.append(f"{number:040x}")
        elif action == "rollback" and len(store.versions()) > 1:
            rollback(store, (), quiet)
            live.pop()
        elif action == "prune":
            store.prune(2)
        elif action == "bad":
            (exported / CAPTIONER / "weights").write_text("bad")
            with pytest.raises(ArtefactBroken):
                publish(exported, store, (), quiet)
        elif action.isdecimal():
            die_after(int(action), store, exported)
            live += [f"{number:040x}"] if int(action) == len(STEPS) else []
        store.recover()
        complete_versions(store)
        found = [manifest.revision for manifest in store.versions().values()]
        assert found == live[-len(found) :] if found else not live


def test_only_one_process_changes_versions_at_a_time(store: VersionStore, exported: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock():
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(RepositoryBusy, match="another process"):
            publish(exported, store, (), quiet)
    finally:
        done.set()
        thread.join()
    assert publish(exported, store, (), quiet) == 1


def test_versions_published_by_another_release_get_this_releases_code(store: VersionStore, exported: Path) -> None:
    for _ in range(2):
        publish(exported, store, (), quiet)
    code = store.folder(CAPTIONER, 2) / "model.py"
    code.write_text("of another release")
    store.recover()
    assert code.read_bytes() == (store.folder(CAPTIONER, 1) / "model.py").read_bytes()
    before = code.stat().st_mtime_ns
    store.recover()
    assert code.stat().st_mtime_ns == before, "a changed file makes Triton reload the model"
