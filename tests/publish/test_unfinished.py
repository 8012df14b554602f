"""Publishes that are killed or stopped at any step: the live version serves, and nothing unfinished stays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from captioner.artifacts.version_store import VERSIONED
from captioner.wire import CAPTIONER
from tests.support.killed import publish_killed, publish_terminated
from tests.support.publishing import Stand, revision

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

EXHAUSTIVE = pytest.mark.exhaustive
KILLED_STEPS = [*map(str, range(1, 15)), "load captioner"]
FAST_STEPS = ("8", "11")  # in 8 only the encoder is loaded; in 11 all folders are placed, but the captioner not loaded


@pytest.mark.parametrize(
    "step", [step if step in FAST_STEPS else pytest.param(step, marks=EXHAUSTIVE) for step in KILLED_STEPS]
)
def test_a_publish_killed_at_any_step_leaves_the_live_version_serving(
    stand: Stand, exports: list[Path], tmp_path: Path, step: str
) -> None:
    begun = publish_killed(step, exports[1], stand.store.path, stand.address, tmp_path / "steps")
    with stand.load(clients=3, pause_s=0) as load:
        time.sleep(0.3)
    assert load.faults == [] and load.by_version
    with stand.store.lock():
        stand.store.recover()  # as at each start and each publish
    live, confirmed = stand.store.live(), begun[-1] == "prune"
    assert (live == 1) != confirmed
    for model in VERSIONED:
        numbers = {int(path.name) for path in (stand.store.path / model).glob("[0-9]*")}
        assert numbers == {1, live}
    stand.store.verify()


@pytest.mark.parametrize("model", ["vision_encoder", pytest.param("captioner", marks=EXHAUSTIVE)])
def test_a_publish_that_gets_sigterm_aborts_its_version(
    stand: Stand, exports: list[Path], tmp_path: Path, model: str
) -> None:
    arguments = [str(exports[1]), "--repository", str(stand.store.path), "--server", stand.address]
    with stand.load() as load:
        assert publish_terminated(f"loading {model}", arguments, tmp_path / "log") == 130
    assert load.faults == []
    assert stand.live() == ("1", revision(exports[0]))
    number, entry = list(stand.store.quarantined().items())[-1]
    assert (entry.state, entry.reason) == ("refused", "the publish was interrupted")
    assert stand.controls[0].wait_unloaded(CAPTIONER, number, 10)
