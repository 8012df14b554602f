"""The `captioner` command: arguments in, the library does the work, refusals become one line and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from captioner import __version__, wire
from captioner.errors import CaptionerError

ROOT = Path(__file__).parent.parent
SERVER = f"127.0.0.1:{wire.GRPC_PORT}"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all went well, 1 when some images failed, 2 when nothing could be done, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except CaptionerError as error:
        print(error.wire(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """Every verb and its options; the caption's own come from the wire."""
    root = argparse.ArgumentParser(prog="captioner", description="Image captions on your own server.")
    root.add_argument("--version", action="version", version=f"captioner {__version__}")
    verbs = root.add_subparsers(title="verbs", required=True, metavar="VERB")

    up = verbs.add_parser("up", help="start the server and the page on this machine")
    up.set_defaults(run=_up)
    up.add_argument("--repository", type=Path, default=ROOT / "model_repository", help="Triton model repository")
    up.add_argument("--model", help="a folder or Hugging Face id to publish first; default: what is published")
    up.add_argument("--http-port", type=int, default=wire.HTTP_PORT, help="default %(default)s")
    up.add_argument("--grpc-port", type=int, default=wire.GRPC_PORT, help="default %(default)s")
    up.add_argument("--metrics-port", type=int, default=wire.METRICS_PORT, help="default %(default)s")
    up.add_argument("--page-port", type=int, default=wire.PAGE_PORT, help="default %(default)s")

    caption = verbs.add_parser("caption", help="caption image files")
    caption.set_defaults(run=_caption)
    caption.add_argument("files", nargs="+", type=Path, metavar="FILE")
    caption.add_argument("--server", default=SERVER, help="HOST:PORT of gRPC, default %(default)s")
    caption.add_argument("--prompt", help="used as it is, in place of style and length")
    caption.add_argument("--json", action="store_true", help="one JSON object a file, with all details")
    for parameter in wire.PARAMETERS.values():
        if parameter.name in ("stream", "describe"):  # the command's own business
            continue
        flag = "--" + parameter.name.replace("_", "-")
        if parameter.kind is bool:
            caption.add_argument(flag, action=argparse.BooleanOptionalAction, help=parameter.doc)
        else:
            caption.add_argument(flag, type=parameter.kind, help=f"{parameter.doc} ({parameter.range})")

    probe = verbs.add_parser("probe", help="exit 0 if a server captions a tiny picture, for health checks")
    probe.set_defaults(run=_probe)
    probe.add_argument("--server", default=SERVER, help="HOST:PORT of gRPC, default %(default)s")
    probe.add_argument("--timeout-s", type=float, default=10.0, help="default %(default)s")
    return root


def _up(arguments: argparse.Namespace) -> int:
    from captioner.up import up  # the embedded server's packages are an extra

    return up(
        arguments.repository,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        page_port=arguments.page_port,
        model=arguments.model,
    )


def _caption(arguments: argparse.Namespace) -> int:
    from captioner.client import Client

    parameters = {name: getattr(arguments, name, None) for name in wire.PARAMETERS}
    failed = 0
    with Client(arguments.server) as client:
        for path in arguments.files:
            label = f"{path}: " if len(arguments.files) > 1 else ""
            try:
                if arguments.json:
                    caption = client.caption(path, prompt=arguments.prompt, **parameters)
                    line = {"file": str(path), "caption": caption.text, "details": asdict(caption.details)}
                    print(json.dumps(line, ensure_ascii=False))
                    continue
                with client.stream(path, prompt=arguments.prompt, **parameters) as stream:
                    lead = label  # nothing is printed for an image that is refused
                    for piece in stream:
                        print(lead + piece, end="", flush=True)
                        lead = ""
                    print()
            except (CaptionerError, OSError) as error:
                failed += 1
                sentence = error.wire() if isinstance(error, CaptionerError) else f"{error.strerror}"
                print(f"{path}: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _probe(arguments: argparse.Namespace) -> int:
    from captioner.probe import probe

    print(probe(arguments.server, arguments.timeout_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
