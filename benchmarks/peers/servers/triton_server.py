"""Triton the usual way: an ensemble of preprocessing and `generate()` in a Python model under the dynamic batcher."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.servers.captioner_server import serve

REPOSITORY = Path(__file__).parents[1] / "triton"
MODELS = ("preprocess", "generate", "ensemble")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(shutil.copytree(REPOSITORY, Path(folder) / "models"))
        (repository / "ensemble" / "1").mkdir(exist_ok=True)  # Triton wants a version, and git keeps no empty folder
        serve(repository, int(sys.argv[2]), MODELS)
