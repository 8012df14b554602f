"""Every error class as an HTTP response."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from captioner.errors import AccessDenied, CaptionerError
from frontend.http_errors import RETRIES_PER_S, STATUSES, RetryTimes, error_response, status_of


@pytest.mark.parametrize("kind", CaptionerError.by_code.values())
def test_every_error_has_a_status_and_only_server_faults_are_5xx(kind: type[CaptionerError]) -> None:
    answer = error_response(kind("the message"))
    assert answer.status_code == status_of(kind("x"))
    assert 400 <= answer.status_code < 600
    assert kind.status != "INVALID_ARG" or answer.status_code < 500 or kind is AccessDenied
    assert kind.status != "UNAVAILABLE" or answer.status_code in (503, 504)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    assert json.loads(bytes(answer.body))["error"]["message"] == "the message"


def test_the_table_of_statuses_is_sorted_by_name() -> None:
    names = [kind.__name__ for kind in STATUSES if kind is not CaptionerError]
    assert all(a < b for a, b in pairwise(names)), names


def test_the_more_clients_are_refused_the_later_they_come_back() -> None:
    times = RetryTimes()
    waits = [int(times.headers()["retry-after-ms"]) for _ in range(500)]
    assert max(waits[:10]) <= 1000
    assert 4000 < max(waits[-100:]) <= 1000 * 500 / RETRIES_PER_S
    assert min(waits) >= 100
