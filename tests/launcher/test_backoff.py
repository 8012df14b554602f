"""How long a process that has ended waits for its next start."""

from __future__ import annotations

from captioner.launcher.backoff import Backoff


def test_the_first_restart_is_immediate_and_failed_ones_wait_up_to_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.wait_s(ran_s) for ran_s in (100.0, *[0.0] * 9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_run_of_ten_seconds_ends_the_waits() -> None:
    backoff = Backoff()
    assert [backoff.wait_s(ran_s) for ran_s in (0.0, 9.9, 9.9, 10.0, 0.0)] == [0, 1, 2, 0, 1]
