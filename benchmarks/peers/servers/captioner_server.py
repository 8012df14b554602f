"""Captioner itself: the embedded server on a published repository, as `captioner up` starts it, without the page."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from captioner.launcher.supervisor import TritonServer


def serve(repository: Path, port: int, models: tuple[str, ...] | None = None) -> None:
    """Serve gRPC at `port` until SIGINT or SIGTERM; `models` are Captioner's own by default."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with (
        tempfile.TemporaryDirectory() as folder,
        TritonServer(
            repository,
            models=models,
            http_port=0,
            grpc_port=port,
            metrics_port=0,
            log_path=Path(folder) / "server.log",
            drain_seconds=1,
        ),
    ):
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
