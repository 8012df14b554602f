"""How the page starts: keys by environment and by file, and what it refuses before it serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.api_client import CAPTIONS
from tests.support.api_server import DEAD
from tests.support.processes import free_port, serving

PAGE = [sys.executable, "-m", "frontend", "--server", DEAD]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "the address '0.0.0.0' is open to others, and there is no key and no login; set "),
        (["--api-key-file", "/nowhere/keys"], "the key file '/nowhere/keys' cannot be read: "),
        (["--api-key-file", os.devnull], "the key file '/dev/null' holds no key"),
        (["--drain-seconds", "-1"], "drain_s is -1 s; it must be more than 0 s"),
        (["--allow-origin", "example.org"], "allow_origins has 'example.org'; an origin is http(s)://HOST"),
    ],
)
def test_a_wrong_option_ends_the_start_with_one_sentence(options: list[str], sentence: str) -> None:
    done = subprocess.run([*PAGE, *options], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"STARTUP_REFUSED: {sentence}")
    assert done.stderr.count("\n") == 1


def test_keys_are_in_no_command_line_and_no_log(tmp_path: Path) -> None:
    keys, log, port = tmp_path / "keys", tmp_path / "log", free_port()
    keys.write_text("file-secret-1\n\nfile-secret-2\n")
    command = [*PAGE, "--port", str(port), "--api-key-file", str(keys)]
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"CAPTIONER_API_KEYS": "env-secret", "CAPTIONER_AUTH": "ann:pass-secret"}
    with (
        log.open("wb") as output,
        serving(command, f"{url}/healthz", env=environment, stdout=output, stderr=output) as page,
    ):
        for key in ("file-secret-1", "file-secret-2", "env-secret"):
            answer = httpx.post(
                url + CAPTIONS, json={"image": "body-secret"}, headers={"Authorization": f"Bearer {key}"}, timeout=30
            )
            assert answer.status_code == 503, "no captioner server"
        assert httpx.get(url, auth=("ann", "pass-secret"), timeout=30).status_code == 200
        assert httpx.get(url, auth=("ann", "wrong-secret"), timeout=30).status_code == 401
        httpx.post(
            url + "/gradio_api/run/predict", json={"data": ["body-secret"]}, auth=("ann", "pass-secret"), timeout=30
        )
        processes = [psutil.Process(page.pid), *psutil.Process(page.pid).children(recursive=True)]
        assert "secret" not in " ".join(" ".join(process.cmdline()) for process in processes)
    assert "secret" not in log.read_text()
    assert log.read_text().count("\n") == 1, "the one refused call of the page"
