"""deploy/serve.sh with scripts in place of python3 and tritonserver: what it refuses, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.processes import running
from tests.support.served import ROOT

SERVE = ROOT / "deploy" / "serve.sh"
# Prints what it is asked to do. It answers like a Python without a usable GPU, and exports for a minute if told so.
PYTHON = r"""#!/bin/sh
case "$*" in
    *torch*) exit 1 ;;
    *admin_key*) echo secret ;;
    *usable_cores*) echo 3 ;;
    *"-m export"*) echo "$@"; [ -z "${SLOW:-}" ] || exec sleep 60 ;;
esac
"""
TRITON = """#!/bin/sh
printf 'threads %s\n' "$OMP_NUM_THREADS"
printf '%s\n' "$@"
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    for name, script in (("python3", PYTHON), ("tritonserver", TRITON)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}/usr/bin:/bin", "MODEL_REPOSITORY": str(tmp_path)}


def serve(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SERVE), *arguments]
    return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=60)


def test_a_gpu_that_was_asked_for_and_cannot_be_used_is_refused_before_anything_else(variables: dict[str, str]) -> None:
    done = serve(variables | {"CAPTIONER_REQUIRE_GPU": "1"})
    assert done.returncode == 1 and not done.stdout
    assert "a GPU was asked for" in done.stderr and "nvidia-smi" in done.stderr
    assert serve(variables | {"CAPTIONER_REQUIRE_GPU": "0"}).returncode == 0


def test_a_stop_while_the_model_is_published_ends_the_container_at_once(variables: dict[str, str]) -> None:
    with running(["sh", SERVE], env=variables | {"SLOW": "1"}) as shell:
        assert shell.stdout is not None and "-m export" in shell.stdout.readline()
        time.sleep(0.5)
        shell.send_signal(signal.SIGTERM)
        assert shell.wait(20) == 143


def test_the_variables_reach_the_exporter_and_triton(variables: dict[str, str]) -> None:
    named = {"CAPTIONER_MODEL": "owner/model", "CAPTIONER_REVISION": "v2", "CAPTIONER_DRAIN_SECONDS": "77"}
    lines = serve(variables | named, "--log-verbose=1").stdout.splitlines()
    assert lines[0].endswith("owner/model@v2")
    assert {"threads 3", "--exit-timeout-secs=77", "--log-verbose=1"} <= set(lines)
    assert "--http-restricted-api=shared-memory,model-repository,trace,logging:captioner-admin=secret" in lines
    assert "threads 5" in serve(variables | {"OMP_NUM_THREADS": "5"}).stdout
    assert "--exit-timeout-secs=30" in serve(variables).stdout
