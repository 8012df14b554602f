"""Triton the usual way: an ensemble of preprocessing and `generate()` in a Python model under the dynamic batcher."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from captioner.launcher.supervisor import TritonServer

REPOSITORY = Path(__file__).parents[1] / "triton"
MODELS = ("preprocess", "generate", "ensemble")


def serve(model: str, port: int) -> None:
    """Serve gRPC at `port` until SIGINT or SIGTERM."""
    os.environ["PEER_MODEL"] = model
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[3])
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        for name in MODELS:
            (repository / name / "1").mkdir(parents=True)
            for path in (REPOSITORY / name).rglob("*"):
                if path.is_file() and path.suffix != ".pyc":
                    (repository / path.relative_to(REPOSITORY)).write_bytes(path.read_bytes())
        log = Path(folder) / "server.log"
        with TritonServer(
            repository, models=MODELS, http_port=0, grpc_port=port, metrics_port=0, log_path=log, drain_seconds=1
        ):
            signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    serve(sys.argv[1], int(sys.argv[2]))
