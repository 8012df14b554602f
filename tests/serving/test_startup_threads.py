"""Loading a model leaves no OpenMP threads behind: with more of them than cores, each decode step is slower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny

PROGRAM = """
import os, sys, threading, time, torch
from pathlib import Path
from captioner.engine import runner
from captioner.serving.settings import Settings
from captioner.serving.startup import load_service

def compute(*_):
    torch.randn(500, 500) @ torch.randn(500, 500)

def threads():
    time.sleep(0.3)  # the system forgets a thread some time after it ended
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)  # it keeps threads of another kind
before = threads()
runner.Runner.warm_up = compute
version, settings = Path(sys.argv[1]), Settings(slots=2, decode_threads=4)
service = load_service(version.parent, version.name, None, settings, None, lambda _: None)
names = sorted(thread.name for thread in threading.enumerate())
print("left:", threads() - before - (len(names) - 1), names)
os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists a process's threads")
def test_loading_leaves_no_openmp_threads() -> None:
    version = tiny.published()
    environment = os.environ | {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(version)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip().startswith("left: 0 "), done.stdout + done.stderr[-2000:]
