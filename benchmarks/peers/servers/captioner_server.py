"""Captioner itself: the embedded server on a published repository, as `captioner up` starts it, without the page."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from captioner.launcher.supervisor import TritonServer

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with tempfile.TemporaryDirectory() as folder:
        options = {"http_port": 0, "grpc_port": int(sys.argv[2]), "metrics_port": 0}
        with TritonServer(Path(sys.argv[1]), log_path=Path(folder) / "server.log", drain_seconds=1, **options):  # type: ignore[arg-type]
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
