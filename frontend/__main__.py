"""`python -m frontend`: serves the page and the HTTP API."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

from captioner import wire
from captioner.errors import CaptionerError
from frontend.options import Options


def main() -> int:
    """Reads the options and serves until SIGINT or SIGTERM; 2 after a sentence on what cannot be."""
    arguments = _parser().parse_args()
    # uvicorn raises the signal that ended it once more: this lets the folder be deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="captioner-page-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch  # read when Gradio is imported
        try:
            options = _options(arguments)
            from frontend.serve import serve

            serve(arguments.server, options, arguments.host, arguments.port, _tls(arguments))
        except CaptionerError as error:
            print(error.wire(), file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frontend",
        description="The page and the HTTP API of Captioner. Secrets are better given by the variables in brackets.",
    )
    parser.add_argument(
        "--server",
        default=f"127.0.0.1:{wire.GRPC_PORT}",
        metavar="HOST:PORT,…",
        help="the captioner servers' gRPC doors, grpcs:// in front for TLS (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=wire.PAGE_PORT, help="port to listen at (default: %(default)s)")
    parser.add_argument("--root-path", default="", help="the path under which a proxy shows all this, such as /caption")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="who may use the page and the API [CAPTIONER_AUTH]")
    parser.add_argument(
        "--api-key", action="append", metavar="KEY", help="opens the API; may be repeated [CAPTIONER_API_KEYS, commas]"
    )
    parser.add_argument(
        "--image-host", action="append", default=[], metavar="HOST", help="images may be fetched from there; repeatable"
    )
    parser.add_argument(
        "--max-in-flight", type=int, default=Options.max_in_flight, help="requests held at once (default: %(default)s)"
    )
    parser.add_argument("--mcp", action="store_true", help="a tool for agents at /gradio_api/mcp/ (extra: mcp)")
    parser.add_argument("--tls-certificate", metavar="FILE", help="PEM; with --tls-key, serves HTTPS itself")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    auth = arguments.auth or os.environ.get("CAPTIONER_AUTH")
    user, _, password = (auth or "").partition(":")
    keys = arguments.api_key or [key for key in os.environ.get("CAPTIONER_API_KEYS", "").split(",") if key]
    return Options(
        api_keys=tuple(keys),
        auth=(user, password) if auth else None,
        image_hosts=tuple(arguments.image_host),
        max_in_flight=arguments.max_in_flight,
        mcp=arguments.mcp,
        root_path=arguments.root_path.rstrip("/"),
    )


def _tls(arguments: argparse.Namespace) -> tuple[str, str] | None:
    if bool(arguments.tls_certificate) != bool(arguments.tls_key):
        raise SystemExit("--tls-certificate and --tls-key must come together")
    return (arguments.tls_certificate, arguments.tls_key) if arguments.tls_key else None


sys.exit(main())
