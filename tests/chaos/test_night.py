"""A short night: a folder of awkward files, the job killed twice, its server restarted, every caption checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.night import KILL_AT, measure
from benchmarks.night_folder import BROKEN, LOCKED

PHOTOS = 400


@pytest.mark.triton
@pytest.mark.alone
@pytest.mark.exhaustive
def test_every_photo_has_one_right_caption_or_one_line_in_the_report(repository: Path) -> None:
    document = measure(PHOTOS, repository)
    assert document["faults"] == []
    assert (document["kills"], document["server_restarts"], document["exit_code"]) == (len(KILL_AT), 1, 1)
    assert document["captioned"] + BROKEN + LOCKED + 1 == PHOTOS
    assert document["different_captions"] > 10
