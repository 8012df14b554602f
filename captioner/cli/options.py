"""Options that several verbs share. The options of a caption request are generated from the wire's parameters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captioner import wire
from captioner.artifacts.repository_templates import default_repository
from captioner.artifacts.version_store import KEEP, KEEP_LOADED

if TYPE_CHECKING:
    from captioner.publish.model_control import ModelControl

SERVER = f"127.0.0.1:{wire.GRPC_PORT}"
PRECISIONS = get_args(wire.EncoderPrecision)
INTERNAL_PARAMETERS = ("stream", "describe", "client_id")  # set by the command itself or its client
TABLES, SIDECARS = ("jsonl", "csv"), ("txt", "xmp", "exif")  # values of `caption --to`
LOCAL, IN_PROCESS, RAY = "local", "in-process", "ray"  # values of `caption --engine`


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add `--server`."""
    parser.add_argument(
        "--server",
        default=SERVER,
        metavar="HOST:PORT",
        help="gRPC address of the server; separate several replicas by commas; default %(default)s",
    )


def add_repository(parser: argparse.ArgumentParser) -> None:
    """Add `--repository`."""
    parser.add_argument(
        "--repository", type=Path, default=default_repository(), help="Triton model repository, default %(default)s"
    )


def add_controls(parser: argparse.ArgumentParser) -> None:
    """Add `--repository`, and `--server` and `--no-server` for the servers that serve it."""
    add_repository(parser)
    parser.add_argument(
        "--server",
        action="append",
        metavar="HOST:PORT",
        help="gRPC address of a server on this repository; repeat the option for each replica; "
        f"default {SERVER} if a server answers there",
    )
    parser.add_argument(
        "--no-server", action="store_true", help="change only the folders; the next start of the server uses them"
    )


def controls(arguments: argparse.Namespace) -> list[ModelControl]:
    """Return the servers that the options of `add_controls` name.

    Raises ServerUnreachable if a server that was named explicitly does not answer.
    """
    from captioner.errors import ServerUnreachable
    from captioner.publish.model_control import ModelControl, admin_key

    if arguments.no_server:
        return []
    key = admin_key(arguments.repository)
    servers = [ModelControl(address, key) for address in arguments.server or [SERVER]]
    silent = [server.address for server in servers if not server.is_ready()]
    if silent and arguments.server:
        raise ServerUnreachable(
            f"no server is ready at {', '.join(silent)}; with --no-server only the folders are changed"
        )
    if silent:
        log(f"no server answers at {SERVER}; its next start serves the changed folders")
        return []
    return servers


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of an export."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="precision of the vision encoder, default %(default)s",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="photos for int8 calibration; default: the shipped photos"
    )


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Add `--keep`."""
    text = f"number of versions to keep on disk, at least {KEEP_LOADED}; default %(default)s"
    parser.add_argument("--keep", type=int, default=KEEP, metavar="N", help=text)


def log(text: str) -> None:
    """Print one step of a long command; flush, so that it is shown immediately."""
    print(text, flush=True)


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add `--prompt` and one option for each request parameter of the wire."""
    group = parser.add_argument_group("caption parameters; the model's defaults apply to those left out")
    group.add_argument(
        "--prompt",
        help="exact prompt; replaces style and length. `captioner caption` fills "
        "{filename}, {name} and {tags} (from the .txt beside the image) for each image",
    )
    for parameter in wire.PARAMETERS.values():
        if parameter.name in INTERNAL_PARAMETERS:
            continue
        flag = "--" + parameter.name.replace("_", "-")
        if parameter.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=parameter.doc)
        else:
            group.add_argument(flag, type=parameter.kind, help=f"{parameter.doc} ({parameter.range})")


def parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_parameters` as keyword arguments of the client; None means the server's default."""
    names = [name for name in wire.PARAMETERS if name not in INTERNAL_PARAMETERS]
    return {name: getattr(arguments, name) for name in names} | {"prompt": arguments.prompt}
