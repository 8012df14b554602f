"""A short soak: users with marked images see their own captions only, and nothing is left when they have gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import faults, run

SECONDS, USERS = 20, 40


@pytest.mark.triton
@pytest.mark.alone
@pytest.mark.exhaustive
def test_no_user_sees_the_caption_of_another_and_nothing_is_left(repository: Path) -> None:
    document = run(SECONDS, USERS, load=0.8, sample_s=1, repository=repository)
    document["processes"] = {name: each for name, each in document["processes"].items() if name == "reaper"}
    assert faults(document) == []  # twenty seconds are too few to judge how the other processes grow
    ends = document["requests"]
    assert ends["caption: captioned"] > USERS and any(kind.startswith("cancel: hung up") for kind in ends)
