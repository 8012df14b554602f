"""The benchmarks of the doors and of the bulk job run against a real server and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.pages import Serve
from tests.support.served import ROOT, Served

pytestmark = pytest.mark.triton


def run(module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.browser
def test_every_door_is_measured_against_grpc(served: Served, serve_page: Serve) -> None:
    found = run("doors", "--server", served.grpc, "--page", serve_page(served.grpc), "--photos", "3")
    assert found["grpc_first_text_p50_ms"] < found["grpc_total_p50_ms"]
    for door in ("captions", "chat", "page"):
        added = found[f"{door}_total_added_ms"]
        assert added["low"] <= added["median"] <= added["high"]


def test_the_bulk_job_is_measured_against_photos_in_memory(served: Served) -> None:
    found = run("bulk", "--server", served.grpc, "--photos", "32", "--rounds", "2", "--in-flight", "8")
    assert 0 < found["job_of_memory"]["low"] <= found["job_of_memory"]["high"]
