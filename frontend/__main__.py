"""`python -m frontend`: serve the page and the HTTP API."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from captioner import wire
from captioner.errors import CaptionerError, StartupRefused
from frontend.options import Options


def main() -> int:
    """Serve until SIGINT or SIGTERM and return 0. On an error, print it and return 2."""
    arguments = _parser().parse_args()
    # uvicorn raises the signal that stopped it again; exiting through SystemExit lets the folder be deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory(prefix="captioner-page-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch  # Gradio reads it at import
        os.environ["MPLCONFIGDIR"] = scratch  # where matplotlib is installed, Gradio imports it, and it writes a cache
        try:
            options, tls = _options(arguments), _tls(arguments)
            from frontend.serve import serve

            serve(arguments.server, options, arguments.port, tls)
        except CaptionerError as error:
            print(error.wire(), file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m frontend",
        description=(
            "Serve Captioner's web page and HTTP API. Without a login and keys, everyone has access. Set them by the "
            "environment variables in brackets, because other users of the machine can see command lines."
        ),
    )
    parser.add_argument(
        "--server",
        default=f"127.0.0.1:{wire.GRPC_PORT}",
        metavar="HOST:PORT,…",
        help="gRPC addresses of the captioner servers; prefix an address with grpcs:// for TLS (default: %(default)s)",
    )
    parser.add_argument("--host", default=Options.host, help="address to listen on (default: %(default)s)")
    port = os.environ.get("AIP_HTTP_PORT") or wire.PAGE_PORT  # Vertex AI's
    parser.add_argument("--port", type=int, default=port, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--root-path",
        default="",
        help="path prefix of a proxy, such as /caption",
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="accept this login for the page and the API [CAPTIONER_AUTH]"
    )
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="accept this key for the API; repeatable [CAPTIONER_API_KEYS, comma-separated]",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="accept the keys in this file, one on each line [CAPTIONER_API_KEY_FILE]",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen on other addresses than loopback although there are no keys and no login",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="accept requests from web pages of this origin, such as https://captions.example.org; repeatable",
    )
    parser.add_argument(
        "--apis",
        metavar="NAME,…",
        default=",".join(Options.apis),
        help="serve these APIs; the page needs captions (default: %(default)s)",
    )
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the served model, for clients that send a fixed one; repeatable",
    )
    parser.add_argument(
        "--image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="allow image URLs of this host, such as *.example.org; repeatable (default: none)",
    )
    parser.add_argument(
        "--max-in-flight",
        type=int,
        default=Options.max_in_flight,
        help="maximum number of concurrent API requests (default: %(default)s)",
    )
    for name, text in (
        ("drain", "when the process stops, give requests in flight this time"),
        ("keep-alive", "close a connection without a request after this time"),
        ("stall", "cut a client that reads nothing of its response for this time"),
    ):
        default = getattr(Options, f"{name.replace('-', '_')}_s")
        parser.add_argument(
            f"--{name}-seconds", type=float, default=default, metavar="S", help=f"{text} (default: %(default)g)"
        )
    parser.add_argument("--mcp", action="store_true", help="serve an MCP tool at /gradio_api/mcp/ (extra: mcp)")
    parser.add_argument("--tls-certificate", metavar="FILE", help="serve HTTPS with this PEM certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM private key of --tls-certificate")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    auth = arguments.auth or os.environ.get("CAPTIONER_AUTH")
    user, _, password = (auth or "").partition(":")
    keys = list(arguments.api_key or [key for key in os.environ.get("CAPTIONER_API_KEYS", "").split(",") if key])
    if file := arguments.api_key_file or os.environ.get("CAPTIONER_API_KEY_FILE"):
        keys += _keys_in(Path(file))
    return Options(
        api_keys=tuple(keys),
        auth=(user, password) if auth else None,
        host=arguments.host,
        insecure=arguments.insecure,
        allow_origins=tuple(arguments.allow_origin),
        apis=tuple(arguments.apis.split(",")),
        vertex_health=os.environ.get("AIP_HEALTH_ROUTE", ""),
        vertex_predict=os.environ.get("AIP_PREDICT_ROUTE", ""),
        aliases=tuple(arguments.alias),
        image_hosts=tuple(arguments.image_host),
        max_in_flight=arguments.max_in_flight,
        mcp=arguments.mcp,
        root_path=arguments.root_path.rstrip("/"),
        drain_s=arguments.drain_seconds,
        keep_alive_s=arguments.keep_alive_seconds,
        stall_s=arguments.stall_seconds,
    )


def _keys_in(file: Path) -> list[str]:
    """Return the keys in a file. Raises StartupRefused if there are none."""
    try:
        keys = file.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupRefused(f"the key file {str(file)!r} cannot be read: {error}") from None
    keys = [key.strip() for key in keys if key.strip()]
    if not keys:
        raise StartupRefused(f"the key file {str(file)!r} holds no key")
    return keys


def _tls(arguments: argparse.Namespace) -> tuple[str, str] | None:
    if bool(arguments.tls_certificate) != bool(arguments.tls_key):
        raise SystemExit("--tls-certificate and --tls-key must be given together")
    return (arguments.tls_certificate, arguments.tls_key) if arguments.tls_key else None


sys.exit(main())
