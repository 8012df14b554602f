"""`python -m frontend`: serves the page."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

from captioner import wire


def main() -> None:
    """Reads the options and serves until SIGINT or SIGTERM. Uploads live in a folder of this process and go with it."""
    parser = argparse.ArgumentParser(prog="python -m frontend", description="The page of Captioner.")
    parser.add_argument(
        "--server",
        default=f"127.0.0.1:{wire.GRPC_PORT}",
        metavar="HOST:PORT",
        help="the captioner server's gRPC door (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=wire.PAGE_PORT, help="port to listen at (default: %(default)s)")
    parser.add_argument("--root-path", help="the path under which a proxy shows the page, such as /caption")
    options = parser.parse_args()
    # uvicorn raises the signal that ended it once more: this lets the folder be deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="captioner-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # read when Gradio is imported
        from frontend.app import serve

        serve(options.server, options.host, options.port, options.root_path)


main()
